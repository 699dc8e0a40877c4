"""How many effectively different learning signals a set holds: Vendi scores and m-coherence.

Vendi score: Friedman & Dieng 2023; G-Vendi is the same with gradient features (arXiv 2505.20161). The dual form
needs the d x d second-moment matrix only, which adds up over shards. m-coherence: Chatterjee & Zielinski 2022.
Compare scores at equal n and d only, and look at the share of the ceiling: a score near it says nothing.
Products are in float32 for float16 and float32 features, in float64 for all others; sums are in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from curation.errors import DataError
from curation.logdet import float32_rows

BLOCK = 4096  # rows multiplied at a time
NEAR_CEILING = 0.8  # share of the ceiling beyond which rows look like isotropic noise


@dataclass(frozen=True)
class Moments:
    """Mergeable state of a set's scores; all float64, 8 d^2 bytes whatever n is.

    second (d, d) the sum of z z^T over unit rows, heading (d,) the sum of z, total (d,) and square the sum and the
    squared lengths of raw rows, n the rows in it, left_out the rows of zero or no finite length, which are not.
    """

    second: np.ndarray
    heading: np.ndarray
    total: np.ndarray
    square: float
    n: int
    left_out: int = 0

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.second + other.second,
            self.heading + other.heading,
            self.total + other.total,
            self.square + other.square,
            self.n + other.n,
            self.left_out + other.left_out,
        )


@dataclass(frozen=True)
class Diversity:
    """The scores of one set.

    g_vendi, g_vendi_q2, g_vendi_inf: Vendi scores of orders 1, 2, infinity; ceiling: what isotropic rows would score;
    g_vendi_centred: order 1 after the mean unit row is taken out (0 when nothing else is left); top_share: the largest
    eigenvalue, the share of the commonest direction; m_coherence: of raw rows; m_coherence_unit: of unit rows, which
    long gradients do not dominate; n rows are in it, left_out had no usable length.
    """

    g_vendi: float
    g_vendi_q2: float
    g_vendi_inf: float
    g_vendi_centred: float
    ceiling: float
    top_share: float
    m_coherence: float
    m_coherence_unit: float
    n: int
    left_out: int

    @property
    def ceiling_share(self) -> float:
        """G-Vendi as a share of its ceiling; 0 for no rows."""
        return self.g_vendi / self.ceiling if self.ceiling else 0.0

    @property
    def near_ceiling(self) -> bool:
        """True when the score says little: so few or so noisy rows that they look isotropic."""
        return self.ceiling_share >= NEAR_CEILING


def blocks_of(features: np.ndarray) -> Iterator[np.ndarray]:
    """Views of the rows, a few thousand at a time."""
    return (features[start : start + BLOCK] for start in range(0, len(features), BLOCK))


def usable_rows(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows and lengths of the usable rows of a block, and which they are."""
    single = block.dtype.kind == "f" and block.dtype.itemsize <= 4
    x = float32_rows(block) if single else np.asarray(block, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.einsum("nd,nd->n", x, x)
        norm = np.sqrt(square.astype(np.float64))
        odd = np.flatnonzero(~((square > 1e-30) & (square < 1e30)))  # float32 squares end near there
        norm[odd] = np.linalg.norm(x[odd].astype(np.float64), axis=1)
    kept = (norm > 0) & np.isfinite(norm)
    if len(odd):
        odd = np.flatnonzero(np.isin(np.flatnonzero(kept), odd))
        x, norm = x[kept], norm[kept]
    with np.errstate(over="ignore"):
        z = x / norm.astype(x.dtype)[:, None]
    z[odd] = x[odd].astype(np.float64) / norm[odd, None]
    return z, norm, kept


def _moments(block: np.ndarray) -> Moments:
    z, norm, kept = usable_rows(block)
    heading, total = (np.stack([np.ones(len(z)), norm]).astype(z.dtype) @ z).astype(np.float64)
    second = (z.T @ z).astype(np.float64)
    return Moments(second, heading, total, float(norm @ norm), len(z), len(block) - int(kept.sum()))


def moments(features: np.ndarray) -> Moments:
    """The state of a set of raw features (n, d); rows of zero or no finite length are left out and counted."""
    return moments_of([features])


def moments_of(blocks: Iterable[np.ndarray]) -> Moments:
    """The state of a stream of raw features, each (any n, d): one pass, memory of a block and two d x d matrices."""
    state: Moments | None = None
    for features in blocks:
        if state is None:
            d = features.shape[1]
            state = Moments(np.zeros((d, d)), np.zeros(d), np.zeros(d), 0.0, 0)
        for block in blocks_of(features):
            new = _moments(block)
            state.second.__iadd__(new.second)
            state = Moments(
                state.second,
                state.heading + new.heading,
                state.total + new.total,
                state.square + new.square,
                state.n + new.n,
                state.left_out + new.left_out,
            )
    if state is None:
        raise DataError("no block of features: pass at least one, of shape (0, d) when there are no rows")
    return state


def _shares(spectrum: np.ndarray) -> np.ndarray:
    """Ascending eigenvalues as shares of their sum, without those that are rounding noise.

    Exact ones would not be negative: the most negative one tells how large noise is, and what is no larger is noise.
    Without this cut, the d - r noise eigenvalues of r distinct float32 rows add up to 1e-4 of the score.
    """
    if not len(spectrum) or spectrum[-1] <= 0:
        return np.zeros(0)
    real = spectrum[spectrum > max(1e-14 * spectrum.sum(), -1.5 * spectrum[0])]
    return real / real.sum()


def _entropy_score(spectrum: np.ndarray, order: float) -> float:
    p = _shares(spectrum)
    if not len(p):
        return 0.0
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


def _centred_score(spectrum: np.ndarray) -> float:
    return (
        _entropy_score(spectrum, 1) if spectrum.sum() > 1e-6 else 0.0
    )  # less than float32 rounding of the mean


def diversity_of(state: Moments) -> Diversity:
    """All scores of a set from its state: two eigenvalue problems of size d."""
    n, d = state.n, len(state.heading)
    if not n:
        return Diversity(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, state.left_out)
    mean = state.heading / n
    second = state.second / n
    spectrum, centred = np.linalg.eigvalsh(second), np.linalg.eigvalsh(second - np.outer(mean, mean))
    return Diversity(
        g_vendi=_entropy_score(spectrum, 1),
        g_vendi_q2=_entropy_score(spectrum, 2),
        g_vendi_inf=_entropy_score(spectrum, np.inf),
        g_vendi_centred=_centred_score(centred),
        ceiling=ceiling(n, d),
        top_share=float(spectrum[-1]),
        m_coherence=m_coherence(state),
        m_coherence_unit=float(n * mean @ mean),
        n=n,
        left_out=state.left_out,
    )


def diversity(features: np.ndarray) -> Diversity:
    """All scores of rows at hand, (n, d): by their n x n Gram matrix in float64 when n < d, else by their moments."""
    if len(features) >= features.shape[1]:
        return diversity_of(moments(features))
    z, norm, kept = usable_rows(np.asarray(features, dtype=np.float64))
    n, d = z.shape
    if not n:
        return diversity_of(moments(features))
    gram = z @ z.T
    spread = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    spectrum = np.linalg.eigvalsh(gram / n)
    return Diversity(
        g_vendi=_entropy_score(spectrum, 1),
        g_vendi_q2=_entropy_score(spectrum, 2),
        g_vendi_inf=_entropy_score(spectrum, np.inf),
        g_vendi_centred=_centred_score(np.linalg.eigvalsh(spread / n)),
        ceiling=ceiling(n, d),
        top_share=float(spectrum[-1]),
        m_coherence=float(norm @ gram @ norm / (norm @ norm)),
        m_coherence_unit=float(gram.mean() * n),
        n=n,
        left_out=len(features) - int(kept.sum()),
    )


def diversity_by(features: np.ndarray, groups: np.ndarray) -> dict[object, Diversity]:
    """The scores of every group (source, label, region) of rows, in order of its name.

    features (n, d), a memory map too; groups (n,) of one comparable type. Each row is read once, group by group, so
    that one d x d state is held at a time, however many groups there are.
    """
    order = np.argsort(groups, kind="stable")
    names, starts = np.unique(groups[order], return_index=True)
    found: dict[object, Diversity] = {}
    for name, start, stop in zip(names.tolist(), starts, [*starts[1:], len(order)], strict=False):
        rows = order[start:stop]
        if len(rows) < features.shape[1]:
            found[name] = diversity(features[rows])
        else:
            found[name] = diversity_of(moments_of(features[part] for part in blocks_of(rows)))
    return found


def row_alignment(features: np.ndarray, state: Moments | None = None) -> np.ndarray:
    """Cosine of each row with the sum of all the others, (n,): below 0 pulls against the set.

    Give the state of the whole set to go through it in parts; without it, `features` are the whole. Rows that were
    left out of the state, and rows without others, get 0.
    """
    state = moments(features) if state is None else state
    out = np.zeros(len(features))
    for start, block in zip(range(0, len(features), BLOCK), blocks_of(features), strict=True):
        z, norm, kept = usable_rows(block)
        others = state.total - z * norm[:, None]
        size = np.linalg.norm(others, axis=1)
        near_zero = size <= 1e-7 * norm  # what is left after rounding
        cosine = np.einsum("nd,nd->n", others, z) / np.where(near_zero, 1.0, size)
        out[start : start + BLOCK][kept] = np.where(near_zero, 0.0, cosine)
    return out
