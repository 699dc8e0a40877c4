"""Runs whose process is gone: told to the server, so that nothing stays Running that does not run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import httpx

ENDED = ["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]
PATIENCE = timedelta(seconds=20)  # for a stage that ends by itself just after the run that it is part of


def client(api_url: str, key: str | None) -> httpx.Client:
    """A connection to the API with the key."""
    user, _, password = (key or "").partition(":")
    return httpx.Client(base_url=api_url, auth=(user, password) if key else None, timeout=10)


def crash(api: httpx.Client, runs: Iterable[str], why: str) -> None:
    """Marks runs as Crashed that have not ended by themselves."""
    for run in runs:
        state = {"type": "CRASHED", "message": f"{why}; Retry goes on where it ended"}
        if api.get(f"/flow_runs/{run}").json().get("state_type") not in ENDED:
            api.post(f"/flow_runs/{run}/set_state", json={"state": state})


def crash_stages(api: httpx.Client) -> None:
    """Marks the stages as Crashed that are still Running in a run that has ended: they were part of its process."""
    living = {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}, "parent_task_run_id": {"is_null_": False}}
    stages = api.post("/flow_runs/filter", json={"flow_runs": living}).json()
    steps = {stage["parent_task_run_id"]: stage["id"] for stage in stages}
    if not steps:
        return
    begun = api.post("/task_runs/filter", json={"task_runs": {"id": {"any_": list(steps)}}}).json()
    before = (datetime.now(UTC) - PATIENCE).isoformat()
    ended = {
        "id": {"any_": [step["flow_run_id"] for step in begun]},
        "state": {"type": {"any_": ENDED}},
        "end_time": {"before_": before},
    }
    parents = {run["id"] for run in api.post("/flow_runs/filter", json={"flow_runs": ended}).json()}
    crash(
        api,
        [steps[s["id"]] for s in begun if s["flow_run_id"] in parents],
        "the run it was part of has ended",
    )


def keep_settling(api_url: str, key: str | None, seconds: float = 20) -> None:
    """Calls `crash_stages` for ever."""
    with client(api_url, key) as api:
        while True:
            time.sleep(seconds)
            with suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
                crash_stages(api)
