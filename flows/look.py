"""The commands that look into a lake and change nothing in it: `gradus sql | explain | report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import LakeOption, print_frame, say

app = typer.Typer()


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

    print_frame(ask(Lake(lake, create=False), query), as_json, as_csv)


@app.command()
def explain(row_id: str, lake: LakeOption = Path("lake")) -> None:
    """Where a row came from, and everything that was decided about it."""
    from storage.artifacts import Lake
    from storage.catalog import explain_row

    print_frame(explain_row(Lake(lake, create=False), row_id), False, False)


@app.command()
def report(run_id: Annotated[str | None, typer.Argument()] = None, lake: LakeOption = Path("lake")) -> None:
    """Write the report of a run again and say where it is."""
    from flows.report import write_report
    from flows.status import find_run
    from storage.artifacts import Lake

    store = Lake(lake, create=False)
    say(str(write_report(store, find_run(store, run_id))))
