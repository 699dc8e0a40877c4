"""Budgeted selection: quotas by label, then the strategy's order, then equal tokens."""

from __future__ import annotations

import numpy as np

from curation.randomness import generator
from curation.strategies import Facts, rank_rows

TOKEN_TOLERANCE = 0.005  # of the target, so that two arms differ by 1 % at most


def quotas(strata: np.ndarray, budget: int) -> dict[int, int]:
    """Rows of each stratum in a set of `budget`: proportional, largest remainders first, at least one where it fits."""
    names, counts = np.unique(strata, return_counts=True)
    budget = min(budget, len(strata))
    exact = counts * budget / len(strata)
    take = np.minimum(np.maximum(np.floor(exact), 1 if budget >= len(names) else 0), counts).astype(int)
    while take.sum() > budget:
        take[np.argmax(np.where(take > 1, take - exact, -np.inf))] -= 1
    for i in np.argsort(-(exact - take), kind="stable"):
        if take.sum() < budget and take[i] < counts[i]:
            take[i] += 1
    while take.sum() < budget:
        take[np.argmax(np.where(take < counts, exact - take, -np.inf))] += 1
    return dict(zip(names.tolist(), take.tolist(), strict=True))


def equalise_tokens(
    chosen: np.ndarray,
    reserve: np.ndarray,
    tokens: np.ndarray,
    strata: np.ndarray,
    target: float,
    tolerance: float = TOKEN_TOLERANCE,
) -> np.ndarray:
    """The chosen rows after swaps, last ranks first, that bring their tokens within `tolerance` of `target`.

    A swap takes the earliest reserve row of the same stratum that brings the sum nearer to the target; ranks are
    gone through again as long as that helps. What cannot be reached is left where no swap brings it nearer.
    """
    chosen, gap = chosen.copy(), target - float(tokens[chosen].sum())
    waiting = {int(s): reserve[strata[reserve] == s] for s in np.unique(strata[chosen])}
    before = np.inf
    while abs(gap) < before:
        before = abs(gap)
        for at in range(len(chosen) - 1, -1, -1):
            if abs(gap) <= tolerance * target:
                return chosen
            pool = waiting[int(strata[chosen[at]])]
            change = tokens[pool] - tokens[chosen[at]]
            nearer = np.flatnonzero(np.abs(gap - change) < abs(gap))
            if len(nearer):
                where = nearer[0]
                pool[where], chosen[at] = chosen[at], pool[where]
                gap -= float(change[where])
    return chosen


def choose_rows(
    strategy: str,
    facts: Facts,
    strata: np.ndarray,
    tokens: np.ndarray,
    budget: int,
    target_tokens: float,
    seed: int,
    *purpose: object,
) -> np.ndarray:
    """Row numbers of a set: `budget` rows by the strategy within label quotas, tokens equal to the target +- 1 %."""
    chosen: list[np.ndarray] = []
    reserve: list[np.ndarray] = []
    for stratum, quota in quotas(strata, budget).items():
        members = np.flatnonzero(strata == stratum)
        rng = generator(seed, strategy, stratum, *purpose)
        order = members[rank_rows(strategy, facts.take(members), quota, rng)]
        chosen.append(order[:quota])
        reserve.append(order[quota:])
    return equalise_tokens(np.concatenate(chosen), np.concatenate(reserve), tokens, strata, target_tokens)


def length_matched(
    like: np.ndarray, open_to: np.ndarray, strata: np.ndarray, tokens: np.ndarray, seed: int, *purpose: object
) -> np.ndarray:
    """A random set with the labels and lengths of the rows `like`, drawn from the rows `open_to`.

    Each row of `like` is replaced by a random row of its stratum of the same length, or the nearest length that
    is left: the control that has the candidate's lengths and nothing else of it.
    """
    rng = generator(seed, "length_matched", *purpose)
    free = np.zeros(len(strata), dtype=bool)
    free[open_to] = True
    shuffled = rng.permutation(open_to)
    out = np.empty(min(len(like), len(open_to)), dtype=np.int64)
    for k, i in enumerate(rng.permutation(like)[: len(out)]):
        pool = shuffled[free[shuffled] & (strata[shuffled] == strata[i])]
        pool = pool if len(pool) else shuffled[free[shuffled]]
        out[k] = pool[np.argmin(np.abs(tokens[pool] - tokens[i]))]
        free[out[k]] = False
    return out


def strata_of(labels: list[str | None]) -> np.ndarray:
    """Label numbers (n,), all 0 without labels."""
    names = {name: i for i, name in enumerate(sorted({x for x in labels if x is not None}))}
    return np.array([names.get(x, -1) if x is not None else -1 for x in labels], dtype=np.int64)
