"""Prefect as installed: neither silent fault of unpinned servers, and the loop runs as flows."""

from __future__ import annotations

import time

import httpx
import pytest

from tests.tiny import tiny_recipe

pytestmark = pytest.mark.xdist_group("prefect")


def api_url() -> str:
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


def test_a_null_limit_is_accepted(server):
    """fastapi 0.151 and later answer 422 here."""
    reply = httpx.post(f"{api_url()}/flows/filter", json={"limit": None})
    assert reply.status_code == 200, reply.text


def test_a_schedule_makes_runs(server):
    """SQLAlchemy 2.1 never inserts scheduled runs, and says nothing."""
    url = api_url()
    flow = httpx.post(f"{url}/flows/", json={"name": "probe"}).json()
    deployment = httpx.post(
        f"{url}/deployments/",
        json={
            "name": "probe",
            "flow_id": flow["id"],
            "entrypoint": "probe:probe",
            "path": ".",
            "schedules": [{"active": True, "schedule": {"interval": 3600}}],
        },
    ).json()
    reply = httpx.post(f"{url}/deployments/{deployment['id']}/schedule", json={"min_runs": 2})
    assert reply.status_code == 200, reply.text
    query = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    for _ in range(120):
        runs = httpx.post(f"{url}/flow_runs/filter", json=query).json()
        if runs:
            break
        time.sleep(0.5)
    assert runs and all(r["state_name"] == "Scheduled" for r in runs)


def test_the_loop_runs_as_flows_and_reuses_stages(server, tmp_path):
    from flows.orchestrate import curate_with_prefect
    from flows.recipe import load_recipe
    from flows.run import Run
    from storage.artifacts import Lake

    recipe = tiny_recipe(tmp_path, steps=2, name='"twice"')
    for run_id in ("first", "second"):
        run = Run(
            Lake(tmp_path / "lake"),
            load_recipe(recipe),
            tmp_path,
            run_id=run_id,
            workers=2,
            say=lambda _: None,
        )
        try:
            curate_with_prefect(run)
        finally:
            run.close()
    assert all(step["reused"] for step in run.steps) and run.steps[-1]["stage"] == "sealed"
    runs = httpx.post(f"{api_url()}/flow_runs/filter", json={"limit": 200}).json()
    named = {r["name"]: r["state_name"] for r in runs}
    assert named["twice-first"] == named["twice-second"] == "Completed"
    states = [r["state_name"] for r in runs if r["name"] == "twice-score-r1"]
    assert sorted(states) == ["Completed", "Reused"]


def test_a_failing_stage_fails_the_run_with_its_message(server, tmp_path):
    from curation.errors import UserError
    from flows.orchestrate import curate_with_prefect
    from flows.recipe import load_recipe
    from flows.run import Run
    from storage.artifacts import Lake

    recipe = load_recipe(tiny_recipe(tmp_path, steps=2))
    recipe = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"tokens": 10**9})})
    run = Run(
        Lake(tmp_path / "lake"),
        recipe.model_copy(update={"name": "broken"}),
        tmp_path,
        run_id="x",
        workers=1,
        say=lambda _: None,
    )
    with pytest.raises(UserError, match="tokens = 1000000000"):
        curate_with_prefect(run)
    runs = httpx.post(f"{api_url()}/flow_runs/filter", json={"limit": 200}).json()
    state = next(r["state"] for r in runs if r["name"] == "broken-x")
    assert state["name"] == "Failed" and state["message"].startswith(
        "stage base: [budget] tokens = 1000000000"
    )
