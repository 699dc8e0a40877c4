"""How hard each row is for a proxy, and how much of that is only its length.

All scores are (n,) float64, higher is harder, NaN where a row has none. Hard is not good: the top tail of each of
them holds wrong labels and junk. NLL, EL2N and the gradient norm come out of the gradient pass; here are their
exact references, the scores that compare two passes, and what removes length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from curation.errors import DataError
from curation.randomness import key_of

NLL = "nll_v1"  # mean over the response tokens of -ln p, nats
EL2N = "el2n_v1"
GRAND = "grad_norm_v1"
IFD = "ifd_v1"
RHO = "rho_v1"

IFD_LEAST_TOKENS = 8  # below, one token decides the ratio
IFD_LEAST_NLL = 0.05  # nats a token of the answer alone; below, the ratio blows up

Floats = NDArray[np.float64]


def el2n_from_probabilities(p: ArrayLike, y: ArrayLike) -> Floats:
    """EL2N of each prediction: |p - onehot(y)|, from 0 to sqrt 2.

    p (n, classes) probabilities, y (n,) class numbers; of a text, the mean over its response tokens. Saturates for
    confident errors. Paul et al. 2021 (Data Diet), who average it over ten runs or more, early in training.
    """
    error = np.array(p, dtype=np.float64)
    error[np.arange(len(error)), np.asarray(y, dtype=np.int64)] -= 1.0
    return np.linalg.norm(error, axis=1)


def grand_last_layer(p: ArrayLike, y: ArrayLike, h: ArrayLike) -> Floats:
    """GraNd restricted to a bias-free linear head, one prediction a row: |p - onehot(y)| |h|, exact.

    The gradient of the loss by the head is the outer product (p - onehot(y)) h^T; h (n, width) is what the head
    reads. `GRAND` itself is the norm over all scored layers. Paul et al. 2021; at initialisation it measures |h|.
    """
    return el2n_from_probabilities(p, y) * np.linalg.norm(np.asarray(h, dtype=np.float64), axis=1)


def ifd(
    nll_given_prompt: ArrayLike, nll_alone: ArrayLike, n_tokens: ArrayLike
) -> tuple[Floats, NDArray[np.bool_]]:
    """How little the prompt helps with the answer, NLL(A | Q) / NLL(A), and which rows it can be trusted on.

    Mean losses in nats a token (a ratio of losses, not of perplexities), answer lengths in tokens; all (n,). Above
    1 the prompt hurts. NaN and False below 8 tokens, below 0.05 nats alone, and where a loss is not finite.
    Li et al. 2024 (Cherry LLM).
    """
    given, alone = np.asarray(nll_given_prompt, dtype=np.float64), np.asarray(nll_alone, dtype=np.float64)
    reliable = np.asarray(n_tokens) >= IFD_LEAST_TOKENS
    reliable &= np.isfinite(given) & np.isfinite(alone) & (alone >= IFD_LEAST_NLL)
    return np.divide(given, alone, out=np.full(given.shape, np.nan), where=reliable), reliable


def rho(nll: ArrayLike, nll_holdout: ArrayLike) -> Floats:
    """What training can still gain on each row: its loss now less its loss under a model that never saw it.

    Nats a token, (n,); below 0 the row is already known better than it generalizes. Mindermann et al. 2022.
    `nll_holdout` must be out of fold: see `holdout_folds`, `out_of_fold`.
    """
    now, holdout = np.asarray(nll, dtype=np.float64), np.asarray(nll_holdout, dtype=np.float64)
    finite = np.isfinite(now) & np.isfinite(holdout)
    return np.subtract(now, holdout, out=np.full(now.shape, np.nan), where=finite)


def holdout_folds(row_ids: Sequence[str], seed: int) -> NDArray[np.int64]:
    """The half, 0 or 1, of each row: a hash of its id, so that other rows never move it.

    Rows that say the same thing belong in one half: give a synthetic row the id of the row that it was made from.
    """
    return np.array([key_of(seed, "holdout fold", row_id) & 1 for row_id in row_ids], dtype=np.int64)


def out_of_fold(folds: ArrayLike, nll_of_models: ArrayLike) -> Floats:
    """Each row's loss under the model trained on the *other* half, (n,); nll_of_models[k] is the model of half k."""
    folds, nll = np.asarray(folds, dtype=np.int64), np.asarray(nll_of_models, dtype=np.float64)
    if nll.shape != (2, len(folds)):
        raise DataError(
            f"losses of the two half models for {len(folds)} rows have shape {nll.shape}, not (2, {len(folds)}); "
            "nothing was scored; give one line of losses for each model"
        )
    return nll[1 - folds, np.arange(len(folds))]


def _with_log_length(score: ArrayLike, n_tokens: ArrayLike) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    values, tokens = np.asarray(score, dtype=np.float64), np.asarray(n_tokens, dtype=np.float64)
    used = np.isfinite(values) & np.isfinite(tokens) & (tokens >= 1)
    return values, np.log(np.where(used, tokens, 1.0)), used


def length_residual(score: ArrayLike, n_tokens: ArrayLike) -> Floats:
    """What is left of a score after a least-squares line in log length: mean 0, correlation 0 with log length.

    In the score's own units, (n,). Rows without a finite score or without a token are NaN and do not take part;
    when all lengths are equal only the mean is taken off. What is not a line in log length stays: look at
    `length_correlation` of the residual.
    """
    values, length, used = _with_log_length(score, n_tokens)
    residual = np.full(values.shape, np.nan)
    if used.any():
        x = length[used] - length[used].mean()
        y = values[used] - values[used].mean()
        spread = x @ x
        residual[used] = y - x * (x @ y / spread if spread > 0 else 0.0)
    return residual


def length_correlation(score: ArrayLike, n_tokens: ArrayLike) -> float:
    """Spearman's rank correlation of a score with length, -1 to 1; NaN when either is constant over usable rows."""
    values, length, used = _with_log_length(score, n_tokens)
    x, y = (pl.Series(v[used]).rank().to_numpy() - (used.sum() + 1) / 2 for v in (length, values))
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else float("nan")
