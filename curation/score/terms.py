"""The words that set a region apart, so that a person can name it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

BLOCK_TEXTS = 4096
MOST_PAIRS = 4_000_000  # (region, word) counts kept unmerged
LONGEST_WORD, MOST_TERMS = 40, 8


def distinctive_terms(texts: Sequence[str], region: np.ndarray, terms: int = 4) -> dict[int, str]:
    """For each region its `terms` most distinctive words, best first, in one string; '' when nothing sets it apart.

    region (n,) integers, a negative one: the row is in none. One pass over the texts for all regions. The weight of a
    word is p·ln(p / q), p its share of the region's rows and q of all rows (half a row more in each): its term of
    the Kullback-Leibler divergence (Carpineto et al. 2001, ACM TOIS 19). Only words of weight above zero are named,
    ties in order of the alphabet. A region with the words of another gets its next words too, up to eight.
    A word is a run of Unicode letters, marks, digits and underscores in lower case, at most 40 of them; nothing
    else of a text comes out. Memory grows with the distinct words of the regions, not with the text.
    """
    counts = _rows_with_word(texts, region)
    if counts.is_empty():
        return {int(r): "" for r in np.unique(region[region >= 0])}
    used = region[region >= 0]
    sizes = pl.DataFrame({"region": used}, schema={"region": pl.Int64}).group_by("region").agg(size=pl.len())
    share = (pl.col("rows") + 0.5) / (pl.col("size") + 1)
    of_all = (pl.col("rows").sum().over("word") + 0.5) / (len(used) + 1)
    ranked = (
        counts.join(sizes, on="region")
        .with_columns(weight=pl.col("rows") / pl.col("size") * (share / of_all).log())
        .filter(pl.col("weight") > 0)
        .sort(["region", "weight", "word"], descending=[False, True, False])
        .group_by("region", maintain_order=True)
        .agg(pl.col("word").head(max(terms, MOST_TERMS)))
    )
    words = {int(r): [] for r in np.unique(used)} | dict(ranked.iter_rows())
    return {r: " ".join(names) for r, names in _told_apart(words, terms).items()}


def _rows_with_word(texts: Sequence[str], region: np.ndarray) -> pl.DataFrame:
    """(region, word, rows): in how many rows of the region the word is."""
    merged: list[pl.DataFrame] = []
    waiting = 0

    def merge() -> pl.DataFrame:
        return pl.concat(merged).group_by("region", "word").agg(pl.col("rows").sum())

    for start in range(0, len(texts), BLOCK_TEXTS):
        part = slice(start, start + BLOCK_TEXTS)
        block = pl.DataFrame(
            {"region": region[part], "word": list(texts[part])},
            schema={"region": pl.Int64, "word": pl.String},
        ).filter(pl.col("region") >= 0)
        words = pl.col("word").str.to_lowercase().str.extract_all(r"\w+").list.unique()
        merged.append(
            block.with_columns(words)
            .explode("word")
            .filter(pl.col("word").str.len_chars() <= LONGEST_WORD)
            .group_by("region", "word")
            .agg(rows=pl.len().cast(pl.Int64))
        )
        waiting += len(merged[-1])
        if waiting > MOST_PAIRS:
            merged[:] = [merge()]
            waiting = 0
    schema = {"region": pl.Int64, "word": pl.String, "rows": pl.Int64}
    return merge() if merged else pl.DataFrame(schema=schema)


def _told_apart(words: dict[int, list[str]], terms: int) -> dict[int, list[str]]:
    """The first words of each region; of those with the same words, more, as far as there are any."""
    taken = dict.fromkeys(words, terms)
    for _ in range(terms, MOST_TERMS):
        same: dict[frozenset[str], list[int]] = {}
        for r, names in words.items():
            same.setdefault(frozenset(names[: taken[r]]), []).append(r)
        for alike in same.values():
            for r in alike if len(alike) > 1 else []:
                taken[r] += 1
    return {r: names[: taken[r]] for r, names in words.items()}
