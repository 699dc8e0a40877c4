"""Where new rows are needed: small regions that fail come first."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.rows import REGION_TABLE, REGIONS
from curation.synthesize.plan import parent_weights


def plan(
    sizes: list[int], errors: list[float | None], shuffle: bool = False
) -> tuple[pl.DataFrame, pl.DataFrame]:
    region = np.repeat(np.arange(len(sizes)), sizes)
    rows = pl.DataFrame(
        {
            "row_id": [str(i) for i in range(len(region))],
            "proxy": "p",
            "scale": "coarse",
            "region": region,
            "distance": 0.0,
        },
        schema=REGIONS,
    )
    lines = [
        (
            "p",
            "coarse",
            r,
            None,
            n,
            n / sum(sizes),
            0.9,
            0.8,
            e,
            1.0,
            n < np.median(sizes),
            f"w{r}",
            [],
            0.0,
            0.0,
        )
        for r, (n, e) in enumerate(zip(sizes, errors, strict=True))
    ]
    table = pl.DataFrame(lines, schema=REGION_TABLE, orient="row")
    return rows, table.sort("region", descending=True) if shuffle else table


@given(
    st.lists(st.tuples(st.integers(0, 9), st.none() | st.floats(0, 1)), min_size=1, max_size=8).filter(
        lambda x: sum(n for n, _ in x) > 0
    )
)
def test_weights_are_probabilities(regions: list[tuple[int, float | None]]) -> None:
    sizes, errors = [n for n, _ in regions], [e for _, e in regions]
    weights = parent_weights(*plan(sizes, errors, shuffle=True))
    assert weights.shape == (sum(sizes),)
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights, parent_weights(*plan(sizes, errors)))


def test_small_failing_regions_are_preferred() -> None:
    rows, table = plan([100, 100, 5, 5], [0.1, 0.8, 0.1, 0.8])
    weights = parent_weights(rows, table)
    each = [weights[rows["region"].to_numpy() == r][0] for r in range(4)]
    assert each[3] > each[2] > each[1] > each[0]
    assert each[3] / each[1] == pytest.approx(20)  # twenty times smaller
    assert each[1] / each[0] == pytest.approx(0.81 / 0.11)


def test_regions_share_the_parents_by_their_error() -> None:
    rows, table = plan([50, 10, 2], [0.09, 0.29, 0.59])
    weights = parent_weights(rows, table)
    of_region = [weights[rows["region"].to_numpy() == r].sum() for r in range(3)]
    assert of_region == pytest.approx([0.1, 0.3, 0.6])


def test_a_region_without_steer_items_has_the_mean_error() -> None:
    rows, table = plan([10, 10, 10], [0.2, 0.6, None])
    weights = parent_weights(rows, table)
    assert weights[25] == pytest.approx((weights[5] + weights[15]) / 2)
    for errors in ([0.0, 0.0], [None, None]):  # nothing fails, or nothing is known: every region alike
        assert parent_weights(*plan([30, 10], errors))[:30].sum() == pytest.approx(0.5)


def test_numbers_may_have_gaps_and_a_row_without_a_region_is_no_parent() -> None:
    rows, table = plan([3, 1], [0.2, 0.8])
    numbers = pl.col("region").replace_strict({0: 40, 1: 7}, return_dtype=pl.Int32)
    expected = parent_weights(rows, table)
    rows, table = rows.with_columns(numbers), table.with_columns(numbers)
    assert parent_weights(rows, table) == pytest.approx(expected)
    lost = rows.with_columns(
        region=pl.when(pl.col("row_id") == "3").then(-1).otherwise("region").cast(pl.Int32)
    )
    assert parent_weights(lost, table).tolist() == pytest.approx([1 / 3] * 3 + [0])
    assert parent_weights(lost.with_columns(region=pl.lit(-1, pl.Int32)), table).tolist() == [1 / 4] * 4
