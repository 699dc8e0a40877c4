"""What two rows must share to count as the same: one frame of keys for duplicates and contamination."""

from __future__ import annotations

import polars as pl

from curation.ingest.normalize import answer_key, match_key

KEY_COLUMNS = ("world", "text_only", "text_key", "answer", "label")


def keys_of(rows: pl.DataFrame, name: str = "row_id") -> pl.DataFrame:
    """One line a row or item: its name, world, text_only, text_key, answer, label and group.

    `text_key` is the match key of the prompt, of the response where the row is text-only (with an empty
    `answer`). `group` is equal where all but the text is: only there can rows be near-duplicates.
    """
    prompts, responses = rows["prompt"].to_list(), rows["response"].to_list()
    text_only = [not prompt for prompt in prompts]
    keyed = rows.select(name, "world", "label").with_columns(
        pl.Series("text_only", text_only, pl.Boolean),
        pl.Series(
            "text_key",
            [match_key(r if alone else p) for p, r, alone in zip(prompts, responses, text_only, strict=True)],
            pl.String,
        ),
        pl.Series(
            "answer",
            ["" if alone else answer_key(r) for r, alone in zip(responses, text_only, strict=True)],
            pl.String,
        ),
    )
    return keyed.with_columns(pl.struct("world", "text_only", "answer", "label").rank("dense").alias("group"))
