"""The commands that take rows out of a lake, or make a version the newest by hand: `gradus export | publish`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curation.errors import UserError
from flows.terminal import LakeOption, say

app = typer.Typer()


@app.command()
def export(
    name: Annotated[
        str | None,
        typer.Argument(
            help="NAME, NAME@vN, candidate/NAME@FINGERPRINT or a fingerprint; default: the one there is"
        ),
    ] = None,
    to: Annotated[Path, typer.Option(help="the folder that is made")] = Path("export"),
    format: Annotated[str, typer.Option(help="parquet, jsonl, csv, hf or webdataset")] = "parquet",
    layout: Annotated[str, typer.Option(help="rows, chat, alpaca or text")] = "rows",
    version: Annotated[int | None, typer.Option(help="a version; default: the newest")] = None,
    candidate: Annotated[
        str | None, typer.Option(help="a candidate's fingerprint; its beginning is enough")
    ] = None,
    arm: Annotated[str | None, typer.Option(help="an arm of a comparison, e.g. random")] = None,
    run: Annotated[str | None, typer.Option(help="with --arm; default: the newest run")] = None,
    round: Annotated[int | None, typer.Option(help="with --arm; default: the last round")] = None,
    phase: Annotated[
        str | None, typer.Option(help="with --arm: confirm, full or screen; default: the first that has it")
    ] = None,
    replicate: Annotated[int, typer.Option(help="with --arm")] = 0,
    split: Annotated[str | None, typer.Option(help="rows of one split; default: all")] = None,
    gzip: Annotated[bool, typer.Option("--gzip", help="pack jsonl or csv")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export")] = False,
    lake: LakeOption = Path("lake"),
) -> None:
    """Write a version, a candidate or an arm as a folder that other tools read, with a dataset card."""
    from flows.card_facts import about_arm, about_set
    from flows.chosen import chosen_arm
    from flows.sets import set_named
    from storage import cards
    from storage import export as files
    from storage.artifacts import Lake
    from storage.formats import Shape

    store, shape = Lake(lake, create=False), Shape(format, layout, gzip)
    if arm is None:
        if run is not None or round is not None or phase is not None or replicate:
            raise UserError(
                "--run, --round, --phase and --replicate go with --arm; or name a --version or --candidate"
            )
        identity, parts, about = about_set(store, set_named(store, _asked(name, version, candidate)), split)
    else:
        if version is not None or candidate is not None:
            raise UserError("--arm names rows of a round; it goes without --version and --candidate")
        record, phase, sets = chosen_arm(store, name, run, round, phase, arm, replicate)
        identity, parts, about = about_arm(store, record, phase, sets, arm, replicate, split)
    made = files.export(
        store,
        parts,
        about["rows_by"],
        to,
        shape,
        identity,
        lambda found: cards.render({**about, **found}),
        overwrite,
    )
    say(f"{about['title']}: {made['rows']} rows as {format}, layout {layout}, in {to}")
    if about["loud"]:
        say(about["loud"])
    say(f"{cards.reading(made)}\ncd {to} && sha256sum -c {files.CHECKSUMS}")


def _asked(name: str | None, version: int | None, candidate: str | None) -> str | None:
    """The options as one name."""
    if version is not None and candidate is not None:
        raise UserError("a version and a candidate were both named; give one of them")
    if version is None and candidate is None:
        return name
    name = (name or "").removeprefix("dataset/").removeprefix("candidate/")
    if "@" in name:
        raise UserError(f"{name!r} and an option both name a set; give one of them")
    if candidate is not None:
        return f"candidate/{name}@{candidate}"
    return f"{name}@v{version}" if name else f"v{version}"


@app.command()
def publish(
    what: Annotated[str, typer.Argument(help="NAME@vN or candidate/NAME@FINGERPRINT")],
    reason: Annotated[str, typer.Option(help="why; kept with the decision")] = "no reason given",
    lake: LakeOption = Path("lake"),
) -> None:
    """Make a version or a candidate the newest version, by hand: this is how one rolls back.

    Its rows get the next number and the decision `by hand`; nothing is changed or removed, and alpha that was spent
    stays spent. A later run takes as its base what it always takes, the clean pool of its own recipe: the same recipe
    finds everything done and leaves this version the newest; a run that proves another set publishes it after this one.
    """
    from flows.chosen import publish_by_hand
    from flows.sets import set_named
    from storage.artifacts import Lake

    store = Lake(lake, create=False)
    if "@" not in what:
        raise UserError(f"{what!r} names no version; write NAME@vN or candidate/NAME@FINGERPRINT")
    source = set_named(store, what)
    number, before = publish_by_hand(store, source, reason)
    if number == before:
        say(
            f"dataset/{source.name}@v{number} is the newest version and has these rows already; nothing was changed"
        )
        return
    say(
        f"dataset/{source.name}@v{number} is the newest version now, by hand ({reason}): the rows of {source}"
    )
    if before is not None:
        say(f"undo:  gradus publish {source.name}@v{before} --lake {lake}")
