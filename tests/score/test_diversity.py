"""Vendi scores, ceiling and m-coherence: known answers (METHODS A.7, B.5, C.5) and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.randomness import generator
from curation.score.diversity import ceiling, m_coherence, moments, row_alignment, vendi, vendi_of_kernel
from tests.small import linear_gradients

INF = float("inf")
PAIR_AND_SINGLE = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
BLOCKS = np.repeat(np.eye(3), [5, 3, 2], axis=0)
small_sets = st.builds(
    lambda seed, n, d: generator(seed, "set").standard_normal((n, d)),
    st.integers(0, 1000), st.integers(1, 12), st.integers(1, 8),
)  # fmt: skip


def g_vendi(features: np.ndarray, order: float = 1.0) -> float:
    return vendi(moments(features), order)


@pytest.mark.parametrize(
    ("order", "expected"), [(1, 1.8899), (2, 1.8), (INF, 1.5), (0.1, 1.988), (0.5, 1.943)]
)
def test_a_duplicated_pair_and_a_single(order: float, expected: float) -> None:
    assert g_vendi(PAIR_AND_SINGLE, order) == pytest.approx(expected, abs=6e-4 if order < 1 else 5e-5)
    kernel = PAIR_AND_SINGLE @ PAIR_AND_SINGLE.T
    assert vendi_of_kernel(kernel, order) == pytest.approx(expected, abs=6e-4 if order < 1 else 5e-5)


@pytest.mark.parametrize(("order", "expected"), [(1, 2.8001), (2, 2.6316), (INF, 2.0)])
def test_orthonormal_blocks(order: float, expected: float) -> None:
    assert g_vendi(BLOCKS, order) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("d", "mean", "sd"), [(64, 2.769, 0.018), (256, 2.786, 0.008), (1024, 2.799, 0.001)])
def test_blocks_after_a_random_projection(d: int, mean: float, sd: float) -> None:
    scores = [
        g_vendi(BLOCKS @ generator(s, "signs", d).choice([-1.0, 1.0], (3, d)))
        for s in range(8 if d < 1000 else 2)
    ]
    assert np.mean(scores) == pytest.approx(mean, abs=3 * sd)
    blocks = BLOCKS @ generator(0, "signs", d).choice([-1.0, 1.0], (3, d))
    assert g_vendi(blocks, 0.1) <= 3 + 1e-6  # rounding noise in the other d - 3 eigenvalues is no diversity


def test_kernels_with_known_scores() -> None:
    assert vendi_of_kernel(np.ones((7, 7))) == pytest.approx(1)
    assert vendi_of_kernel(np.eye(7)) == pytest.approx(7)
    assert vendi_of_kernel(np.array([[1, 0.5], [0.5, 1]])) == pytest.approx(1.7548, abs=5e-5)
    assert vendi_of_kernel(np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]])) == pytest.approx(2.1573, abs=5e-5)
    assert vendi_of_kernel(0.3 + 0.7 * np.eye(6)) == pytest.approx(5.0432, abs=5e-5)  # equicorrelated
    items = np.array([0, 0, 10, 10, 20, 20])
    assert vendi_of_kernel(np.exp(-np.abs(items[:, None] - items))) == pytest.approx(2.9999, abs=1.1e-4)
    p = np.array([0.25, 0.25, 0.5])  # weighted items a, a, b
    same = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert vendi_of_kernel(3 * same * np.sqrt(np.outer(p, p))) == pytest.approx(2, abs=1e-12)


def test_zero_and_infinite_rows_are_left_out() -> None:
    with_zero = np.vstack([np.eye(3), np.zeros(3)])
    assert g_vendi(with_zero) == pytest.approx(3)
    assert moments(with_zero).n == 3
    kept = np.zeros((4, 4))
    kept[:3, :3] = np.eye(3)
    assert np.exp(-3 * 0.25 * np.log(0.25)) == pytest.approx(2.828, abs=5e-4)  # what a zero row would do
    broken = np.vstack([np.eye(3), np.full(3, np.nan), np.array([np.inf, 0, 0])])
    assert g_vendi(broken) == pytest.approx(3)
    assert moments(broken).n == 3
    assert g_vendi(np.zeros((2, 3))) == 0.0
    assert g_vendi(np.zeros((0, 3))) == 0.0
    assert m_coherence(moments(np.zeros((2, 3)))) == 0.0


@pytest.mark.parametrize("inputs", [1, 4])
def test_simplex_of_labels_through_the_engine(inputs: int) -> None:
    classes = 5
    x = np.repeat(np.eye(6)[:inputs], classes, axis=0)
    found = linear_gradients(np.zeros((classes, 6)), x, list(range(classes)) * inputs)
    assert g_vendi(found.feature) == pytest.approx(inputs * (classes - 1), rel=1e-6)


@given(st.lists(st.integers(0, 1), min_size=4, max_size=4))
@settings(max_examples=16, deadline=None)
def test_the_score_is_blind_to_signs(labels: list[int]) -> None:
    e1, e2 = np.eye(2)
    found = linear_gradients(np.zeros((2, 2)), np.stack([e1, e1, e2, -e2]), labels)
    assert g_vendi(found.feature) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "coherence", "diversity"),
    [
        ([(1, 0), (1, 0), (0, 1)], 5 / 3, 1.8899),
        ([(3, 0), (0, 4)], 1, 2),
        ([(1, 0), (-1, 0)], 0, 1),
        ([(2, 1)] * 6, 6, 1),
    ],
)
def test_m_coherence_sees_what_the_score_does_not(
    rows: list[tuple[int, int]], coherence: float, diversity: float
) -> None:
    state = moments(np.array(rows))
    assert m_coherence(state) == pytest.approx(coherence, abs=1e-12)
    assert vendi(state) == pytest.approx(diversity, abs=5e-5)


@pytest.mark.parametrize(
    ("n", "d", "formula"), [(256, 256, 155.3), (1000, 1024, 613.7), (1024, 256, 225.9), (10_000, 1024, 972.9)]
)
def test_ceiling_formula(n: int, d: int, formula: float) -> None:
    assert ceiling(n, d) == pytest.approx(formula, abs=0.06)
    assert ceiling(0, d) == 0.0


def test_random_rows_reach_the_ceiling() -> None:
    for n, d, checked in ((256, 256, 154.9), (1024, 256, 226.1)):
        score = g_vendi(generator(1, "isotropic", n).standard_normal((n, d)))
        assert score == pytest.approx(checked, rel=0.01)
        assert score == pytest.approx(ceiling(n, d), rel=0.01)


def test_a_shared_direction_hides_the_rest() -> None:
    rng = generator(2, "common")
    x = rng.standard_normal((2000, 256))
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    for weight, expected in ((0.0, 240), (0.3, 196), (0.6, 64), (0.9, 4.6)):
        mixed = np.sqrt(1 - weight**2) * z
        mixed[:, 0] += weight
        assert g_vendi(mixed) == pytest.approx(expected, rel=0.03)


@given(small_sets, st.integers(0, 12))
def test_merged_moments_equal_the_whole(x: np.ndarray, cut: int) -> None:
    whole, parts = moments(x), moments(x[:cut]) + moments(x[cut:])
    assert parts.n == whole.n
    np.testing.assert_allclose(parts.second, whole.second, atol=1e-12)
    np.testing.assert_allclose(parts.total, whole.total, atol=1e-12)
    assert vendi(parts) == pytest.approx(vendi(whole), rel=1e-10)
    assert m_coherence(parts) == pytest.approx(m_coherence(whole), rel=1e-9, abs=1e-12)


@given(small_sets, st.sampled_from([0.1, 0.5, 1.0, 2.0, INF]))
def test_score_bounds_and_invariances(x: np.ndarray, order: float) -> None:
    score = g_vendi(x, order)
    assert 1 - 1e-9 <= score <= min(x.shape) + 1e-9
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert score == pytest.approx(vendi_of_kernel(z @ z.T, order), rel=1e-9)  # primal equals dual
    assert score == pytest.approx(g_vendi(np.tile(x, (3, 1)), order), rel=1e-9)
    signs = np.where(np.arange(len(x)) % 2, -3.0, 0.5)[:, None]
    assert score == pytest.approx(g_vendi(x * signs, order), rel=1e-9)
    assert score <= g_vendi(x, 0.1) * (1 + 1e-9)  # decreasing in the order


@given(small_sets)
def test_row_alignment_is_the_cosine_with_the_others(x: np.ndarray) -> None:
    for i, value in enumerate(row_alignment(x)):
        others = np.delete(x, i, axis=0).sum(0)
        size = np.linalg.norm(others) * np.linalg.norm(x[i])
        assert value == pytest.approx(others @ x[i] / size if size > 1e-9 else 0.0, abs=1e-4)


def test_half_precision_at_rest_hardly_changes_the_score() -> None:
    x = generator(4, "half").standard_normal((500, 64)) * np.arange(1, 65) ** -0.5
    z = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    assert g_vendi(z) == pytest.approx(g_vendi(x), rel=1e-4)
