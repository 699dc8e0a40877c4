"""`gradus gc` at the command line: nothing goes unasked, what went is told and explained, runs in progress are safe."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.gc import in_progress
from storage.artifacts import Lake, Ref
from tests.storage.lakes import rows


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A version, and an old run's artifact that it does not need."""
    lake = Lake(tmp_path / "lake")
    pool, other = (_made(lake, kind) for kind in ("ingest", "train"))
    lake.publish_dataset("d", rows(3), "s", None, "base", str(pool), 9, "content")
    step = {"stage": "train", "round": 1, "phase": "", "artifact": str(other), "reused": False}
    facts = {"recipe": "d", "state": "failed", "seconds": 1.0, "steps": [step], "recipe_spec": {}}
    lake.save_run("lost", {**facts, "started": "2020-01-01T00:00:00+00:00"})
    return lake


def _made(lake: Lake, kind: str) -> Ref:
    with lake.draft(kind, "d", "ab" * 6, {"parents": []}) as draft:
        draft.write_shard("all", {"rows": rows(3)})
        return draft.publish()


def gc(lake: Lake, *options: str) -> str:
    done = CliRunner().invoke(app, ["gc", "--lake", str(lake.root), *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_nothing_goes_unasked(lake):
    told = gc(lake, "--keep-days", "0")
    assert "train/d@abababababab" in told and "lost (failed)" in told and "add --yes" in told
    assert "ingest" not in told and len(lake.refs()) == 3 and not (lake.root / "gc").exists()


def test_the_young_stay_by_default(lake):
    assert "nothing to remove" in gc(lake) and "nothing to remove" in gc(lake, "--yes")
    assert len(lake.refs()) == 3


def test_what_went_is_told_and_lineage_says_when(lake):
    facts = json.loads(gc(lake, "--keep-days", "0", "--yes", "--json"))
    assert [one["artifact"] for one in facts["found"]] == ["train/d@abababababab"]
    assert facts["removed"] and facts["bytes_freed"] == facts["bytes"] > 0
    assert len(lake.refs()) == 2 and lake.dataset("d", 1).height == 3
    tree = CliRunner().invoke(app, ["lineage", "train/d@abababababab", "--lake", str(lake.root), "--json"])
    assert "gradus gc` removed it on 20" in str(tree.exception)
    entry = json.loads(next((lake.root / "gc").iterdir()).read_text())
    assert entry["removed"][0]["run"] == "lost" and entry["keep_days"] == 0
    assert "nothing to remove" in gc(lake, "--keep-days", "0", "--yes")


def test_the_catalog_shows_what_is_left(lake):
    count = [
        "sql",
        "select count(*) as n from artifacts where kind = 'train'",
        "--json",
        "--lake",
        str(lake.root),
    ]
    assert json.loads(CliRunner().invoke(app, count).output) == [{"n": 1}]
    gc(lake, "--keep-days", "0", "--yes")
    assert json.loads(CliRunner().invoke(app, count).output) == [{"n": 0}]


def test_a_run_is_in_progress_while_its_process_lives_or_its_machine_was_heard_of():
    def run(host: str, pid: int, days: float = 0, state: str = "running") -> dict:
        started = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        return {"state": state, "host": host, "pid": pid, "started": started, "seconds": 1.0}

    here, gone = platform.node(), 2**22 + 1
    assert in_progress(run(here, os.getpid(), days=90)) and in_progress(run("elsewhere", gone, days=6))
    assert not in_progress(run(here, gone)) and not in_progress(run("elsewhere", gone, days=8))
    assert not in_progress(run(here, os.getpid(), state="completed"))
