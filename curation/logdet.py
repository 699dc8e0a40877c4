"""Greedy conditional log-det: which rows add the most volume to what is already there.

Maximises log det(I + (1/ridge) sum z z^T) one row at a time, conditional on the rows already in the set
(DPP-MAP; Chen et al. 2018), lazily (Minoux 1978): the leverage z^T M^-1 z of a row only falls as others are picked,
so an old value is an upper bound. Only rows whose bound could still win are brought up to date, by one matrix
product over all picks that they have missed. So a million rows are read as they lie (float16, a memory map).
"""

from __future__ import annotations

import numpy as np
import torch

from curation.errors import DataError

PLAIN = 8192  # up to this many candidates, all compete: the plain greedy algorithm, in float64
ACTIVE = 1024  # rows that compete at a time beyond
BLOCK = 8192  # rows read and multiplied at a time, in float32
FOLD = 256  # picks before they are folded into the inverse
SLACK = 1e-5  # a pick may fall short of the best leverage by this share: float32 bounds are no better


def float32_rows(rows: np.ndarray) -> np.ndarray:
    """The rows in float32; float16 through torch, whose cast is ten times numpy's."""
    if rows.dtype != np.float16:
        return np.asarray(rows, dtype=np.float32)
    own = rows if rows.flags.writeable else rows.copy()  # torch warns of read-only memory
    return torch.from_numpy(own).float().numpy()


def unit_rows(features: np.ndarray) -> np.ndarray:
    """The rows at length 1, float32; zero rows stay zero."""
    x = np.asarray(features, dtype=np.float32)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)


def logdet_order(
    candidates: np.ndarray,
    picks: int,
    given: np.ndarray | None = None,
    ridge: float = 0.1,
    active: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `picks` best candidates in greedy order, and the gain in nats of each.

    candidates (n, d) and given (m, d): unit rows of any float type, a memory map too; never copied whole. Ties go to
    the lower index, so the order is determined. All rows compete in float64 up to n = 8192; beyond, `active` of them
    at a time, and each pick is the best one to a share of 1e-5 of its leverage (ties within that share go to either).
    Memory beyond the input: 4 d `picks` + 30 n + 150 MB at most. Rows that are not finite are a `DataError`.
    """
    n, d = candidates.shape
    competing = active or (n if n <= PLAIN else ACTIVE)
    picks = min(picks, n)
    inverse = _inverse(given, d, ridge)
    bound = _square_lengths(candidates) / ridge
    seen = np.full(n, 0 if given is None or not len(given) else -1, dtype=np.int32)
    steps = np.empty((picks, d), dtype=np.float32)
    order, gains = np.empty(picks, dtype=np.int64), np.empty(picks)
    done = 0
    while done < picks:
        rows, rival = _contenders(candidates, bound, seen, steps[:done], inverse, competing)
        z = candidates[rows].astype(np.float64)
        chosen, leverages, taken, bound[rows] = _compete(z, inverse, rival, min(FOLD, picks - done))
        new = slice(done, done + len(chosen))
        order[new], gains[new], steps[new] = rows[chosen], np.log1p(leverages), taken
        inverse -= taken.T @ taken
        done = new.stop
        seen[rows] = done
    return order, gains


def _inverse(given: np.ndarray | None, d: int, ridge: float) -> np.ndarray:
    precision = np.eye(d) * ridge
    for start in range(0, 0 if given is None else len(given), BLOCK):
        g = np.asarray(given[start : start + BLOCK], dtype=np.float64)  # type: ignore[index]
        precision += g.T @ g
    return np.linalg.inv(precision)


def _square_lengths(candidates: np.ndarray) -> np.ndarray:
    out = np.empty(len(candidates))
    for start in range(0, len(candidates), BLOCK):
        z = float32_rows(candidates[start : start + BLOCK])
        out[start : start + BLOCK] = np.einsum("nd,nd->n", z, z)
    bad = np.flatnonzero(~np.isfinite(out))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(out)} candidates have no finite length (the first is row {bad[0]}); nothing was picked:"
            " leave rows without a usable gradient out of the candidates"
        )
    return out


def _highest(bound: np.ndarray, count: int) -> np.ndarray:
    """The rows of the `count` highest bounds, ascending; among equals the lower ones."""
    if count >= len(bound):
        return np.arange(len(bound))
    least = np.partition(bound, len(bound) - count)[len(bound) - count]
    above = np.flatnonzero(bound > least)
    return np.sort(np.concatenate([above, np.flatnonzero(bound == least)[: count - len(above)]]))


def _contenders(
    candidates: np.ndarray,
    bound: np.ndarray,
    seen: np.ndarray,
    steps: np.ndarray,
    inverse: np.ndarray,
    active: int,
) -> tuple[np.ndarray, float]:
    """The `active` open rows of highest leverage, and a bound on all others; stale rows are refreshed on the way."""
    widened = active
    while True:
        rows = _highest(bound, active)
        rest = bound.copy()
        rest[rows] = -np.inf
        rival = float(rest.max())
        if rival == -np.inf or (seen[rows] == len(steps)).all():
            return rows[bound[rows] > -np.inf], rival
        wide = _highest(bound, widened)
        stale = wide[(seen[wide] < len(steps)) & (bound[wide] > -np.inf)]  # those picked stay at -inf
        _refresh(candidates, stale, bound, seen, steps, inverse)
        widened *= 2


def _refresh(
    candidates: np.ndarray,
    rows: np.ndarray,
    bound: np.ndarray,
    seen: np.ndarray,
    steps: np.ndarray,
    inverse: np.ndarray,
) -> None:
    """Bring the bounds of some rows up to date: by the picks they missed, or anew when those are many."""
    d = len(inverse)
    dense: np.ndarray | None = None
    for last in np.unique(seen[rows]):
        group = rows[seen[rows] == last]
        for start in range(0, len(group), BLOCK):
            block = group[start : start + BLOCK]
            z = float32_rows(candidates[block])
            if last < 0 or len(steps) - last > d:
                dense = inverse.astype(np.float32) if dense is None else dense
                bound[block] = np.einsum("nd,nd->n", z @ dense, z)
            else:
                missed = z @ steps[last:].T
                bound[block] -= np.einsum("nk,nk->n", missed, missed)
    seen[rows] = len(steps)


def _compete(
    z: np.ndarray, inverse: np.ndarray, rival: float, most: int
) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Plain greedy among z (m, d) until a row elsewhere could win: picks, their leverages, steps, new bounds of all.

    A step is M^-1 z / sqrt(1 + leverage): the square of its product with a row is what the pick takes from that row.
    """
    leverage = np.einsum("nd,nd->n", z @ inverse, z)
    steps, best = np.empty((most, z.shape[1])), np.empty(most)
    chosen: list[int] = []
    for k in range(min(most, len(z))):
        j = int(np.argmax(leverage))
        if k and leverage[j] < rival * (1 - SLACK):
            break
        best[k] = leverage[j]
        steps[k] = inverse @ z[j] - (steps[:k] @ z[j]) @ steps[:k]
        steps[k] /= np.sqrt(1 + best[k])
        leverage -= (z @ steps[k]) ** 2
        leverage[j] = -np.inf
        chosen.append(j)
    return chosen, best[: len(chosen)], steps[: len(chosen)], leverage
