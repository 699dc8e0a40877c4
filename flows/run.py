"""One execution of a recipe: what every stage needs, and the one way a stage makes or finds its artifact."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from curation.specs import Recipe
from storage.artifacts import Draft, Lake, Ref, fingerprint
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
    say: Callable[[str], None] = print
    track: Callable[[Sequence, str], Any] | None = None
    call: Callable[..., Any] = lambda stage, *args, **kwargs: stage(*args, **kwargs)
    started: float = field(default_factory=time.time)
    steps: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    _pools: dict[tuple[str, ...], ProcessPoolExecutor] = field(default_factory=dict)

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
        ref = self.lake.find(kind, self.recipe.name, fp)
        begun, reused = time.time(), ref is not None
        if ref is None:
            if self.reuse_only:
                raise NotCached(kind)
            manifest = {"spec": dict(spec), "code_version": version, "parents": [str(i) for i in inputs]}
            with self.lake.draft(kind, self.recipe.name, fp, manifest) as draft:
                reused = draft.published is not None
                if not reused:
                    compute(draft)
                ref = draft.publish()
        self._note(kind, round, phase, ref, time.time() - begun, reused)
        return ref

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
            },
        )
        where = f" round {round}" if round else ""
        self.say(
            f"{kind}{where}{' ' + phase if phase else ''}: {'reused' if reused else f'{seconds:.1f} s'}  {ref}"
        )
        self.save("running")

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
                "seconds": round_to(time.time() - self.started, 1),
                "artifacts": {step["stage"]: step["artifact"] for step in self.steps},
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
    ) -> None:
        """Runs `work(work_path, key, *job)` for every key whose shard is missing, on all cores or one process a device.

        Workers write their own shards, so a kill loses at most those in flight.
        """
        done = draft.done()
        left = {key: job for key, job in jobs.items() if key not in done}
        if not left:
            return
        futures = [self.pool(devices).submit(work, draft.work_path, key, *job) for key, job in left.items()]
        try:
            finished = as_completed(futures)
            for future in self.track(finished, label, len(futures)) if self.track else finished:  # type: ignore[operator]
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def pool(self, devices: tuple[str, ...] = ()) -> ProcessPoolExecutor:
        """The run's worker processes, made when first needed: one thread each, or one process for each device."""
        if devices not in self._pools:
            # One thread a worker, so that sums have one order; libraries read these when they are loaded.
            os.environ |= dict.fromkeys(
                ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1"
            )
            context = get_context("spawn")
            waiting = context.SimpleQueue()
            for device in devices:
                waiting.put(device)
            self._pools[devices] = ProcessPoolExecutor(
                len(devices) or self.workers,
                context,
                initializer=one_thread,
                initargs=(os.getpid(), waiting if devices else None),
            )
        return self._pools[devices]

    def close(self, kill: bool = False) -> None:
        """Ends the worker processes."""
        for pool in self._pools.values():
            if kill:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
            pool.shutdown(wait=not kill, cancel_futures=True)
        self._pools.clear()


def scoring_devices() -> tuple[str, ...]:
    """Devices that score rows, one process each: GRADUS_DEVICES (cuda:0,cuda:1), else every GPU; none: all cores."""
    given = os.environ.get("GRADUS_DEVICES", "")
    if given:
        return tuple(device.strip() for device in given.split(",") if device.strip())
    import torch

    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))


def one_thread(parent: int, devices: Any = None) -> None:
    """Sets a worker up: one thread, its device; interrupts are the parent's; it ends when its parent is gone."""
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["GRADUS_DEVICE"] = "cpu" if devices is None else devices.get()
    import torch

    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def round_to(value: float, digits: int) -> float:
    """The value with so many digits after the point."""
    return float(f"{value:.{digits}f}")


def recipe_hash(recipe: Recipe) -> str:
    """12 hex digits that change with any field of the recipe."""
    return fingerprint("recipe", "1", {"recipe": canonical_json(recipe.model_dump(mode="json"))}, [])
