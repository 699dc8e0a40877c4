"""How dense gradient space is around a row: the mean cosine to its nearest others."""

from __future__ import annotations

import numpy as np

from curation.clusters import BLOCK_ROWS, directions, inverse_lengths, nearest, one_thread, spherical_kmeans
from curation.randomness import key_of

NEIGHBOURS = 10
EXACT_ROWS = 50_000  # up to here every pair is looked at
LIST_ROWS, MOST_LISTS, PROBES = 256, 4096, 24


def knn_density(z: np.ndarray, seed: int, k: int = NEIGHBOURS, exact: bool | None = None) -> np.ndarray:
    """(n,) mean cosine of every row to the k rows nearest to it: 1 among its own copies, near 0 when alone.

    z (n, d) features of any scale, float16 or float32. A copy of a row is a neighbour like any other, at cosine 1;
    with fewer than k others, the mean of those. NaN: the row has no direction (zero, not finite), or no other is
    there. `exact` and cost as in `nearest_cosines`.
    """
    near = nearest_cosines(z, seed, k, exact)
    count = (~np.isnan(near)).sum(1)
    return np.where(count > 0, np.nansum(near, axis=1, dtype=np.float64) / np.maximum(count, 1), np.nan)


def nearest_cosines(z: np.ndarray, seed: int, k: int = NEIGHBOURS, exact: bool | None = None) -> np.ndarray:
    """(n, k) float32 cosines of every row to the k others nearest to it, largest first; NaN where there is none.

    `exact` None: all pairs up to `EXACT_ROWS` rows, beyond that inverted lists of about 256 rows, 24 of them a row.
    20,000 planted rows of 1,024 dimensions: the lists find .997 of the ten nearest, and the density to 5e-5
    (`python tests/benchmarks/regions.py --quick`); with more rows there are more lists, and fewer are found.
    """
    out = np.full((len(z), k), np.nan, dtype=np.float32)
    inverse = inverse_lengths(z)
    rows = np.flatnonzero(inverse)
    if len(rows) < 2:
        return out
    whole = len(rows) <= EXACT_ROWS if exact is None else exact
    best = _all_pairs(z, rows, k + 1) if whole else _listed_pairs(z, inverse, rows, k + 1, seed)
    # The largest of a row's cosines is that to itself, or to a copy of it that stands for it.
    near = np.sort(best, axis=1)[:, ::-1][:, 1 : k + 1]
    out[rows, : near.shape[1]] = np.where(near < -1.5, np.nan, np.clip(near, -1.0, 1.0))
    return out


def _top_cosines(queries: np.ndarray, base: np.ndarray, count: int) -> np.ndarray:
    import faiss

    return faiss.knn(queries, base, min(count, len(base)), metric=faiss.METRIC_INNER_PRODUCT)[0]


def _all_pairs(z: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    x = directions(z[rows])
    with one_thread():
        return _top_cosines(x, x, count)


def _listed_pairs(z: np.ndarray, inverse: np.ndarray, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Inverted lists read list by list: all that ask a list in one product, not one list after another a row."""
    lists = int(np.clip(len(rows) // LIST_ROWS, 1, MOST_LISTS))
    centroids, _, _ = spherical_kmeans(z, lists, key_of(seed, "density lists"), iterations=10)
    probes = nearest(z, centroids, min(PROBES, len(centroids)))[0][rows]
    members, asking = _by_list(probes[:, :1], len(centroids)), _by_list(probes, len(centroids))
    best = np.full((len(rows), count), -2.0, dtype=np.float32)
    with one_thread():
        for own, askers in zip(members, asking, strict=True):
            base = directions(z[rows[own]], inverse[rows[own]])
            for start in range(0, len(askers) if len(own) else 0, BLOCK_ROWS):
                some = askers[start : start + BLOCK_ROWS]
                found = _top_cosines(directions(z[rows[some]], inverse[rows[some]]), base, count)
                both = np.concatenate([best[some], found], axis=1)
                best[some] = np.partition(both, both.shape[1] - count, axis=1)[:, -count:]
    return best


def _by_list(probes: np.ndarray, lists: int) -> list[np.ndarray]:
    """For each list, the rows of probes (n, width) that name it."""
    flat = probes.ravel()
    rows = (np.argsort(flat, kind="stable") // probes.shape[1]).astype(np.int32)
    return np.split(rows, np.cumsum(np.bincount(flat, minlength=lists))[:-1])
