"""Clusters of directions: found, compared, and recognised again."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import clusters
from curation.clusters import (
    adjusted_rand,
    carry_over,
    directions,
    inverse_lengths,
    nearest,
    spherical_kmeans,
    stability,
)
from curation.logdet import unit_rows
from curation.randomness import generator

BAD = [0, 5, 11]


def planted(sizes: list[int], spread: float = 0.05, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = generator(2, "planted clusters")
    cluster = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return unit_rows(np.eye(d)[cluster] + spread * rng.standard_normal((len(cluster), d))), cluster


def frame(regions: list[int], first: int = 0) -> pl.DataFrame:
    return pl.DataFrame({"row_id": [f"r{first + i:04d}" for i in range(len(regions))], "region": regions})


def numbers(found: dict[int, tuple[int, float]]) -> dict[int, int]:
    return {r: number for r, (number, _) in found.items()}


def test_planted_clusters_are_found_from_any_seed() -> None:
    z, cluster = planted([60, 30, 12, 5], spread=0.005)
    for seed in range(5):
        centroids, found, cosine = spherical_kmeans(z, 4, seed)
        assert adjusted_rand(found, cluster) == 1
        np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose((z * centroids[found]).sum(1), cosine, atol=1e-5)


def test_the_same_bytes_whatever_the_number_of_threads() -> None:
    import faiss

    z = unit_rows(generator(1, "noise").standard_normal((3000, 64)))
    before, found = faiss.omp_get_max_threads(), []
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            found.append(spherical_kmeans(z, 40, 3))
            assert faiss.omp_get_max_threads() == threads  # left as it was
    finally:
        faiss.omp_set_num_threads(before)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -np.inf])
def test_a_row_without_a_direction_is_in_no_cluster_and_moves_none(bad: float) -> None:
    z, _ = planted([20, 10, 5])
    spoilt = np.insert(z, BAD, bad, axis=0)
    places = np.delete(np.arange(len(spoilt)), [at + i for i, at in enumerate(BAD)])
    lost = np.setdiff1d(np.arange(len(spoilt)), places)
    centroids, cluster, cosine = spherical_kmeans(spoilt, 3, 4)
    expected = spherical_kmeans(z, 3, 4)
    np.testing.assert_allclose(centroids, expected[0], atol=1e-6)
    assert np.array_equal(cluster[places], expected[1])
    assert (cluster[lost] == -1).all() and np.isnan(cosine[lost]).all()


def test_no_cluster_is_empty_and_nothing_is_no_cluster() -> None:
    z = np.repeat(np.eye(8, dtype=np.float32)[:3], 10, axis=0)
    centroids, cluster, _ = spherical_kmeans(z, 8, 1)
    assert centroids.shape == (3, 8)
    assert np.bincount(cluster).tolist() == [10, 10, 10]
    centroids, cluster, cosine = spherical_kmeans(np.zeros((4, 8)), 2, 1)
    assert centroids.shape == (0, 8) and cluster.tolist() == [-1] * 4 and np.isnan(cosine).all()
    assert spherical_kmeans(np.zeros((0, 8)), 2, 1)[1].shape == (0,)
    assert spherical_kmeans(z[:1], 5, 1)[1].tolist() == [0]


def test_length_and_float_type_do_not_count() -> None:
    z, cluster = planted([20, 10, 5])
    for rows in (z.astype(np.float16), z * 1e30, z.astype(np.float64) * 1e-30):
        assert adjusted_rand(spherical_kmeans(rows, 3, 4)[1], cluster) == 1
        np.testing.assert_allclose(directions(rows), z, atol=2e-3)
    assert inverse_lengths(np.array([[3.0, 4.0], [0, 0], [np.nan, 1]])).tolist() == [np.float32(0.2), 0, 0]


def test_centroids_of_many_rows_are_learnt_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    z, cluster = planted([400, 200, 100])
    monkeypatch.setattr(clusters, "TRAIN_ROWS", 90)
    monkeypatch.setattr(clusters, "BLOCK_ROWS", 64)
    centroids, found, _ = spherical_kmeans(z, 3, 4)
    assert adjusted_rand(found, cluster) == 1
    again = spherical_kmeans(z, 3, 4)
    assert np.array_equal(centroids, again[0]) and np.array_equal(found, again[1])


def test_the_nearest_centroids_come_nearest_first() -> None:
    z, _ = planted([9, 9, 9], spread=0.3)
    centroids = np.eye(16, dtype=np.float32)[:6]
    at, cosine = nearest(z, centroids, 3)
    expected = np.argsort(-(z @ centroids.T), axis=1, kind="stable")[:, :3]
    assert np.array_equal(at, expected)
    np.testing.assert_allclose(cosine, np.take_along_axis(z @ centroids.T, expected, 1), atol=1e-6)


def test_adjusted_rand_of_known_clusterings() -> None:
    a = np.array([0, 0, 1, 1])
    assert adjusted_rand(a, np.array([1, 1, 0, 0])) == 1
    assert adjusted_rand(a, np.array([0, 0, 1, 2])) == pytest.approx(4 / 7)
    assert adjusted_rand(np.zeros(4), np.arange(4)) == 0
    assert adjusted_rand(a, np.array([0, 1, 0, 1])) == pytest.approx(-0.5)
    assert adjusted_rand(np.zeros(4), np.zeros(4)) == 1


def test_stability_is_one_where_clusters_are_there_and_low_in_noise() -> None:
    z, _ = planted([40, 40, 40, 40])
    assert stability(z, 4, 1) == 1
    noise = unit_rows(generator(1, "noise").standard_normal((400, 64)))
    assert stability(noise, 20, 1) < 0.2


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_permuted_names_are_mapped_back(regions: list[int], random) -> None:
    names = list(range(7))
    random.shuffle(names)
    found = carry_over(frame(regions), frame([names[r] for r in regions]))
    assert found == {names[r]: (r, 1.0) for r in set(regions)}


@given(
    st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), min_size=1, max_size=50),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=60)
def test_the_clusterer_s_names_and_the_order_of_rows_settle_nothing(pairs, random) -> None:
    before, now = frame([a for a, _ in pairs]), frame([b for _, b in pairs])
    names = list(range(6))
    random.shuffle(names)
    other = now.with_columns(
        pl.col("region").replace_strict(dict(zip([*range(6), -1], [*names, -1], strict=True)))
    )
    shuffled = [f.sample(fraction=1, shuffle=True, seed=random.randrange(99)) for f in (before, other)]
    found = carry_over(before, now)
    assert carry_over(*shuffled) == {names[r]: given for r, given in found.items()}
    assert len(set(numbers(found).values())) == len(found)  # no number twice
    old = set(before["region"])
    assert all((number in old) == (overlap > 0) for number, overlap in found.values())


def test_a_split_region_keeps_its_number_in_its_larger_part() -> None:
    before = frame([0] * 10 + [1] * 10)
    found = carry_over(before, frame([0] * 4 + [1] * 6 + [2] * 10))
    assert numbers(found) == {0: 2, 1: 0, 2: 1}
    assert found[1][1] == pytest.approx(0.6)


def test_merged_regions_keep_the_number_of_the_larger() -> None:
    found = carry_over(frame([3] * 4 + [5] * 6 + [6] * 5), frame([0] * 10 + [1] * 5))
    assert numbers(found) == {0: 5, 1: 6}


def test_a_vanished_region_s_number_does_not_come_back() -> None:
    second = carry_over(frame([0] * 5 + [1] * 5 + [2] * 5), frame([0] * 5 + [1] * 5 + [-1] * 5))
    assert numbers(second) == {0: 0, 1: 1}
    third = frame([0] * 5 + [1] * 5 + [2] * 5)
    previous = frame([0] * 5 + [1] * 5)
    assert numbers(carry_over(previous, third, used={0, 1, 2})) == {0: 0, 1: 1, 2: 3}


def test_new_and_lost_rows_do_not_count_against_a_region() -> None:
    found = carry_over(frame([4] * 10), frame([0] * 20, first=5))
    assert found == {0: (4, 1.0)}  # five rows in common, and all five agree
    assert carry_over(frame([4] * 10), frame([0] * 5 + [1] * 5, first=50)) == {0: (5, 0.0), 1: (6, 0.0)}


def test_a_small_overlap_is_another_region() -> None:
    before, now = frame([0] * 9 + [1]), frame([0] + [1] * 9)
    assert carry_over(before, now)[0] == (2, 0.0)
    assert carry_over(before, now, least_overlap=0.0)[1][0] == 0


def test_empty_frames_are_legal() -> None:
    none = frame([]).cast({"region": pl.Int64, "row_id": pl.String})
    assert carry_over(none, none) == {}
    assert carry_over(none, frame([2, 2])) == {2: (0, 0.0)}
    assert carry_over(frame([2, 2]), none) == {}
