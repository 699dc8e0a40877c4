"""What each row adds to the diversity of its set: the Vendi score with it less the score without it.

Taking unit row z out of A = n C leaves A - z z^T. With eigenvalues a_j of A, p_j = (u_j . z)^2 and f(x) = x ln x, the
entropy needs T = tr f(A) - tr f(A - z z^T) only. Its expansion: T = 1 + sum_j p_j ln a_j - k/2 - ..., where
k = sum_ij p_i p_j (ln a_i - ln a_j)/(a_i - a_j), from 0 to 1, is 1/m for one of m copies of a direction that no other
row touches; for such rows the rest of the series is g(k) = (1/k - 1) ln(1/(1 - k)) - 1 = -k/2 - k^2/6 - ... So
T = 1 + sum_j p_j ln a_j + g(k): exact for copies and for rows orthogonal to the rest, to second order for all others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from curation.errors import UserError
from curation.score.diversity import BLOCK, Moments, blocks_of, moments, usable_rows, vendi_of_kernel


def contributions(features: np.ndarray, state: Moments | None = None, order: float = 1.0) -> np.ndarray:
    """What each row adds to the Vendi score, (n,) in units of the score; negative when the set is more even without it.

    features (n, d) raw. Order 1 is the closed form above; order 2 is exact: with F = |A|^2 (Frobenius), VS_2 = n^2/F, and
    (n - 1)^2/(F - 2 z^T A z + 1) without z. About 4 d^2 operations a row. Give the state of the whole set to go through
    it in parts; without it, `features` are the whole. Rows that were left out of the state get 0.
    """
    if order not in (1, 2):
        raise UserError(
            f"contributions of order {order} have no closed form, only 1 and 2: use `exact_contributions`"
        )
    state = moments(features) if state is None else state
    out = np.zeros(len(features))
    if not state.n:
        return out
    loss = _loss_of_order_1(state) if order == 1 else _loss_of_order_2(state)
    for start, block in zip(range(0, len(features), BLOCK), blocks_of(features), strict=True):
        z, _, kept = usable_rows(block)
        out[start : start + BLOCK][kept] = loss(z) if state.n > 1 else 1.0
    return out


def exact_contributions(features: np.ndarray, order: float = 1.0) -> np.ndarray:
    """The exact twin for small n, any order: one eigenvalue problem of size n - 1 a row, all in float64."""
    z, _, kept = usable_rows(np.asarray(features, dtype=np.float64))
    gram = z @ z.T
    rest = [np.delete(np.delete(gram, i, 0), i, 1) for i in range(len(z))]
    out = np.zeros(len(features))
    out[kept] = [vendi_of_kernel(gram, order) - (vendi_of_kernel(k, order) if len(k) else 0.0) for k in rest]
    return out


def gain_of_order_2(features: np.ndarray, state: Moments) -> np.ndarray:
    """What one more row would add to the order-2 score of a set, (n,), exactly; falls with z^T C z.

    (n + 1)^2/(F + 2 z^T A z + 1) - n^2/F, F and A as above: a cheap measure of novelty, without an inverse. Rows of
    zero or no finite length get 0.
    """
    size = float((state.second**2).sum())
    out = np.zeros(len(features))
    for start, block in zip(range(0, len(features), BLOCK), blocks_of(features), strict=True):
        z, _, kept = usable_rows(block)
        now = state.n**2 / size if state.n else 0.0
        out[start : start + BLOCK][kept] = (state.n + 1) ** 2 / (size + 2 * _form(z, state.second) + 1) - now
    return out


def _form(z: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """z^T M z of every row, float64."""
    return np.einsum("nd,nd->n", z @ matrix.astype(z.dtype), z).astype(np.float64)


def _loss_of_order_2(state: Moments) -> Callable[[np.ndarray], np.ndarray]:
    n, size = state.n, float((state.second**2).sum())
    return lambda z: n**2 / size - (n - 1) ** 2 / (size - 2 * _form(z, state.second) + 1)


def _loss_of_order_1(state: Moments) -> Callable[[np.ndarray], np.ndarray]:
    n = state.n
    a, u = np.linalg.eigh(state.second)
    real = a > max(1e-14 * a[-1], -1.5 * a[0])  # the others are rounding noise
    a, u = a[real], u[:, real]
    log = np.log(a)
    entropy = np.log(n) - (a * log).sum() / n
    slopes = _slopes(a, log)

    def loss(z: np.ndarray) -> np.ndarray:
        p = (z @ u.astype(z.dtype)) ** 2
        k = np.clip(_form(p, slopes), 1e-9, 1 - 1e-12)
        taken = 1 + p @ log + (1 / k - 1) * -np.log1p(-k) - 1
        change = np.log1p(-1 / n) + (taken - np.log(n) + entropy) / (n - 1)
        return -np.exp(entropy) * np.expm1(change)

    return loss


def _slopes(a: np.ndarray, log: np.ndarray) -> np.ndarray:
    """(ln a_i - ln a_j)/(a_i - a_j) of all pairs, 1/a where they are equal."""
    gap = a[:, None] - a
    mean = (a[:, None] + a) / 2
    close = np.abs(gap) < 1e-6 * mean
    return np.where(close, 1 / mean, (log[:, None] - log) / np.where(close, 1.0, gap))
