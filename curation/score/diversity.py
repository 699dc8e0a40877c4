"""How many effectively different learning signals a set holds: Vendi scores and m-coherence.

Vendi score: Friedman & Dieng 2023; G-Vendi is the same with gradient features (arXiv 2505.20161). The dual form
needs the d x d second-moment matrix only, which adds up over shards. m-coherence: Chatterjee & Zielinski 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.logdet import unit_rows


@dataclass(frozen=True)
class Moments:
    """Mergeable state of a set's scores: sum of z z^T over unit rows (d, d), sums of raw rows; all float64."""

    second: np.ndarray
    total: np.ndarray
    square: float
    n: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.second + other.second, self.total + other.total, self.square + other.square, self.n + other.n
        )


def moments(features: np.ndarray) -> Moments:
    """The state of one shard of raw features (n, d); rows of zero or no finite length are left out: they would bias it."""
    x = np.asarray(features, dtype=np.float64)
    norm = np.linalg.norm(x, axis=1)
    x = x[(norm > 0) & np.isfinite(norm)]
    z = x / np.linalg.norm(x, axis=1, keepdims=True) if len(x) else x
    return Moments(z.T @ z, x.sum(0), float((x * x).sum()), len(x))


def _entropy_score(spectrum: np.ndarray, order: float) -> float:
    p = np.clip(spectrum, 0, None)
    p = p[p > 1e-14 * p.sum()] / p.sum()
    if order == 1:
        return float(np.exp(-(p * np.log(p)).sum()))
    if np.isinf(order):
        return float(1 / p.max())
    return float(np.exp(np.log((p**order).sum()) / (1 - order)))


def vendi(state: Moments, order: float = 1.0) -> float:
    """The Vendi score of that order, from 1 (all rows alike) to min(n, d); 0 for no rows."""
    return _entropy_score(np.linalg.eigvalsh(state.second / state.n), order) if state.n else 0.0


def vendi_of_kernel(kernel: np.ndarray, order: float = 1.0) -> float:
    """The score of any positive semi-definite similarity matrix with unit diagonal: the exact twin for small n."""
    return _entropy_score(np.linalg.eigvalsh(np.asarray(kernel, dtype=np.float64) / len(kernel)), order)


def ceiling(n: int, d: int) -> float:
    """What n isotropic random rows in d dimensions would score: m exp(-m / 2M), m = min(n, d), M = max(n, d)."""
    small, large = min(n, d), max(n, d)
    return float(small * np.exp(-small / (2 * large))) if small else 0.0


def m_coherence(state: Moments) -> float:
    """How many rows one row's step helps, itself included: |sum g|^2 / sum |g|^2, from 0 to n; sees signs."""
    return float(state.total @ state.total / state.square) if state.square > 0 else 0.0


def row_alignment(features: np.ndarray) -> np.ndarray:
    """Cosine of each row with the sum of all the others, (n,): below 0 pulls against the set."""
    x = np.asarray(features, dtype=np.float64)
    others = x.sum(0) - x
    return (unit_rows(x).astype(np.float64) * unit_rows(others)).sum(1)
