"""The command line: running a recipe, looking into a lake (flows.look) and taking things out of it (flows.export)."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import GradusError, TransientError
from flows import export, look, operate
from flows.terminal import LakeOption, pairs, progress, safe, say, terminal_lines

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Curate training corpora so that models generalize, with proof.",
)
Replaced = Annotated[
    list[str] | None, typer.Option(help="NAME=PATH: a local file in place of the recipe's; may be repeated")
]
StartAt = Annotated[
    str | None, typer.Option(help="the first stage to compute; everything before it must be in the lake")
]
StopAfter = Annotated[str | None, typer.Option(help="the last stage of the round to run")]
OfRound = Annotated[
    int | None, typer.Option(min=1, help="the round of --start-at and --stop-after; default 1")
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="where shards are computed: processes (default), threads, dask or ray; or GRADUS_ENGINE",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="compute these stages again aside, and compare with what is published")
]
DEMO = Path(__file__).with_name("demo.toml")


def _run_of(recipe_path: Path, sources: list[str] | None = None, suites: list[str] | None = None):
    """A recipe read for a look at it: nothing is written."""
    from flows.execute import run_of

    return run_of(None, _request(recipe_path, sources, suites), say=say)


def _request(recipe: Path, sources: list[str] | None = None, suites: list[str] | None = None, **more: Any):
    from flows.execute import Request

    return Request(str(recipe), sources=pairs("source", sources), suites=pairs("suite", suites), **more)


@app.command()
def demo(lake: LakeOption = Path("lake")) -> None:
    """Run the whole loop on the embedded corpus: about six minutes on two cores."""
    execute(lake, _request(DEMO))


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="a recipe file, or the name of one that ran in this lake")],
    lake: LakeOption = Path("lake"),
    source: Replaced = None,
    suite: Replaced = None,
    start_at: StartAt = None,
    stop_after: StopAfter = None,
    round: OfRound = None,
    force: Force = False,
    engine: EngineOption = None,
) -> None:
    """Run a recipe to its end; what is in the lake already is not done again."""
    part = {"start_at": start_at, "stop_after": stop_after, "round": round, "force": force}
    execute(lake, _request(recipe, source, suite, **part), engine)


@app.command()
def rerun(
    run_id: Annotated[str, typer.Argument(help="an earlier run; a beginning is enough")],
    changed: Annotated[
        list[str] | None, typer.Option("--set", help="SECTION.FIELD=VALUE of its recipe; may be repeated")
    ] = None,
    lake: LakeOption = Path("lake"),
    start_at: StartAt = None,
    stop_after: StopAfter = None,
    round: OfRound = None,
    force: Force = False,
    engine: EngineOption = None,
) -> None:
    """Run an earlier run again from a stage on, with some fields of its recipe changed."""
    from flows.execute import Request, changes

    part = {"start_at": start_at, "stop_after": stop_after, "round": round, "force": force}
    execute(lake, Request(run_id=run_id, changed=changes(changed or []), **part), engine)


def execute(lake: Path, request: Any, engine: str | None = None) -> None:
    """The loop: answered from the lake when everything is there, else under Prefect."""
    from flows.execute import execute as run_request
    from storage.artifacts import Lake

    store = Lake(lake)
    try:
        more = {"engine": engine} if engine else {}
        run_id = run_request(store, request, _under_prefect, say, track=progress, **more)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    summarise(store.address, run_id)


def _under_prefect(run: Any) -> None:
    from flows.orchestrate import curate_with_prefect

    curate_with_prefect(run)


def summarise(lake: str, run_id: str | None) -> None:
    """Prints what a run found, where its report is, and what to try next."""
    from flows.status import find_run, status
    from storage.artifacts import Lake

    store = Lake(lake, create=False)
    record = find_run(store, run_id)
    for line in terminal_lines(status(store, record)):
        say(line)
    if report := store.report(f"{record['run']}.html"):
        say(f"\nreport      {report}")
    say(
        f'next        gradus sql "from accounting" --lake {lake}\n            gradus status --json --lake {lake}\n            duckdb {store.root}/catalog.duckdb\n            gradus init YOUR.jsonl'
    )


@app.command()
def status(
    run_id: Annotated[str | None, typer.Argument(help="a run; default: the newest")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """What the latest run found, and whether the lake is served."""
    from flows.service.serve import serving_line
    from flows.status import find_run
    from flows.status import status as facts_of
    from storage.artifacts import Lake

    store = Lake(lake, create=False)
    facts = facts_of(store, find_run(store, run_id))
    if as_json:
        typer.echo(json.dumps(facts, indent=2, allow_nan=False))
        return
    for line in (*terminal_lines(facts), f"\nserver         {serving_line(store.root)}"):
        say(line)


@app.command()
def check(recipe: Path, source: Replaced = None, suite: Replaced = None) -> None:
    """Read everything a run would read, and say what is wrong with it before any long work."""
    from flows.check import check as check_run

    for line in check_run(_run_of(recipe, source, suite)):
        say(line)
    say(f"ok: gradus run {recipe}")


@app.command()
def fields() -> None:
    """Every field of a recipe, its default and what it is for."""
    from curation.specs import Recipe
    from flows.recipe import describe_fields

    for line in describe_fields(Recipe):
        say(line)


@app.command()
def estimate(recipe: Path, source: Replaced = None, suite: Replaced = None) -> None:
    """Time, memory and disk of each stage, before anything loads. Nothing here costs money."""
    from flows.check import refuse_problems
    from flows.estimate import estimate as estimate_run

    current = _run_of(recipe, source, suite)
    refuse_problems(current.recipe, recipe)
    stages = estimate_run(current)
    say(f"{'stage':<18}{'seconds':>9}{'memory MB':>11}{'disk MB':>9}   work, on {current.workers} cores")
    for s in stages:
        say(f"{s.stage:<18}{s.seconds:>9.0f}{s.memory_mb:>11.0f}{s.disk_mb:>9.0f}   {s.work}")
    say(
        f"{'together':<18}{sum(s.seconds for s in stages):>9.0f}{max(s.memory_mb for s in stages):>11.0f}{sum(s.disk_mb for s in stages):>9.0f}"
    )


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="default: the default small decoder")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    lake: LakeOption = Path("lake"),
    source: Replaced = None,
    suite: Replaced = None,
) -> None:
    """Say which device, precision and attention scoring will use, how fast it is here, and what to fix."""
    from flows.doctor import examine, print_examination

    run_in_hand = _run_of(recipe, source, suite) if recipe else None
    found = examine(run_in_hand, lake)
    if as_json:
        typer.echo(json.dumps(found.facts(), indent=2, allow_nan=False))
    else:
        print_examination(found, run_in_hand.recipe if run_in_hand else None)
    if not found.usable:
        raise typer.Exit(1)


@app.command()
def init(
    file: Path, out: Annotated[Path, typer.Option(help="where the recipe goes")] = Path("recipe.toml")
) -> None:
    """Write a commented recipe from a look at your data."""
    from flows.init import init as write_recipe

    for line in write_recipe(file, out):
        say(line)


app.add_typer(look.app)  # without a name: its commands stand beside the others
app.add_typer(export.app)
app.add_typer(operate.app)


def main() -> None:
    """The `gradus` command: errors are one message and exit code 2, interrupts say what is kept and exit 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
    try:
        app()
    except GradusError as error:
        print(f"gradus: {safe(error)}", file=sys.stderr)
        sys.exit(75 if isinstance(error, TransientError) else 2)


if __name__ == "__main__":
    main()
