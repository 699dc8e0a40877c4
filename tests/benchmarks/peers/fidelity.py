"""How much of the exact gradients' geometry features keep, and what an ideal dense projection would keep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from peers.case import Case, batch_loss, inputs_of
from scipy.stats import spearmanr

from curation.randomness import generator

SUBSETS = 40
COLUMNS = 1 << 20


def exact_gram(case: Case) -> np.ndarray:
    """(n, n) float64 inner products of the hidden layers' full gradients, each row run alone, by plain autograd."""
    model = case.copy()
    weights = [model.get_submodule(name).weight.requires_grad_(True) for name in case.layers]
    gradients = np.empty((len(case.rows), case.size), dtype=np.float32)
    for i in range(len(case.rows)):
        found = torch.autograd.grad(batch_loss(case, model, *inputs_of(case, np.array([i]))), weights)
        gradients[i] = torch.cat([g.flatten() for g in found]).numpy()
    gram = np.zeros((len(gradients), len(gradients)))
    for at in range(0, case.size, COLUMNS):
        part = gradients[:, at : at + COLUMNS]
        gram += part @ part.T
    return gram


def cosines_of(gram: np.ndarray) -> np.ndarray:
    """A Gram matrix with every diagonal entry scaled to 1."""
    norm = np.sqrt(np.diag(gram))
    return gram / norm[:, None] / norm


def cosines(feature: np.ndarray) -> np.ndarray:
    """(n, n) float64 cosines of feature rows."""
    wide = feature.astype(np.float64)
    return cosines_of(wide @ wide.T)


def ideal_cosines(exact: np.ndarray, d: int, seed: int) -> np.ndarray:
    """Cosines after a dense Gaussian projection to d, drawn from its exact law: d independent N(0, Gram) columns."""
    values, vectors = np.linalg.eigh(exact)
    noise = generator(seed, "benchmark", "ideal", d).standard_normal((len(exact), d))
    return cosines((vectors * np.sqrt(np.maximum(values, 0))) @ noise)


def diversity(cosines: np.ndarray) -> float:
    """G-Vendi (order 1) of the rows whose cosines these are."""
    values = np.linalg.eigvalsh(cosines / len(cosines))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def subsets(kinds: np.ndarray) -> list[np.ndarray]:
    """Index arrays of one size, a third of the rows, from few or many kinds of text and with or without repeats."""
    names = np.unique(kinds)
    size = max(8, len(kinds) // 3)
    found = []
    for i in range(SUBSETS):
        rng = generator(0, "benchmark", "subset", i)
        pool = np.flatnonzero(np.isin(kinds, rng.choice(names, 1 + i % len(names), replace=False)))
        found.append(rng.choice(pool, size, replace=len(pool) < size or i % 4 == 0))
    return found


def measures(kinds: np.ndarray, exact: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """A function from features' cosines to how they agree with the exact ones.

    `pear`: correlation of all pairwise cosines. `gvendi_error`: relative, on all rows. `gvendi_rank`: Spearman over
    subsets. `purity`: share of the five nearest rows that are of the same kind of text. `nn10`: shared neighbours.
    """
    pairs = np.triu_indices(len(exact), 1)
    chosen = subsets(kinds)
    ranks = [diversity(exact[np.ix_(s, s)]) for s in chosen]
    near = neighbours(exact, 10)

    def of(found: np.ndarray) -> dict[str, float]:
        five, ten = neighbours(found, 5), neighbours(found, 10)
        return {
            "pear": float(np.corrcoef(found[pairs], exact[pairs])[0, 1]),
            "gvendi_error": diversity(found) / diversity(exact) - 1,
            "gvendi_rank": float(
                spearmanr([diversity(found[np.ix_(s, s)]) for s in chosen], ranks).statistic
            ),
            "purity": float((kinds[five] == kinds[:, None]).mean()),
            "nn10": float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near, ten, strict=True)])),
        }

    return of


def neighbours(cosines: np.ndarray, k: int) -> np.ndarray:
    """(n, k) the nearest other rows."""
    return np.argsort(-(cosines - 3 * np.eye(len(cosines))), axis=1, kind="stable")[:, :k]
