"""Everything that starts runs, with a real server and worker: schedule, cron line, REST, a dropped file."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from storage.artifacts import Lake
from tests.service.conftest import Served, gradus
from tests.tiny import tiny_recipe

pytestmark = pytest.mark.xdist_group("prefect")
WATCHED = """
format = 1
name = "watched"
[[source]]
name = "pool"
path = "in/*.jsonl"
[[suite]]
name = "new"
path = "new.jsonl"
distribution = "ood"
use = "steer+judge"
[proxy]
layers = 1
width = 16
steps = 2
feature_dimensions = 64
[budget]
rows = 40
[select]
strategies = []
[decide]
work = "choose"
fixed_strategy = "gradient_logdet"
replicates = 6
"""
PLACES = ("harbour", "market", "station", "bridge", "museum", "garden", "library")


@pytest.fixture
def api(served: Served):
    with httpx.Client(
        base_url=served.found.api_url, auth=tuple(served.key.split(":", 1)), timeout=30
    ) as client:
        yield client


def deploy(served: Served, recipe: Path) -> None:
    done = gradus(
        "deploy", str(recipe), "--lake", str(served.lake), "--api-url", served.found.api_url,
        PREFECT_API_AUTH_STRING=served.key,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def deployment(api: httpx.Client, name: str) -> dict[str, Any]:
    return api.get(f"/deployments/name/{name}").raise_for_status().json()


def start(api: httpx.Client, name: str, **parameters: Any) -> dict[str, Any]:
    """Starts a deployment by REST, waits for the run's end. A busy server answers 503: asked again, by the same key."""
    url = f"/deployments/{deployment(api, name)['id']}/create_flow_run"
    order = {"parameters": parameters, "idempotency_key": uuid4().hex}
    made = until(lambda: (reply := api.post(url, json=order)).status_code != 503 and reply.raise_for_status())
    return until(lambda: ended(api.get(f"/flow_runs/{made.json()['id']}").json()))


def runs_of(api: httpx.Client, name: str) -> list[dict[str, Any]]:
    """Its runs that have begun, the oldest first."""
    query = {"deployments": {"id": {"any_": [deployment(api, name)["id"]]}}, "sort": "START_TIME_ASC"}
    return [r for r in api.post("/flow_runs/filter", json=query).json() if r["start_time"]]


def ended(run: dict[str, Any]) -> dict[str, Any] | None:
    if run.get("state_type", "") in ("FAILED", "CRASHED", "CANCELLED"):
        pytest.fail(f"{run['name']}: {run['state']}")
    return run if run.get("state_type") == "COMPLETED" else None


def until(check: Callable[[], Any], seconds: float = 240) -> Any:
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end
        time.sleep(1)
    return found


@pytest.mark.slow
def test_a_schedule_a_cron_line_and_a_rest_call_start_the_same_deployment(
    served: Served, api: httpx.Client, tmp_path: Path
) -> None:
    """One computes, the others reuse; whoever starts them."""
    recipe = tiny_recipe(tmp_path, steps=2, name='"clocked"')
    plain = recipe.read_text()
    recipe.write_text(plain + '\n[schedule]\ncron = "* * * * *"\n')
    deploy(served, recipe)
    try:
        # A line of a system's cron: its environment is next to nothing.
        line = f"{shlex.quote(str(Path(sys.executable).with_name('prefect')))} deployment run curate/clocked"
        known = {"PREFECT_API_URL": served.found.api_url, "PREFECT_API_AUTH_STRING": served.key}
        bare = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "PREFECT_HOME": str(tmp_path)}
        done = subprocess.run(
            ["sh", "-c", line], env=bare | known, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        start(api, "curate/clocked")
        until(lambda: any(r["auto_scheduled"] and ended(r) for r in runs_of(api, "curate/clocked")))
    finally:
        recipe.write_text(plain)
        deploy(served, recipe)
    assert not deployment(api, "curate/clocked")["schedules"]
    made = runs_of(api, "curate/clocked")
    assert len(made) >= 3 and sum(not r["auto_scheduled"] for r in made) == 2
    records = [r for r in Lake(served.lake).runs() if r["recipe"] == "clocked"]
    assert len(records) == 1 and records[0]["state"] == "completed"


def write(path: Path, first: int, rows: int) -> None:
    lines = (
        {
            "prompt": f"visit {i * 7919 % 1000} to the {PLACES[i % 7]} {i * 104729 % 997}",
            "response": f"at {i % 24}",
        }
        for i in range(first, first + rows)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.slow
def test_a_dropped_file_leads_to_one_run_over_a_new_pool(
    served: Served, api: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", 0, 80)
    write(tmp_path / "new.jsonl", 500, 24)
    recipe, lake = tmp_path / "watched.toml", Lake(served.lake)
    recipe.write_text(WATCHED)
    deploy(served, recipe)

    def tick() -> str:
        return start(api, "watch/watched", recipe=str(recipe), settle_seconds=0)["state"]["message"]

    def pools_after(runs: int) -> list[int]:
        """Rows of every pool, when so many runs of the loop have ended."""
        until(lambda: len([r for r in runs_of(api, "curate/watched") if ended(r)]) == runs)
        pools = [r["steps"][0]["artifact"] for r in lake.runs() if r["recipe"] == "watched"]
        refs = [ref for ref in lake.refs("ingest") if str(ref) in pools]
        return sorted(lake.manifest(ref)["rows"]["rows"] for ref in refs)

    assert "2 new (a.jsonl, new.jsonl); ordered" in tick() and pools_after(1) == [80]
    write(tmp_path / "in" / "b.jsonl", 80, 10)
    assert "1 new (b.jsonl); ordered" in tick() and pools_after(2) == [80, 90]
    assert "nothing new" in tick()
    time.sleep(5)
    assert len(runs_of(api, "curate/watched")) == 2
