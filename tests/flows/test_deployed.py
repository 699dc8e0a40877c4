"""What the server offers: forms that refuse, the loop and single stages as flows, Retry, messages, links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from curation.errors import DataError
from storage.artifacts import Lake
from tests.tiny import tiny_recipe

pytestmark = pytest.mark.xdist_group("prefect")


def post(path: str, **body: Any) -> httpx.Response:
    from prefect.settings import PREFECT_API_URL

    return httpx.post(f"{PREFECT_API_URL.value()}{path}", json=body, timeout=30)


def flow_runs() -> dict[str, dict[str, Any]]:
    """Flow runs by name, the newest of a name."""
    found = post("/flow_runs/filter", limit=200, sort="START_TIME_ASC").json()
    return {r["name"]: r for r in found}


@pytest.fixture(scope="module")
def registered(server, tmp_path_factory) -> tuple[Path, dict[str, dict[str, Any]]]:
    from flows.service.deployed import register

    folder = tmp_path_factory.mktemp("deployed")
    recipe = tiny_recipe(folder, steps=2, rows=40, added_rows=20, candidates=60)
    recipe.write_text(recipe.read_text() + '\n[schedule]\ncron = "30 3 * * *"\n')
    register("gradus", [recipe])
    register("gradus", [recipe])
    found = post("/deployments/filter").json()
    return recipe, {f"{d['entrypoint'].rpartition('.')[2]}/{d['name']}": d for d in found if d["entrypoint"]}


@pytest.fixture(scope="module")
def first(registered, tmp_path_factory) -> tuple[Lake, dict[str, Any]]:
    """A lake, and the record of a run made by the deployed flow."""
    lake = Lake(tmp_path_factory.mktemp("lake") / "lake")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADUS_LAKE", str(lake.root))
        state = start("curate", recipe=str(registered[0]))
    assert state.name == "Completed", state.message
    return lake, lake.runs()[-1]


@pytest.fixture
def lake(first, monkeypatch) -> Lake:
    monkeypatch.setenv("GRADUS_LAKE", str(first[0].root))
    return first[0]


def start(name: str, **parameters: Any) -> Any:
    from flows.service import deployed

    return getattr(deployed, name)(**parameters, return_state=True)


def test_everything_is_registered_once_with_forms(registered):
    from flows.window import STAGES

    recipe, found = registered
    expected = {f"{s}/{s.replace('_', '-')}" for s in STAGES}
    assert set(found) >= expected | {"curate/curate", "curate/tiny", "watch/tiny"}
    whole = found["curate/tiny"]
    assert whole["parameters"] == {"recipe": str(recipe)} and not whole["paused"]
    assert [s["schedule"]["cron"] for s in whole["schedules"]] == ["30 3 * * *"]
    assert whole["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    fields = found["select/select"]["parameter_openapi_schema"]["properties"]
    assert list(fields) == ["run_id", "round", "force", "timeout_minutes", "select", "budget"]
    assert all(f["description"] for f in fields.values())
    assert found["select/select"]["description"].startswith("Composes `arms`")


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"run_id": "x", "wrong": 1}, "'wrong' was unexpected"),
        ({"run_id": "x", "start_at": "selekt"}, "'selekt' is not one of ['ingest'"),
        ({"run_id": "x", "select": {"strategies": ["best"]}}, "'best' is not one of ['errors_first'"),
        ({"run_id": "x", "select": {"region": 3}}, "'region' was unexpected"),
        ({"run_id": "x", "budget": {"rows": -1}}, "-1"),
        ({"run_id": 7}, "7 is not valid"),
    ],
)
def test_wrong_parameters_are_refused_by_the_server(registered, parameters, reason):
    one = registered[1]["curate/curate"]["id"]
    reply = post(f"/deployments/{one}/create_flow_run", parameters=parameters)
    assert reply.status_code == 409 and reason in reply.json()["detail"], reply.text


def test_the_same_again_reuses_every_stage_and_writes_no_record(registered, first, lake):
    before = lake.runs()
    state = start("curate", recipe=str(registered[0]))
    assert state.name == "Completed" and first[1]["run"] in state.message
    assert lake.runs() == before
    assert flow_runs()["tiny-score-r1"]["state_name"] == "Reused"


def test_a_changed_field_reuses_what_is_before_and_computes_the_rest(first, lake):
    changed = {"strategies": ["errors_first"]}
    state = start("curate", run_id=first[1]["run"], start_at="select", stop_after="train", select=changed)
    assert state.name == "Completed", state.message
    steps = {s["stage"]: s["reused"] for s in lake.runs()[-1]["steps"]}
    assert steps == {
        "ingest": True,
        "base": True,
        "score": True,
        "synthesize": True,
        "select": False,
        "train": False,
    }
    runs = flow_runs()
    assert runs["tiny-synthesize-r1-confirm"]["state_name"] == "Reused"
    assert runs["tiny-select-r1-confirm"]["state_name"] == "Completed"
    assert {"gradus", "tiny", "select"} <= set(runs["tiny-select-r1-confirm"]["tags"])


def test_a_stage_alone(first, lake):
    state = start("select", run_id=first[1]["run"], force=True)
    assert state.name == "Completed", state.message
    assert [s["stage"] for s in lake.runs()[-1]["steps"] if not s["reused"]] == ["select"]


def test_refusals_are_the_message_of_the_failed_run(first, lake):
    state = start("select", run_id=first[1]["run"], budget={"added_rows": 10})
    assert state.name == "Failed" and "alters it (budget.added_rows)" in state.message
    state = start("curate", recipe="<b>\x1b[31m](javascript:x)")
    assert state.name == "Failed" and "\x1b" not in state.message and "there is no recipe" in state.message


def test_a_retry_goes_on_with_the_same_record(registered, lake, monkeypatch):
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from prefect.states import AwaitingRetry

    from flows import train
    from flows.service import deployed

    real, tries = train.compared_models, iter([DataError("the item 'x' is damaged")])

    def once(*args: Any) -> Any:
        for error in tries:
            raise error
        return real(*args)

    monkeypatch.setattr(train, "compared_models", once)
    state = start("curate", recipe="tiny", proxy={"steps": 3}, force=False)
    assert state.name == "Failed" and state.message == "stage evaluate: the item 'x' is damaged"
    record = lake.runs()[-1]
    assert record["state"] == "failed"
    with get_client(sync_client=True) as client:
        flow_run_id = state.state_details.flow_run_id
        client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)
        again = run_flow(deployed.curate, client.read_flow_run(flow_run_id), return_type="state")
    assert again.name == "Completed", again.message
    assert lake.runs()[-1]["run"] == record["run"] and lake.runs()[-1]["state"] == "completed"
    assert {s["stage"] for s in lake.runs()[-1]["steps"] if s["reused"]} >= {"ingest", "score", "train"}


def test_artifacts_show_and_link(registered, first):
    _, deployments = registered
    found = post("/artifacts/filter", limit=200).json()
    pages = {a["key"]: a["data"] for a in found if a["type"] == "markdown"}
    assert {"tiny-ingest", "tiny-score", "tiny-select", "tiny-train", "tiny-decide", "tiny-round"} <= set(
        pages
    )
    assert "█" in pages["tiny-select"] and not any("<" in page for page in pages.values())
    page = next(line for line in pages["tiny-select"].splitlines() if line.startswith("[Rerun from here]"))
    assert f"/deployments/deployment/{deployments['curate/curate']['id']}/run?parameters=" in page
    given = json.loads(unquote(page.rpartition("=")[2].rstrip(")")))
    assert (
        given["start_at"] == "select"
        and given["round"] == 1
        and set(given["select"]) == {"strategies", "regions"}
    )
    reply = post(f"/deployments/{deployments['curate/curate']['id']}/create_flow_run", parameters=given)
    assert reply.status_code == 201, reply.text
    tables = [a for a in found if a["key"] == "tiny-comparisons"]
    assert tables and "NaN" not in tables[0]["data"]


def test_a_run_that_takes_too_long_fails_and_keeps_its_shards(registered, lake):
    state = start(
        "curate", recipe=str(registered[0]), proxy={"steps": 4}, stop_after="score", timeout_minutes=0.001
    )
    assert state.name == "Failed" and "timed out" in state.message, state.message
    assert lake.runs()[-1]["state"] == "cancelled"
