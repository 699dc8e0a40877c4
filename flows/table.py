"""Frames on the terminal: a table that fits it, JSON, or CSV; corpus text in them is shown, never obeyed."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from dataclasses import dataclass
from typing import Any

import polars as pl
import typer
from polars import selectors
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.terminal import CONTROL, inline, safe, say
from storage.formats import FORMULA

SHOWN_ROWS = 1000
CELL = 400  # characters of a cell that a table may need at most
NARROWEST = 12  # under this width for its texts a table is shown row by row


def print_frame(frame: pl.DataFrame, as_json: bool = False, as_csv: bool = False) -> None:
    """A frame as a table that fits the terminal, as JSON, or as CSV that no spreadsheet takes for formulas."""
    if as_json:
        parts = (part.iter_rows(named=True) for part in frame.iter_slices(10_000))
        typer.echo("[" + ",\n ".join(json_text(row) for part in parts for row in part) + "]")
    elif as_csv:
        text = csv_text(frame)
        typer.echo(safe(text) if sys.stdout.isatty() else text, nl=False)
    else:
        _print_table(frame)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that a terminal shows and does not obey: control and direction characters are written as escapes.

    NaN and infinities become null; dates, decimals and bytes text.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str, indent=indent)
    return CONTROL.sub(lambda m: json.dumps(m.group())[1:-1], text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(frame: pl.DataFrame) -> str:
    """CSV of a frame: a quote is put before text that a spreadsheet would compute; nested values are JSON."""
    frame = frame.with_columns(selectors.by_dtype(pl.Categorical, pl.Enum).cast(pl.String))
    nested = [n for n, t in frame.schema.items() if t.is_nested()]
    flat = frame.with_columns(
        pl.Series(n, [None if v is None else json_text(v) for v in frame[n].to_list()], pl.String)
        for n in nested
    )
    text = pl.col(pl.String)
    flat = flat.with_columns(pl.when(text.str.contains(FORMULA)).then("'" + text).otherwise(text).name.keep())
    names = {n: f"'{n}" for n in flat.columns if re.match(FORMULA, n)}
    return flat.rename(names).write_csv()


def _print_table(frame: pl.DataFrame) -> None:
    cells = [[_cell(value) for value in row] for row in frame.head(SHOWN_ROWS).iter_rows()]
    names = [safe(name)[:CELL] for name in frame.columns]
    columns = [
        Column(name, [row[i] for row in cells], dtype.is_numeric())
        for i, (name, dtype) in enumerate(zip(names, frame.dtypes, strict=True))
    ]
    console = plain_console()
    widths = fitted(columns, console.width - 3 * len(columns) - 1)
    if widths is None:
        cut = _print_records(console, columns, len(cells))
    else:
        cut = _print_grid(console, columns, widths, len(cells))
    notes = [f"the first {SHOWN_ROWS:,} rows shown"] if len(frame) > SHOWN_ROWS else []
    notes += [f"cells cut short (…): {cut:,}"] if cut else []
    if notes:
        say(f"{', '.join(notes)}; --json or --csv gives all")


@dataclass(frozen=True)
class Column:
    """A column of a table on the terminal."""

    name: str
    cells: list[str]
    number: bool

    def widest(self) -> int:
        return max(map(cell_len, [self.name, *self.cells]))


def plain_console() -> Console:
    """The terminal, as wide as it is; 100 columns when there is none (COLUMNS says otherwise)."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    return Console(width=width, markup=False, highlight=False, emoji=False)


def fitted(columns: list[Column], room: int) -> list[int] | None:
    """Widths with which the columns fit: numbers whole, the widest texts cut first; None when they cannot."""
    widths = [column.widest() for column in columns]
    narrow = [w if c.number else min(w, NARROWEST) for c, w in zip(columns, widths, strict=True)]
    if sum(narrow) > room:
        return None
    while sum(widths) > room:
        widest = max((i for i, c in enumerate(columns) if not c.number), key=lambda i: widths[i] - narrow[i])
        widths[widest] -= 1
    return widths


def _cell(value: Any) -> str:
    """One line for a value, however large it is."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else str(value)
    cut = inline(text[: CELL + 1])
    return cut if len(text) <= CELL else cut + "…"


def _print_grid(console: Console, columns: list[Column], widths: list[int], rows: int) -> int:
    table = Table(box=box.SQUARE)
    for column, width in zip(columns, widths, strict=True):
        justify = "right" if column.number else "left"
        table.add_column(Text(column.name), width=width, no_wrap=True, overflow="ellipsis", justify=justify)
    for i in range(rows):
        table.add_row(*[Text(column.cells[i]) for column in columns])
    console.print(table)
    lengths = [(cell, w) for column, w in zip(columns, widths, strict=True) for cell in column.cells]
    return sum(cell_len(cell) > width or cell.endswith("…") for cell, width in lengths)


def _print_records(console: Console, columns: list[Column], rows: int) -> int:
    """Row by row, a line a column: for tables that are too wide."""
    label = min(console.width // 3, max(cell_len(c.name) for c in columns))
    cut = 0
    for i in range(rows):
        console.print(f"── row {i + 1} ".ljust(console.width, "─"), style="bold")
        for column in columns:
            line = Text(f"{set_cell_size(column.name, label)}  {column.cells[i]}")
            cut += line.cell_len > console.width or column.cells[i].endswith("…")
            console.print(line, no_wrap=True, overflow="ellipsis")
    return cut


def print_block(title: str, rows: list[tuple[Any, ...]]) -> None:
    """A heading, and lines in columns: numbers to the right; a last cell that does not fit goes on a line of its own."""
    console = plain_console()
    console.print(Text(safe(title), style="bold"))
    cells = [["" if v is None else f"{v:,}" if isinstance(v, int) else _cell(v) for v in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for values, line in zip(rows, cells, strict=True):
        padded = [
            " " * (width - cell_len(cell)) + cell if isinstance(value, int) else set_cell_size(cell, width)
            for value, cell, width in zip(values, line, widths, strict=True)
        ]
        whole = Text("  " + "  ".join(padded).rstrip())
        if whole.cell_len > console.width and len(line) > 1:
            console.print(Text("  " + "  ".join(padded[:-1]).rstrip()), no_wrap=True, overflow="ellipsis")
            whole = Text(" " * 6 + line[-1])
        console.print(whole, no_wrap=True, overflow="ellipsis")
