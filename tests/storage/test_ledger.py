"""What is only added to: versions, alpha, openings, runs, costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lakes import rows

from curation.errors import DataError, DriftError, UserError
from storage.artifacts import Lake, Ref

REPO = Path(__file__).parents[2]


def add(lake: Lake, n: int, content_fp: str, parent: int | None = None) -> int:
    return lake.publish_dataset("set", rows(n), "base", parent, "publish", '{"p": 0.01}', 10 * n, content_fp)


def test_versions_are_numbered_and_idempotent(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert lake.dataset_versions("set") == []
    assert [add(lake, 3, "one"), add(lake, 4, "two", 1), add(lake, 3, "one"), add(lake, 4, "two", 1)] == [
        1,
        2,
        1,
        2,
    ]
    assert lake.dataset("set", 1).equals(rows(3)) and lake.dataset("set", 2).equals(rows(4))
    second = lake.dataset_versions("set")[1]
    assert {k: second[k] for k in ("version", "parent", "strategy", "rows", "tokens", "decision")} == {
        "version": 2,
        "parent": 1,
        "strategy": "base",
        "rows": 4,
        "tokens": 40,
        "decision": "publish",
    }
    assert lake.manifest(Ref.parse("dataset/set@v2"))["parents"] == ["dataset/set@v1"]
    lake.verify(Ref.parse("dataset/set@v2"))
    assert lake.refs("dataset") == [Ref("dataset", "set", "v1"), Ref("dataset", "set", "v2")]
    assert [path.name for path in (tmp_path / "work" / "dataset").iterdir()] == ["set.lock"]


def test_other_names_do_not_count(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    add(lake, 3, "one")
    assert lake.publish_dataset("set-2", rows(2), "base", None, "publish", "", 1, "one") == 1
    assert lake.publish_dataset("se", rows(2), "base", None, "publish", "", 1, "one") == 1
    assert len(lake.dataset_versions("set")) == 1


def test_wrong_rows_or_parent_publish_nothing(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with pytest.raises(DataError):
        lake.publish_dataset("set", rows(3).drop("label"), "base", None, "publish", "", 1, "one")
    with pytest.raises(UserError, match="set@v1 is not in the lake; versions: none"):
        add(lake, 3, "one", parent=1)
    with pytest.raises(UserError):
        lake.publish_dataset("../set", rows(3), "base", None, "publish", "", 1, "one")
    assert lake.refs() == []


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from lakes import rows
from storage.artifacts import Lake
lake = Lake(sys.argv[1])
for i in range(8):
    lake.publish_dataset("set", rows(3 + i), "base", None, "publish", "", 1, f"content {i}")
    lake.publish_dataset("set", rows(3), "base", None, "publish", "", 1, f"mine {i} {sys.argv[3]}")
"""


def test_concurrent_publishers_share_the_numbers(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent)]
    writers = [subprocess.Popen([*command, str(i)], env=env) for i in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    versions = Lake(tmp_path).dataset_versions("set")
    assert [v["version"] for v in versions] == list(range(1, 8 + 3 * 8 + 1))
    assert len({v["content_fp"] for v in versions}) == len(versions)


def test_candidate(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    add(lake, 3, "one")
    ref = lake.publish_candidate("set", rows(5), "errors_first", 1, "e", 50, "content")
    assert ref == lake.publish_candidate("set", rows(5), "errors_first", 1, "e", 50, "content")
    assert ref.kind == "candidate" and lake.read(ref, "rows").equals(rows(5))


def test_alpha_is_spent_once_a_key(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert lake.spend_alpha("set", "judge", 0, 1, 0.05, "run/1")
    assert not lake.spend_alpha("set", "judge", 0, 1, 0.05, "run/1")
    assert lake.spend_alpha("set", "judge", 0, 2, 0.025, "run/2")
    assert lake.spend_alpha("other", "judge", 0, 1, 0.05, "run/1")
    with pytest.raises(DriftError, match="the first stays"):
        lake.spend_alpha("set", "judge", 0, 1, 0.04, "run/1")
    assert [(e["round"], e["alpha"]) for e in lake.alpha_spent("set")] == [(1, 0.05), (2, 0.025)]
    assert len(lake.alpha_spent()) == 3


def test_sealed_suite_opens_once(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert lake.open_sealed("set@v2", "hash", "run-1")
    before = lake.openings()
    assert not lake.open_sealed("set@v2", "hash", "run-1")
    with pytest.raises(UserError, match=r"was opened for set@v2 at .* by run-1"):
        lake.open_sealed("set@v2", "hash", "run-2")
    assert lake.openings() == before
    assert lake.open_sealed("set@v3", "hash", "run-2") and lake.open_sealed("set@v2", "other", "run-2")


def test_runs_are_replaced_and_costs_added(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.save_run("z/1", {"started": "2026-01-01T00:00:00", "state": "running"})
    lake.save_run("a", {"started": "2026-01-02T00:00:00", "artifacts": {"ingest": "ingest/x@0123456789ab"}})
    lake.save_run("z/1", {"started": "2026-01-01T00:00:00", "state": "done"})
    assert [(run["run"], run.get("state")) for run in lake.runs()] == [("z/1", "done"), ("a", None)]
    for i in range(20):
        lake.add_cost("z/1", {"stage": "score", "round": i, "seconds": 0.5})
    lake.add_cost("a", {"stage": "ingest"})
    assert [cost["round"] for cost in lake.costs("z/1")] == list(range(20))
    assert len(lake.costs()) == 21 and lake.costs("none") == []


def test_unfinished_files_are_not_entries(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.save_run("a", {})
    (tmp_path / "runs" / ".b.json.1.dead.tmp").write_bytes(b"{")
    assert len(lake.runs()) == 1
    assert lake.save_report("a.html", b"<p>").read_bytes() == b"<p>"
