"""Test text that must not train, and text that only looks like it."""

from __future__ import annotations

import polars as pl

from curation.ingest.decontaminate import decontaminate
from curation.ingest.grams import first_shared, index_grams
from curation.ingest.parse import Parsed
from curation.ingest.suites import build_suite_items
from tests.ingest.test_near import make_rows

ITEM = "one two three four five six seven eight nine ten eleven twelve"
SHORT = "how high is my credit limit"
TINY = "say hello"


def suite(*prompts: str, use: str = "judge", name: str = "s", world: int = 0) -> pl.DataFrame:
    return build_suite_items(
        name, [Parsed(p, "answer", None, None, "{}") for p in prompts], "ood", use, 1, world
    )


def lines(rows: pl.DataFrame, items: pl.DataFrame, near: float = 1.0) -> dict[str, tuple[str, float]]:
    ledger = decontaminate(rows, items, 10, near)
    return {
        row: (reason, value) for row, reason, value in ledger.select("row_id", "reason", "value").iter_rows()
    }


def test_exact_ngram_and_short_items():
    words = ITEM.split()
    rows = make_rows(
        (ITEM.upper() + "!", "other", None),
        ("so " + " ".join(words[1:11]) + " there", "x", None),
        (" ".join(words[:9]) + " no " + " ".join(words[9:]), "x", None),
        ("please tell me, " + SHORT + "?", "x", None),
        (SHORT[:-6], "x", None),
        (TINY + " to all of them", "x", None),
        ("Say hello!", "x", None),
        ("", f"prefix {ITEM} suffix", None),
        (ITEM, "other", None, 1),
    )
    assert lines(rows, suite(ITEM, SHORT, TINY)) == {
        "r0": ("contaminated_exact", 1.0),
        "r1": ("contaminated_ngram", 10.0),
        "r3": ("contaminated_ngram", 6.0),
        "r6": ("contaminated_exact", 1.0),
        "r7": ("contaminated_ngram", 10.0),
    }


def test_twins_name_the_item_but_never_of_a_sealed_suite():
    rows = make_rows((ITEM, "x", None))
    judged, sealed = suite(ITEM), suite(ITEM, use="sealed")
    assert decontaminate(rows, judged, 10)["twin"].item() == f"s/{judged['item_id'].item()}"
    assert decontaminate(rows, sealed, 10)["twin"].item() == f"sealed:{sealed['suite_hash'].item()}"


def test_near_duplicates_need_the_same_answer():
    near = ITEM.replace("twelve", "twelves")[4:]
    rows = make_rows(
        (near.replace("seven", "sevens"), "Answer.", None), (near.replace("seven", "sevens"), "no", None)
    )
    assert {k: v[0] for k, v in lines(rows, suite(ITEM), 0.7).items()} == {"r0": "contaminated_near"}
    assert lines(rows, suite(ITEM), 1.0) == {}


def test_a_template_contaminates_nothing_but_its_items_do():
    template = "read the text below with care and then answer the question that follows about"
    items = suite(*(f"{template} {animal}" for animal in ("cats", "dogs", "cows", "birds")))
    rows = make_rows((f"{template} ships", "x", None), (f"well {template} birds now", "x", None))
    assert set(lines(rows, items)) == {"r1"}


def test_items_of_shared_runs_only_are_found_whole():
    a, b = "a b c d e f g h i j k l", "m n o p q r s t u v w x"
    texts = [f"{a} {a}", f"{b} {b}", f"{b} {a}", f"{a} {b}", f"{a} {b} {a} {b}", f"{b} {a} {b} {a}"]
    index = index_grams(texts, 10)
    for i, text in enumerate(texts):
        assert i in first_shared(index, [f"so {t} there" for t in texts]), text
    assert first_shared(index, [a, b]) == {}


def test_order_of_items_and_rows_does_not_matter():
    rows = make_rows((ITEM, "x", None), (SHORT, "x", None))
    items = suite(ITEM, SHORT, TINY)
    there = decontaminate(rows, items, 10).sort("row_id")
    back = decontaminate(rows.reverse(), items.reverse(), 10).sort("row_id")
    assert there.equals(back)


def test_empty():
    assert decontaminate(make_rows(), suite(ITEM), 10).height == 0
    assert decontaminate(make_rows((ITEM, "x", None)), suite(ITEM).clear(), 10).height == 0
