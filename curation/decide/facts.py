"""What the judge sees and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Decision = Literal["publish", "keep", "futile", "inconclusive"]


@dataclass(frozen=True, eq=False)
class ControlFacts:
    """One gate control against the candidate, over the confirming replicates, on judge suites.

    differences: (n,) candidate minus control, points of the endpoint. accuracy_differences: (n,) the same
    in points of accuracy. cells: (n, m) mean difference of each item cluster, points of the endpoint, or
    None where items are not crossed with replicates (embedded corpus). weights: (m,) such that the weighted
    mean of a row of cells is that replicate's difference; None for equal weights.
    """

    name: str
    differences: np.ndarray
    accuracy_differences: np.ndarray
    cells: np.ndarray | None = None
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class Comparison:
    """The figures of one gate control, points except p and counts; NaN and 0 clusters without cells."""

    control: str
    difference: float
    low: float
    high: float
    p: float
    n: int
    detectable: float
    crossed_low: float
    crossed_high: float
    clusters: int

    @property
    def upper(self) -> float:
        """The upper limit that can show a round futile: the larger of both intervals'; NaN if unknown."""
        return self.high if self.clusters == 0 else float(np.maximum(self.high, self.crossed_high))


@dataclass(frozen=True)
class Verdict:
    """The decision of a round, with the sentence a person reads; p is the largest over gate controls."""

    decision: Decision
    reason: str
    p: float
    alpha: float
    n: int
    comparisons: tuple[Comparison, ...]
    guard_difference: float  # mean ID, candidate minus previous version, points; NaN without an ID suite
