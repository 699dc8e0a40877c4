"""The operating part in a real browser, with a corpus of hostile strings: form, run, rerun from a stage, report.

GRADUS_TEST_SHOTS names a folder for screenshots of what was seen.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.service.processes import end, marked
from flows.service.settings import Serving, serving
from flows.shown import chart, safe_markdown, unlinked
from flows.terminal import safe
from tests.hostile import HOSTILE
from tests.service.conftest import gradus

pytestmark = pytest.mark.xdist_group("prefect")
RECIPE = """
format = 1
name = "hostile"
[[source]]
name = "in.--x"
path = "in/*.jsonl"
[[suite]]
name = "new.__proto__"
path = "new.jsonl"
distribution = "ood"
use = "steer+judge"
[ingest]
max_chars = 5000000
[proxy]
kind = "decoder"
layers = 1
width = 16
max_tokens = 32
steps = 2
feature_dimensions = 64
[budget]
rows = 60
[select]
strategies = []
regions = 4
[decide]
work = "choose"
fixed_strategy = "gradient_logdet"
replicates = 6
"""
PLACES = ("harbour", "market", "station", "bridge", "museum", "garden", "library")
MEGABYTE = HOSTILE[0] + "<b>hostile</b> " * 70_000
RUN_SECONDS = 240
# What its pages themselves do wrong: blocked calls, wrong ones, a graph that is drawn too early.
PREFECTS = ("amplitude.com", "status of 404", "status of 422", "(reading 'position')")
UNDER_WAY = ("SCHEDULED", "PENDING", "RUNNING")
LINKS = ("Rerun only this", "Rerun from here", "Report")
# Elements that the hostile strings would make.
ALIVE = """[...document.querySelectorAll(
    'a[href^="javascript:" i], [src*="canary"], [href*="canary"], [onerror], [onload], [srcdoc], [autofocus][onfocus]'
)].map(e => e.outerHTML)[0]"""


def write(path: Path, texts: list[str], start: int) -> None:
    """Rows that differ by more than their hostile part, so that they stay."""
    lines = [
        {
            "prompt": f"{text} {i * 7919 % 997} {PLACES[i % 7]} {i * 104729 % 997}",
            "response": text,
            "label": text,
        }
        for i, text in enumerate(texts, start)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Serving]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "in").mkdir()
    write(folder / "in" / "<img src=x onerror=alert(1)>.jsonl", [MEGABYTE, *HOSTILE], 0)
    write(folder / "new.jsonl", HOSTILE[::10], 5000)
    (folder / "hostile.toml").write_text(RECIPE)
    lake = folder / "lake"
    try:
        begun = gradus("serve", str(folder / "hostile.toml"), "--lake", str(lake), "--port", "0", "--detach")
        assert begun.returncode == 0, begun.stderr
        found = serving(lake)
        assert found is not None
        yield found
    finally:
        gradus("serve", "stop", "--lake", str(lake))
        end(marked(lake), 1)


@contextmanager
def watched(browser: Any, served: Serving) -> Generator[Any]:
    """A tab; afterwards nothing in it or in what it opened has run, asked, complained or called anybody else."""
    own, heard = (served.ui_url, served.pages_url, "data:", "blob:", "about:blank", "chrome"), []

    def note(what: str, text: str) -> None:
        known = any(own in text for own in PREFECTS)
        if not known and not (what in ("request", "opened") and text.startswith(own)):
            heard.append(f"{what}: {text[:300]}")

    with browser.new_context(viewport={"width": 1280, "height": 1000}) as context:
        context.set_default_timeout(30_000)
        context.on("dialog", lambda d: (heard.append(f"dialog: {d.message}"), d.dismiss()))
        context.on("console", lambda m: note("console", m.text) if m.type == "error" else None)
        context.on("weberror", lambda e: note("error", str(e.error)))
        context.on("request", lambda r: note("request", r.url))
        yield context.new_page()
        for tab in context.pages:
            note("opened", tab.url)
            assert tab.evaluate("window.canary === undefined")
    assert not heard, heard


def shoot(tab: Any, name: str) -> None:
    if folder := os.environ.get("GRADUS_TEST_SHOTS"):
        tab.wait_for_timeout(1000)
        tab.screenshot(path=Path(folder) / f"{name}.png")


def completed(tab: Any, served: Serving) -> str:
    """Waits for the run that a form has just ordered; its id. The deployment's page says that it is Completed."""
    line = tab.locator(".state-list-item").first
    link = line.locator("a[href*='/runs/flow-run/']").first
    run, deadline = link.get_attribute("href").rpartition("/")[2], time.monotonic() + RUN_SECONDS
    while (state := ask(served, f"/flow_runs/{run}")["state"])["type"] in UNDER_WAY:
        assert time.monotonic() < deadline, state
        tab.wait_for_timeout(1000)
    assert state["name"] == "Completed", state["message"]
    tab.reload()
    tab.locator(".state-list-item", has=tab.locator(f"a[href*='{run}']")).get_by_text("Completed").wait_for()
    return run


def open_stages(tab: Any, served: Serving, run: str) -> None:
    tab.goto(f"{served.ui_url}/runs/flow-run/{run}")
    tab.get_by_text("Subflow Runs").click()


def state_of(tab: Any, stage: str) -> str:
    """What the open list of stages says of one of them."""
    tab.get_by_placeholder("Search by run name").last.fill(stage)
    line = tab.locator(".state-list-item", has=tab.get_by_role("link", name=stage, exact=True)).first
    return line.locator(".state-badge").inner_text()


def ask(served: Serving, path: str, **query: Any) -> Any:
    """What the server answers; slowly, while a run and a browser share its machine."""
    method = "POST" if query else "GET"
    url = f"{served.api_url}{path}"
    return httpx.request(method, url, json=query or None, timeout=60).raise_for_status().json()


def artifacts(served: Serving) -> list[dict[str, Any]]:
    return ask(served, "/artifacts/filter", limit=200, sort="CREATED_DESC")


def field(tab: Any, label: str) -> Any:
    """The innermost block of the form that has this label."""
    return tab.locator(".schema-form-property", has=tab.get_by_text(label, exact=True)).last


def run_from_form(tab: Any, served: Serving) -> str:
    """Finds the recipe's deployment, opens its form, submits it as it is; the id of the completed run."""
    tab.goto(f"{served.ui_url}/deployments")
    tab.get_by_placeholder("Search deployments").fill("hostile")
    found = ask(served, "/deployments/name/curate/hostile")["id"]
    tab.locator(f"a[href*='{found}']").first.click()
    tab.get_by_role("button", name="Run", exact=True).click()
    tab.get_by_text("Custom run").click()
    tab.get_by_text("a recipe file on the worker's machine").wait_for()
    shoot(tab, "form")
    tab.get_by_role("button", name="Submit").click()
    return completed(tab, served)


def rerun_from_score(tab: Any, served: Serving, first: str) -> str:
    """From the run's page to its scoring, the link on that page, one field changed; the id of the new run."""
    open_stages(tab, served, first)
    shoot(tab, "run")
    assert state_of(tab, "hostile-score-r1") == "Completed"
    tab.get_by_role("link", name="hostile-score-r1").click()
    tab.get_by_text("Artifacts", exact=True).click()
    tab.locator("a[href*='/artifacts/artifact/']").last.click()
    tab.get_by_role("link", name="Rerun from here").wait_for()
    shoot(tab, "artifact")
    with tab.expect_popup() as opened:
        tab.get_by_role("link", name="Rerun from here").click()
    form = opened.value
    field(form, "start_at (Optional)").get_by_text("score", exact=True).wait_for()
    assert first[:8] in field(form, "run_id (Optional)").locator("textarea").input_value()
    regions = field(form, "Regions (Optional)").locator("input[type=number]")
    assert regions.input_value() == "4"
    regions.fill("5")
    shoot(form, "changed")
    form.get_by_role("button", name="Submit").click()
    return completed(form, served)


def test_form_run_rerun_and_report(browser: Any, served: Serving) -> None:
    with watched(browser, served) as tab:
        second = rerun_from_score(tab, served, run_from_form(tab, served))
        open_stages(tab, served, second)
        assert state_of(tab, "hostile-ingest") == state_of(tab, "hostile-base") == "Reused"
        shoot(tab, "rerun")
        assert state_of(tab, "hostile-score-r1") == state_of(tab, "hostile-next_base-r1") == "Completed"
        shown = next(a for a in artifacts(served) if a["key"] == "hostile-round")
        tab.goto(f"{served.ui_url}/artifacts/artifact/{shown['id']}")
        with tab.expect_popup() as opened:
            tab.get_by_role("link", name="Report").click()
        report = opened.value
        report.get_by_role("heading").first.wait_for()
        assert second[:8] in report.url and "hostile" in report.title()
        shoot(report, "report")


def test_nothing_of_the_corpus_is_more_than_text(browser: Any, served: Serving) -> None:
    """Every artifact, and what is shown of the runs; artifacts in both of Prefect's interfaces."""
    runs = [
        r for r in ask(served, "/flow_runs/filter", limit=200, sort="START_TIME_ASC") if r["deployment_id"]
    ]
    shown = {a["key"]: a["id"] for a in artifacts(served)}  # one of every kind
    assert runs and len(shown) > 8
    page = "\n\n".join([*map(safe_markdown, HOSTILE), chart([(text, 1.0) for text in HOSTILE[:12]])])
    shown["strings"] = ask(
        served, "/artifacts/", key="strings", type="markdown", data=page, description="strings"
    )["id"]
    log = {"name": "gradus", "level": 20, "flow_run_id": runs[0]["id"], "timestamp": runs[0]["start_time"]}
    lines = [log | {"message": unlinked(safe(t))[:4000].encode("utf-8", "replace").decode()} for t in HOSTILE]
    httpx.post(f"{served.api_url}/logs/", json=lines, timeout=60).raise_for_status()
    with watched(browser, served) as tab:
        for key, one in shown.items():
            tab.goto(f"{served.ui_url}/artifacts/artifact/{one}")
            tab.locator(".markdown-renderer, table").first.wait_for()
            assert not tab.evaluate(ALIVE), key
            body = tab.locator(".markdown-renderer")
            assert not body.locator("img, script, iframe, svg, form, style").count(), key
            for link in body.locator("a").all():
                assert link.inner_text() in LINKS, key
                assert link.get_attribute("href").startswith((served.ui_url, served.pages_url))
        for run in runs:
            tab.goto(f"{served.ui_url}/runs/flow-run/{run['id']}")
            tab.get_by_text("submitted to infrastructure").wait_for()
            for name in ("Parameters", "Details", "Logs"):
                tab.get_by_text(name, exact=True).first.click()
                tab.mouse.wheel(0, 20_000)
                assert not tab.evaluate(ALIVE), run["name"]
        for key in ("hostile-ingest", "hostile-score", "strings"):
            tab.goto(f"{served.ui_url}/v2/artifacts/artifact/{shown[key]}")
            tab.get_by_text("Show Raw Data").wait_for()
            assert not tab.evaluate(ALIVE), key
