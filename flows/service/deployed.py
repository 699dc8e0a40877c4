"""What a Prefect server can start: the loop, and each of its stages alone, as forms; and how they are registered.

A worker's lake is the environment variable GRADUS_LAKE: no form asks for it. Importing this module imports nothing of
ours that takes time, but in the process of a run: Prefect does it in processes of its own too, when a run is cancelled.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from prefect import Flow, flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectAlreadyExists
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State
from prefect.utilities.callables import parameter_schema
from prefect.utilities.timeout import timeout

from curation.errors import GradusError, UserError
from curation.specs import Budget, Decide, Ingest, Proxy, Score, Select, Spec, Synthesize
from flows.terminal import safe
from flows.window import SECTIONS, StageName

SPECS: dict[str, type[Spec]] = {
    "ingest": Ingest,
    "proxy": Proxy,
    "budget": Budget,
    "score": Score,
    "synthesize": Synthesize,
    "select": Select,
    "decide": Decide,
}
ABOUT = {
    "run_id": "an earlier run, whose recipe this one takes; a beginning of its name is enough",
    "recipe": "a recipe file on the worker's machine, or the name of a recipe that ran in this lake; give this or run_id",
    "start_at": "the first stage to compute: everything before it must be in the lake; empty: whatever is missing",
    "stop_after": "the last stage of the round to run; empty: to the end",
    "round": "the round of start_at and stop_after; empty: 1",
    "force": "compute again aside, and compare with what is published; nothing is replaced",
    "timeout_minutes": "the run fails after so many minutes, and finished shards are kept; empty: no limit",
}
SECTION = "fields of [{0}] that differ from the recipe's; fields that are left out stay as they are there"
LONGEST_LINE = 4000


def of_a_run() -> bool:
    """Whether this process is there for one flow run: what takes seconds to import comes before that run's clock."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    return main is not None and main.name in ("prefect.engine", "prefect.flow_engine")


def corpus_name() -> str:
    """The run's name in the UI: corpus, round and part, as far as the parameters say."""
    given = flow_run.parameters
    corpus = (
        Path(given.get("recipe") or "").stem
        or "-".join((given.get("run_id") or "?").split("-")[1:-1])
        or "run"
    )
    part = [f"r{given['round']}"] if given.get("round") else []
    part += [f"from-{given['start_at']}"] if given.get("start_at") else []
    return "-".join([corpus, *part, flow_run.id[:8]])


def carry(timeout_minutes: float | None, **asked: Any) -> State:
    """Carries a request out in the worker's lake, inside the flow run that this is; the state says how it ended."""
    from flows.execute import Request, answer, carry_out, prepare
    from flows.orchestrate import failure, with_stages
    from flows.shown import unlinked
    from storage.artifacts import Lake

    log, run = get_run_logger(), None

    def say(text: str) -> None:
        log.info("%s", unlinked(safe(text))[:LONGEST_LINE])

    try:
        if "GRADUS_LAKE" not in os.environ:
            raise UserError(
                "this worker has no lake; start it with GRADUS_LAKE=LAKE, or by `gradus serve --lake LAKE`"
            )
        run, steps = prepare(Lake(os.environ["GRADUS_LAKE"]), Request(**asked), say=say)
        run.run_id = run_id_of(run.recipe.name)
        begun = any(r["run"] == run.run_id for r in run.lake.runs())  # this is a Retry
        with timeout(None if timeout_minutes is None else 60 * timeout_minutes):
            if steps is None or begun:
                carry_out(run, with_stages)
            else:  # nothing to do: the stages are shown, and no record is written
                answer(run, steps)
                run.steps, run.reuse_only = [], True
                with_stages(run)
    except (GradusError, TimeoutError) as error:
        return Failed(message=failure(run, error) if run else safe(str(error)))
    return Completed(message=f"run {run.run_id}, lake {run.lake.address}")


def run_id_of(name: str) -> str:
    """The id of the run's record, made of the flow run's, so that a Retry goes on with the same record."""
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    made = context.flow_run
    return f"{made.created:%Y%m%dT%H%M%S}-{name}-{made.id.hex[:8]}"


def changed(sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The fields that were given of each section."""
    return {
        s: spec.model_dump(mode="json", exclude_unset=True)
        for s, spec in sections.items()
        if spec is not None
    }


def curate_body(
    recipe: str | None = None,
    run_id: str | None = None,
    start_at: StageName | None = None,
    stop_after: StageName | None = None,
    round: int | None = None,
    force: bool = False,
    timeout_minutes: float | None = None,
    **sections: Any,
) -> State:
    part = {"start_at": start_at, "stop_after": stop_after, "round": round, "force": force}
    return carry(timeout_minutes, recipe=recipe, run_id=run_id, changed=changed(sections), **part)


def stage_body(stage: str) -> Callable[..., State]:
    """The function of a flow that runs one stage of an earlier run."""

    def body(
        run_id: str,
        round: int | None = None,
        force: bool = False,
        timeout_minutes: float | None = None,
        **sections: Any,
    ) -> State:
        part = {"start_at": stage, "stop_after": stage, "round": round, "force": force}
        return carry(timeout_minutes, run_id=run_id, changed=changed(sections), **part)

    return body


def as_form(body: Callable[..., State], name: str, sections: tuple[str, ...]) -> Flow:
    """A flow with a parameter for every section, described; Prefect makes the form of it."""
    given = inspect.signature(body, eval_str=True).parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    asked = [p.replace(kind=kind) for p in given if p.kind is not inspect.Parameter.VAR_KEYWORD]
    asked += [inspect.Parameter(s, kind, default=None, annotation=SPECS[s] | None) for s in sections]
    described = [f"    {p.name}: {ABOUT.get(p.name, SECTION.format(p.name))}" for p in asked]
    body.__name__, body.__module__ = name, __name__
    body.__signature__ = inspect.Signature(asked)  # type: ignore[attr-defined]
    body.__doc__ = "\n".join([f"Runs {name}.", "", "Args:", *described])
    return flow(body, name=name.replace("_", "-"), flow_run_name=corpus_name)


def stage_flow(name: StageName) -> Flow:
    """The flow that runs one stage of an earlier run again."""
    return as_form(stage_body(name), name, SECTIONS[name])


curate = as_form(curate_body, "curate", tuple(SPECS))
ingest = stage_flow("ingest")
base = stage_flow("base")
embed = stage_flow("embed")
score = stage_flow("score")
synthesize = stage_flow("synthesize")
select = stage_flow("select")
train = stage_flow("train")
evaluate = stage_flow("evaluate")
screen = stage_flow("screen")
audit = stage_flow("audit")
decide = stage_flow("decide")
next_base = stage_flow("next_base")
sealed = stage_flow("sealed")
if of_a_run():
    for module in ("flows.execute", "flows.orchestrate", "storage.catalog"):
        import_module(module)
ALL = (curate, ingest, base, embed, score, synthesize, select, train, evaluate, screen, audit, decide, next_base, sealed)  # fmt: skip


def register(pool: str, recipes: list[Path]) -> None:
    """Makes or updates, on the server of PREFECT_API_URL, the work pool and the deployments of loop, stages and recipes.

    A recipe's runs wait for each other: a dataset has one publisher.
    """
    from flows import loop
    from flows.recipe import load_recipe
    from flows.service.arrivals import schedules_of, watch

    loaded = [(path.resolve(), load_recipe(path)) for path in recipes]
    about = {
        one.name: getattr(loop, "publish_base" if one is base else one.fn.__name__).__doc__ for one in ALL
    }
    about["watch"] = watch.description
    alone = {
        "concurrency_limit": 1,
        "concurrency_options": ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
    }
    with get_client(sync_client=True) as client:
        _make_pool(client, pool)
        for one in ALL:
            _deploy(client, pool, one, one.name, description=inspect.cleandoc(about[one.name]))
        for path, recipe in loaded:
            schedules = schedules_of(recipe)
            for one in (curate, watch):
                when = [DeploymentScheduleCreate.from_schedule(s) for s in schedules[one.name]]
                more = {"description": inspect.cleandoc(about[one.name]), "parameters": {"recipe": str(path)}}
                _deploy(client, pool, one, recipe.name, schedules=when, **more, **alone)


def _make_pool(client: SyncPrefectClient, pool: str) -> None:
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))


def _deploy(client: SyncPrefectClient, pool: str, one: Flow, name: str, **more: Any) -> None:
    """Makes or updates one deployment; the server refuses parameters that its form does not have."""
    schema = parameter_schema(one).model_dump_for_openapi() | {"additionalProperties": False}
    client.create_deployment(
        flow_id=client.create_flow_from_name(one.name),
        name=name,
        work_pool_name=pool,
        entrypoint=f"{one.fn.__module__}.{one.fn.__name__}",
        tags=["gradus", *dict.fromkeys((one.name, name))],
        parameter_openapi_schema=schema,
        enforce_parameter_schema=True,
        paused=False,
        **more,
    )
