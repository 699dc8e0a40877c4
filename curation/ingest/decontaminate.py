"""Rows that hold the text of a test item; the same gate for real and synthetic rows."""

from __future__ import annotations

import polars as pl

from curation.ingest.grams import first_shared, index_grams
from curation.ingest.keys import keys_of
from curation.ingest.ledger import Drop, drops
from curation.ingest.near import near_twins


def decontaminate(
    rows: pl.DataFrame, items: pl.DataFrame, ngram_words: int, near_duplicate_jaccard: float = 1.0
) -> pl.DataFrame:
    """Ledger lines for rows that share their text with a suite item of their world; items are SUITE_ITEMS.

    `contaminated_exact`: the same text, whatever the answer. `contaminated_ngram`: a shared run of so many
    words (value: words in the run; shorter items of 6 words and more count whole). `contaminated_near`: a
    near-duplicate with the same answer and label (off at a Jaccard threshold of 1). The text is the prompt,
    or the response where there is none. The twin is `suite/item_id`; of a sealed suite only
    `sealed:suite_hash`.
    """
    found: list[Drop] = []
    row_keys, item_keys = (
        keys_of(rows),
        keys_of(items.sort("suite", "item_id", maintain_order=True), "item_id"),
    )
    twins = _names(items.sort("suite", "item_id", maintain_order=True))
    item_keys = item_keys.with_columns(pl.Series("name", twins, pl.String))
    for (world,), mine in row_keys.group_by("world", maintain_order=True):
        theirs = item_keys.filter(pl.col("world") == world)
        if theirs.height:
            found += _in_world(mine, theirs, ngram_words, near_duplicate_jaccard)
    order = {row: i for i, row in enumerate(rows["row_id"])}
    return drops(sorted(found, key=lambda line: order[line[0]]))


def _names(items: pl.DataFrame) -> list[str]:
    return [
        f"sealed:{suite_hash}" if use == "sealed" else f"{suite}/{item}"
        for suite, suite_hash, use, item in items.select("suite", "suite_hash", "use", "item_id").iter_rows()
    ]


def _in_world(rows: pl.DataFrame, items: pl.DataFrame, ngram_words: int, threshold: float) -> list[Drop]:
    texts, names = rows["text_key"].to_list(), rows["row_id"].to_list()
    item_texts, twins = items["text_key"].to_list(), items["name"].to_list()
    by_text: dict[str, int] = {}
    for j, text in enumerate(item_texts):
        by_text.setdefault(text, j)
    lines: dict[int, Drop] = {}
    for i, text in enumerate(texts):
        if text in by_text:
            lines[i] = (names[i], "contaminated_exact", 1.0, 1.0, twins[by_text[text]])
    shared = first_shared(index_grams(item_texts, ngram_words), texts)
    for i, (j, length) in shared.items():
        lines.setdefault(i, (names[i], "contaminated_ngram", float(length), float(ngram_words), twins[j]))
    if threshold < 1:
        for i, (j, similarity) in _near(rows, items, threshold).items():
            lines.setdefault(i, (names[i], "contaminated_near", similarity, threshold, twins[j]))
    return list(lines.values())


def _near(rows: pl.DataFrame, items: pl.DataFrame, threshold: float) -> dict[int, tuple[int, float]]:
    same = ("text_only", "answer", "label")
    both = pl.concat([items.select("text_key", *same), rows.select("text_key", *same)])
    groups = both.select(pl.struct(same).rank("dense")).to_series().to_list()
    found = near_twins(both["text_key"].to_list(), groups, threshold, references=items.height)
    return {i - items.height: twin for i, twin in found.items()}
