"""The command line: `gradus demo | init | check | estimate | run | status | sql | explain | report`."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import GradusError, TransientError, UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Curate training corpora so that models generalize, with proof.",
)
LakeOption = Annotated[
    Path, typer.Option("--lake", envvar="GRADUS_LAKE", help="the folder that holds everything published")
]
Replaced = Annotated[
    list[str] | None, typer.Option(help="NAME=PATH: a local file in place of the recipe's; may be repeated")
]
DEMO = Path(__file__).with_name("demo.toml")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def safe(text: object) -> str:
    """Corpus text for a terminal: control and direction characters are shown, not obeyed."""
    return CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", str(text))


def say(text: str) -> None:
    typer.echo(safe(text))


def pairs(kind: str, given: list[str] | None) -> dict[str, str]:
    """`NAME=PATH` options as a dict."""
    out = {}
    for entry in given or []:
        name, sep, path = entry.partition("=")
        if not sep or not name or not path:
            raise UserError(f"--{kind} {entry!r}: write --{kind} NAME=PATH")
        out[name] = path
    return out


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


def progress(things: Iterable, label: str, total: int) -> Iterator:
    """The things, with a bar, rate and time left on a terminal; quiet elsewhere."""
    if not sys.stderr.isatty():
        yield from things
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        for thing in things:
            yield thing
            bar.advance(task)


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
    from storage.catalog import fresh_catalog

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
        if state == "completed":
            finish(current)
        fresh_catalog(current.lake)


def finish(current: Any) -> None:
    """Writes the report of a completed run."""
    from flows.report import write_report

    record = next(r for r in current.lake.runs() if r["run"] == current.run_id)
    write_report(current.lake, record)


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


def terminal_lines(facts: dict[str, Any]) -> list[str]:
    """The figures of a run as lines: accounting, every arm of every round, decisions, sealed."""
    run, lines = facts["run"], []
    lines.append(
        f"\n{run['recipe']}: {run['state']} in {run['seconds']:.0f} s (run {run['id']})"
        + (f"\n{run['error']}" if run["error"] else "")
    )
    if facts["accounting"]:
        a = facts["accounting"]
        lines.append(f"records read {a['rows_read']} = kept {a['rows_kept']} + dropped {a['rows_dropped']}")
    blocks = [(f"round {r['round']}", r) for r in facts["rounds"]]
    if facts["sealed"]:
        blocks.append((f"sealed suite, models of round {facts['sealed']['round']}", facts["sealed"]))
    for title, block in blocks:
        lines += arm_lines(title, block, run["endpoint"])
    if facts["sealed_note"]:
        lines.append(f"\nsealed: {facts['sealed_note']}")
    if facts["published"]:
        lines.append(
            f"\nnewest version  dataset/{facts['published']['name']}@v{facts['published']['version']}"
        )
    return lines


def arm_lines(title: str, block: dict[str, Any], endpoint: str) -> list[str]:
    """Every arm of a round or of the sealed suites, in points of the endpoint, and the candidate's gap to it."""
    tail = "" if endpoint == "accuracy" else "_p_correct"
    unit = "accuracy" if endpoint == "accuracy" else "mean probability of the right answer"
    lines = [
        f"\n{title} ({unit}, points)",
        f"{'':<26}{'OOD':>8}{'ID':>8}{'n':>4}   candidate minus it, OOD points [95 %]  exact one-sided p",
    ]
    against = {
        c["control"]: c
        for c in block["comparisons"]
        if c["suite"] == "ood_mean" and c["metric"] == endpoint and c["arm"] == "candidate"
    }
    for arm, figures in block["arms"].items():
        c = against.get(arm)
        gap = f"   {c['diff']:+6.1f} [{_number(c['low'])}, {_number(c['high'])}]  p {c['p']:.2g}" if c else ""
        ood, own = _number(figures["ood" + tail]), _number(figures["id" + tail])
        lines.append(f"  {arm:<24}{ood:>8}{own:>8}{figures['n']:>4}{gap}")
    if "decision" in block:
        lines.append(f"  {block['decision'].upper()}: {block['reason']}")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


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
    from flows.check import estimate as estimate_run
    from flows.check import refuse_problems

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
def init(
    file: Path, out: Annotated[Path, typer.Option(help="where the recipe goes")] = Path("recipe.toml")
) -> None:
    """Write a commented recipe from a look at your data."""
    from flows.init import init as write_recipe

    for line in write_recipe(file, out):
        say(line)


@app.command()
def sql(
    query: str,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    as_csv: Annotated[bool, typer.Option("--csv")] = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """Ask the catalog: gradus sql "from accounting", gradus sql "show tables"."""
    from storage.artifacts import Lake
    from storage.catalog import query as ask

    _print_frame(ask(Lake(lake, create=False), query), as_json, as_csv)


def _print_frame(frame: Any, as_json: bool, as_csv: bool) -> None:
    import polars as pl

    if as_json:
        typer.echo(frame.write_json())
    elif as_csv:
        nested = [n for n, t in frame.schema.items() if isinstance(t, (pl.List, pl.Array, pl.Struct))]
        texts = [n for n, t in frame.schema.items() if t == pl.String]
        flat = frame.with_columns(
            pl.col(n).map_elements(
                lambda v: json.dumps(v.to_list() if hasattr(v, "to_list") else v), return_dtype=pl.String
            )
            for n in nested
        )
        formula = [
            pl.when(pl.col(n).str.contains(r"^[=+\-@\t\r]"))
            .then("'" + pl.col(n))
            .otherwise(pl.col(n))
            .alias(n)
            for n in texts
        ]
        typer.echo(flat.with_columns(formula).write_csv(), nl=False)
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name in frame.columns:
            table.add_column(Text(safe(name)))
        for row in frame.head(1000).iter_rows():
            table.add_row(*[Text(safe(v if v is not None else "")[:400]) for v in row])
        width = None if sys.stdout.isatty() else 200
        Console(width=width, markup=False, highlight=False).print(table)
        if len(frame) > 1000:
            say(f"1,000 of {len(frame)} rows shown; --json or --csv gives all")


@app.command()
def explain(row_id: str, lake: LakeOption = Path("lake")) -> None:
    """Where a row came from, and everything that was decided about it."""
    from storage.artifacts import Lake
    from storage.catalog import explain_row

    _print_frame(explain_row(Lake(lake, create=False), row_id), False, False)


@app.command()
def report(run_id: Annotated[str | None, typer.Argument()] = None, lake: LakeOption = Path("lake")) -> None:
    """Write the report of a run again and say where it is."""
    from flows.report import write_report
    from flows.status import find_run
    from storage.artifacts import Lake

    store = Lake(lake, create=False)
    say(str(write_report(store, find_run(store, run_id))))


def main() -> None:
    """The `gradus` command: errors are one message and exit code 2, interrupts say what is kept and exit 130."""
    try:
        app()
    except GradusError as error:
        print(f"gradus: {safe(error)}", file=sys.stderr)
        sys.exit(75 if isinstance(error, TransientError) else 2)


if __name__ == "__main__":
    main()
