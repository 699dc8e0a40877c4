"""Rows that hold nothing, or too much."""

from __future__ import annotations

import polars as pl

from curation.ingest.ledger import drops

PLACEHOLDERS = ("n/a", "na", "nan", "null", "none", "nil", "-", "--", "---", ".", "..", "...", "?")


def unusable(rows: pl.DataFrame, max_chars: int) -> pl.DataFrame:
    """Ledger lines for rows that are `empty`, a `placeholder` such as N/A, or `too_long` (value: characters).

    The text looked at is the prompt, of a text-only row the response; a response may well be `none`.
    """
    text_only = pl.col("prompt") == ""
    main = pl.when(text_only).then(pl.col("response")).otherwise(pl.col("prompt"))
    reason = (
        pl.when((main == "") | (~text_only & (pl.col("response") == "") & pl.col("label").is_null()))
        .then(pl.lit("empty"))
        .when(main.str.to_lowercase().is_in(PLACEHOLDERS))
        .then(pl.lit("placeholder"))
        .when(pl.col("n_chars") > max_chars)
        .then(pl.lit("too_long"))
    )
    found = rows.select("row_id", "n_chars", reason.alias("reason")).filter(pl.col("reason").is_not_null())
    return drops(
        (row_id, why, float(n), float(max_chars) if why == "too_long" else None, None)
        for row_id, n, why in found.iter_rows()
    )
