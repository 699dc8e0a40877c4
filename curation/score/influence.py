"""Which training rows help on a suite: LESS-like and TRAK-like influence from gradient features.

Training rows come as an iterable of (rows, d) blocks, so memory does not grow with them; a suite is one (m, d)
array. Features are raw (not normalised), of any float type, and both sides share one projection. A positive
score means that learning from the row helps the suite. Rows of zero or no finite length have no score (NaN,
`used` False) and touch no other. These are weak estimators of what a retraining would do: rank with them,
promise nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curation.errors import DataError, UserError

LESS = "less_v1"
LESS_ADAM = (
    "less_adam_v1"  # training rows as Adam directions (`curation.score.adam`), suite rows as gradients
)
LESS_WHITENED = "less_whitened_v1"
TRAK = "trak_v1"

RIDGE = 1e-2  # in units of the mean eigenvalue
BLOCK_ROWS = 65_536

Array = NDArray[Any]
Floats = NDArray[np.float64]
Blocks = Iterable[Array]


@dataclass(frozen=True)
class Influence:
    """(n,) float64 `score`, NaN where not `used` (n,); `suite_used` (m,) says which suite rows it stands on."""

    score: Floats
    used: NDArray[np.bool_]
    suite_used: NDArray[np.bool_]


def in_blocks(features: Array, rows: int = BLOCK_ROWS) -> Iterator[Array]:
    """An array or memory map (n, d) as the blocks that this module reads, without a copy."""
    return (features[start : start + rows] for start in range(0, len(features), rows))


def _floating(rows: Array) -> Array:
    return rows if rows.dtype == np.float64 else np.asarray(rows, dtype=np.float32)


def _unit(block: Array) -> tuple[Array, Floats]:
    """Rows at length 1 and their lengths; a row of zero or no finite length becomes zeros of length NaN.

    Lengths are float64: they neither overflow nor underflow in float32, so products of unit rows are safe.
    """
    x = _floating(block)
    if x.ndim != 2:
        raise DataError(
            f"features have shape {x.shape}, not (rows, d); nothing was scored; cut an array with `in_blocks` first"
        )
    norm = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    norm[~(np.isfinite(norm) & (norm > 0))] = np.nan
    unit = np.divide(x, norm[:, None], out=np.zeros_like(x), where=norm[:, None] > 0, casting="same_kind")
    return unit, norm


# --- second moments, whitening ---


def gram(blocks: Blocks) -> Floats:
    """The sum of z z^T over the usable rows, (d, d) float64; sums of shards add up to the sum of the whole."""
    total: Floats | None = None
    for block in blocks:
        unit, norm = _unit(block)
        scale = np.nanmax(norm, initial=0.0)
        if total is None:
            total = np.zeros((block.shape[1], block.shape[1]))
        if scale > 0:
            rows = unit * np.nan_to_num(norm / scale).astype(unit.dtype)[:, None]
            total += scale**2 * (rows.T @ rows)
    if total is None:
        raise DataError(
            "no block of training features; nothing was scored; check that the score stage kept rows"
        )
    return total


def _damped_spectrum(second_moment: Floats, ridge: float) -> tuple[Floats, Floats]:
    values, vectors = np.linalg.eigh(second_moment)
    d, noise = len(values), len(values) * np.finfo(np.float32).eps * max(values[-1], 0.0)
    rank = int((values > noise).sum())
    if rank == 0:
        raise DataError("no training row has a usable gradient (all zero or not finite); nothing was scored")
    if rank < d and ridge <= 0:
        raise UserError(
            f"the second moment of the training features has rank {rank} of {d}, so with ridge {ridge:g} it has no "
            f"inverse; nothing was scored; use a ridge above 0 ({RIDGE:g} is the default)"
        )
    return np.clip(values, 0, None) + ridge * values.mean(), vectors


def whitener(second_moment: Floats, ridge: float = RIDGE) -> Floats:
    """The symmetric (d, d) matrix (C + r I)^(-1/2), with r = ridge times the mean eigenvalue of C.

    `second_moment` is any uncentred one: `gram` of the training rows, or of unit rows; its scale only scales the
    answer. `UserError` when C has no inverse and the ridge is 0.
    """
    values, vectors = _damped_spectrum(second_moment, ridge)
    return (vectors / np.sqrt(values)) @ vectors.T


def whiten(features: Array, transform: Floats) -> Array:
    """Whitened rows at length 1: first the transform of `whitener`, *then* the normalisation, which do not commute.

    (n, d) in, (n, d) out; unusable rows become zeros. The transform belongs on both sides of a comparison. Fed to
    `moments` this gives the whitened twin of G-Vendi.
    """
    unit, _ = _unit(features)
    return _unit(unit @ (transform / np.abs(transform).max()).astype(unit.dtype))[0]


# --- the suite by subtask, the checkpoints side by side ---


def _usable_everywhere(suites: Sequence[Array]) -> NDArray[np.bool_]:
    if len({len(s) for s in suites}) != 1:
        raise DataError(
            f"the checkpoints hold {[len(s) for s in suites]} suite rows; nothing was scored; give at least one "
            "checkpoint, and to each the features of the same suite rows"
        )
    used = np.logical_and.reduce([np.isfinite(_unit(s)[1]) for s in suites])
    if not used.any():
        raise DataError(
            f"none of the {len(used)} suite rows has a usable gradient (all zero or not finite); nothing was "
            "scored; look at the suite's items under this proxy"
        )
    return used


def _by_subtask(suite: Array, used: NDArray[np.bool_], subtask: ArrayLike | None) -> Floats:
    """(d, k): the mean of the usable suite rows of each subtask that has any."""
    names = np.zeros(len(suite), dtype=np.int64) if subtask is None else np.asarray(subtask)
    if len(names) != len(suite):
        raise DataError(
            f"{len(suite)} suite rows but {len(names)} subtasks; nothing was scored; give one a row"
        )
    means = [suite[used & (names == n)].mean(0, dtype=np.float64) for n in np.unique(names[used])]
    return np.stack(means, axis=1)


def _side_by_side(trains: Sequence[Blocks]) -> Iterator[tuple[Array, ...]]:
    """The same rows at every checkpoint, block by block."""
    for blocks in zip_longest(*trains):
        sizes = [0 if b is None else len(b) for b in blocks]
        if len(set(sizes)) != 1:
            raise DataError(
                f"the checkpoints hold {sizes} rows in one block; nothing was scored; cut the training features "
                "of every checkpoint into the same blocks"
            )
        yield blocks


def _influence(scores: list[Floats], suite_used: NDArray[np.bool_]) -> Influence:
    score = np.concatenate(scores) if scores else np.zeros(0)
    return Influence(score, ~np.isnan(score), suite_used)


# --- LESS ---


@dataclass(frozen=True)
class LessCheckpoint:
    """One checkpoint: `train` blocks (Adam directions or gradients), `suite` (m, d) gradients, its mean learning rate.

    With a `whitener` both sides are whitened before they are normalised.
    """

    train: Blocks
    suite: Array
    learning_rate: float = 1.0
    whitener: Floats | None = None


def _directions(rows: Array, transform: Floats | None) -> Array:
    return _unit(rows)[0] if transform is None else whiten(rows, transform)


def less_influence(checkpoints: Sequence[LessCheckpoint], subtask: ArrayLike | None = None) -> Influence:
    """The cosine of each training row with the suite, (n,): summed over checkpoints, best subtask; from -1 to 1.

    Cosines are averaged over the suite rows of a subtask ((m,) names; None is one subtask), summed over
    checkpoints with their normalised learning rates, and the largest subtask counts. The cosine is what keeps
    short rows from winning by length. Xia et al. 2024 (LESS): four checkpoints, after a warm-up.
    """
    suite_used = _usable_everywhere([c.suite for c in checkpoints])
    rates = np.array([c.learning_rate for c in checkpoints], dtype=np.float64)
    if not (np.isfinite(rates).all() and rates.min() >= 0 and rates.sum() > 0):
        raise UserError(
            f"learning rates {rates.tolist()} of the checkpoints are no weights; nothing was scored; give each "
            "checkpoint its mean learning rate, none below 0 and at least one above"
        )
    targets = [
        _by_subtask(_directions(c.suite, c.whitener), suite_used, subtask) * rate
        for c, rate in zip(checkpoints, rates / rates.sum(), strict=True)
    ]
    scores: list[Floats] = []
    for blocks in _side_by_side([c.train for c in checkpoints]):
        score = np.zeros((len(blocks[0]), targets[0].shape[1]))
        for block, point, target in zip(blocks, checkpoints, targets, strict=True):
            unit = _directions(block, point.whitener)
            score += unit @ target.astype(unit.dtype)
            score[~unit.any(axis=1)] = np.nan
        scores.append(score.max(axis=1))
    return _influence(scores, suite_used)


# --- TRAK ---


@dataclass(frozen=True)
class TrakCheckpoint:
    """One model: `train` blocks and `suite` (m, d), gradients of the output; `gram` and `weight` of training rows.

    `weight` (n,) is minus the derivative of a row's loss by its output: 1 - p for the margin, the residual for a
    regression; `margins` makes both from gradients of the loss. `gram` may come from more rows than are scored.
    """

    train: Blocks
    suite: Array
    gram: Floats
    weight: Floats


def margins(loss_gradients: Array, nll: ArrayLike) -> tuple[Array, Floats]:
    """Gradients of the margin ln(p / (1 - p)) from those of the loss, (n, d), and the weights 1 - p, (n,).

    p = exp(-nll), of a text the geometric mean over its tokens: then grad f = -grad nll / (1 - p), exactly. A row
    known by heart (1 - p = 0) has no margin gradient: not finite, so it gets no score.
    """
    rows, weight = _floating(loss_gradients), -np.expm1(-np.asarray(nll, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        return -rows / weight[:, None].astype(rows.dtype), weight


def trak_influence(
    checkpoints: Sequence[TrakCheckpoint], subtask: ArrayLike | None = None, ridge: float = RIDGE
) -> Influence:
    """How much each training row raises the suite's output, (n,): mean of phi(z) (Phi^T Phi + r I)^-1 Phi^T, times mean Q.

    phi are output gradients, Q the weights of training rows; the two means are over checkpoints (independently
    trained models), each on its own. r = ridge times the mean eigenvalue of Phi^T Phi. Averaged over the suite
    rows of a subtask; the largest subtask counts. `UserError` when Phi^T Phi has no inverse and the ridge is 0.
    Park et al. 2023 (TRAK, whose ridge is 0).
    """
    suite_used = _usable_everywhere([c.suite for c in checkpoints])
    targets: list[tuple[Array, Floats]] = []
    for point in checkpoints:
        values, vectors = _damped_spectrum(point.gram, ridge)
        wanted = vectors / values @ (vectors.T @ _by_subtask(point.suite, suite_used, subtask))
        direction, size = _unit(wanted.T)
        targets.append((direction.T, np.nan_to_num(size)))
    weight = np.mean([np.asarray(c.weight, dtype=np.float64) for c in checkpoints], axis=0)
    scores: list[Floats] = []
    start = 0
    for blocks in _side_by_side([c.train for c in checkpoints]):
        stop = start + len(blocks[0])
        if stop > len(weight):
            raise DataError(
                f"there are weights for {len(weight)} training rows but features for {stop} at least; nothing was "
                "scored; give one weight a row, in the order of the blocks"
            )
        score = np.zeros((len(blocks[0]), len(targets[0][1])))
        for block, (direction, size) in zip(blocks, targets, strict=True):
            unit, norm = _unit(block)
            score += norm[:, None] * (unit @ direction.astype(unit.dtype)) * size / len(checkpoints)
        score *= weight[start:stop, None]
        scores.append(np.where(np.isfinite(score).all(axis=1), score.max(axis=1), np.nan))
        start = stop
    return _influence(scores, suite_used)
