"""The commands that look into a lake and change nothing in it: `gradus sql | inspect | explain | diff | lineage | nearest | find | report`."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.terminal import LakeOption, safe, say

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="all of it, as JSON")]
AsCsv = Annotated[
    bool, typer.Option("--csv", help="all of it, as CSV that no spreadsheet takes for formulas")
]


@app.command()
def sql(query: str, as_json: AsJson = False, as_csv: AsCsv = False, lake: LakeOption = Path("lake")) -> None:
    """Ask the catalog: gradus sql "from accounting", gradus sql "show tables"."""
    from flows.table import SHOWN_ROWS, print_frame
    from storage.artifacts import Lake
    from storage.catalog import query as ask

    enough = None if as_json or as_csv else SHOWN_ROWS + 1
    print_frame(ask(Lake(lake, create=False), query, limit=enough), as_json, as_csv)


@app.command()
def inspect(
    name: Annotated[
        str | None, typer.Argument(help="a dataset or a run; default: all, and the newest run")
    ] = None,
    as_json: AsJson = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """See what is in a lake: versions, drops, regions, decisions, runs, disk."""
    from flows.inspect import overview, print_overview
    from storage.artifacts import Lake

    _show(overview(Lake(lake, create=False), name), as_json, print_overview)


@app.command()
def explain(row_id: str, as_json: AsJson = False, lake: LakeOption = Path("lake")) -> None:
    """Tell the story of a row: where it came from, and everything that was decided about it."""
    from flows.explain import print_story, story
    from storage.artifacts import Lake

    with _warned():
        told = story(Lake(lake, create=False), row_id)
    _show(told, as_json, print_story)


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="NAME@vN, vN, or candidate/NAME@FINGERPRINT")],
    new: Annotated[str, typer.Argument(help="likewise")],
    rows: Annotated[bool, typer.Option("--rows", help="list every row that was added or removed")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """Compare two versions: rows added and removed, and what that did to diversity and evaluation."""
    from flows.diff import changed_rows, difference, print_difference
    from flows.table import print_frame
    from storage.artifacts import Lake

    store = Lake(lake, create=False)
    if rows or as_csv:
        print_frame(changed_rows(store, old, new), as_json, as_csv)
    else:
        _show(difference(store, old, new), as_json, print_difference)


@app.command(context_settings={"ignore_unknown_options": True})
def lineage(
    what: Annotated[
        str,
        typer.Argument(
            help="a version, an artifact, a number as the report prints it, or RUN:ROUND:ARM:SUITE:METRIC"
        ),
    ],
    pick: Annotated[int | None, typer.Option(help="which one, when a number is found several times")] = None,
    as_json: AsJson = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """Follow a version, an artifact or a printed number back to the source files."""
    from flows.lineage import print_way, way
    from storage.artifacts import Lake

    _show(way(Lake(lake, create=False), what, pick), as_json, print_way)


@app.command()
def nearest(
    row_id: str,
    k: Annotated[int, typer.Option("--k", "-k", help="how many")] = 10,
    space: Annotated[str, typer.Option(help="gradient or embedding")] = "gradient",
    proxy: Annotated[str | None, typer.Option(help="whose gradients; default: the newest run's")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="compare with every row, without an index")] = False,
    build: Annotated[bool, typer.Option("--build", help="make the index of these vectors first")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """Find the rows whose gradients (or embeddings) point the same way as a row's."""
    from flows.table import print_block, print_frame
    from storage.artifacts import Lake
    from storage.neighbours import build_index, nearest_rows, place_of

    store = Lake(lake, create=False)
    with _warned():
        if build:
            place = place_of(store, row_id, space, proxy)
            typer.echo(f"index: {build_index(store, place.ref, place.table)}", err=True)
        found = nearest_rows(store, row_id, k, space, proxy, exact)
    if as_json or as_csv:
        print_frame(found, as_json, as_csv)
        return
    lines = [(f"{r['cosine']:.3f}", *_line(r)) for r in found.rows(named=True)]
    if lines:
        print_block(f"cosine in {space} space of {found['proxy'][0]}, {found['artifact'][0]}", lines)
    else:
        say("no other row has a vector of this proxy")


@app.command()
def find(
    text: Annotated[list[str], typer.Argument(help="words that must all occur in the prompt or response")],
    k: Annotated[int, typer.Option("--k", "-k", help="how many")] = 20,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """Find rows by the words in them."""
    from flows.table import print_block, print_frame
    from storage.artifacts import Lake
    from storage.find import find_rows

    with _warned():
        found = find_rows(Lake(lake, create=False), " ".join(text), k)
    if as_json or as_csv:
        print_frame(found, as_json, as_csv)
    elif found.is_empty():
        say("no row has all of these words")
    else:
        print_block(f"rows with {' and '.join(text)}, best first", [_line(r) for r in found.rows(named=True)])


@app.command()
def report(
    run_id: Annotated[str | None, typer.Argument(help="a run; default: the newest")] = None,
    every: Annotated[bool, typer.Option("--all", help="the reports of all runs")] = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """Write the report of a run again, and the page that lists all runs; say where they are."""
    from flows.report.index import write_index
    from flows.report.page import write_report
    from flows.status import find_run
    from storage.artifacts import Lake

    store = Lake(lake, create=False)
    for record in store.runs() if every else [find_run(store, run_id)]:
        say(str(write_report(store, record)))
    say(str(write_index(store)))


@contextmanager
def _warned() -> Generator[None]:
    """Every warning once, on the error stream."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                typer.echo(f"gradus: {safe(message)}", err=True)


def _line(row: dict[str, Any]) -> tuple[Any, ...]:
    """A row for a list: as much of its id as names it, its label, its text."""
    return row["row_id"][:12], row["label"] or "", " → ".join(filter(None, (row["prompt"], row["response"])))


def _show(facts: Any, as_json: bool, show: Any) -> None:
    from flows.table import json_text

    if as_json:
        typer.echo(json_text(facts, indent=2))
    else:
        show(facts)
