"""Gradients as the steps that Adam would take on them: exact, and as a scale that goes before a projection."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def adam_direction(
    g: ArrayLike, m: ArrayLike, v: ArrayLike, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Floats:
    """The step Adam would take on one row: (b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g^2 + eps), elementwise.

    For full gradients (..., p), never projected ones: the division is by parameter. m and v are the optimiser's
    moments. eps sits inside the root and there is no bias correction, as in the code of Xia et al. 2024 (LESS).
    """
    g, m, v = (np.asarray(x, dtype=np.float64) for x in (g, m, v))
    b1, b2 = betas
    return (b1 * m + (1 - b1) * g) / np.sqrt(b2 * v + (1 - b2) * g * g + eps)


def adam_scale(v: ArrayLike, beta2: float = 0.999, eps: float = 1e-8) -> Floats:
    """The scale s of each parameter that makes Adam's direction linear in the row's gradient: 1 / sqrt(b2 v + eps).

    It leaves out only the row's own (1 - b2) g^2 under the root (5 % of the direction where g^2 = 100 v). Being
    linear it commutes with a projection P that is applied *after* it: the feature to compare is
    (1 - b1) P(s * g) + b1 P(s * m). It cannot be applied to features that are already projected.
    """
    return 1.0 / np.sqrt(beta2 * np.asarray(v, dtype=np.float64) + eps)


def adam_side_scales(v: ArrayLike, beta2: float = 0.999, eps: float = 1e-8) -> tuple[Floats, Floats]:
    """`adam_scale` of one weight as scales of its two sides, (out,) and (in,): s ~ outer(out, in).

    For features made from layer inputs a and output gradients e without ever forming e a^T: scale e by the first
    and a by the second. Exact when b2 v + eps (out, in) has rank 1; otherwise its best rank-1 fit in the
    generalised Kullback-Leibler sense, row sums times column sums over the total (Shazeer & Stern 2018, Adafactor).
    """
    second = beta2 * np.asarray(v, dtype=np.float64) + eps
    root = np.sqrt(second.sum())
    return 1.0 / np.sqrt(second.sum(1) / root), 1.0 / np.sqrt(second.sum(0) / root)
