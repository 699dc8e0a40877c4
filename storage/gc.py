"""What a lake can do without: artifacts that no version, kept candidate or run needs, and work nobody goes on with.

An artifact goes by one rename out of the lake, so no reader ever sees half of one; a killed removal is finished by
the next. `noting` keeps a run from finding an artifact that is being removed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curation.errors import DataError, UserError
from storage import remote, shards
from storage.layout import MANIFEST, Ref, artifact_folder, folder_refs, lock_path, pretty_json
from storage.ledger import by_start, readable
from storage.lineage import read_manifest

# Small, and the record of what was decided: they stay.
RECORDS = ("audit", "decide", "screen", "sealed", "stop")
Run = Mapping[str, Any]


@dataclass(frozen=True)
class Unneeded:
    """A folder of the lake that can go: its path in the lake, its artifact, why, and its size."""

    path: str
    artifact: str | None
    why: str
    bytes: int
    run: str | None = None


@contextmanager
def noting(root: Path) -> Generator[None]:
    """Nothing is removed between finding an artifact and naming it in a run's record; readers do not wait."""
    with shards.locked(_finding(root), shared=True):
        yield


def unneeded(
    root: Path, since: float, running: Callable[[Run], bool], drop_candidates: bool = False
) -> list[Unneeded]:
    """What can go, largest first.

    Kept is what was made `since` then (seconds since 1970); the lineage of every version and candidate (of young
    ones only, when old ones are dropped) with the runs that decided it; that of runs seen since then or `running`;
    and every record of a decision. `DataError`: a lineage cannot be read.
    """
    remote.refresh(root, "runs", "artifacts", "datasets")
    runs, damage = readable(root, "runs/[!.]*.json")
    if damage:
        raise DataError(f"nothing was removed: {'; '.join(damage.values())}")
    refs = folder_refs(root)[0]
    young = {ref for ref in refs if _published(root, ref) >= since}
    candidates = {ref for ref in refs if ref.kind == "candidate" and _published(root, ref)}
    kept = candidates & young if drop_candidates else candidates
    sets = _lineage(root, [*kept, *(ref for ref in refs if ref.is_dataset)])
    decisions = {ref for ref in sets if ref.kind == "decide"}
    used = [run for run in runs if running(run) or _seen(run) >= since or decisions & set(_steps([run]))]
    needed = sets | _lineage(root, [*young, *_steps(used)])
    left = [ref for ref in refs if ref not in needed and ref.kind not in RECORDS]
    last = {ref: run for run in sorted(runs, key=by_start) for ref in _steps([run])}
    found = [_artifact(root, ref, last.get(ref)) for ref in left]
    return sorted(
        [*found, *_indexes(root, left), *_work(root, since)], key=lambda one: (-one.bytes, one.path)
    )


def remove(root: Path, plan: Callable[[], Sequence[Unneeded]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Removes what `plan` finds and says so in the lake: {removed, bytes_freed}. Run again, it goes on after a kill."""
    trash = root / "work" / ".removed"
    kept = "every artifact is in the lake whole, or gone whole; the same command goes on"
    with shards.disk_errors("not all was removed", kept), shards.locked(root / "work" / ".gc.lock"):
        freed = _empty(trash)
        with shards.locked(_finding(root)):
            planned = plan()
            entry = root / "gc" / f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}.json"
            if planned:
                at = datetime.now(UTC).isoformat(timespec="seconds")
                removed = [asdict(one) for one in planned]
                remote.create_file(root, entry, pretty_json({"removed": removed, "at": at, **facts}))
            gone = [one for one in planned if _move(root, root / one.path, trash / secrets.token_hex(8))]
        return {"removed": gone, "bytes_freed": freed + _empty(trash)}


def _finding(root: Path) -> Path:
    return root / "work" / ".finding.lock"


def _published(root: Path, ref: Ref) -> float:
    with suppress(FileNotFoundError):
        return (artifact_folder(root, ref) / MANIFEST).stat().st_mtime
    return 0.0


def _seen(run: Run) -> float:
    """When the run's record was last written."""
    with suppress(KeyError, TypeError, ValueError):
        return datetime.fromisoformat(run["started"]).timestamp() + run["seconds"]
    return time.time()  # of unknown age: it is kept


def _steps(runs: Iterable[Run]) -> list[Ref]:
    return [Ref.parse(step["artifact"]) for run in runs for step in run.get("steps") or []]


def _needs(manifest: Mapping[str, Any]) -> list[Ref]:
    named = [*(manifest.get("parents") or []), manifest.get("evidence") or ""]
    found: list[Ref] = []
    for text in named:
        with suppress(UserError):  # evidence may be a person's words
            found.append(Ref.parse(text))
    return found


def _lineage(root: Path, roots: Iterable[Ref]) -> set[Ref]:
    """These artifacts and all that they were made from, as far as it is there."""
    ahead, seen = list(roots), set[Ref]()
    while ahead:
        ref = ahead.pop()
        if ref not in seen:
            seen.add(ref)
            try:
                ahead += _needs(read_manifest(root, ref))
            except UserError:  # removed before
                continue
            except DataError as error:
                raise DataError(f"nothing was removed, for a lineage is broken: {error}") from error
    return seen


def _artifact(root: Path, ref: Ref, run: Run | None) -> Unneeded:
    folder = artifact_folder(root, ref)
    if not (folder / MANIFEST).exists():
        why = "half deleted"
    elif ref.kind == "candidate":
        why = "an old candidate"
    elif run is None:
        why = "no run names it"
    else:
        why = f"last used by {run['run']} ({run.get('state')})"
    name = run["run"] if run else None
    return Unneeded(folder.relative_to(root).as_posix(), str(ref), why, _size(folder), name)


def _indexes(root: Path, left: Sequence[Ref]) -> list[Unneeded]:
    folders = [root / "index" / ref.kind / f"{ref.name}@{ref.fingerprint}" for ref in left]
    return [
        Unneeded(
            folder.relative_to(root).as_posix(), None, "the index of an artifact that goes", _size(folder)
        )
        for folder in folders
        if folder.is_dir()
    ]


def _work(root: Path, since: float) -> list[Unneeded]:
    """Unfinished artifacts that no process holds and nobody has added to since then."""
    found: list[Unneeded] = []
    for folder in (path for path in root.glob("work/[!.]*/[!.]*") if path.is_dir()):
        with suppress(FileNotFoundError):
            touched = max(path.stat().st_mtime for path in (folder, *folder.glob("*")))
            if touched < since and not _held(lock_path(folder)):
                why = f"unfinished since {datetime.fromtimestamp(touched, UTC):%Y-%m-%d}"
                found.append(Unneeded(folder.relative_to(root).as_posix(), None, why, _size(folder)))
    return found


def _held(lock: Path) -> bool:
    if not lock.exists():
        return False
    with _tried(lock) as taken:
        return not taken


@contextmanager
def _tried(lock: Path) -> Generator[bool]:
    """True when the lock was free and is held now."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock.exists() and lock.stat().st_ino == os.fstat(descriptor).st_ino
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _move(root: Path, folder: Path, target: Path) -> bool:
    """True when the folder is out of the lake; False when a process has begun to work in it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if folder.parent.parent.name != "work":
        remote.clean(root, folder)
        return shards.move_folder(folder, target)
    lock = lock_path(folder)
    with _tried(lock) as taken:
        moved = taken and shards.move_folder(folder, target)
        if taken:
            lock.unlink(missing_ok=True)
    return moved


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _empty(trash: Path) -> int:
    """Bytes that were freed: a file that another artifact has too (a hard link) frees none."""
    links: dict[int, list[int]] = {}
    for stat in (path.stat() for path in trash.rglob("*") if path.is_file()):
        links.setdefault(stat.st_ino, [stat.st_nlink, stat.st_size]).append(1)
    if trash.exists():
        shutil.rmtree(trash)
    return sum(size for names, size, *seen in links.values() if len(seen) == names)
