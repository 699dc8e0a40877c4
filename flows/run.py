"""One execution of a recipe: what every stage needs, and the one way a stage makes or finds its artifact."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curation.specs import Recipe
from flows.engines import Engine, ShardWork, checked_engine, scoring_devices
from flows.window import Window
from storage.artifacts import Draft, Lake, Ref, fingerprint
from storage.gc import noting
from storage.layout import canonical_json


class NotCached(Exception):
    """The lake lacks a stage's artifact, and this pass was asked to compute nothing."""


@dataclass
class Run:
    """A run in progress. `call` runs a stage function (plainly, or as a Prefect subflow)."""

    lake: Lake
    recipe: Recipe
    folder: Path
    run_id: str = ""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    reuse_only: bool = False
    window: Window = field(default_factory=Window)
    known_files: dict[str, Any] | None = (
        None  # names and hashes that an earlier run read, for a run that begins later
    )
    say: Callable[[str], None] = print
    track: Callable[[Sequence, str], Any] | None = None
    at: str = ""  # the stage that is being run, or that failed
    call: Callable[..., Any] = lambda stage, *args, **kwargs: stage(*args, **kwargs)
    started: float = field(default_factory=time.time)
    begun: float = field(default_factory=time.monotonic)  # durations: a clock that is never put back
    steps: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    engine: str = field(default_factory=checked_engine)

    def __post_init__(self) -> None:
        self._workers = Engine(checked_engine(self.engine), self.workers)

    def stage(
        self,
        kind: str,
        version: str,
        spec: Mapping[str, Any],
        inputs: Sequence[Ref],
        compute: Callable[[Draft], Any],
        round: int = 0,
        phase: str = "",
    ) -> Ref:
        """The stage's artifact: found in the lake, or computed now into a draft and published."""
        fp = fingerprint(kind, version, spec, [str(i) for i in inputs])
        repeats = self.window.repeats(kind, round, phase) and not self.reuse_only
        begun = time.monotonic()
        with self._noting():
            ref = self.lake.find(kind, self.recipe.name, fp)
            if ref is not None and not repeats:
                self._note(kind, round, phase, ref, time.monotonic() - begun, True)
                return ref
        if ref is None:
            self.window.refuse_missing(kind, round, phase)
            if self.reuse_only:
                raise NotCached(kind)
        manifest = {"spec": dict(spec), "code_version": version, "parents": [str(i) for i in inputs]}
        with self.lake.draft(kind, self.recipe.name, fp, manifest, force=repeats) as draft:
            reused = draft.published is not None
            if not reused:
                compute(draft)
            with self._noting():
                ref = draft.publish()
                self._note(kind, round, phase, ref, time.monotonic() - begun, reused)
        return ref

    def _noting(self) -> AbstractContextManager[None]:
        return nullcontext() if self.reuse_only else noting(self.lake.root)

    def _note(self, kind: str, round: int, phase: str, ref: Ref, seconds: float, reused: bool) -> None:
        self.steps.append(
            {"stage": kind, "round": round, "phase": phase, "artifact": str(ref), "reused": reused}
        )
        if self.reuse_only:
            return
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        workers_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        self.lake.add_cost(
            self.run_id,
            {
                "stage": kind,
                "round": round,
                "phase": phase,
                "artifact": str(ref),
                "reused": reused,
                "seconds": round_to(seconds, 3),
                "peak_memory_mb": round_to(max(peak_mb, workers_mb), 1),
                **({} if reused else self._pace(kind, ref, seconds)),
            },
        )
        where = f" round {round}" if round else ""
        self.say(
            f"{kind}{where}{' ' + phase if phase else ''}: {'reused' if reused else f'{seconds:.1f} s'}  {ref}"
        )
        self.save("running")

    def _pace(self, kind: str, ref: Ref, seconds: float) -> dict[str, Any]:
        """Rows of the stage's largest table, how many a second, and on which device."""
        rows = max(self.lake.manifest(ref)["rows"].values(), default=0)
        device = ",".join(scoring_devices()) if kind == "score" else ""
        return {
            "rows": rows,
            "rows_a_second": round_to(rows / max(seconds, 1e-3), 1),
            "device": device or "cpu",
        }

    def save(self, state: str, **more: Any) -> None:
        """Writes the run's record; `artifacts` holds the last artifact of each stage, `steps` all of them."""
        self.facts |= more
        self.lake.save_run(
            self.run_id,
            {
                "recipe": self.recipe.name,
                "recipe_hash": recipe_hash(self.recipe),
                "state": state,
                "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
                "seconds": round_to(time.monotonic() - self.begun, 1),
                "artifacts": {step["stage"]: step["artifact"] for step in self.steps},
                "folder": str(self.folder),
                "host": platform.node(),
                "pid": os.getpid(),
                "steps": self.steps,
                "recipe_spec": self.recipe.model_dump(mode="json"),
                **self.facts,
            },
        )

    def map_shards(
        self,
        draft: Draft,
        jobs: Mapping[str, tuple],
        work: Callable[..., None],
        label: str,
        devices: tuple[str, ...] = (),
        reads: Iterable[str] = (),
    ) -> None:
        """Runs `work(work_path, key, *job)` for every key whose shard is missing, on the run's engine.

        `reads` are earlier shards of the draft that the work looks at. Workers write their own shards, so a kill
        loses at most those in flight.
        """
        folder = draft.work_path.relative_to(self.lake.root).as_posix()
        done = draft.done() | self.lake.fetch_shards(folder, jobs)
        left = {key: job for key, job in jobs.items() if key not in done}
        if not left:
            return
        shared = self.engine in ("dask", "ray")
        work_of = ShardWork(self.lake.address, folder, work, tuple(reads), shared)
        finished = self._workers.map(work_of, left, label, devices)
        for _ in self.track(finished, label, len(left)) if self.track else finished:  # type: ignore[operator]
            pass
        self.lake.fetch_shards(folder, left)  # those of other machines

    def close(self, kill: bool = False) -> None:
        """Ends the workers."""
        self._workers.close(kill)


def round_to(value: float, digits: int) -> float:
    """The value with so many digits after the point."""
    return float(f"{value:.{digits}f}")


def recipe_hash(recipe: Recipe) -> str:
    """12 hex digits that change with any field of the recipe but its schedule."""
    fields = recipe.model_dump(mode="json", exclude={"schedule"})
    return fingerprint("recipe", "1", {"recipe": canonical_json(fields)}, [])
