"""The command line: running a recipe, looking into a lake (flows.look) and taking things out of it (flows.export)."""

from __future__ import annotations

import json
import secrets
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import GradusError, TransientError
from flows import export, look
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
DEMO = Path(__file__).with_name("demo.toml")


def _run_of(
    recipe_path: Path,
    lake: Path | None,
    sources: list[str] | None = None,
    suites: list[str] | None = None,
    **more: Any,
):
    from flows.recipe import load_recipe
    from flows.run import Run
    from storage.artifacts import Lake

    recipe = load_recipe(recipe_path, pairs("source", sources), pairs("suite", suites))
    return Run(Lake(lake) if lake else None, recipe, recipe_path.resolve().parent, say=say, **more)  # type: ignore[arg-type]


@app.command()
def demo(lake: LakeOption = Path("lake")) -> None:
    """Run the whole loop on the embedded corpus: about six minutes on two cores."""
    execute(DEMO, lake)


@app.command()
def run(
    recipe: Path, lake: LakeOption = Path("lake"), source: Replaced = None, suite: Replaced = None
) -> None:
    """Run a recipe to its end; what is in the lake already is not done again."""
    execute(recipe, lake, source, suite)


def execute(
    recipe_path: Path, lake: Path, sources: list[str] | None = None, suites: list[str] | None = None
) -> None:
    """The loop: answered from the lake when everything is there, else under Prefect."""
    from flows.check import refuse_problems, refuse_spent_alpha
    from flows.loop import curate
    from flows.run import NotCached, recipe_hash

    begun = time.time()
    current = _run_of(recipe_path, lake, sources, suites)
    refuse_problems(current.recipe, recipe_path)
    earlier = [r for r in current.lake.runs() if r["recipe_hash"] == recipe_hash(current.recipe)]
    current.reuse_only = True
    try:
        curate(current)
    except NotCached:
        found = current.steps[:1]
        current = _run_of(recipe_path, lake, sources, suites, track=progress)
        if not any(
            found and r["steps"][:1] and r["steps"][0]["artifact"] == found[0]["artifact"] for r in earlier
        ):
            refuse_spent_alpha(current.lake, current.recipe)  # a run that goes on has booked its own
        _compute(current)
    else:
        _reused(current, earlier, begun)
    summarise(current.lake.root, current.run_id)


def _reused(current: Any, earlier: list[dict], begun: float) -> None:
    from storage.catalog import fresh_catalog

    artifacts = [step["artifact"] for step in current.steps]
    done = [
        r for r in earlier if r["state"] == "completed" and [s["artifact"] for s in r["steps"]] == artifacts
    ]
    if done:
        current.run_id = done[-1]["run"]
    else:
        current.reuse_only, current.run_id = False, new_run_id(current.recipe.name)
        current.save("completed")
        finish(current)
    fresh_catalog(current.lake)
    say(f"nothing to do: every stage was found in {current.lake.root} ({time.time() - begun:.1f} s)")


def new_run_id(name: str) -> str:
    """A run's name: when it began, what it runs, and four random digits."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{name}-{secrets.token_hex(2)}"


def _compute(current: Any) -> None:
    from flows.orchestrate import curate_with_prefect

    current.run_id = new_run_id(current.recipe.name)
    current.save("running")
    say(f"run {current.run_id}: {current.recipe.name}, lake {current.lake.root}")
    state, error = "failed", None
    try:
        curate_with_prefect(current)
        state = "completed"
    except KeyboardInterrupt:
        state, error = "cancelled", "interrupted"
        print(
            "\ngradus: stopped. Finished shards are kept; the same command goes on from there.",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    except GradusError as problem:
        error = str(problem)
        raise
    finally:
        current.close(kill=state != "completed")
        current.save(state, error=error)
        finish(current, report=state == "completed")


def finish(current: Any, report: bool = True) -> None:
    """Brings the catalog up to date, and writes the report of a completed run and the page that lists all runs.

    What fails here is told and never hides how the run itself ended.
    """
    from flows.report.index import write_index
    from flows.report.page import write_report
    from storage.catalog import fresh_catalog

    try:
        fresh_catalog(current.lake)
        if report:
            record = next(r for r in current.lake.runs() if r["run"] == current.run_id)
            write_report(current.lake, record)
        write_index(current.lake)
    except GradusError as error:
        again = f"gradus report {current.run_id} --lake {current.lake.root}"
        print(f"gradus: the run's pages were not written: {safe(error)}; later: {again}", file=sys.stderr)


def summarise(lake: Path, run_id: str | None) -> None:
    """Prints what a run found, where its report is, and what to try next."""
    from flows.status import find_run, status
    from storage.artifacts import Lake

    store = Lake(lake, create=False)
    record = find_run(store, run_id)
    for line in terminal_lines(status(store, record)):
        say(line)
    report = store.root / "reports" / f"{record['run']}.html"
    if report.exists():
        say(f"\nreport      {report}")
    say(
        f'next        gradus sql "from accounting" --lake {lake}\n            gradus status --json --lake {lake}\n            duckdb {lake}/catalog.duckdb\n            gradus init YOUR.jsonl'
    )


@app.command()
def status(
    run_id: Annotated[str | None, typer.Argument(help="a run; default: the newest")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """What the latest run found."""
    from flows.status import find_run
    from flows.status import status as facts_of
    from storage.artifacts import Lake

    store = Lake(lake, create=False)
    facts = facts_of(store, find_run(store, run_id))
    if as_json:
        typer.echo(json.dumps(facts, indent=2, allow_nan=False))
    else:
        for line in terminal_lines(facts):
            say(line)


@app.command()
def check(recipe: Path, source: Replaced = None, suite: Replaced = None) -> None:
    """Read everything a run would read, and say what is wrong with it before any long work."""
    from flows.check import check as check_run

    for line in check_run(_run_of(recipe, None, source, suite)):
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

    current = _run_of(recipe, None, source, suite)
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

    run_in_hand = _run_of(recipe, None, source, suite) if recipe else None
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


def main() -> None:
    """The `gradus` command: errors are one message and exit code 2, interrupts say what is kept and exit 130."""
    try:
        app()
    except GradusError as error:
        print(f"gradus: {safe(error)}", file=sys.stderr)
        sys.exit(75 if isinstance(error, TransientError) else 2)


if __name__ == "__main__":
    main()
