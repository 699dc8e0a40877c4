"""The loop under Prefect: one flow a stage and the loop, all state in the lake.

Stage code knows no Prefect. A stage that finds its artifact ends in the state *Reused*. Prefect stores small
parameters and states only, never frames; its own caching is not used.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curation.errors import GradusError, TransientError
from flows.execute import loop
from flows.loop import curate
from flows.run import Run, scoring_devices
from flows.shown import harmless, show_stage, tracked
from flows.terminal import safe
from flows.window import round_and_phase

ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
}
TRIES = 2  # of a stage that meets a transient error; its shards were tried again before
LEASE_SECONDS = 60.0  # a killed holder of a limit blocks the next one so long
LONGEST_MESSAGE = 5000


def curate_with_prefect(run: Run) -> None:
    """Runs the loop as Prefect flows: against PREFECT_API_URL, else the lake's own server, else a temporary one.

    Without an API the server's data base is kept in the lake, under `prefect/`, so that a lake is one folder.
    """
    named = "PREFECT_API_URL" in os.environ
    connect(run)
    from prefect import flow, tags
    from prefect.states import Completed, Failed

    errors: list[Exception] = []

    @flow(
        name="curate",
        flow_run_name=f"{run.recipe.name}-{run.run_id}",
        description=curate.__doc__,
        validate_parameters=False,
    )
    def whole(recipe: str, run_id: str, lake: str) -> Any:
        try:
            with_stages(run)
        except Exception as error:  # raised again below, without Prefect's traceback around it
            errors.append(error)
            return Failed(message=failure(run, error))
        return Completed()

    try:
        with reachable(), tags("gradus", run.recipe.name):
            whole(run.recipe.name, run.run_id, str(run.lake.root), return_state=True)
    finally:
        if not named:  # what this process starts later asks for a server of its own
            os.environ.pop("PREFECT_API_URL", None)
    if errors:
        raise errors[0]


def connect(run: Run) -> None:
    """Sets this process up to talk to a Prefect server; before Prefect is imported."""
    from flows.service import settings
    from flows.service.temporary import temporary_server

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" in os.environ or "prefect" in sys.modules:  # whoever loaded it has chosen
        return
    found = settings.serving(run.lake.root)
    if found:
        root = run.lake.root
        os.environ |= settings.client_environment(root, found.api_url, settings.key_of(root))
    else:
        home = os.environ.setdefault("PREFECT_HOME", str(run.lake.root / "prefect"))
        # One that does not answer is gone for good: it is this run's own, on this machine.
        os.environ |= {"PREFECT_API_URL": temporary_server(Path(home)), "PREFECT_CLIENT_MAX_RETRIES": "1"}


def with_stages(run: Run) -> None:
    """The loop inside a flow: every stage a subflow, progress as artifacts."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    run.call, run.track = (as_ended if run.reuse_only else as_subflow), tracked(run.track)
    # A subflow's heartbeat thread costs a second to join; the parent beats for all.
    with reachable(), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        loop(run)


@contextmanager
def reachable() -> Generator[None]:
    """Says what is kept when the server is gone while a run goes on."""
    from httpx import TransportError

    try:
        yield
    except TransportError as error:
        raise TransientError(
            f"the Prefect server does not answer any more ({error}); finished stages and shards are kept; "
            "when it is back, Retry, or type the same command again"
        ) from error


def failure(run: Run, error: Exception) -> str:
    """What the failed run says: the stage and its message, safe to show."""
    stage = f"stage {run.at}: " if run.at else ""
    return safe(f"{stage}{error if isinstance(error, GradusError) else repr(error)}")[:LONGEST_MESSAGE]


def as_subflow(stage: Callable[..., Any], run: Run, *args: Any) -> Any:
    """Runs one stage as a subflow that shows corpus, round and inputs, and returns what the stage returned."""
    from prefect import flow, tags
    from prefect.states import Completed, Failed

    outcome: list[Any] = []
    errors: list[Exception] = []
    round, phase = round_and_phase(args)
    name = stage.__name__

    @flow(
        name=name.replace("_", "-"),
        flow_run_name=title(run.recipe.name, name, round, phase),
        description=stage.__doc__,
        validate_parameters=False,
    )
    def body(corpus: str, round: int, inputs: list[str]) -> Any:
        run.at, before, begun = name, len(run.steps), time.monotonic()
        try:
            with holding(limits(run, name)):
                outcome.append(patiently(stage, run, *args))
        except Exception as error:
            errors.append(error)
            return Failed(message=failure(run, error))
        run.at, made = "", run.steps[before:]
        if name in ("base", "next_base") and run.facts.get("version"):
            announce(run)
        show_stage(run, name, round, made, time.monotonic() - begun)
        return Completed(**ending(made))

    with tags("gradus", run.recipe.name, name):
        body(run.recipe.name, round, inputs_of(args), return_state=True)
    if errors:
        raise errors[0]
    return outcome[0]


def as_ended(stage: Callable[..., Any], run: Run, *args: Any) -> Any:
    """Finds what one stage made before, and shows it as a subflow that has ended: in three requests, not a dozen."""
    from prefect import task
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext
    from prefect.flows import Flow
    from prefect.states import Completed

    before, begun = len(run.steps), time.monotonic()
    outcome = stage(run, *args)
    round, phase = round_and_phase(args)
    made, shown = run.steps[before:], stage.__name__.replace("_", "-")
    state, parent = Completed(**ending(made)), FlowRunContext.get()
    assert parent is not None and parent.flow_run is not None
    one = Flow(stage, name=shown, validate_parameters=False)
    with get_client(sync_client=True) as client:
        place = client.create_task_run(
            task(stage, name=shown), parent.flow_run.id, f"{shown}-{round}-{phase}", name=shown, state=state
        )
        ended = client.create_flow_run(
            one,
            name=title(run.recipe.name, stage.__name__, round, phase),
            parameters={"corpus": run.recipe.name, "round": round, "inputs": inputs_of(args)},
            tags=["gradus", run.recipe.name, stage.__name__],
            parent_task_run_id=place.id,
            state=state,
        )
        show_stage(run, stage.__name__, round, made, time.monotonic() - begun, flow_run_id=ended.id)
    return outcome


def inputs_of(args: Sequence[Any]) -> list[str]:
    """The artifacts among a stage's arguments."""
    return [str(a) for a in args if a is not None and not isinstance(a, (int, str, dict, list, bool))]


def ending(made: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Name and message of the state that a stage ends in."""
    if made and all(step["reused"] for step in made):
        return {"name": "Reused", "message": made[-1]["artifact"]}
    return {"message": made[-1]["artifact"] if made else "nothing to do"}


def announce(run: Run) -> None:
    """Emits that there is a new version; once a version, and never fails the run."""
    from flows.service.events import announce_published

    with harmless():
        announce_published(run.lake, run.recipe.name, run.facts["version"], run.run_id)


def title(corpus: str, stage: str, round: int, phase: str) -> str:
    """A stage's name in the UI: corpus, stage, round, phase."""
    return "-".join([corpus, stage, *([f"r{round}"] if round else []), *([phase] if phase else [])])


def patiently(stage: Callable[..., Any], run: Run, *args: Any) -> Any:
    """What the stage returns; tried again after a pause when an error says that it may go better later."""
    for attempt in range(1, TRIES + 1):
        try:
            return stage(run, *args)
        except TransientError as error:
            if attempt == TRIES:
                raise
            pause = 4 * attempt * random.uniform(0.5, 1.5)
            run.say(f"{stage.__name__}: {error}; tried again in {pause:.0f} s")
            time.sleep(pause)


def limits(run: Run, stage: str) -> list[str]:
    """The limits that a stage holds: a GPU is one job's, a dataset one publisher's."""
    import platform

    if stage == "score":
        return [f"gradus-gpu:{platform.node()}:{device}" for device in scoring_devices()]
    return [f"gradus-publish:{run.recipe.name}"] if stage == "next_base" else []


@contextmanager
def holding(names: Sequence[str]) -> Generator[None]:
    """Holds one slot of every limit, made when there is none yet; a killed holder's come back with its lease."""
    if not names:
        yield
        return
    from prefect.client.orchestration import get_client
    from prefect.concurrency.sync import concurrency

    with get_client(sync_client=True) as client:
        for name in names:
            client.upsert_global_concurrency_limit_by_name(name, 1)
    with concurrency(list(names), lease_duration=LEASE_SECONDS):
        yield
