"""Summaries of outcomes by hand, and the cells that the judge asks for."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.decide.facts import ControlFacts
from curation.decide.rule import judge
from curation.evaluate.summarise import by_model, crossed_cells, paired, with_means
from curation.randomness import generator

ITEMS = pl.DataFrame(
    [
        ("near", "id", "i1", "x"), ("near", "id", "i2", "x"),
        ("far", "ood", "a", "c1"), ("far", "ood", "b", "c1"), ("far", "ood", "c", "c2"), ("far", "ood", "d", "c2"),
        ("odd", "ood", "a", "c1"), ("odd", "ood", "e", "c3"),
    ],
    schema=["suite", "distribution", "item_id", "cluster"], orient="row",
)  # fmt: skip
# right answers of (arm, replicate), in the order of ITEMS
RIGHT = {
    ("new", 0): [1, 1, 1, 1, 1, 0, 1, 0],
    ("new", 1): [1, 0, 1, 0, 0, 0, 1, 1],
    ("old", 0): [1, 0, 1, 0, 0, 0, 0, 0],
    ("old", 1): [0, 0, 1, 1, 1, 0, 1, 0],
}


def frames(right: dict[tuple[str, int], list[int]], items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    models = pl.DataFrame(
        [(f"{a}/{r}", a, r) for a, r in right], schema=["model", "arm", "replicate"], orient="row"
    )
    parts = [
        items.select("suite", "item_id").with_columns(
            pl.lit(f"{a}/{r}").alias("model"), pl.Series("correct", [v == 1 for v in values], dtype=pl.Boolean),
            pl.Series("p_correct", [0.1 + 0.8 * v for v in values], dtype=pl.Float64),
        )
        for (a, r), values in right.items()
    ]  # fmt: skip
    return pl.concat(parts), models


@pytest.fixture(scope="module")
def summary() -> pl.DataFrame:
    return with_means(by_model(*frames(RIGHT, ITEMS), ITEMS))


def value(summary: pl.DataFrame, arm: str, replicate: int, suite: str, metric: str = "accuracy") -> float:
    return summary.filter(arm=arm, replicate=replicate, suite=suite)[metric].item()


def test_accuracies_and_means_by_hand(summary: pl.DataFrame) -> None:
    assert value(summary, "new", 0, "far") == 75
    assert value(summary, "new", 0, "odd") == 50
    assert value(summary, "new", 0, "ood_mean") == 62.5  # suites weigh equally, not items
    assert value(summary, "new", 0, "id_mean") == value(summary, "new", 0, "near") == 100
    assert value(summary, "old", 1, "ood_mean") == 62.5
    assert value(summary, "new", 0, "far", "p_correct") == pytest.approx(70)
    assert value(summary, "new", 0, "ood_mean", "items") == 6
    assert len(summary) == 4 * 5


def test_paired_differences_by_hand(summary: pl.DataFrame) -> None:
    assert paired(summary, "new", "old", "ood_mean", "accuracy").tolist() == [
        50,
        0,
    ]  # 62.5 - 12.5, 62.5 - 62.5
    assert paired(summary, "new", "old", "far", "accuracy").tolist() == [50, -50]
    assert paired(summary, "new", "old", "near", "accuracy").tolist() == [50, 50]
    assert paired(summary, "new", "old", "ood_mean", "p_correct").tolist() == pytest.approx([40, 0])
    assert paired(summary, "new", "new", "far", "accuracy").tolist() == [0, 0]


def test_replicates_without_the_other_arm_are_left_out(summary: pl.DataFrame) -> None:
    part = summary.filter(~((pl.col("arm") == "old") & (pl.col("replicate") == 0)))
    assert paired(part, "new", "old", "far", "accuracy").tolist() == [-50]
    assert len(paired(part, "new", "none", "far", "accuracy")) == 0


def test_cells_and_weights_by_hand() -> None:
    outcomes, models = frames(RIGHT, ITEMS)
    cells, weights = crossed_cells(outcomes, models, ITEMS, "new", "old", "accuracy")
    # columns: far/c1, far/c2, odd/c1, odd/c3 (the same cluster in two suites is two cells)
    assert cells.tolist() == [[50, 50, 100, 0], [-50, -50, 0, 100]]
    assert weights.tolist() == [0.5, 0.5, 0.5, 0.5]


@given(st.integers(0, 200), st.integers(2, 5), st.sampled_from(["accuracy", "p_correct"]))
@settings(deadline=None, max_examples=25)
def test_weighted_means_of_the_cells_are_the_differences(seed: int, replicates: int, metric: str) -> None:
    rng = generator(seed, "cells")
    lines = [
        (s, d, f"{s}{i}", f"c{rng.integers(4)}")
        for s, d, n in (("a", "ood", 23), ("b", "ood", 7), ("n", "id", 9))
        for i in range(n)
    ]
    items = pl.DataFrame(lines, schema=["suite", "distribution", "item_id", "cluster"], orient="row")
    right = {
        (arm, r): rng.integers(0, 2, len(items)).tolist()
        for arm in ("new", "old", "third")
        for r in range(replicates)
    }
    outcomes, models = frames(right, items)
    outcomes = outcomes.sample(fraction=1, shuffle=True, seed=seed)  # the order of lines is nothing
    summary = with_means(by_model(outcomes, models, items))
    differences = paired(summary, "new", "old", "ood_mean", metric)
    cells, weights = crossed_cells(outcomes, models, items, "new", "old", metric)
    assert cells.shape == (replicates, len(weights))
    np.testing.assert_allclose(cells @ weights / weights.sum(), differences, atol=1e-9)
    accuracy = paired(summary, "new", "old", "ood_mean", "accuracy")
    facts = ControlFacts("old", differences, accuracy, cells, weights)
    guard = paired(summary, "new", "third", "id_mean", "accuracy")
    assert (
        judge([facts], guard, 2 / 64, 2.0, 1.0, True, metric == "accuracy").decision != "publish"
    )  # too few replicates
