"""What machines add up from their shards is what one machine finds in all rows.

Equal bit for bit: counts, sums of rows whose products have no rounding, and any sum in the order of shard keys,
whichever machine made which shard and whenever it was finished. Another cut of the same rows changes the order of
float32 products within a block: equal to TOLERANCE, relative to the largest entry.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.score.diversity import Moments, diversity_of, moments, moments_of

TOLERANCE = 1e-6
FIELDS = ("second", "heading", "total", "square", "n", "left_out")


def rows(n: int, d: int, seed: int, dtype: type = np.float32) -> np.ndarray:
    z = np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)
    z[::17] = 0  # rows without a direction are left out, and counted, wherever they fall
    return z


def equal_bits(a: Moments, b: Moments) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


cuts = st.lists(st.integers(0, 500), max_size=8).map(sorted)


@given(cuts=cuts, seed=st.integers(0, 50))
def test_any_cut_of_exact_rows_adds_up_to_the_same_bits(cuts: list[int], seed: int) -> None:
    """Rows along axes, with lengths that are powers of two: no product or sum rounds."""
    drawn = np.random.default_rng(seed)
    z = np.zeros((500, 12), dtype=np.float32)
    z[np.arange(500), drawn.integers(0, 12, 500)] = 2.0 ** drawn.integers(-3, 4, 500)
    z[::17] = 0
    assert equal_bits(reduce(add, map(moments, np.split(z, cuts))), moments(z))


@given(cuts=cuts, seed=st.integers(0, 50))
def test_any_cut_of_any_rows_adds_up_within_the_tolerance(cuts: list[int], seed: int) -> None:
    z = rows(500, 24, seed)
    merged, whole = reduce(add, map(moments, np.split(z, cuts))), moments(z)
    assert (merged.n, merged.left_out) == (whole.n, whole.left_out)
    for name in ("second", "heading", "total", "square"):
        a, b = np.asarray(getattr(merged, name)), np.asarray(getattr(whole, name))
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(np.abs(b).max(), whole.n))
    merged_scores, scores = diversity_of(merged), diversity_of(whole)
    for name in ("g_vendi", "g_vendi_q2", "g_vendi_inf"):
        assert getattr(merged_scores, name) == pytest.approx(getattr(scores, name), rel=1e-5), name


@given(order=st.permutations(range(6)), machines=st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_machines_and_finishing_order_leave_no_trace(order: list[int], machines: list[int]) -> None:
    """Shard states are added in the order of their keys, so who made them, and when, cannot change a bit."""
    parts = np.split(rows(600, 24, 7), 6)
    expected = moments_of(parts)
    finished: dict[int, dict[int, Moments]] = {0: {}, 1: {}, 2: {}}
    for shard in order:
        finished[machines[shard]][shard] = moments(parts[shard])
    states = {shard: state for states in finished.values() for shard, state in states.items()}
    assert equal_bits(reduce(add, (states[key] for key in sorted(states))), expected)


def test_float16_features_as_they_lie_in_shards_merge_too() -> None:
    z = rows(9000, 32, 3).astype(np.float16)  # more than a block
    merged = reduce(add, map(moments, np.split(z, [100, 4096, 5000])))
    whole = moments(z)
    np.testing.assert_allclose(merged.second, whole.second, rtol=0, atol=TOLERANCE * whole.n)
    assert (merged.n, merged.left_out) == (whole.n, whole.left_out)
