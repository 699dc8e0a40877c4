"""Rows that say again what an earlier row says."""

from __future__ import annotations

import polars as pl

from curation.ingest.keys import KEY_COLUMNS, keys_of
from curation.ingest.ledger import drops
from curation.ingest.near import near_twins


def deduplicate(rows: pl.DataFrame, near_duplicate_jaccard: float) -> pl.DataFrame:
    """Ledger lines for `duplicate_normalized` and `near_duplicate` rows; the earliest row stays.

    Rows are the same when text, answer, label and world agree in their match keys; near when only the texts
    differ and their 5-character shingles have at least this Jaccard similarity (1 turns it off). So a
    counterfactual pair (other label) and two commands with other answers stay. The twin is a kept row.
    """
    keys = keys_of(rows)
    first = keys.with_columns(pl.col("row_id").first().over(KEY_COLUMNS).alias("first"))
    exact = first.filter(pl.col("row_id") != pl.col("first")).select("row_id", "first")
    ledger = drops((row, "duplicate_normalized", 1.0, 1.0, twin) for row, twin in exact.iter_rows())
    if near_duplicate_jaccard >= 1:
        return ledger
    left = first.filter(pl.col("row_id") == pl.col("first"))
    names = left["row_id"].to_list()
    twins = near_twins(left["text_key"].to_list(), left["group"].to_list(), near_duplicate_jaccard)
    near = drops(
        (names[i], "near_duplicate", similarity, near_duplicate_jaccard, names[twin])
        for i, (twin, similarity) in twins.items()
    )
    ended = dict(zip(near["row_id"], near["twin"], strict=True))
    return pl.concat([ledger.with_columns(pl.col("twin").replace(ended)), near])
