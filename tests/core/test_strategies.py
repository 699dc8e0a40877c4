"""The strategies: every one orders all candidates, and each does what its name says."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import UserError
from curation.logdet import logdet_order, unit_rows
from curation.randomness import generator
from curation.specs import StrategyName
from curation.strategies import ORDERS, RIDGE, Facts, rank_rows, spherical_kmeans, surface_features


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, "strategy test")


def facts_of(seed: int, n: int, m: int = 0, d: int = 6, error: float = 0.4) -> Facts:
    draw = generator(seed, "facts")
    z = [unit_rows(draw.standard_normal((k, d))) for k in (n, n, n, m, m, m)]
    return Facts(draw.random(n) < error, *z[:3], *(z[3:] if m else (None,) * 3))


def planted(
    sizes: list[int], d: int = 16, spread: float = 0.05, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around orthogonal centres, shuffled, and the cluster of each."""
    draw = generator(seed, "planted")
    cluster = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return unit_rows(np.eye(d)[cluster] + spread * draw.standard_normal((len(cluster), d))), cluster


def test_the_names_of_the_recipe_are_the_strategies() -> None:
    assert {"random", *get_args(StrategyName)} == set(ORDERS)


@pytest.mark.parametrize("strategy", ORDERS)
@given(st.integers(0, 99), st.integers(1, 14), st.integers(0, 5), st.integers(0, 16))
@settings(deadline=None, max_examples=12)
def test_an_order_has_every_candidate_once(strategy: str, seed: int, n: int, m: int, picks: int) -> None:
    facts = facts_of(seed, n, m)
    order = rank_rows(strategy, facts, picks, rng(seed))
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, rank_rows(strategy, facts, picks, rng(seed)))  # determined by the seed


@given(
    st.integers(0, 99),
    st.integers(1, 20),
    st.floats(0, 1),
    st.sampled_from(["errors_first", "errors_logdet"]),
)
@settings(deadline=None)
def test_errors_really_come_first(seed: int, n: int, error: float, strategy: str) -> None:
    facts = facts_of(seed, n, error=error)
    for picks in (n // 2, n):
        taken = facts.wrong[rank_rows(strategy, facts, picks, rng(seed))][
            : picks if strategy == "errors_logdet" else n
        ]
        assert not np.any(~taken[:-1] & taken[1:])  # never a right one before a wrong one


def test_errors_by_logdet_are_conditional_on_what_is_given() -> None:
    facts = facts_of(3, 30, 8)
    order = rank_rows("errors_logdet", facts, 20, rng())
    wrong, right = np.flatnonzero(facts.wrong), np.flatnonzero(~facts.wrong)
    first = wrong[logdet_order(facts.gradient[wrong], 20, facts.given_gradient, RIDGE)[0]]
    assert 0 < len(wrong) < 20
    assert order[: len(wrong)].tolist() == first.tolist()
    have = np.concatenate([facts.given_gradient, facts.gradient[first]])
    then = right[logdet_order(facts.gradient[right], 20 - len(wrong), have, RIDGE)[0]]
    assert order[len(wrong) : 20].tolist() == then.tolist()


@pytest.mark.parametrize("space", ["gradient", "surface", "embedding"])
def test_logdet_works_in_its_own_space(space: str) -> None:
    facts = facts_of(4, 25, 5)
    expected = logdet_order(getattr(facts, space), 10, getattr(facts, "given_" + space), RIDGE)[0]
    assert rank_rows(f"{space}_logdet", facts, 10, rng())[:10].tolist() == expected.tolist()


@pytest.mark.parametrize("space", ["gradient", "embedding"])
def test_kcenter_covers_planted_clusters(space: str) -> None:
    z, cluster = planted([200, 40, 8, 2, 1])
    given_rows = z[np.isin(cluster, [0, 2])][:30]
    facts = Facts(
        np.zeros(len(z), bool), **{space: z, **({} if space == "gradient" else {"gradient": z[:, :1]})}
    )
    for seed in range(5):
        assert set(cluster[rank_rows(f"{space}_kcenter", facts, 5, rng(seed))[:5]]) == {0, 1, 2, 3, 4}
    conditional = Facts(**{**vars(facts), "given_" + space: np.concatenate([given_rows, z[cluster == 2]])})
    assert set(cluster[rank_rows(f"{space}_kcenter", conditional, 3, rng())[:3]]) == {1, 3, 4}


def test_kcenter_takes_the_farthest_each_time() -> None:
    facts = facts_of(5, 30)
    order = rank_rows("gradient_kcenter", facts, 12, rng())
    cosine = facts.gradient @ facts.gradient.T
    for k in range(1, 12):
        near = cosine[:, order[:k]].max(1)
        near[order[:k]] = np.inf
        assert near[order[k]] == pytest.approx(near.min(), abs=1e-6)


def test_clusters_are_taken_in_turn() -> None:
    z, planted_cluster = planted([150, 30, 10, 10])
    facts = Facts(np.zeros(len(z), bool), z)
    picks = 24
    order = rank_rows("gradient_clusters", facts, picks, rng(2))
    seed = int(rng(2).integers(2**31))
    _, cluster, _ = spherical_kmeans(z, picks // 2, seed)
    sizes = np.bincount(cluster)
    for taken in (picks, 60, 120):
        counts = np.bincount(cluster[order[:taken]], minlength=len(sizes))
        most = counts.max()
        assert np.all((counts >= most - 1) | (counts == sizes))  # balanced until a cluster has no more
    rare = np.isin(planted_cluster[order[:picks]], [2, 3]).mean()
    assert rare > 1.5 * 20 / 200


def test_kmeans_of_planted_clusters_is_the_same_every_time() -> None:
    z, _ = planted([40, 40, 40])
    centroids, found, cosine = spherical_kmeans(z, 3, 2**40 + 1)
    again = spherical_kmeans(z, 3, 2**40 + 1)
    assert all(np.array_equal(a, b) for a, b in zip((centroids, found, cosine), again, strict=True))
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((z * centroids[found]).sum(1), cosine, atol=1e-5)
    assert np.array_equal(found, (z @ centroids.T).argmax(1))
    assert spherical_kmeans(z[:2], 9, 1)[0].shape == (2, 16)  # never more clusters than rows


def test_what_is_missing_or_unknown_is_said() -> None:
    facts = Facts(np.zeros(4, bool), np.eye(4))
    with pytest.raises(UserError, match="embedding features"):
        rank_rows("embedding_logdet", facts, 2, rng())
    with pytest.raises(UserError, match="errors_logdet"):
        rank_rows("errors_log", facts, 2, rng())


def test_facts_of_some_candidates_keep_what_is_given() -> None:
    facts = facts_of(6, 8, 3)
    part = facts.take(np.array([5, 1]))
    assert len(part) == 2
    assert np.array_equal(part.surface, facts.surface[[5, 1]])
    assert part.given_gradient is facts.given_gradient
    assert Facts(facts.wrong, facts.gradient).take(np.array([0])).embedding is None


def test_surface_features_see_words_and_places_only() -> None:
    texts = [["set", "a", "b"], ["set", "a", "b"], ["b", "a", "set"], ["other", "words", "here"], []]
    z = surface_features(texts, 256, 3)
    cosine = z @ z.T
    assert cosine[0, 1] == pytest.approx(1, abs=1e-6)
    assert cosine[0, 2] == pytest.approx(
        4 / 6, abs=0.25
    )  # three words and one place of six features in common
    assert abs(cosine[0, 3]) < 0.3
    assert not z[4].any()
    assert np.array_equal(z[2], surface_features(texts[2:3], 256, 3)[0])  # a row depends on nothing else
    assert not np.array_equal(z, surface_features(texts, 256, 4))
