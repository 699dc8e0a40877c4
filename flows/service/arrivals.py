"""The deployed watch: it looks at the files of a recipe, and orders a run of the recipe when some are new."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.schedules import Cron, Interval, Schedule
from prefect.states import Completed, State

from curation.errors import UserError
from curation.specs import Recipe
from flows.arrivals import SETTLE_SECONDS, look, remember
from flows.recipe import load_recipe
from storage.artifacts import Lake

# Intervals keep their beat when the deployments are registered again.
ANCHOR = datetime(2024, 1, 1, tzinfo=UTC)


def schedules_of(recipe: Recipe) -> dict[str, list[Schedule]]:
    """When `curate/NAME` and `watch/NAME` start by themselves, by flow name; no schedule is an empty list."""
    spec = recipe.schedule
    runs = [Cron(spec.cron, timezone=spec.timezone or "UTC")] if spec.cron else []
    if spec.interval_minutes:
        runs = [Interval(timedelta(minutes=spec.interval_minutes), anchor_date=ANCHOR)]
    minutes = spec.watch_minutes
    looks = [Interval(timedelta(minutes=minutes), anchor_date=ANCHOR)] if minutes else []
    return {"curate": runs, "watch": looks}


def _name() -> str:
    return f"{Path(flow_run.parameters['recipe']).stem}-watch"


@flow(name="watch", flow_run_name=_name, description="Starts a recipe when its source files changed.")
def watch(recipe: str, settle_seconds: float = SETTLE_SECONDS) -> State[Any]:
    """Looks at the files of a recipe and orders a run of `curate/NAME` when some are new.

    The order carries a key made of the files' content, so that two looks at the same files order one run.

    Args:
        recipe: the recipe's file
        settle_seconds: a file that was changed less than so many seconds ago may still be written, and is waited for
    """
    path, lake = Path(recipe), Lake(os.environ["GRADUS_LAKE"])
    spec = load_recipe(path)
    found = look(lake, spec, path.resolve().parent, settle_seconds)
    ordered = _order(spec.name, found.content) if found.new else ""
    remember(lake, spec, found)
    return Completed(message=f"{found.says}; ordered {ordered}" if ordered else found.says)


def _order(name: str, content: str) -> str:
    """The name of the run of `curate/NAME` for this content: ordered now, or by an earlier look."""
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(f"curate/{name}")
        except ObjectNotFound as error:
            raise UserError(f"curate/{name} is not registered; type: gradus serve RECIPE") from error
        return client.create_flow_run_from_deployment(
            deployment.id, idempotency_key=f"arrived-{content}", tags=["arrived"]
        ).name
