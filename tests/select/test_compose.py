"""Quotas, equal tokens, length-matched controls."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.logdet import unit_rows
from curation.randomness import generator
from curation.select.compose import (
    TOKEN_TOLERANCE,
    choose_rows,
    equalise_tokens,
    length_matched,
    quotas,
    strata_of,
)
from curation.strategies import Facts

pools = st.lists(st.integers(0, 5), min_size=1, max_size=40).map(np.array)


@given(pools, st.integers(0, 50))
def test_quotas_sum_to_the_budget_and_fit_the_strata(strata: np.ndarray, budget: int) -> None:
    found, counts = quotas(strata, budget), Counter(strata.tolist())
    assert sum(found.values()) == min(budget, len(strata))
    assert set(found) == set(counts)
    assert all(0 <= found[s] <= counts[s] for s in counts)
    if budget >= len(counts):
        assert all(found.values())  # at least one of each where they fit


def test_quotas_with_known_answers() -> None:
    assert quotas(np.repeat([0, 1, 2], [50, 30, 20]), 10) == {0: 5, 1: 3, 2: 2}
    assert quotas(np.repeat([0, 1, 2], [50, 30, 20]), 7) == {0: 4, 1: 2, 2: 1}  # 3.5, 2.1, 1.4
    assert quotas(np.repeat([0, 1, 2], [1000, 1, 1]), 3) == {0: 1, 1: 1, 2: 1}
    assert quotas(np.repeat([0, 1, 2], [97, 2, 1]), 10) == {0: 8, 1: 1, 2: 1}
    assert quotas(np.repeat([0, 1], [3, 2]), 99) == {0: 3, 1: 2}
    assert sum(quotas(np.arange(9), 4).values()) == 4


@st.composite
def token_problems(draw):
    n = draw(st.integers(2, 40))
    tokens = np.array(draw(st.lists(st.integers(3, 30), min_size=n, max_size=n)))
    strata = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    order = generator(draw(st.integers(0, 99)), "order").permutation(n)
    cut = draw(st.integers(1, n))
    return order[:cut], order[cut:], tokens, strata, draw(st.floats(0.5, 1.5)) * tokens[order[:cut]].sum()


@given(token_problems())
def test_equal_tokens_within_the_strata_as_near_as_swaps_get(problem) -> None:
    chosen, reserve, tokens, strata, target = problem
    before = chosen.copy()
    found = equalise_tokens(chosen, reserve, tokens, strata, target)
    assert np.array_equal(chosen, before)
    assert len(set(found.tolist())) == len(found)
    assert set(found.tolist()) <= set(chosen.tolist()) | set(reserve.tolist())
    assert np.array_equal(strata[found], strata[chosen])  # each place keeps its stratum
    gap = target - tokens[found].sum()
    assert abs(gap) <= abs(target - tokens[chosen].sum()) + 1e-9
    if abs(gap) > TOKEN_TOLERANCE * target:  # then no swap that is left would bring it nearer
        left = np.setdiff1d(np.concatenate([chosen, reserve]), found)
        for i in found:
            for j in left[strata[left] == strata[i]]:
                assert abs(gap - (tokens[j] - tokens[i])) >= abs(gap) - 1e-9
    else:
        swapped = np.flatnonzero(found != chosen)
        assert len(swapped) == 0 or abs(target - tokens[chosen].sum()) > TOKEN_TOLERANCE * target


def test_tokens_that_fit_already_are_left_alone_and_last_ranks_go_first() -> None:
    tokens, strata = np.array([10, 10, 10, 10, 14]), np.zeros(5, int)
    assert equalise_tokens(np.array([0, 1, 2]), np.array([3, 4]), tokens, strata, 30.2).tolist() == [0, 1, 2]
    assert equalise_tokens(np.array([0, 1, 2]), np.array([3, 4]), tokens, strata, 34).tolist() == [0, 1, 4]
    assert equalise_tokens(
        np.array([0, 1, 2]), np.array([3, 4]), tokens, np.array([0, 0, 1, 0, 0]), 34
    ).tolist() == [0, 4, 2]


def test_a_far_target_is_reached_though_near_rows_come_first() -> None:
    tokens = np.array([10] * 50 + [11] * 50 + [20] * 50)
    found = equalise_tokens(np.arange(50), np.arange(50, 150), tokens, np.zeros(150, int), 900)
    assert tokens[found].sum() == pytest.approx(900, rel=TOKEN_TOLERANCE)


def pool(n: int, seed: int = 0) -> tuple[Facts, np.ndarray, np.ndarray]:
    draw = generator(seed, "pool of compose")
    lengths = np.clip(draw.lognormal(2.5, 0.5, n), 3, 60).astype(int)
    z = unit_rows(draw.standard_normal((n, 8)) * np.linspace(0.2, 2, 8))
    return Facts(draw.random(n) < 0.3, z, embedding=z), draw.integers(0, 4, n), lengths


@pytest.mark.parametrize(
    "strategy",
    ["random", "errors_first", "gradient_logdet", "errors_logdet", "gradient_kcenter", "embedding_clusters"],
)
def test_a_set_keeps_budget_quotas_and_tokens(strategy: str) -> None:
    facts, strata, tokens = pool(300)
    budget = 80
    target = budget * tokens.mean()
    found = choose_rows(strategy, facts, strata, tokens, budget, target, 7, "arm", 1)
    assert len(set(found.tolist())) == budget
    assert dict(Counter(strata[found].tolist())) == quotas(strata, budget)
    assert tokens[found].sum() == pytest.approx(target, rel=TOKEN_TOLERANCE)
    assert np.array_equal(found, choose_rows(strategy, facts, strata, tokens, budget, target, 7, "arm", 1))
    if strategy in ("random", "errors_first"):  # the others are determined, up to swaps
        assert not np.array_equal(
            found, choose_rows(strategy, facts, strata, tokens, budget, target, 7, "arm", 2)
        )


def test_errors_fill_their_quota_first() -> None:
    facts, strata, _ = pool(300)
    found = choose_rows("errors_first", facts, strata, np.full(300, 9), 60, 60 * 9, 7)
    for stratum, quota in quotas(strata, 60).items():
        wrong = int((facts.wrong & (strata == stratum)).sum())
        assert facts.wrong[found[strata[found] == stratum]].sum() == min(quota, wrong)


@given(st.integers(0, 50), st.integers(1, 40))
@settings(deadline=None)
def test_length_matched_has_the_labels_and_lengths(seed: int, n: int) -> None:
    _, strata, tokens = pool(120, seed)
    like = generator(seed, "like").permutation(120)[:n]
    found = length_matched(like, np.arange(120), strata, tokens, 7, seed)
    assert len(set(found.tolist())) == n
    assert Counter(zip(strata[found], tokens[found], strict=True)) == Counter(
        zip(strata[like], tokens[like], strict=True)
    )
    assert np.array_equal(found, length_matched(like, np.arange(120), strata, tokens, 7, seed))


def test_length_matched_draws_from_what_is_open() -> None:
    _, strata, tokens = pool(200)
    like, open_to = np.arange(20), np.arange(50, 200)
    found = length_matched(like, open_to, strata, tokens, 7)
    assert set(found.tolist()) <= set(open_to.tolist())
    assert Counter(strata[found]) == Counter(strata[like])
    assert np.abs(np.sort(tokens[found]) - np.sort(tokens[like])).mean() < 1.5
    assert not np.array_equal(np.sort(found), np.sort(length_matched(like, open_to, strata, tokens, 8)))
    assert len(length_matched(like, np.arange(50, 55), strata, tokens, 7)) == 5


def test_strata_of_labels() -> None:
    assert strata_of(["b", "a", None, "b"]).tolist() == [1, 0, -1, 1]
    assert len(set(strata_of([None, None]).tolist())) == 1
