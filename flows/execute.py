"""Running a recipe in a lake: from what a person asks for to a run, its record, the catalog and the report.

The command line and the flows of a server come through here; nothing here knows either.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curation.errors import GradusError, UserError
from curation.specs import Recipe
from flows.check import refuse_problems, refuse_spent_alpha
from flows.loop import curate
from flows.recipe import load_recipe, validated
from flows.run import NotCached, Run, recipe_hash
from flows.status import find_run
from flows.terminal import safe
from flows.window import Stopped, stopping, window_of
from storage.artifacts import Lake, Ref

Sections = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Request:
    """What to run: a recipe (a file, or the name of one run before) or an earlier run, changes, and which part."""

    recipe: str | None = None
    run_id: str | None = None
    changed: Sections = field(default_factory=dict)  # section -> the fields that differ
    sources: Mapping[str, str] = field(default_factory=dict)
    suites: Mapping[str, str] = field(default_factory=dict)
    start_at: str | None = None
    stop_after: str | None = None
    round: int | None = None
    force: bool = False


def run_of(lake: Lake | None, request: Request, **more: Any) -> Run:
    """The run that is asked for, not yet begun; `UserError` when the request cannot be met."""
    recipe, folder, earlier = _recipe_of(lake, request)
    recipe, names = with_changes(recipe, request.changed)
    window = window_of(recipe, request.start_at, request.stop_after, request.round, request.force, names)
    run = Run(lake, recipe, folder, window=window, **more)  # type: ignore[arg-type]
    if lake and earlier and request.start_at not in (None, "ingest"):
        run.known_files = _files_of(lake, earlier)
    if earlier:
        run.facts |= {"rerun_of": earlier["run"], "changed": list(names)}
    part = {"start_at": window.start_at, "stop_after": window.stop_after, "force": window.force or None}
    if any(part.values()):
        run.facts["window"] = {k: v for k, v in part.items() if v} | {"round": window.round}
    return run


def _recipe_of(lake: Lake | None, request: Request) -> tuple[Recipe, Path, dict[str, Any] | None]:
    if (request.recipe is None) == (request.run_id is None):
        raise UserError("say what to run: a recipe, or the id of an earlier run (run_id), and not both")
    if request.recipe is not None:
        path = Path(request.recipe).expanduser()
        found = [r for r in lake.runs() if r["recipe"] == request.recipe] if lake else []
        if path.is_file() or not found:
            loaded = load_recipe(path, dict(request.sources), dict(request.suites))
            return loaded, path.resolve().parent, None
    else:
        assert lake is not None
        found = [find_run(lake, request.run_id)]
    record = found[-1]
    recipe = validated(record["recipe_spec"], f"the recipe of run {record['run']}")
    return recipe, Path(record.get("folder") or "."), record if request.run_id else None


def _files_of(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """Names and hashes of the files that a run's pool was read from."""
    pools = [s["artifact"] for s in record["steps"] if s["stage"] == "ingest"]
    return lake.manifest(Ref.parse(pools[-1]))["spec"]["files"] if pools else None


def with_changes(recipe: Recipe, changed: Sections) -> tuple[Recipe, tuple[str, ...]]:
    """(the recipe with these fields of its sections, the names of the fields that differ from it)."""
    before = recipe.model_dump(mode="json")
    raw = {**before, **{section: {**before.get(section, {}), **given} for section, given in changed.items()}}
    after = validated(raw, "the changed recipe") if changed else recipe
    now = after.model_dump(mode="json")
    names = [f"{s}.{f}" for s in changed for f in now[s] if now[s][f] != before[s][f]]
    return after, tuple(names)


def changes(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`section.field=value` entries as sections; a value is JSON, else text."""
    out = dict[str, dict[str, Any]]()
    for entry in given:
        where, equals, text = entry.partition("=")
        section, dot, name = where.partition(".")
        if not (equals and dot and section and name):
            raise UserError(
                f"--set {entry!r}: write --set SECTION.FIELD=VALUE, such as --set budget.rows=500"
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        out.setdefault(section, {})[name] = value
    return out


def loop(run: Run) -> None:
    """The loop as far as the run's window goes, in the run's way of calling stages."""
    run.call = stopping(run.call)
    try:
        curate(run)
    except Stopped:
        run.facts["stopped_after"] = {"stage": run.window.stop_after, "round": run.window.round}
        return
    done = max((step["round"] for step in run.steps), default=0)
    if run.window.round > done:
        raise UserError(
            f"there was no round {run.window.round}: the loop stopped after round {done} ({run.facts.get('stop_reason')})"
        )


def prepare(lake: Lake, request: Request, **more: Any) -> tuple[Run, list[dict[str, Any]] | None]:
    """(the run, the steps of it when all is in the lake already): refused before any long work when it cannot go on."""
    run = run_of(lake, request, **more)
    refuse_problems(run.recipe, Path(request.recipe) if request.recipe else None)
    probe = run_of(lake, request, say=lambda _: None)
    probe.reuse_only = True
    try:
        loop(probe)
    except NotCached:
        first = probe.steps[:1]
        same = [r for r in _runs_of(lake, run.recipe) if r["steps"][:1]]
        goes_on = any(first and r["steps"][0]["artifact"] == first[0]["artifact"] for r in same)
        if run.window.tests and not goes_on:
            refuse_spent_alpha(lake, run.recipe)  # a run that goes on has booked its own
        return run, None
    run.facts |= probe.facts
    return run, None if request.force else probe.steps


def _runs_of(lake: Lake, recipe: Recipe) -> list[dict[str, Any]]:
    return [r for r in lake.runs() if r["recipe_hash"] == recipe_hash(recipe)]


def execute(
    lake: Lake,
    request: Request,
    compute: Callable[[Run], None],
    say: Callable[[str], None] = print,
    **more: Any,
) -> str:
    """The id of the run that answers the request: an earlier one, when all is there; else `compute` carries it out."""
    begun = time.monotonic()
    run, steps = prepare(lake, request, say=say, **more)
    if steps is not None:
        answer(run, steps)
        say(f"nothing to do: every stage was found in {run.lake.address} ({time.monotonic() - begun:.1f} s)")
    else:
        run.run_id = new_run_id(run.recipe.name)
        carry_out(run, compute)
    return run.run_id


def answer(run: Run, steps: list[dict[str, Any]]) -> None:
    """Makes the run the earlier one that did the same steps; without one, a record of its own is written."""
    from storage.catalog import fresh_catalog

    artifacts = [step["artifact"] for step in steps]
    done = [
        r
        for r in _runs_of(run.lake, run.recipe)
        if r["state"] == "completed" and [s["artifact"] for s in r["steps"]] == artifacts
    ]
    if done:
        run.run_id = done[-1]["run"]
    else:
        run.run_id, run.steps = run.run_id or new_run_id(run.recipe.name), steps
        run.save("completed")
        finish(run)
    fresh_catalog(run.lake)


def new_run_id(name: str) -> str:
    """A run's name: when it began, what it runs, and four random digits."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{name}-{secrets.token_hex(2)}"


def carry_out(run: Run, compute: Callable[[Run], None] = loop) -> None:
    """Runs it to its end, however that comes: the record says which, worker processes are gone, the pages are written."""
    run.save("running")
    run.say(f"run {run.run_id}: {run.recipe.name}, lake {run.lake.address}")
    tell_of_clock(run)
    state, error = "failed", None
    try:
        compute(run)
        state = "completed"
    except Exception as problem:
        error = str(problem) if isinstance(problem, GradusError) else repr(problem)
        raise
    except BaseException:  # Ctrl-C, a termination, a cancellation
        state, error = "cancelled", "interrupted"
        run.say("stopped. Finished shards are kept; the same command, or Retry, goes on from there.")
        raise
    finally:
        run.close(kill=state != "completed")
        run.save(state, error=error)
        finish(run, report=state == "completed")


def tell_of_clock(run: Run) -> None:
    """Says when the lake has a run that began later than now: runs are told apart by their names, and sorted by time."""
    newest = run.lake.runs()[-1]
    if (
        newest["run"] != run.run_id
        and newest["started"] > datetime.fromtimestamp(time.time(), UTC).isoformat()
    ):
        run.say(
            f"the clock is behind: run {newest['run']} began at {newest['started']} and counts as the newest until then; "
            f"this one: gradus status {run.run_id}"
        )


def finish(run: Run, report: bool = True) -> None:
    """Brings the catalog up to date, and writes the report of a completed run and the page that lists all runs.

    What fails here is told and never hides how the run itself ended.
    """
    from flows.report.index import write_index
    from flows.report.page import write_report
    from storage.catalog import fresh_catalog

    try:
        fresh_catalog(run.lake)
        if report:
            record = next(r for r in run.lake.runs() if r["run"] == run.run_id)
            write_report(run.lake, record)
        write_index(run.lake)
    except GradusError as error:
        again = f"gradus report {run.run_id} --lake {run.lake.address}"
        print(f"gradus: the run's pages were not written: {safe(error)}; later: {again}", file=sys.stderr)
