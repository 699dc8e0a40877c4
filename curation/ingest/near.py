"""Near-duplicates of texts: exact, for any pair as similar as the threshold or more.

Shingles are runs of 5 characters, held as 64-bit hashes (two different ones collide once in 2^64). Two texts
with a Jaccard similarity of t share one of the (1 - t) rarest of their shingles (prefix filter of Bayardo,
Ma and Srikant 2007), which finds the candidates even where one template fills the corpus and LSH bands would
put all rows together; MinHash sketches discard most of them, the true Jaccard similarity decides. Rows are
taken in their order and compared with rows kept so far, so a twin is itself kept and as similar as said.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

SHINGLE_CHARS = 5
PERMUTATIONS = 128
TABLE_SIZE = 1 << 22  # counters that order shingles by how rare they are
SKETCH_MARGIN = 0.22  # five standard errors of a sketch: a pair at the threshold is lost once in 10^6
DIGEST_BATCH = 4_096
_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIX_MORE = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(31)

Hashes = NDArray[np.uint64]


def near_twins(
    texts: list[str], groups: list[int], threshold: float, references: int = 0
) -> dict[int, tuple[int, float]]:
    """Index of each near-duplicate -> (index of its twin, their Jaccard similarity >= threshold).

    Only texts of one group are compared; the earliest stays. With `references`, the first so many texts stay
    in any case and only they can be twins.
    """
    group = np.asarray(groups, dtype=np.int64)
    index = _worth_comparing(group, references)
    if len(index) < 2:
        return {}
    shingles = [shingle_hashes(texts[i]) for i in index]
    sizes = np.array([len(s) for s in shingles])
    digests = _digests(shingles)
    rare = _rare_shingles(shingles, group[index], threshold)
    stored: dict[int, list[int]] = {}
    found: dict[int, tuple[int, float]] = {}
    for i, mine in enumerate(rare):
        reference = index[i] < references
        twin = None
        if not reference:
            near = sorted({j for key in mine for j in stored.get(key, ())})
            twin = _first_similar(i, near, group[index], sizes, digests, shingles, threshold)
        if twin is not None:
            found[int(index[i])] = (int(index[twin[0]]), twin[1])
        elif reference or not references:
            for key in mine:
                stored.setdefault(key, []).append(i)
    return found


def shingle_hashes(text: str) -> Hashes:
    """Sorted distinct 64-bit hashes of the text's runs of 5 characters; a shorter text is one run."""
    raw = text.ljust(SHINGLE_CHARS, "\0").encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(raw, dtype=np.uint32).astype(np.uint64)
    n = len(points) - SHINGLE_CHARS + 1
    hashes = points[:n].copy()
    for k in range(1, SHINGLE_CHARS):
        hashes = hashes * _MIX + points[k : k + n]
    hashes = (hashes ^ (hashes >> _SHIFT)) * _MIX_MORE
    return np.unique(hashes ^ (hashes >> _SHIFT))


def jaccard(a: Hashes, b: Hashes) -> float:
    """Shared over all of two sorted distinct arrays."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _worth_comparing(group: NDArray[np.int64], references: int) -> NDArray[np.int64]:
    """Indices of texts whose group has another text, of a reference and a row where there are references."""
    _, of, counts = np.unique(group, return_inverse=True, return_counts=True)
    if references == 0:
        return np.flatnonzero(counts[of] > 1)
    there = np.zeros(len(counts), dtype=bool)
    wanted = np.zeros(len(counts), dtype=bool)
    there[of[:references]] = True
    wanted[of[references:]] = True
    return np.flatnonzero((there & wanted)[of])


def _digests(shingles: list[Hashes]) -> NDArray[np.uint32]:
    parts = []
    for start in range(0, len(shingles), DIGEST_BATCH):
        batch = shingles[start : start + DIGEST_BATCH]
        offsets = np.concatenate([[0], np.cumsum([len(s) for s in batch])]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(batch), offsets, PERMUTATIONS, 1
        )
        parts.append(np.array(matrix.to_rows(), dtype=np.uint32))
    return np.concatenate(parts)


def _rare_shingles(shingles: list[Hashes], group: NDArray[np.int64], threshold: float) -> list[list[int]]:
    """Of each text the rarest shingles, one of which any similar text of its group has too."""
    salts = group.astype(np.uint64) * _MIX
    mask = np.uint64(TABLE_SIZE - 1)
    table = np.zeros(TABLE_SIZE, dtype=np.int64)
    for hashes, salt in zip(shingles, salts, strict=True):
        np.add.at(table, (hashes ^ salt) & mask, 1)
    rare: list[list[int]] = []
    for hashes, salt in zip(shingles, salts, strict=True):
        keys = hashes ^ salt
        counts = table[keys & mask]
        length = len(keys) - int(np.ceil(threshold * len(keys) - 1e-9)) + 1
        first = np.lexsort((keys, counts))[:length]
        rare.append(keys[first[counts[first] > 1]].tolist())
    return rare


def _first_similar(
    i: int,
    near: list[int],
    group: NDArray[np.int64],
    sizes: NDArray[np.int64],
    digests: NDArray[np.uint32],
    shingles: list[Hashes],
    threshold: float,
) -> tuple[int, float] | None:
    """The earliest candidate that is similar enough; sizes and sketches spare most exact comparisons."""
    if not near:
        return None
    candidates = np.array(near)
    small, large = np.minimum(sizes[candidates], sizes[i]), np.maximum(sizes[candidates], sizes[i])
    likely = (digests[candidates] == digests[i]).mean(axis=1) >= threshold - SKETCH_MARGIN
    for j in candidates[likely & (small >= threshold * large) & (group[candidates] == group[i])]:
        similarity = jaccard(shingles[i], shingles[j])
        if similarity >= threshold:
            return int(j), similarity
    return None
