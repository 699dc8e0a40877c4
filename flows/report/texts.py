"""Texts of rows for a page: short and harmless, every character that hides or reorders others made visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from flows.report.charts import tag
from flows.status import steps_of
from storage.artifacts import Lake

CLIP = 300
JOINERS = "\u200c\u200d"  # emoji and Persian need them, and they hide nothing
GONE = "(text not in the lake any more)"


def show(text: str | None, limit: int = CLIP) -> str:
    """The text for a page: clipped, with control, direction and invisible characters made visible."""
    if text is None:
        return ""
    return "".join(map(_visible, text[:limit])) + ("…" if len(text) > limit else "")


def _visible(c: str) -> str:
    if c in "\n\t":
        return " ⏎ " if c == "\n" else " "
    if ord(c) < 32:
        return chr(0x2400 + ord(c))
    hidden = unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and c not in JOINERS
    return f"⟨{ord(c):04X}⟩" if hidden else c


def line(row: dict[str, Any] | None, limit: int = CLIP) -> str:
    """A row as one line."""
    return show(" → ".join(filter(None, (row["prompt"], row["response"]))), limit) if row else GONE


def two(row: dict[str, Any] | None) -> tuple[str, str]:
    """Prompt and response apart, together about as long as one clipped text."""
    return (show(row["prompt"], 200), show(row["response"], 100)) if row else (GONE, "")


def word_changes(before: str, after: str) -> Markup:
    """The second text, with the words that the first has not at that place in <mark>."""
    old, new = before.split(), after.split()
    parts: list[str] = []
    for kind, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        words = " ".join(new[start:end])
        if words:
            parts.append(words if kind == "equal" else tag("mark", words))
    return Markup(" ").join(parts)


def rows_of(lake: Lake, record: dict[str, Any], ids: Iterable[str], columns: Sequence[str]) -> pl.DataFrame:
    """row_id and these columns of the rows, each once, from any artifact of the run that has rows."""
    wanted = pl.col("row_id").is_in(sorted(set(ids)))
    refs = dict.fromkeys(r for stage in ("ingest", "base", "synthesize") for r in steps_of(record, stage))
    found = [
        lake.scan(r, "rows").filter(wanted).select("row_id", *columns).collect(engine="streaming")
        for r in refs
    ]
    empty = pl.DataFrame(schema=["row_id", *columns])
    return pl.concat(found).unique("row_id", keep="first") if found else empty


def texts_of(lake: Lake, record: dict[str, Any], ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """row_id -> prompt, response, label of the row."""
    found = rows_of(lake, record, ids, ("prompt", "response", "label"))
    return {row["row_id"]: row for row in found.rows(named=True)}


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, in order."""
    if not items:
        return []
    at = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in np.unique(at)]
