"""What one replicate may know: a whole world of the embedded corpus, or a subsample of a real one."""

from __future__ import annotations

import numpy as np
import polars as pl

from curation.randomness import generator
from curation.specs import Recipe
from flows.base import cut_to_budget


def is_whole(recipe: Recipe, phase: str) -> bool:
    """Whether this phase uses all rows: every phase of a world, and the full phase of a real corpus."""
    return bool(recipe.worlds) or phase == "full"


def share_of(recipe: Recipe, phase: str) -> float:
    """The share of the pool, and of every budget, that a replicate has."""
    return 1.0 if is_whole(recipe, phase) else recipe.decide.subsample


def world_of(recipe: Recipe, replicate: int) -> int:
    """The world that a replicate is; 0 on a real corpus."""
    return replicate if recipe.worlds else 0


def universe(recipe: Recipe, round: int, phase: str, replicate: int, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that this replicate may know: a named draw without replacement, in the order of `rows`."""
    if is_whole(recipe, phase):
        return rows
    rng = generator(recipe.seed, "subsample", round, phase, replicate)
    keep = rng.choice(len(rows), round_half(recipe.decide.subsample * len(rows)), replace=False)
    return rows[np.sort(keep).tolist()]


def base_of(
    recipe: Recipe,
    round: int,
    phase: str,
    replicate: int,
    known: pl.DataFrame,
    base: pl.DataFrame,
    first: bool,
) -> pl.DataFrame:
    """The base of a replicate: the first base's rule redrawn on what it knows, later bases cut by it."""
    if is_whole(recipe, phase):
        return base
    if first:
        return cut_to_budget(recipe, known, round, phase, replicate, share=recipe.decide.subsample)
    return base.join(known.select("row_id"), on="row_id", how="semi", maintain_order="left")


def round_half(value: float) -> int:
    """The nearest whole number of rows, at least 1."""
    return max(1, int(value + 0.5))
