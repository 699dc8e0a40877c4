"""What Prefect costs: a whole loop with and without it, cached reruns, tasks, and a server's start and memory.

python tests/benchmarks/orchestration.py [--quick]   medians of 3, --quick: of 1 or 2, two to three minutes on 2 idle cores
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])

import httpx

from flows.service.processes import marked
from flows.service.settings import Serving, client_environment, serving
from tests.tiny import tiny_recipe

RUN_SECONDS = 600  # the run that the overhead is a share of
BARS = {
    "overhead_share": 0.05,
    "overhead_served_share": 0.05,
    "cached_rerun_seconds": 3.0,
    "cached_rerun_flow_seconds": 3.0,
    "task_ms": 20.0,
    "serve_ready_seconds": 30.0,
    "serve_ready_again_seconds": 12.0,
    "server_idle_mb": 400.0,
}
WITHOUT_PREFECT = (
    "import sys; from pathlib import Path; from flows.execute import Request, execute, loop; "
    "from storage.artifacts import Lake; execute(Lake(sys.argv[2]), Request(recipe=sys.argv[1]), loop)"
)
TASKS = (
    "import json, os; os.environ['PREFECT_LOGGING_LEVEL'] = 'ERROR'; "
    "from tests.benchmarks.engines import measure; print(json.dumps(measure('threads', 1000, 1000)))"
)
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GRADUS_"))}


def python(*arguments: str | Path, **environment: str) -> tuple[float, str]:
    """(seconds of a Python process, what it printed)."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=CLEAN | environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(
            f"{arguments} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return time.perf_counter() - begun, done.stdout


def gradus(*arguments: str | Path) -> float:
    return python("-m", "flows.cli", *arguments)[0]


def repeated(times: int, measure: Callable[[], float]) -> float:
    return median(measure() for _ in range(times))


def serve(recipe: Path, lake: Path) -> tuple[float, Serving]:
    """(seconds until it is ready, the server)."""
    seconds = gradus("serve", recipe, "--lake", lake, "--port", "0", "--no-auth", "--detach")
    found = serving(lake)
    assert found is not None
    return seconds, found


def run_seconds(api_url: str, name: str) -> float:
    """The run time of a run through a deployment, started by REST."""
    with httpx.Client(base_url=api_url, timeout=60) as api:
        one = api.get(f"/deployments/name/curate/{name}").json()["id"]
        run = api.post(f"/deployments/{one}/create_flow_run", json={}).json()["id"]
        while (found := api.get(f"/flow_runs/{run}").json())["state_type"] not in (
            "COMPLETED",
            "FAILED",
            "CRASHED",
        ):
            time.sleep(0.5)
    assert found["state_type"] == "COMPLETED", found["state"]["message"]
    begun, ended = (
        datetime.fromisoformat(found[k].replace("Z", "+00:00")) for k in ("start_time", "end_time")
    )
    return (ended - begun).total_seconds()


def server_mb(lake: Path) -> float:
    """Resident memory of the server process."""
    for pid in marked(lake):
        if b"flows.service.server" in (Path("/proc") / str(pid) / "cmdline").read_bytes():
            status = (Path("/proc") / str(pid) / "status").read_text()
            return int(status.partition("VmRSS:")[2].split()[0]) / 1024
    raise SystemExit("no server process")


def measured(folder: Path, quick: bool) -> dict[str, float]:
    recipe, lake = tiny_recipe(folder, rounds=1 if quick else 2, steps=2), folder / "lake"
    times, numbers = (1 if quick else 3), iter(range(1000))
    found: dict[str, float] = {}

    def fresh() -> Path:
        return folder / f"lake{next(numbers)}"

    def show(name: str, value: float) -> None:
        found[name] = value
        verdict = (
            "" if name not in BARS else f"   bar {BARS[name]:g}  {'met' if value <= BARS[name] else 'MISSED'}"
        )
        print(f"{name:<28}{value:>9.3f}{verdict}   load {os.getloadavg()[0]:.1f}", flush=True)

    starts = [serve(recipe, lake)]
    try:
        for _ in range(times - 1):
            other = fresh()
            starts.append(serve(recipe, other))
            gradus("serve", "stop", "--lake", other)
        show("serve_ready_seconds", median(seconds for seconds, _ in starts))
        gradus("serve", "stop", "--lake", lake)
        seconds, server = serve(recipe, lake)
        show("serve_ready_again_seconds", seconds)
        time.sleep(5)
        show("server_idle_mb", server_mb(lake))
        served = gradus("run", recipe, "--lake", lake)
        show("cached_rerun_seconds", repeated(3, lambda: gradus("run", recipe, "--lake", lake)))
        show("cached_rerun_flow_seconds", repeated(1 + times, lambda: run_seconds(server.api_url, "tiny")))
        environment = client_environment(lake, server.api_url, None)
        show(
            "task_ms",
            repeated(
                times, lambda: json.loads(python("-c", TASKS, **environment)[1].splitlines()[-1])["ms_a_task"]
            ),
        )
    finally:
        gradus("serve", "stop", "--lake", lake)
    plain, temporary = [], []
    for _ in range(times):  # in turns: the machine's load changes
        plain.append(python("-c", WITHOUT_PREFECT, recipe, fresh())[0])
        temporary.append(gradus("run", recipe, "--lake", fresh()))
    show("loop_seconds", median(plain))
    show("overhead_share", (median(temporary) - median(plain)) / RUN_SECONDS)
    show("overhead_served_share", (served - median(plain)) / RUN_SECONDS)
    return found


def main() -> None:
    quick = "--quick" in sys.argv
    print(
        "overhead: of a 600-second run; served: by a running server, else the command starts one of its own\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(Path(folder), quick)))


if __name__ == "__main__":
    main()
