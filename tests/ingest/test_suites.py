"""Suites: stable ids, whole clusters on one side, and what is held out of a pool."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.ingest.holdout import hold_out
from curation.ingest.parse import Parsed
from curation.ingest.suites import build_suite_items, from_rows, overlap, parse_suite
from curation.rows import check
from curation.specs import FieldMap
from tests.ingest.test_near import make_rows


def item(prompt: str, label: str = "a", cluster: str | None = None) -> Parsed:
    return Parsed(prompt, "", label, cluster, "{}")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("ab ", min_size=1, max_size=9), st.sampled_from("xyz"), st.sampled_from("123"))
    ),
    st.randoms(),
)
def test_items_do_not_depend_on_the_order(parts, shuffle):
    parsed = [item(*part) for part in parts]
    first = check("suite_items", build_suite_items("s", parsed, "ood", "steer+judge", 7))
    shuffle.shuffle(parsed)
    assert first.equals(build_suite_items("s", parsed, "ood", "steer+judge", 7))
    assert first["item_id"].is_unique().all()
    assert first.group_by("cluster").agg(pl.col("use").n_unique())["use"].max() in (1, None)


def test_halves_are_halves_and_the_seed_matters():
    parsed = [item(f"question number {i} about {i * i}", cluster=f"c{i // 3}") for i in range(60)]
    one, two = (build_suite_items("s", parsed, "ood", "steer+judge", seed) for seed in (1, 2))
    assert sorted(one["use"].value_counts()["count"]) == [30, 30]
    assert one["suite_hash"].n_unique() == 1
    assert not one["use"].equals(two["use"]) and one["item_id"].equals(two["item_id"])


def test_duplicates_go_and_near_duplicates_are_one_cluster():
    text = "a rather long question about the weather in the north of the country"
    parsed = [item(text), item(text.upper()), item(text + "s"), item("something else"), item(" \u200b")]
    items = build_suite_items("s", parsed, "id", "judge", 1)
    assert items.height == 3 and items["cluster"].n_unique() == 2
    more = build_suite_items("s", [*parsed, item("new")], "id", "judge", 1)
    assert set(items["item_id"]) < set(more["item_id"])
    assert items["suite_hash"][0] != more["suite_hash"][0]


def test_parse_suite_counts_what_it_refuses():
    items = [(0, {"text": "t", "label": 1, "g": "c"}, None), (1, None, "blank"), (2, {}, None)]
    assert parse_suite(items, FieldMap(cluster="g")) == (
        [item("t", "1", "c")],
        {"blank": 1, "missing_field": 1},
    )


def test_overlap():
    rows = make_rows(("One two", "", "a"), ("three", "", "b"))
    items = build_suite_items(
        "s", [item("one TWO!"), item("four"), item("three", "z"), item("five")], "id", "judge", 1
    )
    assert overlap(items, rows) == {"s": 0.5}


def pool(n: int = 120) -> pl.DataFrame:
    topics = ["cat fur paw", "ship sea sail", "tax money bill", "song note choir"]
    draw = np.random.default_rng(0)
    return make_rows(
        *(
            (f"{' '.join(draw.permutation(topics[i % 4].split()))} {draw.integers(9)}", "", "ab"[i // 4 % 2])
            for i in range(n)
        ),
        ("rare one", "", "rare"),
    )


def test_hold_out():
    rows = pool()
    for by in ("clusters", "rows"):
        mask = hold_out(rows, 0.3, by, 5)
        held = rows.filter(mask)
        assert held.group_by("label").len().filter(pl.col("len") > 18).height == 0
        assert held.height >= 18 and "rare" not in held["label"]
        back = hold_out(rows.reverse(), 0.3, by, 5)
        assert (back[::-1] == mask).all()
        assert not (hold_out(rows, 0.3, by, 6) == mask).all()
    assert hold_out(rows, 0.3, "rows", 5).sum() == 36
    assert len(from_rows(rows)) == rows.height


def test_clusters_are_whole():
    rows = make_rows(*((f"{t} {t} {t}", "", "a") for t in ["cat", "sea", "tax", "song"] for _ in range(10)))
    held = rows.filter(hold_out(rows, 0.3, "clusters", 1))
    assert held.group_by("prompt").len()["len"].to_list() == [10]
