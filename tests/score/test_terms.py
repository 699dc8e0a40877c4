"""The words that set regions apart."""

from __future__ import annotations

import numpy as np
import pytest

from curation.score import terms
from curation.score.terms import distinctive_terms

TEXTS = ["set the lamp", "set the door", "fill the lamp", "fill the cup", "fill the door"]
REGION = np.array([0, 0, 1, 1, 1])


def test_the_words_of_a_region_come_first_and_common_ones_never() -> None:
    found = distinctive_terms(TEXTS, REGION)
    assert {r: t.split()[0] for r, t in found.items()} == {0: "set", 1: "fill"}
    assert all("the" not in t.split() for t in found.values())
    assert distinctive_terms(TEXTS, np.zeros(5, int)) == {0: ""}  # nothing sets all apart from all
    assert {len(t.split()) for t in distinctive_terms(TEXTS, REGION, terms=1).values()} == {1}
    assert distinctive_terms([], np.zeros(0, int)) == {}
    assert distinctive_terms(["...", "!"], np.array([3, 4])) == {3: "", 4: ""}


def test_the_weight_is_that_of_the_formula() -> None:
    def weight(inside: int, size: int, everywhere: int) -> float:
        return inside / size * np.log((inside + 0.5) / (size + 1) / ((everywhere + 0.5) / 6))

    named = {
        "fill": weight(3, 3, 3),
        "cup": weight(1, 3, 1),
        "lamp": weight(1, 3, 2),
        "door": weight(1, 3, 2),
    }
    expected = [w for w in sorted(named, key=lambda w: (-named[w], w)) if named[w] > 0]
    assert distinctive_terms(TEXTS, REGION)[1].split() == expected


def test_rows_of_no_region_count_nowhere() -> None:
    more = [*TEXTS, "set set set", "fill"]
    assert distinctive_terms(more, np.append(REGION, [-1, -1])) == distinctive_terms(TEXTS, REGION)


def test_words_are_unicode_and_whatever_else_a_text_holds_stays_behind() -> None:
    texts = [
        "Größe <script>alert(1)</script>",
        "हिन्दी में लिखो\x1b[31m",
        "'; drop table rows; --\x00",
        "plain " + "x" * 5000,
    ]
    found = distinctive_terms(texts, np.arange(4), terms=8)
    assert set(found[0].split()) == {"größe", "script", "alert", "1"}
    assert set(found[1].split()) == {"हिन्दी", "में", "लिखो", "31m"}
    assert set(found[2].split()) == {"drop", "table", "rows"}
    assert found[3] == "plain"  # what is no word for a person is none here


def test_regions_of_like_words_get_different_names() -> None:
    common = "alpha beta gamma delta"
    texts = [f"{common} left", f"{common} left", f"{common} right", f"{common} right", *["other"] * 20]
    region = np.array([0, 0, 1, 1, *[2] * 20])
    for count in (1, 2, 4):
        found = distinctive_terms(texts, region, terms=count)
        assert found[0] != found[1]
    alike = distinctive_terms(["a b"] * 2 + ["c"] * 5, np.array([0, 1, *[2] * 5]))
    assert alike[0] == alike[1] == "a b"  # when nothing tells them apart


def test_blocks_and_merging_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.Generator(np.random.Philox(1))
    texts = [" ".join(f"w{w}" for w in rng.integers(60, size=8)) for _ in range(300)]
    region = rng.integers(-1, 7, size=300)
    whole = distinctive_terms(texts, region)
    monkeypatch.setattr(terms, "BLOCK_TEXTS", 7)
    monkeypatch.setattr(terms, "MOST_PAIRS", 50)
    assert distinctive_terms(texts, region) == whole
