"""Difficulty scores: known answers (METHODS F.5), what is refused as unreliable, and length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import DataError
from curation.randomness import generator
from curation.score.difficulty import (
    el2n_from_probabilities,
    grand_last_layer,
    holdout_folds,
    ifd,
    length_correlation,
    length_residual,
    out_of_fold,
    rho,
)
from tests.small import linear_gradients

NAN, INF = float("nan"), float("inf")


def test_el2n_known_answers() -> None:
    assert el2n_from_probabilities([[0.7, 0.2, 0.1]], [0]) == pytest.approx([0.37417], abs=5e-6)
    assert el2n_from_probabilities(np.full((2, 10), 0.1), [0, 9]) == pytest.approx([0.94868] * 2, abs=5e-6)
    assert el2n_from_probabilities([[1, 0], [0, 1]], [0, 0]) == pytest.approx([0, 2**0.5])


def test_grand_of_a_linear_softmax() -> None:
    assert grand_last_layer([[0.7, 0.2, 0.1]], [0], [[3, 4]]) == pytest.approx([1.87083], abs=5e-6)


def test_the_gradient_pass_agrees_with_both_references() -> None:
    draw = generator(1, "softmax")
    weight, x, y = draw.standard_normal((5, 4)), draw.standard_normal((9, 4)), draw.integers(0, 5, 9)
    logits = x @ weight.T
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = linear_gradients(weight, x, y.tolist())
    np.testing.assert_allclose(found.el2n, el2n_from_probabilities(p, y), rtol=1e-5)
    np.testing.assert_allclose(found.norm, grand_last_layer(p, y, x), rtol=1e-5)


def test_probabilities_are_left_as_they_were() -> None:
    p = np.array([[0.7, 0.3]])
    el2n_from_probabilities(p, [0])
    assert p.tolist() == [[0.7, 0.3]]


def test_ifd_is_a_ratio_of_losses() -> None:
    value, reliable = ifd([0.696], [0.761], [8])
    assert value == pytest.approx([0.9146], abs=5e-5)
    assert value != pytest.approx([0.9371], abs=5e-4)  # what a ratio of perplexities gives
    assert reliable.tolist() == [True]


def test_ifd_says_which_rows_it_cannot_be_trusted_on() -> None:
    value, reliable = ifd([1, 1, 1, 1, NAN, 1, INF], [2, 2, 0.05, 0.049, 2, 0, 2], [8, 7, 8, 8, 8, 8, 8])
    assert reliable.tolist() == [True, False, True, False, False, False, False]
    assert np.isnan(value).tolist() == (~reliable).tolist()
    assert value[reliable] == pytest.approx([0.5, 20])


def test_rho_known_answer_and_negative_values() -> None:
    assert rho([1.2, 0.5], [0.9, 0.8]) == pytest.approx([0.3, -0.3])
    assert np.isnan(rho([INF, 1, NAN], [INF, NAN, 1])).all()


def test_folds_are_halves_that_other_rows_never_change() -> None:
    ids = [f"{i:032x}" for i in range(4000)]
    folds = holdout_folds(ids, 7)
    assert set(folds.tolist()) == {0, 1}
    assert abs(folds.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(ids))
    assert np.array_equal(holdout_folds(["new", *ids[::-1]], 7)[1:][::-1], folds)
    assert 0.45 < (holdout_folds(ids, 8) == folds).mean() < 0.55
    assert holdout_folds([], 7).shape == (0,)


def test_a_row_is_scored_by_the_model_that_never_saw_it() -> None:
    folds = holdout_folds([f"row{i}" for i in range(50)], 3)
    saw = np.stack([folds == 0, folds == 1])  # model k was trained on half k
    assert not out_of_fold(folds, saw).any()
    with pytest.raises(DataError, match=r"shape \(50,\)"):
        out_of_fold(folds, np.zeros(50))


def test_length_residual_takes_off_exactly_the_line() -> None:
    tokens = np.array([1, 2, 4, 8, 16])
    noise = np.array([1, -2, 0, 2, -1.0])  # orthogonal to the constant and to log length
    np.testing.assert_allclose(length_residual(3 - 0.5 * np.log(tokens) + noise, tokens), noise, atol=1e-12)
    np.testing.assert_allclose(length_residual(3 - 0.5 * np.log(tokens), tokens), 0, atol=1e-12)


def test_length_residual_of_rows_without_a_score_or_of_one_length() -> None:
    score, tokens = np.array([1, NAN, 3, INF, 5, 9.0]), np.array([2, 4, 8, 16, 32, 0])
    alone = length_residual(score[[0, 2, 4]], tokens[[0, 2, 4]])
    residual = length_residual(score, tokens)
    np.testing.assert_array_equal(residual[[0, 2, 4]], alone)
    assert np.isnan(residual[[1, 3, 5]]).all()
    np.testing.assert_allclose(length_residual([1, 2, 6], [7, 7, 7]), [-2, -1, 3])
    assert length_residual([4], [7]).tolist() == [0]
    assert np.isnan(length_residual([NAN], [7])).all()
    assert length_residual([], []).shape == (0,)


@given(st.integers(0, 500), st.integers(3, 60))
def test_length_residual_is_uncorrelated_with_log_length(seed: int, n: int) -> None:
    draw = generator(seed, "lengths")
    tokens = draw.integers(1, 400, n)
    score = draw.standard_t(3, n) + np.log(tokens)
    residual = length_residual(score, tokens)
    assert residual.sum() == pytest.approx(0, abs=1e-9 * n)
    assert residual @ np.log(tokens) == pytest.approx(0, abs=1e-8 * n)
    np.testing.assert_allclose(length_residual(residual, tokens), residual, atol=1e-9)


def test_length_correlation_is_spearmans() -> None:
    assert length_correlation([1, 10, 100], [3, 4, 50]) == pytest.approx(1)
    assert length_correlation([5, 2, 1], [3, 4, 50]) == pytest.approx(-1)
    assert length_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(
        4.5 / np.sqrt(5 * 4.5)
    )  # with a tie
    assert length_correlation([1, NAN, 3, 2], [1, 100, 2, 3]) == pytest.approx(0.5)
    assert np.isnan(length_correlation([1, 1, 1], [1, 2, 3]))
    assert np.isnan(length_correlation([], []))
