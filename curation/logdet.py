"""Greedy conditional log-det: which rows add the most volume to what is already there.

Maximises log det(I + (1/ridge) sum z z^T) one row at a time, conditional on the rows already in the set
(DPP-MAP; Chen et al. 2018). Rank-1 updates: O(n d) a pick, memory O(n d + d^2).
"""

from __future__ import annotations

import numpy as np


def unit_rows(features: np.ndarray) -> np.ndarray:
    """The rows at length 1, float32; zero rows stay zero."""
    x = np.asarray(features, dtype=np.float32)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)


def logdet_order(
    candidates: np.ndarray, picks: int, given: np.ndarray | None = None, ridge: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """The `picks` best candidates in greedy order, and the gain in nats of each.

    candidates (n, d) and given (m, d) unit rows; ties go to the lower index, so the order is determined.
    """
    z = np.asarray(candidates, dtype=np.float64)
    d = z.shape[1]
    precision = np.eye(d) * ridge
    if given is not None and len(given):
        g = np.asarray(given, dtype=np.float64)
        precision += g.T @ g
    inverse = np.linalg.inv(precision)
    leverage = np.einsum("nd,nd->n", z @ inverse, z)
    picks = min(picks, len(z))
    order, gains = np.empty(picks, dtype=np.int64), np.empty(picks)
    open_ = np.ones(len(z), dtype=bool)
    for k in range(picks):
        j = int(np.argmax(np.where(open_, leverage, -np.inf)))
        order[k], gains[k] = j, np.log1p(leverage[j])
        open_[j] = False
        v = inverse @ z[j]
        scale = 1.0 + leverage[j]
        leverage -= (z @ v) ** 2 / scale
        inverse -= np.outer(v, v) / scale
    return order, gains
