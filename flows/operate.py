"""The commands that operate an installation: `gradus serve | worker | deploy | gc | watch`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from curation.errors import UserError
from flows.terminal import LakeOption, say

app = typer.Typer(add_completion=False)
PoolOption = Annotated[str, typer.Option(help="the work pool: gradus, gradus-gpu")]
ApiOption = Annotated[
    str | None, typer.Option(envvar="PREFECT_API_URL", help="the server: http://HOST:4200/api")
]


@app.command()
def serve(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="recipes to deploy by name, with their schedules; or: stop")
    ] = None,
    lake: LakeOption = Path("lake"),
    host: Annotated[
        str, typer.Option(help="where to listen; beyond loopback a key is always asked for")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="of the server; 0: any free one; reports: the next")
    ] = 4200,
    detach: Annotated[bool, typer.Option("--detach", help="come back when it is ready")] = False,
    auth: Annotated[
        bool | None, typer.Option("--auth/--no-auth", help="ask for a key; see LAKE/prefect/auth")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes that start runs")] = 1,
) -> None:
    """Start a server with forms, schedules and reports for a lake; `gradus serve stop` ends it."""
    from flows.service import serve as service
    from flows.service.settings import address_of
    from flows.service.starting import Wish
    from storage.remote import folder_of

    folder = folder_of(lake, create=recipes != ["stop"])
    if recipes == ["stop"]:
        say(service.stop(folder))
        return
    for recipe in recipes or []:
        if not Path(recipe).is_file():
            raise UserError(f"there is no recipe {recipe}; write one with: gradus init YOUR.jsonl")
    paths = tuple(Path(recipe).resolve() for recipe in recipes or [])
    wish = Wish(folder, address_of(lake), paths, host, port, auth, workers)
    (service.detach if detach else service.serve)(wish, say)


@app.command()
def worker(
    pool: PoolOption = "gradus",
    api_url: ApiOption = None,
    name: Annotated[str | None, typer.Option(help="as the server lists it")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="runs at once")] = None,
    lake: LakeOption = Path("lake"),
) -> None:
    """Run what a work pool of a server has to do, on this machine, until ended."""
    from flows.service.workers import join, work

    join(api_url, lake)
    work(pool, name, limit)


@app.command()
def deploy(
    recipes: Annotated[
        list[Path] | None, typer.Argument(help="recipes to deploy by name", exists=True)
    ] = None,
    pool: PoolOption = "gradus",
    api_url: ApiOption = None,
    lake: LakeOption = Path("lake"),
) -> None:
    """Register the deployments at a server; any number of times."""
    from flows.service.workers import deploy as register
    from flows.service.workers import join

    join(api_url, lake)
    register(pool, [recipe.resolve() for recipe in recipes or []])
    say(f"registered at {os.environ['PREFECT_API_URL']}, work pool {pool}")


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="remove; without it only say what would go")] = False,
    keep_days: Annotated[
        float, typer.Option(min=0, help="whatever a run of so many days needs stays, finished or not")
    ] = 30,
    drop_candidates: Annotated[
        bool, typer.Option("--drop-candidates", help="older candidates go too, with what only they need")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="all of it, as JSON")] = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """Remove what no version, candidate or run needs; never anything of a published version's lineage."""
    from flows.gc import gc as collect
    from flows.gc import print_gc
    from flows.table import json_text
    from storage.artifacts import Lake

    facts = collect(Lake(lake, create=False), keep_days, yes, drop_candidates)
    if as_json:
        typer.echo(json_text(facts, indent=2))
    else:
        print_gc(facts)


@app.command()
def watch(
    recipe: Path,
    settle: Annotated[
        float, typer.Option(min=0, help="seconds since a file's last change before it counts as whole")
    ] = 10,
    lake: LakeOption = Path("lake"),
) -> None:
    """Run a recipe when its source files changed since the last look, else exit at once: for cron."""
    from flows.arrivals import watch as watch_recipe

    say(watch_recipe(recipe, lake, settle))
