"""Text search: every word, any case, best first, and nothing in the words is SQL or a pattern."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from curation.errors import UserError
from curation.rows import ROWS
from storage.artifacts import Lake
from storage.find import find_rows, row_id_of
from tests.storage.lakes import frame

TEXTS = {
    "aaaa0000": ("I lost my card", "We block the card"),
    "aaaa1111": ("The card was lost near the cardboard", "Sorry"),
    "bbbb2222": ("discards are lost somewhere in this very long text about nothing at all", "ok"),
    "cccc3333": ("ÜBER straße", "50% off_ 'quoted' (a+b)?"),
    "dddd4444": ("nothing here", ""),
}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path)
    rows = [
        {"row_id": i, "source": "s", "prompt": p, "response": r, "origin": "real"}
        for i, (p, r) in TEXTS.items()
    ]
    for kind, fp in (("ingest", "a" * 12), ("base", "b" * 12)):  # the same rows twice
        with lake.draft(kind, "x", fp, {"spec": {}, "parents": []}) as draft:
            draft.write_shard("all", {"rows": frame(ROWS, rows)})
            draft.publish()
    return lake


def ids(found: pl.DataFrame) -> list[str]:
    return found["row_id"].to_list()


def test_every_word_occurs_and_the_best_row_is_first(lake: Lake) -> None:
    assert ids(find_rows(lake, "LOST card")) == ["aaaa0000", "aaaa1111", "bbbb2222"]
    assert ids(find_rows(lake, "card was lost")) == ["aaaa1111"]
    assert ids(find_rows(lake, "lost card", k=1)) == ["aaaa0000"]
    assert find_rows(lake, "lost unicorn").is_empty()
    scores = find_rows(lake, "card was lost")["score"]
    assert scores[0] > 2  # together as typed, and each a word of its own


@pytest.mark.parametrize("text", ["über STRASSE", "50%", "off_", "'quoted'", "(a+b)?", "Über"])
def test_signs_are_only_text(lake: Lake, text: str) -> None:
    found = ids(find_rows(lake, text))
    assert found == ([] if "STRASSE" in text else ["cccc3333"])


@pytest.mark.parametrize("text", ["%", "' or 1=1 --", "\\", "[", "$1", ".*"])
def test_nothing_is_a_pattern_or_sql(lake: Lake, text: str) -> None:
    assert ids(find_rows(lake, text)) == (["cccc3333"] if text == "%" else [])


def test_words_are_folded_as_the_texts_are(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    texts = {"aaaa": "ΟΔΟΣ ΑΘΗΝΑΣ", "bbbb": "Café NFC", "cccc": "İstanbul"}
    rows = [{"row_id": i, "source": "s", "prompt": p, "origin": "real"} for i, p in texts.items()]
    with lake.draft("ingest", "x", "a" * 12, {"spec": {}, "parents": []}) as draft:
        draft.write_shard("all", {"rows": frame(ROWS, rows)})
        draft.publish()
    for text, row_id in (("ΟΔΟΣ", "aaaa"), ("CAFE\u0301", "bbbb"), ("İstanbul", "cccc")):
        assert ids(find_rows(lake, text)) == [row_id]
    assert ids(find_rows(lake, " ".join(f"w{i}" for i in range(100)))) == []
    with pytest.raises(UserError, match="at most 100"):
        find_rows(lake, " ".join(f"w{i}" for i in range(101)))


@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
def test_a_damaged_artifact_hides_no_row_of_another(lake: Lake, how: str) -> None:
    whole = find_rows(lake, "lost card")
    with lake.draft("synthesize", "x", "c" * 12, {"spec": {}, "parents": []}) as draft:
        more = frame(ROWS, [{"row_id": "eeee5555", "source": "s", "prompt": "a lost card", "origin": "real"}])
        draft.write_shard("all", {"rows": more})
        ref = draft.publish()
    path = lake.paths(ref, "rows")[0]
    data = path.read_bytes()
    assert len(find_rows(lake, "lost card")) == len(whole) + 1
    path.unlink()
    if how != "gone":
        path.write_bytes(data[:-9] if how == "cut" else data[:4] + bytes(len(data) - 8) + data[-4:])
    with pytest.warns(UserWarning, match=f"{ref} is damaged"):
        assert find_rows(lake, "lost card").equals(whole)
    with pytest.warns(UserWarning, match=f"{ref} is damaged"):
        assert row_id_of(lake, "bbbb") == "bbbb2222"


def test_an_empty_search_says_what_to_type(lake: Lake) -> None:
    with pytest.raises(UserError, match="gradus find"):
        find_rows(lake, "  ")


def test_a_beginning_names_one_row(lake: Lake) -> None:
    assert row_id_of(lake, "bbbb") == "bbbb2222"
    with pytest.raises(UserError, match="more than one row begins with aaaa"):
        row_id_of(lake, "aaaa")
    with pytest.raises(UserError, match="no row eeee"):
        row_id_of(lake, "eeee")
    for odd in ("'; drop", "%%%%", "abc", "", "ABCD", "x" * 8, "a" * 33):
        with pytest.raises(UserError, match="is no row id"):
            row_id_of(lake, odd)
