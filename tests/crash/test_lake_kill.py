"""kill -9 at random moments: nothing half published, and the rerun gives the bytes of an undisturbed lake."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from storage.artifacts import Lake
from storage.catalog import query

KILLS = 15
WRITER = Path(__file__).with_name("lake_writer.py")
ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def start(root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(WRITER), str(root)], env=ENV)


def finish(root: Path) -> None:
    assert start(root).wait(60) == 0


def kill_while_writing(root: Path, delay_seconds: float) -> None:
    """Kills a writer `delay_seconds` after it touched the lake for the first time."""
    writer = start(root)
    lock_seen = time.monotonic() + 30
    before = _changes(root)
    while writer.poll() is None and _changes(root) == before and time.monotonic() < lock_seen:
        time.sleep(0.002)
    time.sleep(delay_seconds)
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)


def _changes(root: Path) -> int:
    folders = [root, *root.glob("work/*"), *root.glob("runs")]
    return max((path.stat().st_mtime_ns for path in folders if path.exists()), default=0)


def published(root: Path) -> dict[str, bytes]:
    kinds = ("artifacts", "datasets", "alpha")
    paths = [path for kind in kinds for path in (root / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.suffix != ".tmp"}


def nothing_is_half_published(root: Path) -> None:
    if not (root / "lake.json").exists():
        return
    lake = Lake(root, create=False)
    folders = [path for path in (*root.glob("artifacts/*/*"), *root.glob("datasets/*")) if path.is_dir()]
    assert len(lake.refs()) == len(folders)
    for ref in lake.refs():
        lake.verify(ref)
        assert lake.read(ref, "rows").height in (300, 1800)
    for path in (p for kind in ("runs", "alpha", "openings") for p in (root / kind).rglob("[!.]*.json")):
        json.loads(path.read_bytes())
    assert query(lake, "select count(*) from rows").item() % 1800 == 0


def test_kill_at_random_moments(tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    began = time.monotonic()
    finish(calm)
    usual_seconds = time.monotonic() - began
    luck, stopped = random.Random(20), 0
    for number in range(KILLS // 5):
        hurt = tmp_path / f"hurt-{number}"
        for _ in range(5):
            kill_while_writing(hurt, luck.uniform(0, 0.25 * usual_seconds))
            nothing_is_half_published(hurt)
            stopped += len(published(hurt)) < len(published(calm))
        finish(hurt)
        if number == 0:
            finish(hurt)  # and once more: nothing to do, nothing changes
        assert published(hurt) == published(calm)
        assert not [path for path in (hurt / "work").rglob("*") if path.is_file() and path.suffix != ".lock"]
        assert query(Lake(hurt), "select count(*) from rows").item() == 3 * 1800
    assert stopped >= KILLS // 3, "the kills came too late to disturb anything"
