"""Which texts share a run of n words with one of many items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_WORDS = 6  # a shorter item is found only whole
MOST_SHARED_ITEMS = 2  # a run in more items is a template, not the text of one of them
TEXTS_AT_ONCE = 5_000
_PRIME = np.uint64(0x9E3779B97F4A7C15)

Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class GramIndex:
    """The runs of words of the items: by length, sorted hashes and where each first occurs in `words`.

    `anchors`: hash of a run -> (start in `words`, words before the run, words) of items to be found whole.
    """

    vocabulary: dict[str, int]
    words: Ids
    item_at: Ids
    runs: dict[int, tuple[Hashes, Ids]]
    n_words: int
    anchors: dict[int, list[tuple[int, int, int]]]


def index_grams(texts: Sequence[str], n_words: int) -> GramIndex:
    """The index of all runs of `n_words`; an item of 6 to n-1 words counts as one run.

    Runs that more than 2 items share are left out: they are a template or a passage and tell no item from
    another. A copy of an item is found by the runs that reach into what is its own; an item of shared runs
    only is looked for whole.
    """
    vocabulary: dict[str, int] = {}
    split = [text.split() for text in texts]
    for words in split:
        for word in words:
            vocabulary.setdefault(word, len(vocabulary) + 1)
    words, item_at = _flat([[vocabulary[word] for word in words] for words in split])
    sizes = np.array([len(words) for words in split], dtype=np.int64)
    runs: dict[int, tuple[Hashes, Ids]] = {}
    for length in range(min(LEAST_WORDS, n_words), n_words + 1):
        hashes, starts = _windows(words, length)
        if length < n_words:
            starts = starts[sizes[item_at[starts]] == length]
        if len(starts):
            runs[length] = _unshared(hashes[starts], starts, item_at)
    return GramIndex(
        vocabulary, words, item_at, runs, n_words, _anchors(words, item_at, sizes, n_words, runs)
    )


def first_shared(index: GramIndex, texts: Sequence[str]) -> dict[int, tuple[int, int]]:
    """Index of each text that shares a run -> (index of the item, words in the run), the longest run."""
    found: dict[int, tuple[int, int]] = {}
    known = index.vocabulary
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = texts[start : start + TEXTS_AT_ONCE]
        ids, text_at = _flat([[known.get(word, 0) for word in text.split()] for text in batch])
        for length in sorted(index.runs, reverse=True):
            for at, origin in _hits(index, ids, length):
                found.setdefault(start + int(text_at[at]), (int(index.item_at[origin]), length))
        for at, item, size in _whole_hits(index, ids):
            found.setdefault(start + int(text_at[at]), (item, size))
    return found


def _flat(texts: list[list[int]]) -> tuple[Ids, Ids]:
    """All ids in a row with a 0 after each text, and the text at each place; 0 is also an unknown word."""
    ids = np.array([i for text in texts for i in (*text, 0)], dtype=np.int64)
    return ids, np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])


def _windows(ids: Ids, length: int) -> tuple[Hashes, Ids]:
    """A hash for each window, and the starts of those windows that hold no 0."""
    n = len(ids) - length + 1
    if n <= 0:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    hashes = np.zeros(n, dtype=np.uint64)
    for k in range(length):
        hashes = (hashes ^ (hashes >> np.uint64(29))) * _PRIME + ids[k : k + n].astype(np.uint64)
    zeros = np.concatenate([[0], np.cumsum(ids == 0)])
    return hashes, np.flatnonzero(zeros[length:] == zeros[:n])


def _unshared(hashes: Hashes, starts: Ids, item_at: Ids) -> tuple[Hashes, Ids]:
    """Sorted hashes with their first place, without those in too many items."""
    pairs = np.unique(np.stack([hashes, item_at[starts].astype(np.uint64)]), axis=1)
    distinct, items = np.unique(pairs[0], return_counts=True)
    unique, first = np.unique(hashes, return_index=True)
    keep = items <= MOST_SHARED_ITEMS
    return distinct[keep], starts[first[np.isin(unique, distinct[keep])]]


def _anchors(
    words: Ids, item_at: Ids, sizes: Ids, n_words: int, runs: dict[int, tuple[Hashes, Ids]]
) -> dict[int, list[tuple[int, int, int]]]:
    """Items longer than a run that no run of their own tells apart, by the one of their runs that is rarest."""
    hashes, starts = _windows(words, n_words)
    hashes, items = hashes[starts], item_at[starts]
    own = np.isin(hashes, runs[n_words][0]) if n_words in runs else np.zeros(len(starts), dtype=bool)
    lost = (sizes > n_words) & ~np.isin(np.arange(len(sizes)), items[own])
    begins = np.concatenate([[0], np.cumsum(sizes + 1)])
    _, of, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    anchors: dict[int, list[tuple[int, int, int]]] = {}
    for item in np.flatnonzero(lost):
        mine = slice(*np.searchsorted(items, [item, item + 1]))
        rarest = int(np.argmin(counts[of[mine]]))
        place = (int(begins[item]), int(starts[mine][rarest] - begins[item]), int(sizes[item]))
        anchors.setdefault(int(hashes[mine][rarest]), []).append(place)
    return anchors


def _whole_hits(index: GramIndex, ids: Ids) -> list[tuple[int, int, int]]:
    """(place in ids, item, words) of the items found whole."""
    hashes, starts = _windows(ids, index.n_words)
    known = np.array(sorted(index.anchors), dtype=np.uint64)
    found: list[tuple[int, int, int]] = []
    for at in starts[np.isin(hashes[starts], known)].tolist():
        for begin, before, size in index.anchors[int(hashes[at])]:
            first = at - before
            if first >= 0 and np.array_equal(ids[first : first + size], index.words[begin : begin + size]):
                found.append((at, int(index.item_at[begin]), size))
    return found


def _hits(index: GramIndex, ids: Ids, length: int) -> list[tuple[int, int]]:
    """(place in ids, place in the index's words) of windows that are equal word for word."""
    known, origins = index.runs[length]
    hashes, starts = _windows(ids, length)
    starts = starts[np.isin(hashes[starts], known)]
    at = origins[np.searchsorted(known, hashes[starts])]
    same = [
        bool((ids[s : s + length] == index.words[o : o + length]).all())
        for s, o in zip(starts, at, strict=True)
    ]
    return [(int(s), int(o)) for s, o, equal in zip(starts, at, same, strict=True) if equal]
