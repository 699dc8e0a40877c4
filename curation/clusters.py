"""Clusters of directions: found by spherical k-means, compared, and recognised again after the next round."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from itertools import combinations

import numpy as np
import polars as pl

from curation.randomness import generator, key_of

BLOCK_ROWS = 8192  # rows that are looked at together; what bounds the memory of a pass
TRAIN_ROWS = 65_536  # rows that centroids are learnt from; more are sampled
LEAST_OVERLAP = 0.2  # Jaccard under which two clusters are not the same one; chance gives about 1 / (2k)


@contextmanager
def one_thread() -> Generator[None]:
    """faiss on one thread within the block: its distances differ in the last bit from one thread to two."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def inverse_lengths(z: np.ndarray) -> np.ndarray:
    """(n,) float32: one over the length of every row; 0.0 for a row without a direction (zero or not finite).

    Read in blocks, in float64: no square of a float16 or float32 overflows or vanishes there.
    """
    out = np.zeros(len(z), dtype=np.float32)
    for start in range(0, len(z), BLOCK_ROWS):
        x = z[start : start + BLOCK_ROWS].astype(np.float64)
        length = np.sqrt(np.einsum("nd,nd->n", x, x))
        good = (length > 1e-35) & (length < np.inf)
        out[start : start + len(x)][good] = 1.0 / length[good]
    return out


def directions(rows: np.ndarray, inverse: np.ndarray | None = None) -> np.ndarray:
    """(n, d) float32 rows of length 1; those without a direction are zero. `inverse` from `inverse_lengths`."""
    inverse = inverse_lengths(rows) if inverse is None else inverse
    x = rows.astype(np.float32)
    x[inverse == 0] = 0.0
    x *= inverse[:, None]
    return x


def nearest(z: np.ndarray, centroids: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest centroids (n, count) of every row, nearest first, and the cosines (n, count).

    centroids (k, d) unit rows, count ≤ k. A row without a direction has cluster −1 and cosine NaN. Memory: a block
    of float32 rows beside the result.
    """
    import faiss

    cluster = np.full((len(z), count), -1, dtype=np.int32)
    cosine = np.full((len(z), count), np.nan, dtype=np.float32)
    if not len(centroids):
        return cluster, cosine
    index = faiss.IndexFlatIP(z.shape[1])
    index.add(np.ascontiguousarray(centroids, dtype=np.float32))
    with one_thread():
        for start in range(0, len(z), BLOCK_ROWS):
            inverse = inverse_lengths(z[start : start + BLOCK_ROWS])
            x, good = directions(z[start : start + BLOCK_ROWS], inverse), inverse[:, None] > 0
            found, at = index.search(x, count)
            cosine[start : start + len(x)] = np.where(good, found, np.nan)
            cluster[start : start + len(x)] = np.where(good, at, -1)
    return cluster, cosine


def spherical_kmeans(
    z: np.ndarray, k: int, seed: int, iterations: int = 20
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters of rows by direction: centroids (≤ k, d), cluster (n,) and cosine to its centroid (n,).

    faiss from k-means++ starts. More than `TRAIN_ROWS` rows are sampled by the seed to learn the centroids, and
    then all are assigned in blocks, so a million float16 rows need half a gigabyte beside themselves. No cluster is
    empty: centroids that nobody is nearest to (many equal rows) are left out. Rows without a direction (zero, not
    finite) take no part: cluster −1, cosine NaN. The same bytes for the same rows, order and seed.
    Source: Arthur & Vassilvitskii 2007 for the starts; "Prismatic Synthesis" (2505.20161) for the iterations.
    """
    import faiss

    usable = np.flatnonzero(inverse_lengths(z))
    if not len(usable):
        return np.zeros((0, z.shape[1]), np.float32), np.full(len(z), -1, np.int64), np.full(len(z), np.nan)
    rows = usable
    if len(usable) > TRAIN_ROWS:
        rows = generator(seed, "k-means sample").choice(usable, TRAIN_ROWS, replace=False, shuffle=False)
        rows.sort()
    means = faiss.Kmeans(
        z.shape[1],
        max(1, min(k, len(rows))),
        niter=iterations,
        spherical=True,
        seed=seed % (2**31),
        verbose=False,
        min_points_per_centroid=1,
        max_points_per_centroid=TRAIN_ROWS,
    )
    means.cp.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    with one_thread():
        means.train(directions(z[rows]))
    centroids = np.asarray(means.centroids)
    at, cosine = nearest(z, centroids)
    taken, cluster = np.unique(at[:, 0], return_inverse=True)
    cluster = cluster.astype(np.int64) - int(taken[0] < 0)  # −1 sorts first, and stays −1
    return centroids[taken[taken >= 0]], cluster, cosine[:, 0].astype(np.float64)


def adjusted_rand(a: np.ndarray, b: np.ndarray) -> float:
    """How far two clusterings of the same rows agree: 1 the same but for names, 0 what chance gives.

    Source: Hubert & Arabie 1985. Two clusterings without any pair to judge (each whole, or each single) agree.
    """
    _, x = np.unique(a, return_inverse=True)
    _, y = np.unique(b, return_inverse=True)
    _, cells = np.unique(x.astype(np.int64) * (int(y.max(initial=0)) + 1) + y, return_counts=True)

    def pairs(counts: np.ndarray) -> float:
        c = counts.astype(np.float64)
        return float((c * (c - 1) / 2).sum())

    both, in_x, in_y = pairs(cells), pairs(np.bincount(x)), pairs(np.bincount(y))
    chance = in_x * in_y / max(len(x) * (len(x) - 1) / 2, 1)
    most = (in_x + in_y) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def stability(z: np.ndarray, k: int, seed: int, seeds: int = 3) -> float:
    """How far the clusters depend on the seed: mean adjusted Rand index over all pairs of `seeds` clusterings.

    Costs `seeds` clusterings. Near 1: regions are there to be found; near 0: the map is one of many equally good.
    """
    found = [spherical_kmeans(z, k, key_of(seed, "stability", i))[1] for i in range(seeds)]
    return float(np.mean([adjusted_rand(a, b) for a, b in combinations(found, 2)]))


def carry_over(
    previous: pl.DataFrame,
    current: pl.DataFrame,
    used: Collection[int] = (),
    least_overlap: float = LEAST_OVERLAP,
) -> dict[int, tuple[int, float]]:
    """For each region of `current`: the number that it keeps or gets, and its overlap with who had it (0.0: new).

    Frames with `row_id` and `region` (−1: none). Regions are the same when they hold the same rows: every round has
    a scorer and so a gradient space of its own, in which centroids cannot be compared. Pairs are matched so that
    the sum of Jaccard overlaps (over the rows in both frames) is largest, none below `least_overlap`. The others get
    numbers above all of `previous` and `used` (every number ever given, so that none comes back). Ties are settled
    by the smallest row ids, never by how the clusterer numbered the regions.
    """
    from scipy.optimize import linear_sum_assignment

    before = previous.filter(pl.col("region") >= 0).select("row_id", old="region")
    now = current.filter(pl.col("region") >= 0).select("row_id", new="region")
    both = now.join(before, on="row_id", how="inner")
    first_row = now.group_by("new").agg(pl.col("row_id").min()).sort("row_id")
    news, olds = first_row["new"].to_list(), both["old"].unique().sort().to_list()
    cells = both.group_by("new", "old").len()
    shared = np.zeros((len(news), len(olds)))
    at_new, at_old = {r: i for i, r in enumerate(news)}, {r: i for i, r in enumerate(olds)}
    for new, old, rows in cells.iter_rows():
        shared[at_new[new], at_old[old]] = rows
    joined = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    overlap = shared / np.maximum(joined, 1)
    overlap[overlap < least_overlap] = 0.0
    kept = {
        news[i]: (int(olds[j]), float(overlap[i, j]))
        for i, j in zip(*linear_sum_assignment(-overlap), strict=True)
        if overlap[i, j] > 0
    }
    free = 1 + max([-1, *used, *before["old"].to_list()])
    fresh = [r for r in news if r not in kept]
    return kept | {r: (free + i, 0.0) for i, r in enumerate(fresh)}
