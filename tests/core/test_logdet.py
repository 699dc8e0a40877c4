"""Greedy log-det against brute force and against determinants computed anew."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.logdet import logdet_order, unit_rows
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


def test_unit_rows() -> None:
    found = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)
