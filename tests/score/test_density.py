"""Density: mean cosine to the nearest others, by all pairs and by lists."""

from __future__ import annotations

import numpy as np
import pytest

from curation.logdet import unit_rows
from curation.randomness import generator
from curation.score import density
from curation.score.density import knn_density, nearest_cosines


def rows(n: int = 600, groups: int = 30, d: int = 24) -> np.ndarray:
    rng = generator(1, "dense rows")
    centres = rng.standard_normal((groups, d))
    return unit_rows(centres[rng.integers(groups, size=n)] + 0.6 * rng.standard_normal((n, d)))


def test_all_pairs_are_those_of_the_plain_matrix() -> None:
    z = rows(200)
    cosine = z @ z.T
    np.fill_diagonal(cosine, -2)
    expected = np.sort(cosine, axis=1)[:, ::-1][:, :10]
    np.testing.assert_allclose(nearest_cosines(z, 1), expected, atol=1e-6)
    np.testing.assert_allclose(knn_density(z, 1), expected.mean(1), atol=1e-6)
    np.testing.assert_allclose(knn_density(z * 7, 1, k=3), expected[:, :3].mean(1), atol=1e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_copies_are_neighbours_at_cosine_one(exact: bool) -> None:
    z = np.concatenate([np.repeat(np.eye(8)[:1], 11, axis=0), np.eye(8)[1:4]])
    found = knn_density(z, 1, exact=exact)
    np.testing.assert_allclose(found[:11], 1, atol=1e-6)
    np.testing.assert_allclose(found[11:], 0, atol=1e-6)
    pair = np.concatenate([np.repeat(np.eye(8)[:1], 2, axis=0), np.eye(8)[1:]])
    assert knn_density(pair, 1, k=2, exact=exact)[:2] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_row_without_a_direction_is_nobody_s_neighbour(bad: float, exact: bool) -> None:
    z = rows(120)
    spoilt = np.concatenate([z[:50], np.full((2, z.shape[1]), bad), z[50:]])
    found = knn_density(spoilt, 1, exact=exact)
    assert np.isnan(found[50:52]).all()
    np.testing.assert_allclose(np.delete(found, [50, 51]), knn_density(z, 1, exact=exact), atol=1e-6)


def test_few_rows_have_few_neighbours() -> None:
    z = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert knn_density(z, 1)[:2] == pytest.approx([0.5**0.5] * 2)
    assert np.isnan(nearest_cosines(z, 1)[0, 1:]).all()
    assert np.isnan(knn_density(z[:1], 1)).all() and knn_density(z[:0], 1).shape == (0,)


def test_lists_find_nearly_all_neighbours_and_never_a_nearer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    z = rows(1500).astype(np.float16)
    monkeypatch.setattr(density, "LIST_ROWS", 50)
    monkeypatch.setattr(density, "PROBES", 8)
    exact, listed = nearest_cosines(z, 1, exact=True), nearest_cosines(z, 1, exact=False)
    assert (listed <= exact + 1e-5).all()
    assert (listed >= exact[:, -1:] - 1e-5).mean() > 0.95
    assert np.array_equal(listed, nearest_cosines(z, 1, exact=False))
    monkeypatch.setattr(density, "PROBES", 30)  # every list: nothing is missed
    np.testing.assert_allclose(nearest_cosines(z, 1, exact=False), exact, atol=1e-5)
    monkeypatch.setattr(density, "EXACT_ROWS", 1000)
    np.testing.assert_allclose(nearest_cosines(z, 1), exact, atol=1e-5)
