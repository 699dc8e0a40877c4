"""Influence: known answers (METHODS G.6.5, G.6.6), dense references, leave-one-out, and bad rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import DataError, UserError
from curation.randomness import generator
from curation.score.adam import adam_direction, adam_scale, adam_side_scales
from curation.score.influence import (
    RIDGE,
    LessCheckpoint,
    TrakCheckpoint,
    gram,
    in_blocks,
    less_influence,
    margins,
    trak_influence,
    whiten,
    whitener,
)


def normal(name: str, *shape: int) -> np.ndarray:
    return generator(5, "influence", name).standard_normal(shape)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def less(train: np.ndarray, suite: np.ndarray, rows: int = 7, **more: np.ndarray) -> np.ndarray:
    return less_influence([LessCheckpoint(in_blocks(train, rows), suite, **more)]).score


def trak(
    train: np.ndarray, suite: np.ndarray, weight: np.ndarray, ridge: float = RIDGE, rows: int = 7
) -> np.ndarray:
    state = gram(in_blocks(train, rows))
    return trak_influence([TrakCheckpoint(in_blocks(train, rows), suite, state, weight)], ridge=ridge).score


# --- Adam ---


def test_adam_direction_known_answer() -> None:
    assert adam_direction(1, 0, 0) == pytest.approx(3.16226, abs=5e-6)
    assert adam_direction(0, 0, 0) == 0
    np.testing.assert_allclose(
        adam_direction([2, -2], [1, 1], [4, 0]), [1.1 / 2, 0.7 / np.sqrt(0.004)], rtol=1e-5
    )


def test_adam_scale_is_the_direction_without_the_rows_own_square() -> None:
    g, m, v = normal("g", 20, 6), normal("m", 6), normal("v", 6) ** 2 + 0.1
    direction = adam_scale(v) * (0.9 * m + 0.1 * g)
    own = (0.001 * g * g / (0.999 * v)).max()
    np.testing.assert_allclose(adam_direction(g, m, v), direction, rtol=own)
    assert adam_scale(1.0) * 0.1 * 10 == pytest.approx(adam_direction(10, 0, 1), rel=0.05)  # g^2 = 100 v


def test_an_adam_scale_goes_before_the_projection() -> None:
    g, m, v, p = normal("g", 20, 30), normal("m", 30), normal("v", 30) ** 2, normal("P", 30, 8)
    scale = adam_scale(v)
    np.testing.assert_allclose(
        0.1 * ((scale * g) @ p) + 0.9 * ((scale * m) @ p), (scale * (0.9 * m + 0.1 * g)) @ p, rtol=1e-10
    )


def test_side_scales_are_exact_at_rank_one_and_near_it_otherwise() -> None:
    out, into = np.array([1.0, 4, 9]), np.array([2.0, 0.5, 1, 8])
    by_out, by_in = adam_side_scales(np.outer(out, into), eps=0)
    np.testing.assert_allclose(np.outer(by_out, by_in), adam_scale(np.outer(out, into), eps=0), rtol=1e-12)
    e, a = normal("e", 5, 3), normal("a", 5, 4)  # five tokens of one row
    np.testing.assert_allclose(
        (e * by_out).T @ (a * by_in), adam_scale(np.outer(out, into), eps=0) * (e.T @ a), rtol=1e-10
    )
    noisy = np.outer(out, into) * np.exp(0.2 * normal("noise", 3, 4))
    by_out, by_in = adam_side_scales(noisy)
    np.testing.assert_allclose(np.outer(by_out, by_in), adam_scale(noisy), rtol=0.3)
    assert all(np.isfinite(s).all() for s in adam_side_scales(np.zeros((3, 4))))


# --- LESS ---


def test_less_is_a_cosine() -> None:
    train = np.array([[2.0, 0], [0, 3], [-5, 0], [1, 1]])
    np.testing.assert_allclose(less(train, np.array([[7.0, 0]])), [1, 0, -1, np.sqrt(0.5)], atol=1e-12)


def test_less_equals_the_dense_reference() -> None:
    trains, suites = [normal(f"t{i}", 20, 9) for i in range(3)], [normal(f"s{i}", 6, 9) for i in range(3)]
    subtask, rates = np.array(["b", "a", "b", "c", "a", "b"]), np.array([2e-5, 1e-5, 5e-6])
    pairs = sum(r * unit(t) @ unit(s).T for r, t, s in zip(rates / rates.sum(), trains, suites, strict=True))
    expected = np.max([pairs[:, subtask == name].mean(1) for name in "abc"], axis=0)
    found = less_influence(
        [LessCheckpoint(in_blocks(t, 6), s, r) for t, s, r in zip(trains, suites, rates, strict=True)],
        subtask,
    )
    np.testing.assert_allclose(found.score, expected, rtol=1e-10)
    assert found.used.all()
    assert found.suite_used.all()


def test_less_means_first_then_max() -> None:
    suite = np.array([[1.0, 0], [-1, 0], [0, 1]])
    train = np.array([[1.0, 0], [0, 1]])
    found = less_influence([LessCheckpoint([train], suite)], [0, 0, 1])
    assert found.score.tolist() == [0, 1]  # the max over items would be 1 and 1
    assert less_influence([LessCheckpoint([train], suite)]).score == pytest.approx([0, 1 / 3])


def test_whitened_less_equals_the_dense_reference_and_the_order_matters() -> None:
    mix = np.diag([10.0, 3, 1, 0.3])
    train, suite = normal("t", 50, 4) @ mix, normal("s", 3, 4) @ mix
    c = train.T @ train / 50
    values, vectors = np.linalg.eigh(c + RIDGE * np.trace(c) / 4 * np.eye(4))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    np.testing.assert_allclose(whitener(c), root, rtol=1e-10)
    expected = (unit(train @ root) @ unit(suite @ root).T).mean(1)
    found = less(train, suite, whitener=whitener(gram([train])))  # a sum or a mean: only the scale differs
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    swapped = (unit(train) @ root @ (unit(suite) @ root).T).mean(1)
    assert np.corrcoef(swapped, expected)[0, 1] < 0.98
    assert np.corrcoef(less(train, suite), expected)[0, 1] < 0.9


def test_whitened_rows_are_isotropic_and_of_length_one() -> None:
    train = normal("t", 4000, 6) @ normal("mix", 6, 6)
    white = whiten(train, whitener(gram([train]), ridge=0))
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(white.T @ white / 4000, np.eye(6) / 6, atol=0.01)
    tiny = whiten((train * 1e-25).astype(np.float32), whitener(gram([train * 1e-25]), ridge=0))
    np.testing.assert_allclose(tiny, white, atol=1e-4)


# --- TRAK ---


def test_trak_of_a_ridge_regression_is_leave_one_out_without_the_leverage() -> None:
    x, z, ridge = normal("x", 30, 5), normal("z", 4, 5), 0.7
    y = x @ normal("w", 5) + 0.3 * normal("e", 30)

    def weights(keep: np.ndarray) -> np.ndarray:
        return np.linalg.solve(x[keep].T @ x[keep] + ridge * np.eye(5), x[keep].T @ y[keep])

    everything = np.arange(30)
    theta = weights(everything)
    gone = np.stack([z @ (theta - weights(np.delete(everything, i))) for i in everything])
    inverse = np.linalg.inv(x.T @ x + ridge * np.eye(5))
    leverage = np.einsum("nd,de,ne->n", x, inverse, x)
    relative = ridge * 5 / np.trace(x.T @ x)
    for item in range(4):
        found = trak(x, z[[item]], y - x @ theta, ridge=relative)
        np.testing.assert_allclose(found / (1 - leverage), gone[:, item], rtol=1e-8)
    np.testing.assert_allclose(
        trak(x, z, y - x @ theta, ridge=relative), gone.mean(1) * (1 - leverage), rtol=1e-8
    )


def logistic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and the probability of each row's own label, labels +1 and -1, a little ridge."""
    theta = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-y * (x @ theta)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 0.1 * np.eye(x.shape[1])
        theta += np.linalg.solve(hessian, x.T @ (y * (1 - p)) - 0.1 * theta)
    return theta, 1 / (1 + np.exp(-y * (x @ theta)))


def test_trak_ranks_rows_as_retraining_without_them_does() -> None:
    x = normal("x", 120, 6)
    y = np.sign(x @ normal("w", 6) + normal("e", 120))
    z = normal("z", 1, 6)
    theta, p = logistic(x, y)
    rows = np.arange(120)
    gone = np.array([(z @ (theta - logistic(x[rows != i], y[rows != i])[0]))[0] for i in rows])
    output, weight = margins(-(y * (1 - p))[:, None] * x, -np.log(p))
    np.testing.assert_allclose(
        output, y[:, None] * x, rtol=1e-9
    )  # the margin of a logistic model is y x theta
    np.testing.assert_allclose(weight, 1 - p, rtol=1e-9)
    assert np.corrcoef(trak(output, z, weight), gone)[0, 1] > 0.95
    newton = gram([output * np.sqrt(p * (1 - p))[:, None]])  # the Gram matrix of one Newton step
    ridge = 0.1 * 6 / np.trace(newton)
    step = trak_influence([TrakCheckpoint([output], z, newton, weight)], ridge=ridge).score
    assert np.corrcoef(step, gone)[0, 1] > 0.99
    inverse = np.linalg.inv(newton + 0.1 * np.eye(6))
    np.testing.assert_allclose(step, (y * (1 - p)) * (x @ inverse @ z[0]), rtol=1e-8)


def test_trak_averages_its_pieces_over_checkpoints_each_on_its_own() -> None:
    trains, suites = [normal(f"t{i}", 20, 4) for i in range(3)], [normal(f"s{i}", 5, 4) for i in range(3)]
    weights, subtask = normal("q", 3, 20), np.array([0, 0, 1, 1, 1])
    pieces = []
    for t, s in zip(trains, suites, strict=True):
        c = t.T @ t
        pieces.append(t @ np.linalg.inv(c + RIDGE * np.trace(c) / 4 * np.eye(4)) @ s.T)
    pairs = np.mean(pieces, axis=0) * weights.mean(0)[:, None]
    found = trak_influence(
        [
            TrakCheckpoint(in_blocks(t, 6), s, gram([t]), w)
            for t, s, w in zip(trains, suites, weights, strict=True)
        ],
        subtask,
    )
    np.testing.assert_allclose(found.score, np.maximum(pairs[:, :2].mean(1), pairs[:, 2:].mean(1)), rtol=1e-9)


def test_margins_of_a_row_known_by_heart() -> None:
    rows, weight = margins(np.ones((2, 3), np.float32), [np.log(2), 0.0])
    assert rows[0].tolist() == [-2, -2, -2]
    assert weight == pytest.approx([0.5, 0])
    assert np.isnan(trak(rows, np.ones((1, 3), np.float32), weight)).tolist() == [False, True]
    confident, _ = margins(np.full((1, 1), 1e-12), [1e-12])  # 1 - p without cancellation
    assert confident == pytest.approx(-1, rel=1e-9)


def test_trak_needs_a_ridge_when_rows_are_few() -> None:
    train, suite, weight = normal("t", 3, 8), normal("s", 2, 8), np.ones(3)
    with pytest.raises(UserError, match=r"rank 3 of 8.*ridge"):
        trak(train, suite, weight, ridge=0)
    with pytest.raises(UserError, match="rank 3 of 8"):
        whitener(gram([train]), ridge=0)
    assert np.isfinite(trak(train, suite, weight)).all()


# --- blocks, precision, bad rows ---


@given(st.integers(1, 40), st.sampled_from([np.float16, np.float32, np.float64]))
@settings(max_examples=20, deadline=None)
def test_blocks_and_precision_do_not_matter(rows: int, dtype: type) -> None:
    train, suite, weight = normal("t", 33, 6).astype(dtype), normal("s", 4, 6).astype(dtype), np.ones(33)
    exact = train.astype(np.float64)
    np.testing.assert_allclose(gram(in_blocks(train, rows)), exact.T @ exact, rtol=1e-5, atol=1e-4)
    state = whitener(gram([exact]))
    score: Callable[..., np.ndarray]
    for score, more in ((less, {}), (less, {"whitener": state}), (trak, {"weight": weight})):
        whole = score(exact, suite.astype(np.float64), rows=33, **more)
        np.testing.assert_allclose(score(train, suite, rows=rows, **more), whole, atol=2e-6)


def test_bad_rows_have_no_score_and_touch_no_other() -> None:
    good, suite = normal("t", 12, 5).astype(np.float32), normal("s", 3, 5).astype(np.float32)
    bad = np.zeros((4, 5), np.float32)
    bad[1], bad[2, 3], bad[3, 0] = np.nan, np.inf, -np.inf
    mixed, place = np.vstack([good[:5], bad, good[5:]]), np.r_[0:5, 9:16]
    bad_suite = np.vstack([suite, bad])
    white = whitener(gram([good]))
    np.testing.assert_array_equal(gram([mixed]), gram([good]))
    for more in ({}, {"whitener": white}):
        found = less_influence([LessCheckpoint(in_blocks(mixed, 4), bad_suite, **more)])
        np.testing.assert_allclose(found.score[place], less(good, suite, **more), rtol=1e-5)
        assert np.flatnonzero(~found.used).tolist() == [5, 6, 7, 8]
        assert np.isnan(found.score[5:9]).all()
        assert found.suite_used.tolist() == [True] * 3 + [False] * 4
    point = TrakCheckpoint(in_blocks(mixed, 4), bad_suite, gram([mixed]), np.ones(16))
    found = trak_influence([point])
    np.testing.assert_allclose(found.score[place], trak(good, suite, np.ones(12)), rtol=1e-5)
    assert np.flatnonzero(~found.used).tolist() == [5, 6, 7, 8]
    assert not whiten(mixed, white)[5:9].any()


def test_a_row_bad_at_one_checkpoint_has_no_score() -> None:
    first, second, suite = normal("a", 6, 4), normal("b", 6, 4), normal("s", 2, 4)
    second[3] = 0
    found = less_influence([LessCheckpoint([first], suite), LessCheckpoint([second], suite)])
    assert np.flatnonzero(~found.used).tolist() == [3]


def test_a_subtask_without_a_usable_row_is_left_out() -> None:
    train, suite = normal("t", 6, 4), normal("s", 3, 4)
    suite[2] = np.nan
    found = less_influence([LessCheckpoint([train], suite)], ["a", "a", "b"])
    np.testing.assert_allclose(found.score, less(train, suite[:2]), rtol=1e-12)
    assert found.suite_used.tolist() == [True, True, False]


def test_huge_and_tiny_rows_stay_finite() -> None:
    train, suite = normal("t", 8, 3).astype(np.float32), normal("s", 2, 3).astype(np.float32)
    scaled = train * np.array([1e30, 1e-30, *[1] * 6], np.float32)[:, None]  # squares overflow float32
    np.testing.assert_allclose(less(scaled, suite), less(train, suite), rtol=1e-4)
    assert np.isfinite(gram([scaled])).all()
    assert np.isfinite(trak(scaled, suite, np.ones(8))).all()


def test_no_rows_is_a_legal_answer() -> None:
    found = less_influence([LessCheckpoint([], normal("s", 2, 4))])
    assert found.score.shape == found.used.shape == (0,)


def test_what_does_not_fit_together_is_refused() -> None:
    train, suite = normal("t", 6, 4), normal("s", 2, 4)
    point = LessCheckpoint([train], suite)
    with pytest.raises(DataError, match=r"hold \[6, 0\] rows in one block"):
        less_influence([point, LessCheckpoint([], suite)])
    with pytest.raises(DataError, match=r"hold \[2, 1\] suite rows"):
        less_influence([point, LessCheckpoint([train], suite[:1])])
    with pytest.raises(DataError, match="at least one checkpoint"):
        less_influence([])
    with pytest.raises(DataError, match="none of the 2 suite rows"):
        less_influence([LessCheckpoint([train], suite * 0)])
    with pytest.raises(DataError, match="2 suite rows but 3 subtasks"):
        less_influence([point], [0, 1, 2])
    with pytest.raises(UserError, match="learning rates"):
        less_influence([LessCheckpoint([train], suite, 0.0)])
    with pytest.raises(DataError, match="in_blocks"):
        less_influence([LessCheckpoint(train, suite)])  # an array is an iterable of rows, not of blocks
    with pytest.raises(DataError, match="weights for 5 training rows"):
        trak(train, suite, np.ones(5))
    with pytest.raises(DataError, match="no block"):
        gram([])
    with pytest.raises(DataError, match="no training row"):
        whitener(gram([train * 0]))
