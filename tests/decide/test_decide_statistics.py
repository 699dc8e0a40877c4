"""Known answers and properties of the decision's numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from curation.decide.statistics import (
    confirming_replicates,
    crossed_interval,
    detectable,
    replicates_needed,
    sign_flip_p,
    smallest_p,
    t_interval,
)
from curation.errors import UserError
from curation.randomness import generator

gains = st.lists(st.integers(-50, 50).map(lambda v: v / 10), min_size=1, max_size=9)


def brute_force_p(differences: list[float]) -> float:
    """Every sign pattern, one by one, in exact tenths."""
    d = [round(v * 10) for v in differences]
    patterns = itertools.product((1, -1), repeat=len(d))
    sums = [sum(s * v for s, v in zip(signs, d, strict=True)) for signs in patterns]
    return sum(total >= sum(d) for total in sums) / len(sums)


def test_sign_flip_known_answers() -> None:
    assert sign_flip_p([1.0] * 5) == 1 / 32  # two-sided .0625
    assert sign_flip_p([0.3, 2.0, 1.0, 7.0, 0.1, 4.0]) == smallest_p(6) == 1 / 64
    assert sign_flip_p([-0.1, 2.0, 1.0, 7.0, 0.3, 4.0]) == 2 / 64  # one negative, the smallest in size
    assert sign_flip_p([-1.0] * 5) == 1.0
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip_p([2.0]) == 0.5
    assert sign_flip_p([0.1, 0.2, -0.3]) == sign_flip_p([1, 2, -3])  # ties up to rounding
    assert sign_flip_p(np.ones(20)) == 2.0**-20


@given(gains)
def test_sign_flip_is_the_share_of_patterns(differences: list[float]) -> None:
    assert sign_flip_p(differences) == brute_force_p(differences)


@given(gains, st.floats(0.01, 100), st.randoms())
def test_sign_flip_knows_neither_order_nor_scale(differences: list[float], scale: float, random) -> None:
    shuffled = random.sample(differences, len(differences))
    p = sign_flip_p(differences)
    assert sign_flip_p([scale * d for d in shuffled]) == p
    assert smallest_p(len(differences)) <= p <= 1
    assert sign_flip_p([d + 0.5 for d in differences]) <= p
    assert p + sign_flip_p([-d for d in differences]) >= 1


def test_sign_flip_p_is_uniform_without_a_gain() -> None:
    draws = generator(3, "uniform").normal(size=(500, 8))
    p = np.array([sign_flip_p(d) for d in draws])
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert (p <= 0.05).sum() <= stats.binom.ppf(0.99, 500, 0.05)


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0], [[1.0]], [math.inf]])
def test_differences_must_be_finite(bad: list) -> None:
    with pytest.raises(ValueError):
        sign_flip_p(bad)


def test_more_than_twenty_replicates_are_refused() -> None:
    with pytest.raises(UserError, match="21 replicates"):
        sign_flip_p(np.ones(21))


def test_t_interval_is_scipys() -> None:
    d = np.array([2.1, -0.4, 3.3, 1.0, 2.2, 0.7])
    low, high = stats.t.interval(0.95, 5, d.mean(), stats.sem(d))
    assert t_interval(d) == pytest.approx((d.mean(), low, high))
    mean, *limits = t_interval([1.5])
    assert mean == 1.5 and np.isnan(limits).all()


def test_crossed_interval_known_answer() -> None:
    """A 3 x 2 table by hand: rows 1, 3, 5, columns 2, 4, no interaction; MS_r 8, MS_c 6, MS_e 0."""
    mean, low, high, clusters = crossed_interval([[0, 2], [2, 4], [4, 6]])
    error = math.sqrt((8 + 6 - 0) / 6)
    half = stats.t.ppf(0.975, 1) * error
    assert (mean, low, high, clusters) == pytest.approx((3, 3 - half, 3 + half, 2))


def test_crossed_interval_takes_the_largest_square() -> None:
    """Pure interaction: MS_r = MS_c = 0, the variance is not negative and not NaN."""
    assert crossed_interval([[1, -1], [-1, 1]])[:3] == (0.0, 0.0, 0.0)


def test_crossed_interval_of_one_row_or_column_has_no_limits() -> None:
    for cells in ([[1.0, 2.0]], [[1.0], [3.0]]):
        mean, low, high, clusters = crossed_interval(cells)
        assert mean == np.mean(cells) and math.isnan(low) and math.isnan(high) and clusters == len(cells[0])


@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 1000), st.floats(0.1, 9))
@settings(max_examples=50)
def test_crossed_weights(n: int, m: int, seed: int, scale: float) -> None:
    rng = generator(seed, "weights")
    cells, weights = rng.normal(size=(n, m)), rng.integers(1, 9, m)
    assert crossed_interval(cells, np.full(m, scale)) == pytest.approx(crossed_interval(cells))
    assert crossed_interval(cells, weights * scale) == pytest.approx(crossed_interval(cells, weights))
    mean = np.average(cells, axis=1, weights=weights).mean()
    assert crossed_interval(cells, weights)[0] == pytest.approx(mean)


@pytest.mark.parametrize(("n", "m", "unequal"), [(6, 20, False), (6, 20, True), (8, 8, False), (6, 45, True)])
def test_crossed_interval_covers(n: int, m: int, unequal: bool) -> None:
    """95 % intervals hold the truth when items and replicates both vary; replicate-only intervals do not."""
    rng, loops = generator(5, "coverage", n, m, unequal), 800
    weights = rng.integers(1, 6, m) if unequal else np.ones(m)
    crossed = alone = 0
    for _ in range(loops):
        noise = rng.normal(size=(n, m)) * 4 / np.sqrt(weights)
        cells = rng.normal(size=(n, 1)) + rng.normal(0, 3, size=m) + noise
        _, low, high, _ = crossed_interval(cells, weights)
        crossed += not low <= 0 <= high
        _, low, high = t_interval(cells @ (weights / weights.sum()))
        alone += not low <= 0 <= high
    assert crossed <= stats.binom.ppf(0.99, loops, 0.05)
    assert alone > stats.binom.ppf(0.99, loops, 0.05)


def test_crossed_interval_is_not_too_wide() -> None:
    """Its expected squared standard error is the variance of the mean (n = 6, 20 unequal clusters)."""
    rng, n, m = generator(6, "width"), 6, 20
    weights = rng.integers(1, 6, m)
    means, errors = [], []
    for _ in range(2000):
        cells = rng.normal(size=(n, 1)) + rng.normal(0, 3, size=m) + rng.normal(size=(n, m)) * 2
        mean, _, high, _ = crossed_interval(cells, weights)
        means.append(mean)
        errors.append(((high - mean) / stats.t.ppf(0.975, n - 1)) ** 2)
    assert np.mean(errors) == pytest.approx(np.var(means), rel=0.12)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan]])
def test_weights_must_be_positive(weights: list[float]) -> None:
    with pytest.raises(ValueError):
        crossed_interval([[1.0, 2.0], [2.0, 3.0]], weights)


def test_how_many_replicates() -> None:
    z = stats.norm.ppf(1 - 2 / 64) + 0.84
    assert detectable(3.0, 9, 2 / 64) == pytest.approx(z)
    assert detectable(3.0, 9, 0.0) == math.inf and math.isnan(detectable(math.nan, 1, 2 / 64))
    assert replicates_needed(3.0, 2.0, 2 / 64) == math.ceil((z * 1.5) ** 2) == 17
    assert replicates_needed(0.0, 2.0, 2 / 64) == 6
    assert confirming_replicates(3.0, 2.0, 2 / 64, 20) == 19
    assert confirming_replicates(3.0, 2.0, 2 / 64, 12) == 12
    assert confirming_replicates(0.1, 2.0, 1 / 64, 12) == 6
    assert confirming_replicates(0.1, 2.0, 1 / 64, 4) == 4
    with pytest.raises(ValueError):
        replicates_needed(1.0, 2.0, 0.0)


@given(st.floats(0.1, 20), st.floats(0.1, 10), st.sampled_from([1 / 64, 2 / 64]))
def test_the_needed_replicates_detect_the_gain(sd: float, gain: float, alpha: float) -> None:
    assert detectable(sd, replicates_needed(sd, gain, alpha), alpha) <= gain * (1 + 1e-6)
