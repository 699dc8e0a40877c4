"""A power cut: what is in its place has been written to the disk before, and so has its name; no kill can test this."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import Lake, fingerprint
from tests.storage.lakes import rows

PLACES = ("artifacts", "datasets", "alpha", "openings", "runs", "costs", "reports")
FP = fingerprint("ingest", "1", {}, [])
FP2 = fingerprint("ingest", "2", {}, [])


class Disk:
    """What a power cut would leave: times of the last fsync of every file and folder, and of every new name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        self.synced: dict[int, int] = {}
        self.named: dict[Path, int] = {}
        self.torn: list[str] = []
        fsync = os.fsync

        def recorded(descriptor: int) -> None:
            fsync(descriptor)
            self.synced[os.fstat(descriptor).st_ino] = time.time_ns()
            time.sleep(0.005)  # the clock of file times is that coarse

        monkeypatch.setattr(os, "fsync", recorded)
        for name in ("rename", "replace", "link"):
            monkeypatch.setattr(os, name, self._placing(getattr(os, name)))
        monkeypatch.setattr(os, "mkdir", self._making(os.mkdir))

    def _placing(self, real: Callable[..., None]) -> Callable[..., None]:
        def place(source: Path, target: Path, **more: Any) -> None:
            source, target = Path(source), Path(target)
            inside = list(source.rglob("*")) if source.is_dir() else []
            self.torn += [f"{target.name}: {p}" for p in (source, *inside) if not self._written(p)]
            real(source, target, **more)
            self.named[target] = time.time_ns()

        return place

    def _making(self, real: Callable[..., None]) -> Callable[..., None]:
        def make(path: Path, *more: Any) -> None:
            real(path, *more)
            self.named[Path(path)] = time.time_ns()

        return make

    def _written(self, path: Path) -> bool:
        facts = path.stat()
        return self.synced.get(facts.st_ino, 0) >= facts.st_mtime_ns

    def forgotten(self) -> list[str]:
        """Names of what is published, or of a folder above it, that a power cut now would take away."""
        named = {p: at for p, at in self.named.items() if self.root in p.parents and p.exists()}
        parts = {p: p.relative_to(self.root).parts for p in named}
        kept = [p for p in named if parts[p][0] in (*PLACES, "lake.json")]
        names = {name for path in kept for name in (path, *path.parents) if name in named}
        lost = [p for p in names if self.synced.get(p.parent.stat().st_ino, 0) < named[p]]
        return sorted(p.relative_to(self.root).as_posix() for p in lost)


def steps(root: Path) -> dict[str, Callable[[], Any]]:
    """Every way in which something is published or booked."""
    lake = Lake(root)

    def publish(fp: str, adopted: bool) -> None:
        with lake.draft("ingest", "x", fp, {}) as draft:
            if adopted:
                assert draft.adopt(["a"], "rows") == 1
            else:
                draft.write_shard("a", {"rows": rows(3)})
                draft.write_shard("b", {"rows": rows(3, 3)}, {"b.bin": b"b"})
            draft.publish()

    return {
        "an artifact": lambda: publish(FP, False),
        "an artifact of adopted shards": lambda: publish(FP2, True),
        "a version": lambda: lake.publish_dataset("x", rows(3), "base", None, "base", "", 9, "c"),
        "another": lambda: lake.publish_dataset("x", rows(4), "won", 1, "publish", "", 9, "d"),
        "a candidate": lambda: lake.publish_candidate("x", rows(2), "lost", 1, "", 9, "e"),
        "alpha": lambda: lake.spend_alpha("x", "judge", 0, 1, 0.05, "k"),
        "an opening": lambda: lake.open_sealed("x", "hash", "k"),
        "a record": lambda: lake.save_run("r", {"state": "running"}),
        "the record again": lambda: lake.save_run("r", {"state": "completed"}),
        "a cost": lambda: lake.add_cost("r", {"seconds": 1}),
        "a report": lambda: lake.save_report("r.html", b"<p>"),
    }


def test_a_power_cut_after_any_step_leaves_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "lake"
    disk = Disk(monkeypatch, root)
    for name, step in steps(root).items():
        step()
        assert not disk.torn, name
        assert not disk.forgotten(), name
    assert len(disk.named) > 30  # it did look


def test_a_missing_fsync_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, tmp_path / "lake")
    monkeypatch.setattr("storage.shards.fsync_folder", lambda _: None)
    for step in list(steps(tmp_path / "lake").values())[:3]:
        step()
    assert disk.torn and disk.forgotten()
