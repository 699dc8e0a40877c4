"""The map of gradient space: clusters, which of them are thin, what they hold, where steering fails."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import polars as pl

from curation.rows import REGION_TABLE, REGIONS
from curation.strategies import spherical_kmeans

_WORD = re.compile(r"\w+")


def default_regions(n: int) -> int:
    """Clusters for n rows: about sqrt(2n), from 8 to 256."""
    return int(np.clip(round((2 * n) ** 0.5), 8, 256))


def distinctive_terms(texts: list[str], cluster: np.ndarray, region: int, terms: int = 4) -> str:
    """The words that set a region apart: share of its rows against share of all, smoothed log ratio x frequency."""
    sets = [set(_WORD.findall(t.lower())) for t in texts]
    inside = Counter(w for s, c in zip(sets, cluster, strict=True) if c == region for w in s)
    overall = Counter(w for s in sets for w in s)
    size = max(1, int((cluster == region).sum()))
    weight = {
        w: (k / size) * np.log((k + 0.5) / (size + 1) / ((overall[w] + 0.5) / (len(texts) + 1)))
        for w, k in inside.items()
    }
    best = sorted(weight, key=lambda w: (-weight[w], w))[:terms]
    return " ".join(w for w in best if weight[w] > 0)


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
) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
    """(`regions` frame of the rows, `region_table`, region of each steer item (m,)).

    z (n, d) and steer (m, d) unit gradient rows; `thin` = smaller than the median region; `steer_error` = share
    of the region's steer items that the proxy gets wrong (null without items); `density` = mean cosine of its
    rows to the centroid; x, y = the centroid on the two main axes of the rows.
    """
    k = k or default_regions(len(z))
    centroids, cluster, cosine = spherical_kmeans(z, k, seed)
    near_steer = np.argmax(steer @ centroids.T, axis=1) if len(steer) else np.zeros(0, dtype=np.int64)
    axes = np.linalg.svd(z - z.mean(0), full_matrices=False)[2][:2]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    sizes = np.bincount(cluster, minlength=len(centroids))
    median = float(np.median(sizes[sizes > 0]))
    lines = []
    for r in range(len(centroids)):
        members = np.flatnonzero(cluster == r)
        closest = members[np.argsort(-cosine[members], kind="stable")][:3]
        hit = steer_wrong[near_steer == r]
        xy = (centroids[r] - z.mean(0)) @ axes.T
        lines.append(
            (
                proxy,
                r,
                int(sizes[r]),
                sizes[r] / len(z),
                float(cosine[members].mean()) if len(members) else 0.0,
                float(hit.mean()) if len(hit) else None,
                float(nll[members].mean()) if len(members) else None,
                bool(sizes[r] < median),
                distinctive_terms(texts, cluster, r),
                [row_ids[i] for i in closest],
                float(xy[0]),
                float(xy[1]) if len(xy) > 1 else 0.0,
            )
        )
    rows = pl.DataFrame(
        {"row_id": row_ids, "proxy": [proxy] * len(row_ids), "region": cluster, "distance": 1 - cosine},
        schema=REGIONS,
    )
    return rows, pl.DataFrame(lines, schema=REGION_TABLE, orient="row"), near_steer
