"""The page that a lake opens with: any number of runs in any state, and every version."""

from __future__ import annotations

import time
from pathlib import Path

from flows.report.index import write_index
from flows.report.page import write_report
from storage.artifacts import Lake
from tests.flows.test_report import Tags
from tests.made_run import Maker


def test_an_empty_lake_says_how_to_begin(tmp_path: Path) -> None:
    page = write_index(Lake(tmp_path))
    seen = Tags(page.read_text())
    seen.harmless()
    assert page == tmp_path / "reports" / "index.html" and "Nothing ran here yet" in seen.text


def test_runs_and_versions_are_listed_with_what_was_decided(tmp_path: Path) -> None:
    maker = Maker(tmp_path, texts=("plain",)).whole()
    maker.lake.save_run("run1", maker.record(version=1))
    maker.lake.save_run(
        "later",
        maker.record(state="failed", error="DataError: x", steps=[], started="2027-01-01T00:00:00+00:00"),
    )
    write_report(maker.lake, maker.record(version=1))
    seen = Tags(write_index(maker.lake).read_text())
    seen.harmless()
    assert ("href", "run1.html") in seen.attributes and ("href", "later.html") not in seen.attributes
    assert seen.text.index("1 January 2027") < seen.text.index("2 January 2026"), "newest first"
    assert "failed" in seen.text and "DataError: x" in seen.text and "gradus report later" in seen.text
    assert "Round 1 published a new version (plain)" in seen.text
    assert "over untargeted; n = 6, p .01" in seen.text
    assert ["v1", "24", "9", "base", "plain", "–", "run1"] in seen.rows


def test_a_decision_that_is_gone_is_said_in_place(tmp_path: Path) -> None:
    maker = Maker(tmp_path).whole()
    maker.lake.save_run("run1", maker.record(version=1))
    for path in tmp_path.glob("artifacts/decide/*/manifest.json"):
        path.unlink()
    assert "Round 1 is not in the lake any more" in Tags(write_index(maker.lake).read_text()).text


def test_five_hundred_runs(tmp_path: Path) -> None:
    maker = Maker(tmp_path).whole()
    for i in range(500):
        maker.lake.save_run(f"run{i}", maker.record(version=1))
    begun = time.process_time()
    page = write_index(maker.lake).read_text()
    assert time.process_time() - begun < 5 and len(page) < 2_000_000
    assert "500 runs, newest first" in Tags(page).text


def test_a_half_deleted_version_stays_and_no_older_one_takes_its_place(tmp_path: Path) -> None:
    maker = Maker(tmp_path).whole()
    rows = maker.lake.dataset("tiny", 1).head(3)
    maker.lake.publish_dataset("tiny", rows, "plain", 1, "publish", "x", 3, "other")
    (tmp_path / "datasets" / "tiny@v2" / "manifest.json").unlink()
    text = Tags(write_index(maker.lake).read_text()).text
    assert "v2, the newest, was half deleted" in text and "is at v1" not in text
    assert "it has no manifest.json" in text
