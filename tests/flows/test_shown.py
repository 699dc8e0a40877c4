"""Artifacts: hostile text is shown as text, long text is cut, missing numbers are no error."""

from __future__ import annotations

import json
import math
import re

import pytest

from flows.shown import chart, finite, key_of, round_page, safe_markdown, tracked
from flows.window import SECTIONS, STAGES
from tests.hostile import HOSTILE

LIVE = re.compile(
    r"[!-/:-@\[-`{-~\n\r\x00-\x1f\x7f-\x9f\u202a-\u202e]"
)  # ASCII punctuation, controls, directions


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_of_a_hostile_text_is_markup(text):
    shown = safe_markdown(text).split(" … (cut")[0]
    assert not LIVE.search(re.sub(r"\\[!-/:-@\[-`{-~]", "", shown)), shown
    assert not re.search(r"(?i)https?:/|www\.|@\w", shown.replace("\\", "")), shown
    assert shown == shown.strip()


def test_a_megabyte_is_cut_and_says_so():
    shown = safe_markdown("<b>" * 350_000)
    assert len(shown) < 4000 and shown.endswith("(cut, 1,050,000 characters)")


def test_lone_surrogates_can_be_sent():
    safe_markdown("a\ud800b").encode()


def test_a_chart_has_no_bar_for_what_is_missing():
    page = chart([("a|b", 2.0), ("nothing", None), ("nan", math.nan), ("minus", -1.0), ("zero", 0.0)])
    lines = page.splitlines()[2:]
    assert lines[0].startswith("| a\\|b | 2 | ████") and lines[1] == "| nothing | – |  |"
    assert lines[2] == "| nan | – |  |" and "█" in lines[3] and "█" not in lines[4]
    assert "and 88 more" in chart([(str(i), 1.0) for i in range(100)])


def test_a_round_page_survives_missing_numbers_and_hostile_reasons():
    line = {"arm": "candidate", "control": "random", "suite": "ood_mean", "metric": "accuracy"}
    line |= {"diff": None, "low": None, "high": math.nan, "p": math.nan, "n": 1}
    decision = {
        "round": 1,
        "decision": "keep",
        "reason": "[x](javascript:alert(1))<img>",
        "strategy": "random",
    }
    page = round_page(decision | {"alpha": 0.0, "p": None}, [line], "accuracy")
    assert "| random | ood | – | – to – | – | 1 |" in page
    bare = re.sub(r"\\.", "", page)
    assert "javascript:" not in bare and "<" not in bare and "](" not in bare


def test_tables_hold_no_nan():
    assert json.dumps(finite([{"a": math.nan, "b": math.inf, "c": 1, "d": "x"}]), allow_nan=False)


def test_keys_are_what_prefect_takes():
    assert key_of("My_Corpus", "next_base") == "my-corpus-next-base"


def test_every_stage_has_its_sections():
    assert list(SECTIONS) == list(STAGES)


def test_progress_that_cannot_be_shown_does_not_stop_the_work(monkeypatch):
    monkeypatch.setattr("flows.shown.SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr("flows.shown._progress", lambda *_: 1 / 0)
    assert list(tracked()(iter("abc"), "score", 3)) == ["a", "b", "c"]
