"""Vendi scores, ceiling and m-coherence: known answers (METHODS A.7, B.5, C.5) and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import DataError, UserError
from curation.randomness import generator
from curation.score.contributions import contributions, exact_contributions, gain_of_order_2
from curation.score.diversity import (
    BLOCK,
    Moments,
    ceiling,
    diversity,
    diversity_by,
    diversity_of,
    m_coherence,
    moments,
    moments_of,
    row_alignment,
    vendi,
    vendi_of_kernel,
)
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
    assert (moments(broken).n, moments(broken).left_out) == (3, 2)
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


def decaying(seed: int, n: int, d: int, power: float = 0.5) -> np.ndarray:
    return generator(seed, "decaying", n, d).standard_normal((n, d)) * np.arange(1.0, d + 1) ** -power


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_float32_agrees_with_float64(power: float) -> None:
    x = decaying(1, BLOCK + 700, 128, power).astype(np.float32)
    assert g_vendi(x) == pytest.approx(g_vendi(x.astype(np.float64)), rel=1e-6)
    half = x.astype(np.float16)
    assert g_vendi(half) == pytest.approx(g_vendi(half.astype(np.float64)), rel=1e-6)
    assert m_coherence(moments(x)) == pytest.approx(m_coherence(moments(x.astype(np.float64))), rel=1e-4)


@pytest.mark.parametrize("kinds", [1, 5])
@pytest.mark.parametrize("order", [0.1, 1, 2])
def test_rounding_is_no_diversity(kinds: int, order: float) -> None:
    rows = generator(2, "kinds").standard_normal((kinds, 512)).astype(np.float32)
    x = rows[np.arange(3000) % kinds]
    assert g_vendi(x, order) == pytest.approx(g_vendi(x.astype(np.float64), order), rel=1e-6)
    assert g_vendi(x, order) <= kinds + 1e-6


def test_any_scale_of_float32_and_one_bad_row_in_a_block() -> None:
    x = decaying(3, 50, 8).astype(np.float32)
    scaled = x * np.float32(10.0) ** np.linspace(-36, 36, 50, dtype=np.float32)[:, None]
    assert g_vendi(scaled) == pytest.approx(g_vendi(x), rel=1e-5)
    scaled[7], scaled[9, 0], scaled[11, 3] = 0, np.nan, -np.inf
    state = moments(scaled)
    assert (state.n, state.left_out) == (47, 3)
    np.testing.assert_allclose(vendi(state), g_vendi(np.delete(x, [7, 9, 11], axis=0)), rtol=1e-5)


def test_a_stream_of_blocks_is_the_whole() -> None:
    x = decaying(4, BLOCK + 10, 16).astype(np.float16)
    x[5] = 0
    parts = moments_of(x[s : s + 700] for s in range(0, len(x), 700))
    whole = moments(x)
    assert (parts.n, parts.left_out) == (whole.n, whole.left_out) == (len(x) - 1, 1)
    assert vendi(parts) == pytest.approx(vendi(whole), rel=1e-6)
    np.testing.assert_allclose(parts.heading, whole.heading, atol=1e-3)
    with pytest.raises(DataError, match="at least one"):
        moments_of([])


def same(a: object, b: object, rel: float = 1e-9) -> None:
    for name, value in vars(a).items():
        assert getattr(b, name) == pytest.approx(value, rel=rel, abs=1e-9), name


@given(small_sets)
@settings(deadline=None)
def test_rows_at_hand_give_the_same_by_gram_or_moments(x: np.ndarray) -> None:
    x = np.vstack([x, np.zeros(x.shape[1])])
    found = diversity(x)
    same(diversity_of(moments(x)), found, rel=1e-7)
    z = x[:-1] / np.linalg.norm(x[:-1], axis=1, keepdims=True)
    assert found.left_out == 1
    assert found.top_share == pytest.approx(1 / found.g_vendi_inf)
    assert found.m_coherence_unit == pytest.approx(len(z) * (z.mean(0) ** 2).sum(), abs=1e-9)
    spread = np.cov(z.T, bias=True).reshape(x.shape[1], x.shape[1])
    if np.trace(spread) > 1e-3:
        values = np.linalg.eigvalsh(spread / np.trace(spread))
        values = values[values > 1e-13]
        assert found.g_vendi_centred == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-6)


def test_diversity_of_known_sets() -> None:
    found = diversity(PAIR_AND_SINGLE)
    assert found.g_vendi == pytest.approx(1.8899, abs=5e-5)
    assert found.top_share == pytest.approx(2 / 3)
    assert [found.m_coherence, found.m_coherence_unit] == pytest.approx([5 / 3, 5 / 3])
    assert found.g_vendi_centred == pytest.approx(1)  # the rows differ along one line
    lengths = diversity(np.array([(3.0, 0.0), (0.0, 4.0)]))
    assert lengths.m_coherence == pytest.approx(1)
    assert diversity(np.ones((6, 3))).g_vendi_centred == 0
    for rows in (np.zeros((0, 3)), np.zeros((2, 3)), np.zeros((5, 3))):
        assert diversity(rows).g_vendi == diversity(rows).ceiling_share == 0
        assert diversity(rows).left_out == len(rows)


def test_a_score_near_its_ceiling_is_flagged() -> None:
    noise = generator(5, "noise").standard_normal((2000, 64))
    assert diversity(noise).near_ceiling
    assert diversity(noise).ceiling_share == pytest.approx(1, rel=0.02)
    assert not diversity(noise * np.arange(1.0, 65) ** -1).near_ceiling


def test_groups_are_scored_as_if_alone() -> None:
    x = decaying(6, 300, 12)
    x[4] = 0
    groups = np.array(["few", "many", "many", "one"])[generator(7, "groups").integers(0, 3, 300)]
    groups[17] = "one"
    found = diversity_by(x, groups)
    assert list(found) == ["few", "many", "one"]
    for name, scores in found.items():
        same(diversity(x[groups == name]), scores)
    assert found["one"].g_vendi == pytest.approx(1)
    assert sum(f.n + f.left_out for f in found.values()) == 300
    assert diversity_by(np.zeros((0, 3)), np.zeros(0, dtype=int)) == {}


def test_what_a_duplicate_and_a_single_row_add() -> None:
    pair = 3 / 2 ** (2 / 3)
    assert contributions(PAIR_AND_SINGLE) == pytest.approx([pair - 2, pair - 2, pair - 1], abs=1e-9)
    assert exact_contributions(PAIR_AND_SINGLE) == pytest.approx([pair - 2, pair - 2, pair - 1])
    assert contributions(PAIR_AND_SINGLE, order=2) == pytest.approx([-0.2, -0.2, 0.8])
    assert contributions(BLOCKS) == pytest.approx(exact_contributions(BLOCKS), abs=1e-9)
    assert contributions(np.array([[3.0, 4.0], [0, 0]])).tolist() == [1, 0]
    assert contributions(np.zeros((2, 3))).tolist() == [0, 0]
    with pytest.raises(UserError, match="exact_contributions"):
        contributions(PAIR_AND_SINGLE, order=3)


@given(st.integers(0, 100), st.integers(60, 90), st.integers(2, 20), st.sampled_from([0.0, 0.5, 1.5]))
@settings(max_examples=10, deadline=None)
def test_closed_forms_of_contributions(seed: int, n: int, d: int, power: float) -> None:
    x = decaying(seed, n, d, power)
    x[:4] = x[4:8] * 2
    exact, found = exact_contributions(x), contributions(x)
    # a row takes a share of about 1/n: the closed form errs by less than a tenth of the spread
    assert np.abs(found - exact).max() <= 0.1 * exact.std() + 1e-6
    parts = np.concatenate([contributions(part, moments(x)) for part in (x[:20], x[20:])])
    np.testing.assert_allclose(parts, found, atol=1e-12)
    np.testing.assert_allclose(contributions(x.astype(np.float32)), found, atol=1e-4)
    np.testing.assert_allclose(contributions(x, order=2), exact_contributions(x, 2), atol=1e-9)
    gain = gain_of_order_2(x[-1:], moments(x[:-1]))
    np.testing.assert_allclose(gain, contributions(x, order=2)[-1:], atol=1e-9)


def test_alignment_in_parts_and_of_bad_rows() -> None:
    x = decaying(8, 40, 5)
    x[3], x[5, 1] = 0, np.nan
    whole = row_alignment(x)
    state: Moments = moments(x)
    np.testing.assert_allclose(
        np.concatenate([row_alignment(x[:9], state), row_alignment(x[9:], state)]), whole
    )
    assert whole[3] == whole[5] == 0
    assert row_alignment(np.array([[1.0, 0], [-1, 0], [0, 1]])) == pytest.approx(
        [-np.sqrt(0.5), -np.sqrt(0.5), 0]
    )
    assert row_alignment(np.ones((1, 2))).tolist() == [0]


@given(small_sets)
@settings(max_examples=20, deadline=None)
def test_the_authors_package_agrees(x: np.ndarray) -> None:
    package = pytest.importorskip("vendi_score.vendi")
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    for order, name in ((1, 1), (2, 2), (INF, "inf")):  # its orders below 1 count rounding noise
        assert g_vendi(x, order) == pytest.approx(package.score_K(z @ z.T, q=name), rel=1e-6)
    assert g_vendi(x) == pytest.approx(package.score_dual(z, normalize=False), rel=1e-6)
