"""The loop under Prefect: one flow a stage and the loop, all state in the lake.

Stage code knows no Prefect. A stage that finds its artifact ends in the state *Reused*. Prefect stores small
parameters and states only, never frames; its own caching is not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flows.loop import curate
from flows.run import Run
from flows.watch import watch_server

ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default of 20 s is too close on small machines
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
}


def curate_with_prefect(run: Run) -> None:
    """Runs the loop as Prefect flows: against PREFECT_API_URL when set, else a temporary local server.

    Without an API the server's data base is kept in the lake, under `prefect/`, so that a lake is one folder.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(run.lake.root / "prefect"))
        watch_server(run.run_id)
    from prefect import flow
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.states import Completed, Failed

    errors: list[Exception] = []

    @flow(
        name="curate",
        flow_run_name=f"{run.recipe.name}-{run.run_id}",
        description=curate.__doc__,
        validate_parameters=False,
    )
    def whole(recipe: str, run_id: str, lake: str) -> Any:
        # A subflow's heartbeat thread costs a second to join; the parent beats for all.
        try:
            with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                curate(run)
        except Exception as error:  # raised again below, without Prefect's traceback around it
            errors.append(error)
            return Failed(message=str(error))
        return Completed()

    run.call = as_subflow
    whole(run.recipe.name, run.run_id, str(run.lake.root), return_state=True)
    if errors:
        raise errors[0]


def as_subflow(stage: Callable[..., Any], run: Run, *args: Any) -> Any:
    """Runs one stage as a subflow that shows corpus, round and inputs, and returns what the stage returned."""
    from prefect import flow
    from prefect.states import Completed, Failed

    outcome: list[Any] = []
    errors: list[BaseException] = []
    rounds = [a for a in args[:1] if isinstance(a, int)]
    phase = next((a for a in args[1:2] if isinstance(a, str)), "")
    title = "-".join(
        map(str, [run.recipe.name, stage.__name__, *(f"r{r}" for r in rounds), *([phase] if phase else [])])
    )

    @flow(
        name=stage.__name__.replace("_", "-"),
        flow_run_name=title,
        description=stage.__doc__,
        validate_parameters=False,
    )
    def body(corpus: str, round: int, inputs: list[str]) -> Any:
        before = len(run.steps)
        try:
            outcome.append(stage(run, *args))
        except Exception as error:
            errors.append(error)
            return Failed(message=f"stage {stage.__name__}: {error}")
        made = run.steps[before:]
        if made and all(step["reused"] for step in made):
            return Completed(name="Reused", message=made[-1]["artifact"])
        return Completed(message=made[-1]["artifact"] if made else "nothing to do")

    inputs = [str(a) for a in args if a is not None and not isinstance(a, (int, str, dict, list, bool))]
    body(run.recipe.name, rounds[0] if rounds else 0, inputs, return_state=True)
    if errors:
        raise errors[0]
    return outcome[0]
