"""The map of gradient space: clusters at two scales, which of them are thin, what they hold, where steering fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from curation.clusters import BLOCK_ROWS, carry_over, directions, nearest, spherical_kmeans
from curation.randomness import key_of
from curation.rows import REGION_TABLE, REGIONS
from curation.score.density import knn_density
from curation.score.terms import distinctive_terms

EXEMPLARS = 3


class RegionMap(NamedTuple):
    """What `map_regions` found: two tables, the region of each steer item, the density around each row."""

    rows: pl.DataFrame
    table: pl.DataFrame
    steer_region: np.ndarray
    density: np.ndarray


def default_regions(n: int) -> int:
    """Coarse regions for n rows, few enough to be read: about sqrt(2n), from 8 to 256."""
    return int(np.clip(round((2 * n) ** 0.5), 8, 256))


def fine_regions(n: int, coarse: int) -> int | None:
    """Fine regions for n rows: a tenth of them, up to 1,024; None when that is not thrice the coarse ones."""
    fine = min(n // 10, 1024)
    return fine if fine >= 3 * coarse else None


def map_regions(
    proxy: str,
    row_ids: list[str],
    texts: list[str],
    z: np.ndarray,
    nll: np.ndarray,
    steer: np.ndarray,
    steer_wrong: np.ndarray,
    k: int | None,
    seed: int,
    earlier: Sequence[pl.DataFrame] = (),
) -> RegionMap:
    """(`regions` of the rows, `region_table`, coarse region of each steer item (m,), kNN density (n,)).

    z (n, d) and steer (m, d) gradient rows of any scale, float16 or float32; k coarse regions (None:
    `default_regions`), and `fine_regions` of a second scale. `thin` = smaller than the median region of its scale;
    `steer_error` = share of the region's steer items that the proxy gets wrong (null without items); `density` =
    mean cosine of its rows to the centroid, `knn_density` to their ten nearest others; x, y = the centroid on the
    two main axes of the rows. Rows without a direction (zero, not finite) have region −1, no distance, and density
    NaN; they are in no line of the table.
    `earlier`: the `regions` of this corpus in earlier rounds, oldest first. A region with the rows of one of the
    last round keeps its number (`carried`, their Jaccard overlap); no number of any earlier round comes back.
    """
    density = knn_density(z, key_of(seed, "density"))
    mean, axes = _main_axes(z)
    coarse = k or default_regions(len(z))
    scales = {"coarse": coarse, "fine": fine_regions(len(z), coarse)}
    rows, tables, at_steer = [], [], np.zeros(0, dtype=np.int64)
    for scale, count in scales.items():
        if count is None:
            continue
        centroids, cluster, cosine = spherical_kmeans(z, count, key_of(seed, scale))
        near = nearest(steer, centroids)[0][:, 0]
        numbers, carried = _numbers(row_ids, cluster, [f.filter(pl.col("scale") == scale) for f in earlier])
        rows.append(_rows_frame(proxy, scale, row_ids, _named(numbers, cluster), cosine))
        xy = (centroids - mean) @ axes.T
        table = _table(cluster, cosine, nll, density, near, steer_wrong, row_ids, xy)
        terms = distinctive_terms(texts, cluster)
        tables.append(
            table.with_columns(
                proxy=pl.lit(proxy),
                scale=pl.lit(scale),
                region=pl.Series(numbers, dtype=pl.Int32),
                carried=pl.Series(carried, dtype=pl.Float64),
                terms=pl.Series([terms[r] for r in range(len(centroids))], dtype=pl.String),
            )
            .select(REGION_TABLE.names())
            .sort("region")
        )
        if scale == "coarse":
            at_steer = _named(numbers, near)
    return RegionMap(pl.concat(rows), pl.concat(tables), at_steer, density)


def _numbers(
    row_ids: list[str], cluster: np.ndarray, earlier: list[pl.DataFrame]
) -> tuple[np.ndarray, list[float | None]]:
    """For each cluster its number among the regions of all rounds, and the overlap with who had it before."""
    count = int(cluster.max(initial=-1)) + 1
    if not earlier:
        return np.arange(count), [None] * count
    used = {r for frame in earlier for r in frame["region"].unique()}
    found = carry_over(earlier[-1], pl.DataFrame({"row_id": row_ids, "region": cluster}), used)
    return np.array([found[r][0] for r in range(count)], dtype=np.int64), [
        found[r][1] or None for r in range(count)
    ]


def _named(numbers: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    return np.append(numbers, -1)[cluster].astype(np.int64)  # −1 takes the last: itself


def _rows_frame(
    proxy: str, scale: str, row_ids: list[str], region: np.ndarray, cosine: np.ndarray
) -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "row_id": row_ids,
            "proxy": [proxy] * len(row_ids),
            "scale": [scale] * len(row_ids),
            "region": region,
            "distance": 1 - cosine,
        },
        schema=REGIONS,
    )
    return frame.with_columns(pl.col("distance").fill_nan(None))


def _table(
    cluster: np.ndarray,
    cosine: np.ndarray,
    nll: np.ndarray,
    density: np.ndarray,
    near_steer: np.ndarray,
    steer_wrong: np.ndarray,
    row_ids: list[str],
    xy: np.ndarray,
) -> pl.DataFrame:
    """What a region's rows say of it; line r is cluster r, and no cluster is empty."""
    inside = np.flatnonzero(cluster >= 0)
    order = inside[
        np.lexsort((-cosine[inside], cluster[inside]))
    ]  # by cluster, nearest to the centroid first
    sizes = np.bincount(cluster[inside], minlength=len(xy))
    starts = np.cumsum(sizes) - sizes

    def mean(values: np.ndarray) -> pl.Series:
        sums = np.bincount(cluster[inside], weights=values[inside], minlength=len(xy))
        return pl.Series(sums / sizes, dtype=pl.Float64).fill_nan(None)

    asked = near_steer >= 0
    items = np.bincount(near_steer[asked], minlength=len(xy))
    wrong = np.bincount(near_steer[asked], weights=steer_wrong[asked].astype(np.float64), minlength=len(xy))
    return pl.DataFrame(
        {
            "size": sizes,
            "share": sizes / max(len(cluster), 1),
            "density": mean(cosine),
            "knn_density": mean(density),
            "steer_error": [w / m if m else None for w, m in zip(wrong, items, strict=True)],
            "mean_nll": mean(nll),
            "thin": sizes < np.median(sizes) if len(sizes) else np.zeros(0, bool),
            "exemplars": [
                [row_ids[i] for i in order[s : s + min(EXEMPLARS, m)]]
                for s, m in zip(starts, sizes, strict=True)
            ],
            "x": xy[:, 0],
            "y": xy[:, 1],
        },
        schema_overrides={
            name: REGION_TABLE[name] for name in ("size", "steer_error", "thin", "exemplars", "x", "y")
        },
    )


def _main_axes(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((d,) mean, (2, d) main axes) of the rows' directions, in blocks; each axis' largest entry is positive."""
    d = z.shape[1]
    total, squares, n = np.zeros(d), np.zeros((d, d)), 0
    for start in range(0, len(z), BLOCK_ROWS):
        x = directions(z[start : start + BLOCK_ROWS])
        x = x[x.any(1)]
        total += x.sum(0, dtype=np.float64)
        squares += x.T @ x
        n += len(x)
    mean = total / max(n, 1)
    vectors = np.linalg.eigh(squares - n * np.outer(mean, mean))[1]
    axes = np.zeros((2, d))
    axes[: min(2, d)] = vectors[:, ::-1].T[:2]
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])
    return mean, axes * np.where(signs == 0, 1, signs)[:, None]
