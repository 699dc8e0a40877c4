"""The rule, condition by condition, with the sentence that each decision gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.decide.rule import (
    ControlFacts,
    Verdict,
    alpha_for,
    can_publish,
    choose_strategy,
    explain_too_few,
    judge,
    stop_reason,
    unpublished_rounds_in_streak,
)
from curation.errors import UserError

CLEAR = np.array([3.0, 4.0, 5.0, 2.5, 3.5, 4.5])  # p = 1/64
ONE_OFF = np.array([3.0, 4.0, 5.0, 2.5, 3.5, -0.1])  # p = 2/64
NOISY = np.array([6.0, -4.0, 5.0, 7.0, -3.0, 1.6])
NOTHING = np.array([0.5, -0.5, 0.2, -0.3, 0.1, -0.1])


def facts(name: str, d: np.ndarray, accuracy: np.ndarray | None = None, cells: np.ndarray | None = None):
    return ControlFacts(name, d, d if accuracy is None else accuracy, cells)


def decide(*controls: ControlFacts, guard: float | None = 0.0, alpha: float = 2 / 64, **changes) -> Verdict:
    n = len(controls[0].differences)
    rules = {"real_corpus": False, "endpoint_is_accuracy": True, **changes}
    return judge(controls, None if guard is None else np.full(n, guard), alpha, 2.0, 1.0, **rules)


def spread(d: np.ndarray, clusters: int, size: float) -> np.ndarray:
    """Cells whose row means are d, with clusters that differ by `size`."""
    return d[:, None] + size * np.linspace(-1, 1, clusters)


def test_publishes_a_clear_gain() -> None:
    v = decide(facts("random", CLEAR), facts("random_length", ONE_OFF))
    assert v.decision == "publish" and v.p == 2 / 64 and v.n == 6 and v.guard_difference == 0
    assert [c.p for c in v.comparisons] == [1 / 64, 2 / 64]
    assert v.reason.startswith("PUBLISH n=6 diff=+3.0 [1.2, 4.8] p=.031 ≤ α=2/64 against random_length; ")
    for part in ("smallest publishable p 1/64", "detectable (80 %) ≈", "need n ≈", "+5.0", "published"):
        assert part in v.reason


def test_the_test_is_joint_at_full_alpha() -> None:
    assert decide(facts("a", CLEAR), facts("b", CLEAR), facts("c", CLEAR), alpha=1 / 64).decision == "publish"
    assert decide(facts("a", CLEAR), facts("b", ONE_OFF), alpha=1 / 64).decision == "inconclusive"


def test_inconclusive_says_what_would_be_needed() -> None:
    v = decide(facts("random", NOISY), cpu_minutes_per_replicate=1.5)
    assert v.decision == "inconclusive"
    assert v.reason.startswith("INCONCLUSIVE n=6 diff=+2.1 [−2.8, 7.0] p=.17 > α=2/64 against random; ")
    assert "need n ≈ 41 ≈ 62 CPU-minutes for a gain of 2.0" in v.reason
    assert v.reason.endswith("per replicate +6.0 −4.0 +5.0 +7.0 −3.0 +1.6; previous version kept")


def test_a_failed_guard_keeps_the_previous_version() -> None:
    v = decide(facts("random", CLEAR), guard=-1.2)
    assert v.decision == "keep" and v.guard_difference == pytest.approx(-1.2)
    assert "ID against the previous version −1.2, below the guard of −1.0" in v.reason
    assert decide(facts("random", CLEAR), guard=-1.0).decision == "publish"
    assert decide(facts("random", NOISY), guard=-5.0).decision == "inconclusive"
    assert decide(facts("random", NOTHING), guard=-5.0).decision == "futile"


def test_no_id_suite_is_said() -> None:
    v = decide(facts("random", CLEAR), guard=None)
    assert v.decision == "publish" and math.isnan(v.guard_difference)
    assert "no ID suite, so no guard" in v.reason


def test_accuracy_must_rise_too() -> None:
    worse = facts("random", CLEAR, accuracy=np.full(6, -0.1))
    v = decide(worse, endpoint_is_accuracy=False)
    assert v.decision == "inconclusive" and "accuracy against random is −0.1, not above 0" in v.reason
    assert decide(worse).decision == "publish"
    assert decide(facts("random", CLEAR, np.zeros(6)), endpoint_is_accuracy=False).decision == "inconclusive"


def test_a_real_corpus_asks_the_items_too() -> None:
    steady, shaky = (facts("random", CLEAR, cells=spread(CLEAR, 20, size)) for size in (1.0, 20.0))
    assert decide(steady, real_corpus=True).decision == "publish"
    v = decide(shaky, real_corpus=True)
    assert v.decision == "inconclusive" and "lower limit over items and replicates against" in v.reason
    assert decide(shaky).decision == "publish"  # reported, not a gate
    v = decide(steady, facts("b", CLEAR, cells=spread(CLEAR, 20, 20.0)), real_corpus=True)
    assert v.decision == "inconclusive"


def test_few_clusters_are_said() -> None:
    v = decide(facts("random", CLEAR, cells=spread(CLEAR, 5, 0.1)), real_corpus=True)
    assert v.decision == "publish" and "5 clusters, holds for these items only" in v.reason
    v = decide(facts("random", CLEAR, cells=CLEAR[:, None]), real_corpus=True)
    assert v.decision == "inconclusive" and "unknown" in v.reason
    with pytest.raises(ValueError, match="clusters"):
        decide(facts("random", CLEAR), real_corpus=True)


def test_futile_needs_a_control_that_blocks_and_leaves_no_room() -> None:
    v = decide(facts("random", NOTHING))
    assert v.decision == "futile"
    assert "no useful gain: the upper limit against random is +0.4, below 2.0" in v.reason
    assert decide(facts("a", CLEAR), facts("b", NOTHING)).decision == "futile"
    small = CLEAR / 4  # beyond noise, limits below the smallest useful gain
    assert decide(facts("a", small)).decision == "publish"
    assert decide(facts("a", small), facts("b", NOISY)).decision == "inconclusive"
    assert decide(facts("a", small), facts("b", NOISY), alpha=1 / 128).decision == "futile"


def test_futile_on_a_real_corpus_looks_at_both_upper_limits() -> None:
    control = facts("random", NOTHING, cells=spread(NOTHING, 8, 9.0))
    assert decide(control).comparisons[0].high < 2 < decide(control).comparisons[0].crossed_high
    assert decide(control, real_corpus=True).decision == "inconclusive"
    one = facts("random", NOTHING, cells=NOTHING[:, None])
    assert decide(one, real_corpus=True).decision == "inconclusive"


@pytest.mark.parametrize("n", [1, 3, 5])
def test_fewer_than_six_never_publish(n: int) -> None:
    v = decide(facts("random", CLEAR[:n]))
    assert v.decision == "inconclusive" and f"too few replicates to publish: n={n}" in v.reason


def test_a_finished_streak_never_publishes() -> None:
    v = decide(facts("random", CLEAR), alpha=0.0)
    assert v.decision == "inconclusive" and "the streak is over" in v.reason


def test_facts_must_fit_together() -> None:
    with pytest.raises(ValueError):
        judge([], np.zeros(6), 2 / 64, 2.0, 1.0, False, True)
    with pytest.raises(ValueError, match="6 finite"):
        decide(facts("a", CLEAR), facts("b", CLEAR[:5]))
    with pytest.raises(ValueError, match="off the differences"):
        decide(facts("a", CLEAR, cells=spread(CLEAR + 1, 9, 1.0)))
    with pytest.raises(UserError):
        decide(facts("a", np.ones(21)))


vectors = st.lists(st.floats(-20, 20), min_size=6, max_size=6).map(np.array)


@given(st.lists(vectors, min_size=1, max_size=3), st.floats(-3, 3), st.sampled_from([2 / 64, 1 / 64]))
def test_publishing_is_exactly_the_conditions(columns: list[np.ndarray], guard: float, alpha: float) -> None:
    controls = [facts(str(i), d) for i, d in enumerate(columns)]
    v = decide(*controls, guard=guard, alpha=alpha)
    passed = max(c.p for c in v.comparisons) <= alpha
    assert (v.decision == "publish") == (passed and guard >= -1)
    assert (v.decision == "keep") == (passed and guard < -1)
    assert v.reason.startswith(v.decision.upper())
    more = decide(*controls, facts("more", NOTHING), guard=guard, alpha=alpha)
    assert more.p >= v.p and more.decision != "publish"


def test_the_level_follows_the_streak() -> None:
    assert [alpha_for(k) for k in range(4)] == [2 / 64, 1 / 64, 0, 0]
    with pytest.raises(ValueError):
        alpha_for(-1)
    assert unpublished_rounds_in_streak([]) == 0
    assert unpublished_rounds_in_streak(["futile", "publish", "keep", "inconclusive"]) == 2
    assert unpublished_rounds_in_streak(["futile", "publish"]) == 0
    assert unpublished_rounds_in_streak(["futile", "by hand"]) == 1


def test_when_publishing_is_impossible() -> None:
    assert [can_publish(n, 2 / 64) for n in (4, 5, 6)] == [False, False, True]
    assert [can_publish(n, 1 / 64) for n in (5, 6, 7)] == [False, True, True]
    assert not can_publish(20, 0.0) and not can_publish(6, 1 / 128)
    text = explain_too_few(4, 2 / 64, ["random", "random_length"])
    assert "n=4" in text and "random and random_length is 1/16" in text and "to at least 6" in text
    assert "streak is over" in explain_too_few(8, 0.0, ["random"])


def test_the_screen_chooses_the_best_or_random() -> None:
    chosen, reason = choose_strategy({"a": np.array([1.0, 2, 3, 2]), "b": np.array([2.0, 3, 4, 3])})
    assert chosen == "b" and "a +2.0 ± 0.4 (n=4)" in reason and "b +3.0 ± 0.4 (n=4)" in reason
    assert choose_strategy({"b": np.array([1.0, 2]), "a": np.array([2.0, 1])})[0] == "b"  # recipe order
    chosen, reason = choose_strategy({"a": np.array([3.0, -3, 2, -1])})
    assert chosen is None and "stratified random" in reason and "a +0.2" in reason
    assert choose_strategy({"a": np.array([5.0])})[0] is None  # no standard error
    assert choose_strategy({"a": np.array([1.0, 1.0, 1.0])})[0] == "a"
    assert choose_strategy({"a": np.zeros(4)})[0] is None
    assert choose_strategy({})[0] is None


@pytest.mark.parametrize(
    ("decisions", "rounds", "saturated", "minutes", "reason"),
    [
        ([], 3, False, None, None),
        (["futile"], 2, False, 10.0, None),
        (["futile", "keep"], 1, True, 0.0, "streak"),
        (["futile", "publish", "keep"], 1, False, None, None),
        (["publish"], 1, True, 0.0, "saturation"),
        (["publish"], 0, False, None, "budget"),
        (["publish"], 1, False, 0.0, "budget"),
    ],
)
def test_stop(
    decisions: list[str], rounds: int, saturated: bool, minutes: float | None, reason: str | None
) -> None:
    assert stop_reason(decisions, rounds, saturated, minutes) == reason
