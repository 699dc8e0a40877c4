"""The decision of one round, the choice of a strategy, and when to stop: the rule itself, pure.

Source: the decision rule of the loop, sections 2, 3 and 5. A round publishes if and only if
1. the largest one-sided sign-flip p over its gate controls is at most alpha ("beats every control" is one
   joint claim: each test at full alpha), with at least 6 replicates;
2. the accuracy difference to every control is above 0, when accuracy is not the endpoint;
3. the guard holds: mean ID of the candidate is at least that of the previous version minus `guard_points`;
4. on a real corpus, the crossed lower limit against every control is above 0.

Otherwise the decision is
- `keep` when 1 holds and the guard does not: more replicates would not help, whatever 2 and 4 say;
- `futile` when, against some control that blocks (its own 1, 2 or 4 fails), the upper limit is below the
  smallest useful gain. One such control is enough, because publishing must beat every control. A control
  that the candidate already beats does not count, however small the gain: the rule publishes small gains
  that are beyond noise. On a real corpus the upper limit is the larger of the two intervals'; one that is
  unknown never is below. Each control errs in at most 2.5 % of rounds with a useful gain;
- `inconclusive` in every other case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from curation.decide import wording
from curation.decide.facts import Comparison, ControlFacts, Decision, Verdict
from curation.decide.statistics import (
    MIN_REPLICATES,
    crossed_interval,
    detectable,
    sign_flip_p,
    smallest_p,
    t_interval,
)

ALPHAS = (2 / 64, 1 / 64)  # of a streak's first and second round; at most 3/64 together
STRATEGY_TIE_POINTS = 1e-9
GUARD_TIE_POINTS = 1e-9
CELLS_TOLERANCE_POINTS = 1e-3

__all__ = [
    "Comparison", "ControlFacts", "Decision", "Verdict", "alpha_for", "can_publish", "choose_strategy",
    "explain_too_few", "judge", "stop_reason", "unpublished_rounds_in_streak",
]  # fmt: skip


def unpublished_rounds_in_streak(decisions: Sequence[str]) -> int:
    """How many rounds in a row, up to the last, did not publish; a decision `by hand` is no round."""
    count = 0
    for decision in reversed([d for d in decisions if d != "by hand"]):
        if decision == "publish":
            break
        count += 1
    return count


def alpha_for(unpublished_rounds_in_streak: int) -> float:
    """The level of the next round: 2/64; 1/64 after a round that did not publish; 0 after two (the end)."""
    if unpublished_rounds_in_streak < 0:
        raise ValueError(f"{unpublished_rounds_in_streak} rounds in a streak")
    return (*ALPHAS, 0.0)[min(unpublished_rounds_in_streak, 2)]


def can_publish(n: int, alpha: float) -> bool:
    """Whether n replicates could publish at all: at least 6, and 1/2^n at most alpha."""
    return n >= MIN_REPLICATES and smallest_p(n) <= alpha


def explain_too_few(n: int, alpha: float, controls: Sequence[str]) -> str:
    """The message to show before training when `can_publish` is false; controls: names of the gates."""
    return wording.too_few(n, alpha, controls)


def judge(
    controls: Sequence[ControlFacts],
    guard_differences: np.ndarray | None,
    alpha: float,
    smallest_gain_points: float,
    guard_points: float,
    real_corpus: bool,
    endpoint_is_accuracy: bool,
    cpu_minutes_per_replicate: float | None = None,
) -> Verdict:
    """The decision of one round, with its figures and its sentence; the rule is this module's docstring.

    controls: at least one gate control, all over the same n replicates, points. guard_differences: (n,)
    mean ID of the candidate minus that of the previous version, points; None when there is no ID suite (the
    sentence says so). cpu_minutes_per_replicate: prices the needed n in the sentence. Raises `ValueError`
    for facts that do not fit together, `UserError` for more than 20 replicates.
    """
    n = _check(controls, guard_differences, smallest_gain_points, guard_points, real_corpus)
    comparisons = tuple(_compare(control, alpha) for control in controls)
    blocks = [
        _blocks(facts, c, alpha, real_corpus, endpoint_is_accuracy)
        for facts, c in zip(controls, comparisons, strict=True)
    ]
    guard = math.nan if guard_differences is None else float(np.mean(guard_differences))
    guard_holds = math.isnan(guard) or guard >= -guard_points - GUARD_TIE_POINTS
    blocking = [c for c, block in zip(comparisons, blocks, strict=True) if block]
    useless = [c for c in blocking if c.upper < smallest_gain_points]
    p = max(c.p for c in comparisons)
    decision = _decide(n, p, alpha, guard_holds, bool(blocking), bool(useless))

    findings = [] if can_publish(n, alpha) else [wording.cannot(n, alpha)]
    findings += [text for block in blocks for text in block]
    if decision == "futile":
        findings += [wording.no_useful_gain(c, smallest_gain_points) for c in useless]
    findings.append(wording.guard(guard, guard_points, guard_holds))
    worst = max(range(len(comparisons)), key=lambda i: (comparisons[i].p, -comparisons[i].difference))
    dots = np.asarray(controls[worst].differences)
    verdict = Verdict(decision, "", p, alpha, n, comparisons, guard)
    told = (findings, smallest_gain_points, cpu_minutes_per_replicate)
    return replace(verdict, reason=wording.sentence(verdict, comparisons[worst], dots, *told))


def _decide(n: int, p: float, alpha: float, guard_holds: bool, blocked: bool, useless: bool) -> Decision:
    """The decision from what was found; useless: some blocking control leaves no room for a useful gain."""
    enough = can_publish(n, alpha)
    if enough and guard_holds and not blocked:
        return "publish"
    if enough and p <= alpha and not guard_holds:
        return "keep"
    return "futile" if useless else "inconclusive"


def _compare(facts: ControlFacts, alpha: float) -> Comparison:
    """The figures of one gate control."""
    d = facts.differences
    mean, low, high = t_interval(d)
    crossed = (math.nan, math.nan, math.nan, 0)
    if facts.cells is not None:
        crossed = crossed_interval(facts.cells, facts.weights)
    sd = float(np.std(d, ddof=1)) if len(d) > 1 else math.nan
    return Comparison(
        control=facts.name, difference=mean, low=low, high=high, p=sign_flip_p(d), n=len(d),
        detectable=detectable(sd, len(d), alpha), crossed_low=crossed[1], crossed_high=crossed[2],
        clusters=crossed[3],
    )  # fmt: skip


def _blocks(
    facts: ControlFacts, c: Comparison, alpha: float, real_corpus: bool, endpoint_is_accuracy: bool
) -> list[str]:
    """What stands between this control and publishing, in words; empty when nothing does."""
    blocks = []
    if c.p > alpha:
        blocks.append(f"not beyond noise against {c.control}")
    accuracy = float(np.mean(facts.accuracy_differences))
    if not endpoint_is_accuracy and not accuracy > 0:
        blocks.append(f"accuracy against {c.control} is {wording.points(accuracy)}, not above 0")
    if real_corpus and not c.crossed_low > 0:
        known = "unknown (one cluster or replicate)" if math.isnan(c.crossed_low) else "not above 0"
        blocks.append(f"lower limit over items and replicates against {c.control} is {known}")
    return blocks


def _check(
    controls: Sequence[ControlFacts],
    guard_differences: np.ndarray | None,
    smallest_gain_points: float,
    guard_points: float,
    real_corpus: bool,
) -> int:
    """The number of replicates, when the facts fit together; `ValueError` otherwise."""
    if not controls:
        raise ValueError("a round without a gate control cannot be judged")
    if not smallest_gain_points > 0 or not guard_points >= 0:
        raise ValueError(f"smallest gain {smallest_gain_points} not > 0, or guard {guard_points} not >= 0")
    n = len(controls[0].differences)
    vectors = [v for c in controls for v in (c.differences, c.accuracy_differences)]
    for vector in vectors if guard_differences is None else [*vectors, guard_differences]:
        if np.shape(vector) != (n,) or not np.isfinite(vector).all():
            raise ValueError(f"needs {n} finite differences: {np.asarray(vector).tolist()}")
    for control in controls:
        if control.cells is not None:
            _check_cells(control, n)
        elif real_corpus:
            raise ValueError(f"control {control.name!r}: a real corpus needs the item clusters (cells)")
    return n


def _check_cells(control: ControlFacts, n: int) -> None:
    """Refuse cells that measure something else than the differences of the same control."""
    cells = np.asarray(control.cells)
    if cells.ndim != 2 or len(cells) != n:
        raise ValueError(f"control {control.name!r}: cells of shape {cells.shape} for {n} replicates")
    gap = np.abs(np.average(cells, axis=1, weights=control.weights) - control.differences).max()
    if not gap <= CELLS_TOLERANCE_POINTS:
        raise ValueError(
            f"control {control.name!r}: weighted means of cells are {gap:.4g} points off the differences: "
            "the weight of a cluster is its items, over the items of its suite when suites weigh equally"
        )


def choose_strategy(gains: Mapping[str, np.ndarray]) -> tuple[str | None, str]:
    """The strategy to confirm, or None for stratified random, and why.

    gains: for each strategy, in recipe order, its (n,) per-replicate differences to random on OOD steer
    suites, points. The highest mean wins, ties go to the first; the fallback is taken when the best mean
    minus one standard error is not above 0, which includes one replicate (no standard error).
    """
    figures: dict[str, tuple[float, float, int]] = {}
    for name, values in gains.items():
        d = np.asarray(values, dtype=np.float64)
        if d.ndim != 1 or d.size == 0 or not np.isfinite(d).all():
            raise ValueError(f"strategy {name!r}: gains must be finite, one a replicate, got shape {d.shape}")
        error = float(d.std(ddof=1)) / math.sqrt(d.size) if d.size > 1 else math.nan
        figures[name] = (float(d.mean()), error, d.size)
    best: str | None = None
    for name, (mean, _, _) in figures.items():
        if best is None or mean > figures[best][0] + STRATEGY_TIE_POINTS:
            best = name
    chosen = best if best is not None and figures[best][0] - figures[best][1] > 0 else None
    return chosen, wording.screened(figures, best, chosen)


def stop_reason(
    decisions: Sequence[str], rounds_left: int, coverage_saturated: bool, minutes_left: float | None
) -> str | None:
    """Why the loop stops after these decisions, or None: `streak`, then `saturation`, then `budget`.

    decisions: of all rounds so far, oldest first. minutes_left: None when time is not limited.
    """
    if unpublished_rounds_in_streak(decisions) >= len(ALPHAS):
        return "streak"
    if coverage_saturated:
        return "saturation"
    if rounds_left <= 0 or (minutes_left is not None and minutes_left <= 0):
        return "budget"
    return None
