"""Near-duplicates against brute force, and which of them may go."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.ingest.deduplicate import deduplicate
from curation.ingest.near import near_twins
from curation.rows import ROWS


def make_rows(*rows: tuple, world: int = 0) -> pl.DataFrame:
    """ROWS named r0, r1, ... from (prompt, response, label) or (prompt, response, label, world)."""
    full = [
        (
            f"r{i}",
            r[3] if len(r) > 3 else world,
            "s",
            "train",
            r[0],
            r[1],
            r[2],
            "real",
            [],
            None,
            len(r[0] + r[1]),
            "{}",
        )
        for i, r in enumerate(rows)
    ]
    return pl.DataFrame(full, schema=ROWS, orient="row")


def brute(texts: list[str], groups: list[int], threshold: float) -> dict[int, tuple[int, float]]:
    sets = [{t.ljust(5, "\0")[i : i + 5] for i in range(max(1, len(t) - 4))} for t in texts]
    found: dict[int, tuple[int, float]] = {}
    for i in range(len(texts)):
        for j in range(i):
            value = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
            if j not in found and groups[i] == groups[j] and value >= threshold:
                found[i] = (j, value)
                break
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab", max_size=14), st.integers(0, 1)), max_size=14),
    st.sampled_from([0.5, 0.8, 0.95]),
)
def test_near_twins_are_those_of_brute_force(pairs, threshold):
    texts, groups = [t for t, _ in pairs], [g for _, g in pairs]
    assert near_twins(texts, groups, threshold) == brute(texts, groups, threshold)


def test_near_twins_of_edited_sentences_are_those_of_brute_force():
    draw = np.random.default_rng(3)
    words = ["".join(draw.choice(list("abcdefgh"), 5)) for _ in range(60)]
    texts = [" ".join(draw.choice(words, 12)) for _ in range(80)]
    texts += [t[:k] + "x" + t[k:] for t, k in zip(texts, draw.integers(0, 60, 80), strict=True)]
    found = near_twins(texts, [0] * len(texts), 0.8)
    assert found == brute(texts, [0] * len(texts), 0.8)
    assert len(found) == 80


LONG = "the quick brown fox jumps over the lazy dog near the river bank at noon"


def reasons(rows: pl.DataFrame, threshold: float = 0.8) -> dict[str, tuple[str, str]]:
    ledger = deduplicate(rows, threshold)
    assert ledger["row_id"].is_unique().all()
    assert not set(ledger["twin"]) & set(ledger["row_id"])
    return {
        row: (reason, twin) for row, reason, twin in ledger.select("row_id", "reason", "twin").iter_rows()
    }


def test_equal_and_near_rows_go_and_counterfactuals_stay():
    rows = make_rows(
        (LONG, "yes", None),
        (LONG.upper() + "!", "Yes.", None),
        (LONG + "s", "yes", None),
        (LONG, "no", None),
        (LONG, "", "a"),
        (LONG + "s", "", "b"),
        ("", LONG, None),
        ("", LONG + " ", None),
        ("", LONG + "s", None),
        (LONG, "yes", None, 1),
    )
    assert reasons(rows) == {
        "r1": ("duplicate_normalized", "r0"),
        "r2": ("near_duplicate", "r0"),
        "r7": ("duplicate_normalized", "r6"),
        "r8": ("near_duplicate", "r6"),
    }
    assert set(reasons(rows, 1.0)) == {"r1", "r7"}


def test_the_near_line_holds_jaccard_and_threshold():
    line = deduplicate(make_rows(("abcdefghij", "x", None), ("abcdefghijk", "x", None)), 0.8).row(
        0, named=True
    )
    assert (line["reason"], line["value"], line["threshold"]) == ("near_duplicate", pytest.approx(6 / 7), 0.8)
    assert (line["stage"], line["round"], line["decision"], line["twin"]) == ("ingest", 0, "drop", "r0")


def test_chains_end_at_a_kept_row():
    words = LONG.split()
    a, b, c = " ".join(words), " ".join([*words[1:], "zz"]), " ".join([*words[2:], "zz", "yy"])
    found = reasons(make_rows((a, "x", None), (b, "x", None), (b + ".", "x", None), (c, "x", None)))
    assert found == {"r1": ("near_duplicate", "r0"), "r2": ("duplicate_normalized", "r0")}


def test_commands_with_other_answers_stay():
    commands = [
        f"{verb} {side} {n} and {other}"
        for verb in ("walk", "jump")
        for side in ("left", "right")
        for n in ("twice", "thrice")
        for other in ("look", "run")
    ]
    assert reasons(make_rows(*((c, c.upper().replace(" ", "_"), None) for c in commands))) == {}


def test_empty():
    assert deduplicate(make_rows(), 0.8).height == 0
