"""What an engine costs: seconds until its workers stand, and milliseconds for each of many shards that do nothing.

python tests/benchmarks/engines.py [--quick] [ENGINE ...]   a Prefect server of its own, 2 workers, 1,000 shards
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # for the workers of clusters
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")


def nothing(work: Path, key: str, ids: list[str]) -> None:
    """A shard's work without the work; its job is as large as that of a shard of features."""


def measure(name: str, tasks: int, shards: int) -> dict[str, float | str]:
    """Seconds to the first shard, then milliseconds to the flow for each shard and each task."""
    from prefect import flow

    from flows import engines
    from storage.artifacts import Lake
    from tests.benchmarks.engines import nothing as work_of

    engines.MAX_TASKS = tasks
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder))
        work = engines.ShardWork(lake.address, "work/x", work_of, shared=name in ("dask", "ray"))
        engine = engines.Engine(name, 2)
        ids = [f"{i:032x}" for i in range(1000)]

        @flow(name=f"bench-{name}")
        def mapped() -> dict[str, float | str]:
            begun = time.perf_counter()
            list(engine.map(work, {f"w{i}": (ids,) for i in range(4)}, "warm"))
            ready = time.perf_counter()
            jobs = {f"s{i:05d}": (ids,) for i in range(shards)}
            finished = sum(1 for _ in engine.map(work, jobs, "nothing"))
            seconds = time.perf_counter() - ready
            assert finished == shards
            count = shards if name == "processes" else len(engines.grouped(jobs))
            return {
                "engine": name,
                "ready_seconds": ready - begun,
                "shards": shards,
                "tasks": count,
                "ms_a_shard": 1000 * seconds / shards,
                "ms_a_task": 1000 * seconds / count,
            }

        try:
            return mapped()
        finally:
            engine.close()


def main() -> None:
    from prefect.testing.utilities import prefect_test_harness

    wanted = [a for a in sys.argv[1:] if not a.startswith("-")] or ["processes", "threads", "dask", "ray"]
    shards = 200 if "--quick" in sys.argv else 1000
    found = []
    with prefect_test_harness(server_startup_timeout=120):
        for name in wanted:
            if name in ("dask", "ray") and find_spec(f"prefect_{name}") is None:
                print(f"{name}: pip install 'gradus[{name}]'")
                continue
            for tasks in (200,) if name == "processes" else sorted({200, shards}):
                line = measure(name, tasks, shards)
                found.append(line)
                print(
                    f"{name:<11}{line['tasks']:>6} tasks for {shards} shards: workers stand in {line['ready_seconds']:5.1f} s, "
                    f"{line['ms_a_shard']:6.1f} ms a shard, {line['ms_a_task']:6.1f} ms a task",
                    flush=True,
                )
    print(json.dumps({"engines": found}))


if __name__ == "__main__":
    main()
