"""Greedy log-det against brute force and against determinants computed anew."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import DataError
from curation.logdet import float32_rows, logdet_order, unit_rows
from curation.randomness import generator

RIDGE = 0.1


def volume(rows: np.ndarray, ridge: float = RIDGE) -> float:
    return float(np.linalg.slogdet(np.eye(rows.shape[1]) + rows.T @ rows / ridge)[1])


def unit_set(seed: int, n: int, d: int) -> np.ndarray:
    return unit_rows(generator(seed, "unit set").standard_normal((n, d))).astype(np.float64)


problems = st.tuples(
    st.integers(0, 500),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(0, 5),
    st.sampled_from([0.01, 0.1, 1.0]),
)


@given(problems)
@settings(deadline=None)
def test_every_gain_is_the_increase_of_the_determinant_and_the_best_one(problem) -> None:
    seed, n, d, m, ridge = problem
    z, given_rows = unit_set(seed, n, d), unit_set(seed + 1000, m, d)
    order, gains = logdet_order(z, n, given_rows, ridge)
    assert sorted(order.tolist()) == list(range(n))
    have = given_rows
    left = set(range(n))
    for j, gain in zip(order, gains, strict=True):
        increase = {i: volume(np.vstack([have, z[[i]]]), ridge) - volume(have, ridge) for i in left}
        assert gain == pytest.approx(increase[int(j)], abs=1e-7)
        assert increase[int(j)] >= max(increase.values()) - 1e-7
        have = np.vstack([have, z[[j]]])
        left.remove(int(j))
    assert np.all(np.diff(gains) <= 1e-7)  # what is picked later adds less
    whole = volume(np.vstack([given_rows, z]), ridge) - volume(given_rows, ridge)
    assert gains.sum() == pytest.approx(whole, abs=1e-6)


@given(st.integers(0, 200), st.integers(4, 9), st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_the_greedy_set_is_near_the_best_of_all_sets(seed: int, n: int, picks: int) -> None:
    z = unit_set(seed, n, 4)
    order, gains = logdet_order(z, picks, ridge=RIDGE)
    best = max(volume(z[list(chosen)]) for chosen in itertools.combinations(range(n), picks))
    assert volume(z[order]) == pytest.approx(gains.sum(), abs=1e-7)
    assert (1 - 1 / np.e) * best <= gains.sum() <= best + 1e-7
    assert gains.sum() >= 0.8 * best  # far above the guarantee on such sets


def test_what_is_given_is_not_picked_again() -> None:
    z = np.eye(4)
    order, gains = logdet_order(z, 4, given=np.repeat(np.eye(4)[:2], 3, axis=0), ridge=RIDGE)
    assert order.tolist() == [2, 3, 0, 1]
    np.testing.assert_allclose(gains, [np.log(11)] * 2 + [np.log(1 + 1 / 3.1)] * 2)
    assert logdet_order(z, 2, given=np.zeros((0, 4)))[0].tolist() == [0, 1]  # ties go to the lower index


def test_duplicates_and_zero_rows_come_last() -> None:
    z = np.vstack([np.zeros(3), np.eye(3)[[0, 0, 1, 2]]])
    order, gains = logdet_order(z, 9)
    assert order.tolist() == [1, 3, 4, 2, 0]
    assert gains[-1] == 0


def test_no_candidates_or_no_picks() -> None:
    assert len(logdet_order(np.zeros((0, 3)), 2)[0]) == 0
    assert len(logdet_order(np.eye(3), 0)[0]) == 0


def test_gains_stay_exact_over_many_picks() -> None:
    z = unit_set(3, 400, 24)
    order, gains = logdet_order(z, 300)
    assert len(set(order.tolist())) == 300
    assert gains.sum() == pytest.approx(volume(z[order]), rel=1e-9)


def shortfall(z: np.ndarray, order: np.ndarray, given_rows: np.ndarray, ridge: float) -> np.ndarray:
    """How far every pick's leverage is below the best open row's, as a share; all computed anew at every pick."""
    precision = ridge * np.eye(z.shape[1]) + given_rows.T @ given_rows
    open_, short = np.ones(len(z), dtype=bool), []
    for j in order:
        leverage = np.einsum("nd,nd->n", z @ np.linalg.inv(precision), z)
        short.append(1 - leverage[j] / leverage[open_].max())
        open_[j] = False
        precision += np.outer(z[j], z[j])
    return np.array(short)


@given(problems, st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_plain_and_lazy_picks_are_the_greedy_ones(problem, active: int) -> None:
    seed, n, d, m, ridge = problem
    z, given_rows = unit_set(seed, 6 * n, d), unit_set(seed + 1000, m, d)
    order = logdet_order(z, 4 * n, given_rows, ridge)[0]
    assert shortfall(z, order, given_rows, ridge).max() <= 1e-9
    lazy, lazy_gains = logdet_order(z, 4 * n, given_rows, ridge, active=active)
    assert len(set(lazy.tolist())) == 4 * n
    assert shortfall(z, lazy, given_rows, ridge).max() <= 1e-3 * ridge + 2e-4  # float32 bounds
    whole = volume(np.vstack([given_rows, z[lazy]]), ridge) - volume(given_rows, ridge)
    assert lazy_gains.sum() == pytest.approx(whole, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_many_rows_few_at_a_time(dtype: type) -> None:
    spread = np.arange(1.0, 49) ** -0.7
    z = unit_rows(generator(9, "many").standard_normal((9000, 48)) * spread).astype(dtype)
    z.flags.writeable = False  # as a memory map is
    order, gains = logdet_order(z, 600)
    exact, best = logdet_order(z, 600, active=len(z))
    assert len(set(order.tolist())) == 600
    assert gains.sum() == pytest.approx(best.sum(), rel=1e-5)
    assert volume(z[order].astype(np.float64)) == pytest.approx(gains.sum(), rel=1e-7)
    assert len(np.intersect1d(order, exact)) > 500
    assert logdet_order(z, 600)[0].tolist() == order.tolist()
    conditional, after = logdet_order(z, 200, given=z[order], active=64)
    both = np.concatenate([order, conditional])
    assert volume(z[both].astype(np.float64)) == pytest.approx(gains.sum() + after.sum(), rel=1e-7)
    assert after.sum() == pytest.approx(
        logdet_order(z, 200, given=z[order], active=len(z))[1].sum(), rel=1e-4
    )


def test_rows_that_are_not_finite_are_refused() -> None:
    z = np.eye(4)
    z[2, 1] = np.nan
    with pytest.raises(DataError, match=r"1 of 4 candidates .* row 2"):
        logdet_order(z, 2)


def test_float32_rows() -> None:
    x = np.array([[1.5, -0.25], [6e-8, 65504]])
    for dtype in (np.float16, np.float32, np.float64):
        found = float32_rows(x.astype(dtype))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, x.astype(dtype).astype(np.float32))


def test_unit_rows() -> None:
    found = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)
