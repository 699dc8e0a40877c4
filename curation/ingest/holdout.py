"""A suite held out of the pool itself: whole text clusters, or rows at random."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation.ingest.keys import keys_of
from curation.randomness import generator, key_of

LEAST_ROWS_A_LABEL = 10
CLUSTERS_A_SHARE = 4  # clusters expected in the part held out
LEAST_ROWS_A_CLUSTER = 5
COMPONENTS = 64
MAX_TERMS = 20_000


def hold_out(
    rows: pl.DataFrame, share: float, by: Literal["clusters", "rows"] = "clusters", seed: int = 0
) -> NDArray[np.bool_]:
    """True for the rows held out, never more than `share` of a label; the same rows for any order of them.

    `clusters`: TF-IDF, SVD and k-means within each label; whole clusters go, in random order, while they fit.
    `rows`: at random within each label. A label with fewer than 10 rows keeps them all; no label is one
    label.
    """
    keys = keys_of(rows).with_row_index("at").sort("row_id")
    held = np.zeros(rows.height, dtype=bool)
    for (world, label), part in keys.group_by("world", "label", maintain_order=True):
        if part.height < LEAST_ROWS_A_LABEL:
            continue
        draw = generator(seed, "hold out", by, world, label)
        if by == "rows":
            inside = draw.permutation(part.height)[: int(share * part.height)]
        else:
            state = key_of(seed, "hold out clusters", world, label) % 2**32
            inside = _whole(_text_clusters(part["text_key"].to_list(), share, state), share, draw)
        held[part["at"].to_numpy()[inside]] = True
    return held


def _text_clusters(texts: list[str], share: float, state: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize as unit

    vectorizer = TfidfVectorizer(
        sublinear_tf=True, max_features=MAX_TERMS, token_pattern=r"\S+", ngram_range=(1, 2)
    )
    terms = vectorizer.fit_transform(texts)
    components = min(COMPONENTS, terms.shape[1] - 1, len(texts) - 1)
    dense = (
        unit(TruncatedSVD(components, random_state=state).fit_transform(terms))
        if components > 1
        else terms.toarray()
    )
    wanted = int(np.ceil(CLUSTERS_A_SHARE / share))
    clusters = max(
        2, min(wanted, len(texts) // LEAST_ROWS_A_CLUSTER, len(np.unique(np.asarray(dense), axis=0)))
    )
    return KMeans(clusters, n_init=1, random_state=state).fit_predict(dense)  # type: ignore[return-value]


def _whole(cluster: NDArray[np.int64], share: float, draw: np.random.Generator) -> NDArray[np.int64]:
    """Indices of the rows of clusters taken in random order, each while it fits into the share."""
    room = int(share * len(cluster))
    taken: list[int] = []
    for c in draw.permutation(int(cluster.max()) + 1):
        size = int((cluster == c).sum())
        if size <= room:
            taken.append(int(c))
            room -= size
    return np.flatnonzero(np.isin(cluster, taken))
