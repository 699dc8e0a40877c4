"""What a lake holds after its runs were killed, held against one that nobody disturbed; and moments to kill at."""

from __future__ import annotations

import fcntl
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.artifacts import Lake
from storage.catalog import query
from storage.shards import digest_of

# What appears in a lake -> the paths to look for: between two of them lies every write that matters.
APPEARING = {
    "stage": "work/*/*",
    "shard": "work/*/*/shards/*",
    "publishing": "work/*/*/publish",
    "published": "artifacts/*/*",
    "version": "datasets/*",
    "numbering": "work/dataset/*",
    "booking": "alpha/*/*",
    "opening": "openings/*/*",
}
KEYS = {"rows": ["row_id"], "records": ["source", "file", "position"]}


@dataclass
class Facts:
    """What must be equal: digests of files, bookings, and how often every row and record is there."""

    digests: dict[str, str] = field(default_factory=dict)
    openings: list[tuple[str, str, str]] = field(default_factory=list)
    rows: Counter[Any] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def facts_of(root: Path) -> Facts:
    """The facts of a finished lake, and what is wrong with it by itself."""
    lake = Lake(root, create=False)
    paths = [
        p for kind in ("artifacts", "datasets", "alpha") for p in (root / kind).rglob("*") if p.is_file()
    ]
    digests = {p.relative_to(root).as_posix(): digest_of(p)["blake2b"] for p in paths}
    openings = sorted((e["dataset"], e["suite_hash"], e["key"]) for e in lake.openings())
    return Facts(
        digests, openings, _counted(lake), [*_wrong(lake), *(f"{path} is held" for path in _held_locks(root))]
    )


def _counted(lake: Lake) -> Counter[Any]:
    """(artifact, table, key) -> how often, of every row and every record of every artifact."""
    counted: Counter[Any] = Counter()
    for ref in lake.refs():
        for table in KEYS.keys() & lake.manifest(ref)["rows"].keys():
            frame = lake.read(ref, table).select(KEYS[table])
            counted.update((str(ref), table, *key) for key in frame.iter_rows())
    return counted


def _wrong(lake: Lake) -> list[str]:
    for ref in lake.refs():
        lake.verify(ref)
    balance = "select source, read - kept - coalesce(sum(dropped), 0) as n from accounting group by source, read, kept"
    unequal = query(lake, f"from ({balance}) where n <> 0").rows()
    problems = [f"accounting does not balance: {unequal}"] if unequal else []
    pools = [ref for ref in lake.refs() if ref.kind in ("ingest", "dataset")]
    problems += [
        f"{ref} has a row twice" for ref in pools if lake.read(ref, "rows")["row_id"].is_duplicated().any()
    ]
    states = {run["run"]: run["state"] for run in lake.runs()}
    return problems if "completed" in states.values() else [*problems, f"no run is completed: {states}"]


def _found(root: Path, pattern: str) -> set[Path]:
    """The paths that are there; a folder may be gone while one looks."""
    while True:
        with suppress(FileNotFoundError):
            return set(root.glob(pattern))


def _held_locks(root: Path) -> list[Path]:
    """Locks that a living process holds."""
    held = []
    for path in sorted(_found(root, "work/**/*.lock")):
        with suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path)
    return held


def differences(found: Facts, expected: Facts) -> dict[str, Any]:
    """lost and doubled rows, files that differ, and every other thing that is not as it should be."""
    lost, doubled = expected.rows - found.rows, found.rows - expected.rows
    names = found.digests.keys() | expected.digests.keys()
    differ = sorted(n for n in names if found.digests.get(n) != expected.digests.get(n))
    problems = list(found.problems)
    if found.openings != expected.openings:
        problems.append(f"openings: {found.openings}, undisturbed {expected.openings}")
    return {"lost": lost.total(), "doubled": doubled.total(), "differ": differ, "problems": problems}


def stage_in(root: Path) -> str:
    """The stage whose draft somebody holds; 'begin' before the first artifact, else 'between stages'."""
    held = [path.parent.name for path in _held_locks(root) if path.parent.name != "work"]
    return held[-1] if held else "between stages" if _found(root, "artifacts/*/*") else "begin"


@dataclass(frozen=True)
class Moment:
    """When to kill: so many seconds after now, or after so many more of something appeared in the lake."""

    after_seconds: float
    appears: str = ""
    times: int = 1


def drawn(luck: random.Random, usual_seconds: float) -> Moment:
    """A moment by the clock, in the middle of a stage, or as something appears, up to 20 ms later.

    What is kept is not done again, so that kills a tenth of a run apart fall anywhere in it.
    """
    gap, how = luck.uniform(0, 0.2 * usual_seconds), luck.random()
    if how < 0.2:
        return Moment(luck.uniform(0, 0.5 * usual_seconds))
    if how < 0.5:
        return Moment(gap, "stage", luck.randint(1, 2))
    return Moment(luck.choice((0.0, luck.uniform(0, 0.02))), luck.choice(list(APPEARING)), luck.randint(1, 3))


def reached(moment: Moment, root: Path, running: Callable[[], bool], longest_seconds: float) -> bool:
    """Waits for the moment; False when the run ended before. What does not appear in time is not waited for."""
    seen = _found(root, APPEARING[moment.appears]) if moment.appears else set()
    deadline, left = time.monotonic() + longest_seconds, moment.times
    while moment.appears and left and running() and time.monotonic() < deadline:
        now = _found(root, APPEARING[moment.appears])
        left -= min(left, len(now - seen))
        seen |= now
        time.sleep(0.001)
    until = time.monotonic() + moment.after_seconds
    while (pause := until - time.monotonic()) > 0 and running():
        time.sleep(min(pause, 0.02))
    return running()


def wipe(root: Path) -> None:
    """An empty lake again, with its server's folder."""
    for path in root.iterdir():
        if path.name not in ("prefect", "lake.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
