"""A disk that is full from the k-th write on, for every k: said in words, nothing torn, and the rerun makes the same bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation.errors import UserError
from storage import shards
from storage.artifacts import Lake, fingerprint
from storage.catalog import build_catalog
from tests.crash.test_lake_kill import published
from tests.storage.lakes import rows

CALLS = ("fsync", "rename", "replace", "link", "mkdir")


class FullDisk:
    """Fails every write from number `at` on; half of what was to be written is there then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.at, self.writes = at, 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        monkeypatch.setattr(shards, "write_bytes", self._torn(shards.write_bytes))
        monkeypatch.setattr(pq, "write_table", self._counted(pq.write_table))

    def full(self) -> bool:
        self.writes += 1
        return self.writes > self.at

    def _counted(self, real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            if self.full():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **more)

        return call

    def _torn(self, real: Any) -> Any:
        def write(path: Path, data: bytes) -> None:
            if self.full():
                path.write_bytes(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            real(path, data)

        return write


def story(root: Path) -> None:
    """Everything that a run writes."""
    lake, fp = Lake(root), fingerprint("ingest", "1", {}, [])
    with lake.draft("ingest", "x", fp, {}) as draft:
        draft.write_shard("a", {"rows": rows(3)})
        draft.write_shard("b", {"rows": rows(3, 3)}, {"b.bin": b"bytes"})
        draft.publish()
    lake.publish_dataset("x", rows(3), "base", None, "base", "", 9, "c")
    lake.spend_alpha("x", "judge", 0, 1, 0.05, "k")
    lake.open_sealed("x", "hash", "k")
    lake.add_cost("r", {"seconds": 1})
    lake.save_run("r", {"state": "completed"})
    lake.save_report("r.html", b"<p>" * 50)
    build_catalog(lake)


def whole(root: Path) -> None:
    """Nothing that can be seen is torn."""
    if (root / "lake.json").exists():
        lake = Lake(root, create=False)
        for ref in lake.refs():
            lake.verify(ref)
        assert not lake.runs() or lake.runs()[0]["state"] == "completed"
        lake.alpha_spent(), lake.openings(), lake.costs()


def test_a_full_disk_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story(tmp_path / "calm")
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, 10**6)
        story(tmp_path / "counted")
    assert disk.writes > 40
    for at in range(disk.writes):
        root = tmp_path / f"full-{at}"
        with monkeypatch.context() as patch:
            FullDisk(patch, at)
            with pytest.raises(UserError, match=r"disk is full.*run again"):
                story(root)
        whole(root)
        story(root)
        assert published(root) == published(tmp_path / "calm")
        whole(root)
