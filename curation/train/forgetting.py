"""Forgetting events, counted for free while a proxy trains (Toneva et al. 2019)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FORGETTING = "forgetting_v1"

_UNSEEN, _WRONG, _RIGHT = -1, 0, 1


class Forgetting:
    """How often each of n rows went from correct to incorrect between its own successive presentations.

    Fed by the training loop with each batch's outcome *before* the step that learns from it. Depends on order and
    schedule, so compare rows of one training only. `presentations` (n,) says how much was seen of each row.
    """

    def __init__(self, n: int) -> None:
        self.presentations = np.zeros(n, dtype=np.int64)
        self._forgotten = np.zeros(n, dtype=np.int64)
        self._learnt = np.zeros(n, dtype=np.bool_)
        self._last = np.full(n, _UNSEEN, dtype=np.int8)

    def present(self, index: ArrayLike, correct: ArrayLike) -> None:
        """One batch: row numbers (b,) and whether each was answered correctly (b,); a row may come twice, in order."""
        rows, right = np.asarray(index, dtype=np.int64), np.asarray(correct, dtype=np.bool_)
        order = np.argsort(rows, kind="stable")
        rows, right = rows[order], right[order]
        before = self._last[rows]
        again = np.flatnonzero(rows[1:] == rows[:-1]) + 1
        before[again] = right[again - 1]
        np.add.at(self._forgotten, rows, (before == _RIGHT) & ~right)
        np.add.at(self.presentations, rows, 1)
        self._learnt[rows[right]] = True
        self._last[rows] = np.where(right, _RIGHT, _WRONG)  # of equal row numbers numpy keeps the last

    def counts(self) -> NDArray[np.float64]:
        """Events of each row, (n,): 0 learnt and never forgotten, inf presented but never correct, NaN never presented."""
        counts = np.where(self._learnt, self._forgotten.astype(np.float64), np.inf)
        return np.where(self.presentations > 0, counts, np.nan)
