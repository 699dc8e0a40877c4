"""The numbers of a decision: exact sign-flip test, intervals, and how many replicates a gain needs.

Source: the decision rule of the loop (sections 2 to 5). Every function is pure; differences are candidate
minus control, in points, one a replicate.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from curation.errors import UserError

MAX_REPLICATES = 20  # beyond, the exact test is refused
MIN_REPLICATES = 6  # a round with fewer cannot publish
Z_POWER_80 = 0.84  # normal quantile of 80 % power
TIE = 1e-10  # sums closer than this share of sum |d| are ties


def sign_flip_p(differences: ArrayLike) -> float:
    """The exact one-sided p: the share of the 2^n sign patterns whose mean is at least the observed one.

    differences: (n,) points, 1 <= n <= 20, finite. Sums equal up to rounding count as ties, that is,
    against the candidate. The null is that every difference is symmetric about 0. Raises `UserError` for n
    > 20, `ValueError` for other misuse. Cost 2^(n/2): the pattern sums of one half are looked up among
    those of the other.
    """
    d = _finite_vector(differences)
    if d.size > MAX_REPLICATES:
        raise UserError(
            f"{d.size} replicates: the exact test takes at most {MAX_REPLICATES}; "
            f"set replicates, max_replicates or worlds to {MAX_REPLICATES} or fewer"
        )
    half = d.size // 2
    left, right = _pattern_sums(d[:half]), np.sort(_pattern_sums(d[half:]))
    least = float(d.sum()) - TIE * float(np.abs(d).sum())
    below = np.searchsorted(right, least - left, side="left")
    return float((right.size - below).sum()) / 2.0**d.size


def _pattern_sums(d: np.ndarray) -> np.ndarray:
    """Sums of all 2^n sign patterns of d, shape (2^n,); one zero for no numbers."""
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate((sums + value, sums - value))
    return sums


def smallest_p(n: int) -> float:
    """The smallest p that n replicates can reach, 1/2^n: every difference positive."""
    if n < 1:
        raise ValueError(f"n = {n}: at least one replicate is needed")
    return 2.0**-n


def t_interval(differences: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean, lower and upper limit of the two-sided t interval between replicates; NaN limits for n = 1."""
    d = _finite_vector(differences)
    mean = float(d.mean())
    if d.size < 2:
        return mean, math.nan, math.nan
    half = _t_quantile(d.size - 1, level) * float(d.std(ddof=1)) / math.sqrt(d.size)
    return mean, mean - half, mean + half


def crossed_interval(
    cells: ArrayLike, weights: ArrayLike | None = None, level: float = 0.95
) -> tuple[float, float, float, int]:
    """Mean, lower and upper limit with items crossed with replicates, and the number of clusters.

    cells: (n replicates, m item clusters), mean difference of the cluster's items, points. weights: (m,)
    positive, items a cluster (for a mean over suites of equal weight: the cluster's items over its suite's
    items); default equal. The mean is the weighted one, so that it is the mean over items.

    SE^2 = max(MS_r + MS_c - MS_e, MS_r, MS_c) / (n m), df = min(n, m) - 1, from the two-way table. Unequal
    clusters: with v_j = w_j / sum w, the deviations of the table are replaced by the influence of each cell
    on the weighted mean: rows D_i. - D.. (weighted over j), columns m v_j (D.j - D..), residuals m v_j
    (D_ij - D_i. - D.j + D..). Their rows and columns sum to 0 as in a balanced table, equal weights give
    exactly the textbook squares, and MS_c / (n m) is the usual cluster-robust variance of a mean over
    items. Many very unequal clusters hold less than m - 1 degrees of freedom; df does not know that.

    NaN limits when n < 2 or m < 2. Raises `ValueError` for a table that is not 2-d, finite and non-empty.
    """
    d = np.asarray(cells, dtype=np.float64)
    if d.ndim != 2 or d.size == 0 or not np.isfinite(d).all():
        raise ValueError(f"cells must be a finite (replicates, clusters) table, got shape {d.shape}")
    n, m = d.shape
    share = _shares(weights, m)
    rows = d @ share
    mean = float(rows.mean())
    if n < 2 or m < 2:
        return mean, math.nan, math.nan, m
    columns = d.mean(axis=0)
    influence = m * share
    residual = influence * (d - rows[:, None] - columns + mean)
    ms_r = m * float(((rows - mean) ** 2).sum()) / (n - 1)
    ms_c = n * float(((influence * (columns - mean)) ** 2).sum()) / (m - 1)
    ms_e = float((residual**2).sum()) / ((n - 1) * (m - 1))
    error = math.sqrt(max(ms_r + ms_c - ms_e, ms_r, ms_c) / (n * m))
    half = _t_quantile(min(n, m) - 1, level) * error
    return mean, mean - half, mean + half, m


def detectable(sd: float, n: int, alpha: float) -> float:
    """The gain in points that n replicates find with about 80 % power: (z_{1-alpha} + 0.84) sd / sqrt(n).

    NaN when sd is (one replicate), infinite when alpha is 0.
    """
    return _z_sum(alpha) * sd / math.sqrt(n) if alpha > 0 else math.inf


def replicates_needed(sd: float, smallest_gain: float, alpha: float) -> int:
    """The replicates with which a gain of `smallest_gain` points is detectable; never below 6.

    Normal theory, so a little low: a t or sign-flip test needs about two more. Raises `ValueError` for
    alpha 0, NaN sd or a gain that is not positive.
    """
    if not smallest_gain > 0 or not alpha > 0 or not math.isfinite(sd):
        raise ValueError(f"no number of replicates for sd {sd}, gain {smallest_gain}, alpha {alpha}")
    return max(MIN_REPLICATES, math.ceil((_z_sum(alpha) * sd / smallest_gain) ** 2 - 1e-9))


def confirming_replicates(sd_screen: float, smallest_gain: float, alpha: float, n_budget: int) -> int:
    """The confirming replicates: clip(ceil(((z_{1-alpha} + 0.84) sd / gain)^2) + 2, 6, n_budget).

    A budget below 6 (or above 20) wins (or is cut to 20); see `explain_too_few` for what to say then.
    """
    if not smallest_gain > 0 or not alpha > 0 or not math.isfinite(sd_screen):
        raise ValueError(f"no number of replicates for sd {sd_screen}, gain {smallest_gain}, alpha {alpha}")
    wanted = math.ceil((_z_sum(alpha) * sd_screen / smallest_gain) ** 2 - 1e-9) + 2
    return min(max(wanted, MIN_REPLICATES), n_budget, MAX_REPLICATES)


def _z_sum(alpha: float) -> float:
    """z_{1-alpha} + z of 80 % power."""
    return float(special.ndtri(1.0 - alpha)) + Z_POWER_80


def _t_quantile(df: int, level: float) -> float:
    """The two-sided quantile of Student's t."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    return float(special.stdtrit(df, 0.5 + level / 2))


def _shares(weights: ArrayLike | None, m: int) -> np.ndarray:
    """The weights of m clusters as shares that sum to 1."""
    if weights is None:
        return np.full(m, 1.0 / m)
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (m,) or not np.isfinite(w).all() or not (w > 0).all():
        raise ValueError(f"weights must be {m} positive numbers, one a cluster, got shape {w.shape}")
    return w / w.sum()


def _finite_vector(differences: ArrayLike) -> np.ndarray:
    """The differences as float64, checked."""
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or d.size == 0 or not np.isfinite(d).all():
        raise ValueError(f"differences must be finite, one a replicate, got shape {d.shape}: {d.tolist()}")
    return d
