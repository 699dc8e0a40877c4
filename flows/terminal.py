"""What the command line reads and prints: options, safe text, progress bars, figures of a run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from curation.errors import UserError

LakeOption = Annotated[
    Path,
    typer.Option(
        "--lake",
        envvar="GRADUS_LAKE",
        help="the folder, or s3://bucket/prefix, that holds everything published",
    ),
]

CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
)


def safe(text: object) -> str:
    """Corpus text for a terminal: control and direction characters are shown, not obeyed."""
    return CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", str(text))


def inline(text: object) -> str:
    """Corpus text inside a line: safe, and line ends are shown too."""
    return safe(text).replace("\n", " ⏎ ").replace("\t", " ")


def say(text: str) -> None:
    """One line on the terminal, made safe."""
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
            f"\nended with      dataset/{facts['published']['name']}@v{facts['published']['version']}"
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
