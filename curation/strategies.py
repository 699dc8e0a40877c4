"""The strategies: orders in which rows enter a set. Selection from a pool and acceptance of new rows share them.

Every strategy sees the same `Facts` and returns one order of the candidates, best first; what is taken from it
(how many, within which label, within how many tokens) is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from curation.clusters import spherical_kmeans
from curation.errors import UserError
from curation.logdet import logdet_order, unit_rows

RIDGE = 0.1


@dataclass(frozen=True)
class Facts:
    """What strategies may know of n candidates: unit-row matrices, and which ones the proxy gets wrong.

    The `given_*` matrices hold the rows already in the set (grow), on which greedy choices are conditional.
    """

    wrong: np.ndarray
    gradient: np.ndarray
    surface: np.ndarray | None = None
    embedding: np.ndarray | None = None
    given_gradient: np.ndarray | None = None
    given_surface: np.ndarray | None = None
    given_embedding: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.wrong)

    def take(self, index: np.ndarray) -> Facts:
        """The facts of some candidates; the given rows stay."""
        cut = {
            k: getattr(self, k)[index]
            for k in ("wrong", "gradient", "surface", "embedding")
            if getattr(self, k) is not None
        }
        return replace(self, **cut)


def _matrices(facts: Facts, space: str) -> tuple[np.ndarray, np.ndarray | None]:
    z = getattr(facts, space)
    if z is None:
        raise UserError(f"strategy in {space} space needs {space} features, and this recipe's proxy has none")
    return z, getattr(facts, "given_" + space)


def _then_the_rest(first: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    rest = np.setdiff1d(np.arange(n), first)
    return np.concatenate([first, rng.permutation(rest)])


def random_order(facts: Facts, picks: int, rng: np.random.Generator) -> np.ndarray:
    """The control: any order."""
    return rng.permutation(len(facts))


def errors_first(facts: Facts, picks: int, rng: np.random.Generator) -> np.ndarray:
    """Rows the proxy gets wrong, in any order; then the others."""
    order = rng.permutation(len(facts))
    return order[np.argsort(~facts.wrong[order], kind="stable")]


def _logdet(space: str) -> Callable[[Facts, int, np.random.Generator], np.ndarray]:
    def order(facts: Facts, picks: int, rng: np.random.Generator) -> np.ndarray:
        z, given = _matrices(facts, space)
        return _then_the_rest(logdet_order(z, picks, given, RIDGE)[0], len(z), rng)

    return order


def errors_logdet(facts: Facts, picks: int, rng: np.random.Generator) -> np.ndarray:
    """Rows the proxy gets wrong by greedy log-det in gradient space; when they run out, the others likewise."""
    z, given = _matrices(facts, "gradient")
    wrong = np.flatnonzero(facts.wrong)
    first = wrong[logdet_order(z[wrong], picks, given, RIDGE)[0]] if len(wrong) else wrong
    if len(first) < picks:
        right = np.flatnonzero(~facts.wrong)
        have = z[first] if given is None else np.concatenate([given, z[first]])
        first = np.concatenate([first, right[logdet_order(z[right], picks - len(first), have, RIDGE)[0]]])
    return _then_the_rest(first, len(facts), rng)


def _kcenter(space: str) -> Callable[[Facts, int, np.random.Generator], np.ndarray]:
    def order(facts: Facts, picks: int, rng: np.random.Generator) -> np.ndarray:
        z, given = _matrices(facts, space)
        near = (z @ given.T).max(1) if given is not None and len(given) else np.full(len(z), -2.0)
        chosen: list[int] = []
        for _ in range(min(picks, len(z))):
            j = int(rng.integers(len(z))) if not chosen and near[0] == -2.0 else int(np.argmin(near))
            chosen.append(j)
            near = np.maximum(near, z @ z[j])
            near[chosen] = np.inf
        return _then_the_rest(np.array(chosen, dtype=np.int64), len(z), rng)

    return order


def _clusters(space: str) -> Callable[[Facts, int, np.random.Generator], np.ndarray]:
    def order(facts: Facts, picks: int, rng: np.random.Generator) -> np.ndarray:
        z, _ = _matrices(facts, space)
        _, cluster, _ = spherical_kmeans(z, max(2, picks // 2), int(rng.integers(2**31)))
        shuffled = rng.permutation(len(z))
        turn = np.zeros(len(z), dtype=np.int64)
        seen: dict[int, int] = {}
        for i in shuffled:
            among = seen.get(int(cluster[i]), 0)
            turn[i], seen[int(cluster[i])] = among, among + 1
        return shuffled[np.argsort(turn[shuffled], kind="stable")]

    return order


ORDERS: dict[str, Callable[[Facts, int, np.random.Generator], np.ndarray]] = {
    "random": random_order,
    "errors_first": errors_first,
    "gradient_logdet": _logdet("gradient"),
    "surface_logdet": _logdet("surface"),
    "errors_logdet": errors_logdet,
    "gradient_kcenter": _kcenter("gradient"),
    "gradient_clusters": _clusters("gradient"),
    "embedding_logdet": _logdet("embedding"),
    "embedding_kcenter": _kcenter("embedding"),
    "embedding_clusters": _clusters("embedding"),
}


def rank_rows(strategy: str, facts: Facts, picks: int, rng: np.random.Generator) -> np.ndarray:
    """All candidates in the strategy's order, best first; the first `picks` are the greedy ones."""
    if strategy not in ORDERS:
        raise UserError(f"unknown strategy {strategy!r}; known: {', '.join(ORDERS)}")
    return ORDERS[strategy](facts, picks, rng)


def surface_features(texts: list[list[str]], d: int, seed: int) -> np.ndarray:
    """(n, d) unit rows from words and words-at-positions alone, each a named Gaussian direction: no model at all."""
    from curation.randomness import generator, key_of

    out = np.zeros((len(texts), d), dtype=np.float32)
    table: dict[str, np.ndarray] = {}
    for i, words in enumerate(texts):
        for at, word in enumerate(words):
            for name in (word, f"{at}:{word}"):
                if name not in table:
                    table[name] = (
                        generator(key_of(seed, "surface"), name).standard_normal(d).astype(np.float32)
                    )
                out[i] += table[name]
    return unit_rows(out)
