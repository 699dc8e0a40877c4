"""What starts runs: arrivals, events, automations, and the lines of the manual for other schedulers, run as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from storage.artifacts import Lake
from tests.storage.lakes import rows
from tests.tiny import tiny_recipe

pytestmark = pytest.mark.xdist_group("prefect")
INFRA = Path(__file__).parents[2] / "infra"
MANUAL = (INFRA / "docs" / "scheduling.md").read_text(encoding="utf-8")


def api_url() -> str:
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


def post(path: str, **body: Any) -> Any:
    reply = httpx.post(f"{api_url()}{path}", json=body, timeout=30)
    assert reply.status_code < 300, reply.text
    return reply.json()


def runs_of(deployment: str) -> list[dict[str, Any]]:
    return post("/flow_runs/filter", limit=200, deployments={"id": {"any_": [deployment]}})


def until(check, seconds: float = 120) -> Any:
    end = time.time() + seconds
    while not (found := check()) and time.time() < end:
        time.sleep(0.3)
    return found


def deploy(flow: Any, name: str, **more: Any) -> str:
    """A deployment that no worker takes runs from."""
    from prefect.client.orchestration import get_client
    from prefect.utilities.callables import parameter_schema

    with get_client(sync_client=True) as client:
        schema = parameter_schema(flow).model_dump_for_openapi()
        made = client.create_deployment(
            client.create_flow_from_name(flow.name), name, parameter_openapi_schema=schema,
            enforce_parameter_schema=True, **more,
        )  # fmt: skip
        return str(made)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch) -> Lake:
    monkeypatch.setenv("GRADUS_LAKE", str(tmp_path / "lake"))
    return Lake(tmp_path / "lake")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with a file in a watched folder."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("{}")
    path, name = tmp_path / "r.toml", f"r{uuid4().hex[:8]}"
    path.write_text(
        f'format = 1\nname = "{name}"\n[[source]]\nname = "pool"\npath = "in/*.jsonl"\n'
        '[[suite]]\nname = "new"\npath = "in/a.jsonl"\ndistribution = "ood"\n'
        '[schedule]\ncron = "30 3 * * *"\ntimezone = "Europe/Berlin"\nwatch_minutes = 5\n'
    )
    return path


def test_schedules_are_the_recipes(recipe):
    from flows.recipe import load_recipe
    from flows.service.arrivals import schedules_of

    found = schedules_of(load_recipe(recipe))
    assert [(s.cron, s.timezone) for s in found["curate"]] == [("30 3 * * *", "Europe/Berlin")]
    assert [s.interval.total_seconds() for s in found["watch"]] == [300]
    recipe.write_text(recipe.read_text().partition("[schedule]")[0] + "[schedule]\ninterval_minutes = 90\n")
    found = schedules_of(load_recipe(recipe))
    assert [s.interval.total_seconds() for s in found["curate"]] == [5400] and found["watch"] == []


def test_a_dropped_file_orders_one_run_and_the_next_look_none(server, lake, recipe):
    from flows.recipe import load_recipe
    from flows.service.arrivals import watch
    from flows.service.deployed import curate

    def look() -> str:
        state = watch(recipe=str(recipe), settle_seconds=0, return_state=True)
        assert state.is_completed(), state.message
        return state.message

    name = load_recipe(recipe).name
    ordered = deploy(curate, name, parameters={"recipe": str(recipe)})
    assert "1 new (a.jsonl); ordered" in look() and look() == f"{name}: nothing new"
    assert len(runs_of(ordered)) == 1
    (recipe.parent / "in/b.jsonl").write_text("{ }")
    assert "1 new (b.jsonl); ordered" in look() and "nothing new" in look()
    (lake.root / "arrivals" / f"{name}.json").unlink()  # killed between ordering and remembering
    assert "ordered" in look()
    assert len(runs_of(ordered)) == 2


def test_a_look_without_its_deployment_fails_and_is_not_remembered(server, lake, recipe):
    from flows.service.arrivals import watch

    state = watch(recipe=str(recipe), settle_seconds=0, return_state=True)
    assert state.is_failed() and "is not registered; type: gradus serve" in state.message
    assert not (lake.root / "arrivals").exists()


def published(lake: Lake, name: str, decision: str = "publish") -> int:
    with lake.draft("decide", name, "ab" * 6, {"spec": {"round": 2}}) as draft:
        draft.write_shard("all", {"rows": rows(1)})
        evidence = draft.publish()
    return lake.publish_dataset(name, rows(5), "s", None, decision, str(evidence), 9, "content")


def events_of(name: str) -> list[dict[str, Any]]:
    query = {"event": {"name": ["dataset.published"]}, "resource": {"id": [f"gradus.dataset.{name}"]}}
    return post("/events/filter", filter=query)["events"]


def test_a_version_is_announced_once(server, lake):
    from flows.service.events import announce_published

    name = f"d{uuid4().hex[:8]}"
    version = published(lake, name)
    assert announce_published(lake, name, version, "run-1")
    assert not announce_published(lake, name, version, "run-2")
    assert until(lambda: events_of(name))
    time.sleep(1)
    (event,) = events_of(name)
    assert event["payload"] == {
        "name": name, "version": 1, "run": "run-1", "round": 2, "decision": "publish", "rows": 5, "strategy": "s",
    }  # fmt: skip


def test_the_example_automation_starts_an_evaluation_with_typed_parameters(server, lake):
    from prefect.automations import AutomationCore
    from prefect.client.orchestration import get_client

    from flows.service.deployed import evaluate
    from flows.service.events import announce_published

    started = deploy(evaluate, f"probe-{uuid4().hex[:8]}")
    text = (INFRA / "automations" / "evaluate-published.yaml").read_text().replace("DEPLOYMENT_ID", started)
    (wanted,) = yaml.safe_load(text)["automations"]
    with get_client(sync_client=True) as client:
        made = post("/automations/", **AutomationCore.model_validate(wanted).model_dump(mode="json"))
        base = f"d{uuid4().hex[:8]}"
        announce_published(lake, base, published(lake, base, "base"), "run-base")
        for _ in range(20):  # the server takes a new automation up within a second, or when it has time
            won = f"d{uuid4().hex[:8]}"
            announce_published(lake, won, published(lake, won), "run-won")
            if found := until(lambda: runs_of(started), 6):
                break
        client.delete_automation(made["id"])
    assert found and all(r["parameters"] == {"run_id": "run-won", "round": 2, "force": True} for r in found)


def test_a_lost_server_fails_nothing(lake, tmp_path):
    published(lake, "d")
    script = f"""
from storage.artifacts import Lake
from flows.service.events import announce_published
assert announce_published(Lake({str(lake.root)!r}), "d", 1, "run")
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60,
        env=clean | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def block(kind: str, containing: str) -> str:
    return next(text for text in re.findall(rf"```{kind}\n(.*?)```", MANUAL, re.S) if containing in text)


def test_the_manuals_curl_line_starts_one_run(server, recipe):
    from flows.recipe import load_recipe
    from flows.service.deployed import curate

    name = load_recipe(recipe).name
    made = deploy(curate, name, parameters={"recipe": str(recipe)})
    script = block("sh", "create_flow_run").replace("curate/NAME", f"curate/{name}")
    environment = {**os.environ, "PREFECT_API_URL": api_url(), "PREFECT_API_AUTH_STRING": "some:key"}
    for _ in range(2):
        done = subprocess.run(
            ["sh", "-ec", script], capture_output=True, text=True, env=environment, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(runs_of(made)) == 1
    wrong = script.replace('"parameters": {}', '"parameters": {"round": "two"}').replace("nightly", "other")
    refused = subprocess.run(
        ["sh", "-ec", wrong], capture_output=True, text=True, env=environment, timeout=60
    )
    assert refused.returncode != 0 and "two" in refused.stdout


def test_the_manuals_cron_lines_run_as_printed(tmp_path):
    """Through `sh -c`, as cron does; on the embedded corpus, of which nothing is new after the first look."""
    from flows.arrivals import look, remember
    from flows.recipe import load_recipe

    tiny_recipe(tmp_path).rename(tmp_path / "recipe.toml")
    recipe, lake = load_recipe(tmp_path / "recipe.toml"), Lake(tmp_path / "lake")
    remember(lake, recipe, look(lake, recipe, tmp_path))
    lines = [
        line
        for kind in ("gradus watch", "gradus gc")
        for line in block("cron", kind).splitlines()
        if kind in line
    ]
    bin = shlex.quote(str(Path(sys.executable).parent))
    for line in lines:
        command = line.split(maxsplit=5)[5]
        done = subprocess.run(
            ["sh", "-c", f"cd {shlex.quote(str(tmp_path))} && PATH={bin}:$PATH {command}"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 1, done.stdout + done.stderr
        assert "nothing" in done.stdout
