"""Ledger lines of the ingest stage."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from curation.rows import LEDGER

STAGE = "ingest"
Drop = tuple[str, str, float | None, float | None, str | None]


def drops(lines: Iterable[Drop]) -> pl.DataFrame:
    """LEDGER frame of `drop` lines from (row_id, reason, value, threshold, twin)."""
    found = [(row_id, STAGE, 0, "drop", *rest) for row_id, *rest in lines]
    return pl.DataFrame(found, schema=LEDGER, orient="row")


def without(rows: pl.DataFrame, ledger: pl.DataFrame) -> pl.DataFrame:
    """The rows that have no `drop` line, in their order."""
    dropped = ledger.filter(pl.col("decision") == "drop").select("row_id")
    return rows.join(dropped, on="row_id", how="anti", maintain_order="left")
