"""The sentences a person reads: figures written one way everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from curation.decide.facts import Comparison, Verdict
from curation.decide.statistics import MIN_REPLICATES, replicates_needed

FEW_CLUSTERS = 6  # below, a crossed interval says nothing of other items


def points(value: float) -> str:
    """A signed number of points: +2.1, −1.9, 0.0; `?` for NaN."""
    if math.isnan(value):
        return "?"
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else f"{'+' if value > 0 else '−'}{text}"


def probability(p: float) -> str:
    """A p value in two significant digits without a leading zero: .14, .0039, 1."""
    return "1" if p >= 0.995 else f"{p:.2g}".removeprefix("0")


def fraction(alpha: float) -> str:
    """A level as 64ths where it is: 2/64."""
    return f"{round(alpha * 64)}/64" if (alpha * 64).is_integer() else probability(alpha)


def interval(low: float | None, high: float | None) -> str:
    """The limits of an interval in points; None or NaN: there is none."""
    if low is None or high is None or math.isnan(low):
        return "[no interval]"
    return f"[{points(low).removeprefix('+')}, {points(high).removeprefix('+')}]"


def names(controls: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(controls[:-1]), controls[-1]))) if controls else "no control"


def sentence(
    verdict: Verdict,
    strictest: Comparison,
    dots: np.ndarray,
    findings: Sequence[str],
    smallest_gain_points: float,
    cpu_minutes_per_replicate: float | None,
) -> str:
    """The reason of a decision: the strictest control's figures, what decided, and what this n could show.

    dots: (n,) the strictest control's differences. findings: what blocked, or what was asked and holds.
    """
    c, alpha = strictest, verdict.alpha
    head = (
        f"{verdict.decision.upper()} n={c.n} diff={points(c.difference)} {interval(c.low, c.high)} "
        f"p={probability(c.p)} {'≤' if c.p <= alpha else '>'} α={fraction(alpha)} against {c.control}"
    )
    others = [
        f"diff={points(o.difference)} {interval(o.low, o.high)} p={probability(o.p)} against {o.control}"
        for o in verdict.comparisons
        if o is not c
    ]
    limits = [
        f"smallest publishable p 1/{2**c.n}",
        f"detectable (80 %) ≈ {_size(c.detectable)}",
        _need(dots, alpha, smallest_gain_points, cpu_minutes_per_replicate),
        "per replicate " + " ".join(points(d) for d in dots),
        "new version published" if verdict.decision == "publish" else "previous version kept",
    ]
    return "; ".join([head, *others, *_crossed(verdict.comparisons), *findings, *limits])


def _size(value: float) -> str:
    return "unknown" if math.isnan(value) else "nothing" if math.isinf(value) else f"{value:.1f}"


def _need(dots: np.ndarray, alpha: float, gain: float, cpu_minutes_per_replicate: float | None) -> str:
    """How many replicates the smallest useful gain needs, and their price where it is known."""
    if alpha <= 0 or dots.size < 2:
        return "need n unknown"
    needed = replicates_needed(float(dots.std(ddof=1)), gain, alpha)
    price = ""
    if cpu_minutes_per_replicate is not None:
        price = f" ≈ {needed * cpu_minutes_per_replicate:.0f} CPU-minutes"
    return f"need n ≈ {needed}{price} for a gain of {gain:.1f}"


def _crossed(comparisons: Sequence[Comparison]) -> list[str]:
    """The intervals over items and replicates, with the warning that few clusters deserve."""
    told = []
    for c in comparisons:
        if c.clusters:
            warning = ", holds for these items only" if c.clusters < FEW_CLUSTERS else ""
            limits = interval(c.crossed_low, c.crossed_high)
            told.append(f"items and replicates {limits} against {c.control} ({c.clusters} clusters{warning})")
    return told


def too_few(n: int, alpha: float, controls: Sequence[str]) -> str:
    """The message before training when n replicates cannot publish at this level."""
    if alpha <= 0:
        return f"Nothing can be published: {cannot(n, alpha)}."
    return (
        f"With n={n} confirming replicates this round cannot publish: the smallest possible p against "
        f"{names(controls)} is 1/{2**n}, the level is {fraction(alpha)}, and at least {MIN_REPLICATES} "
        "replicates are asked for; set replicates, max_replicates or worlds to at least "
        f"{_replicates_for(alpha)}."
    )


def _replicates_for(alpha: float) -> int:
    """The fewest replicates that can publish at a level above 0."""
    return max(MIN_REPLICATES, math.ceil(-math.log2(alpha)))


def cannot(n: int, alpha: float) -> str:
    """Why n replicates cannot publish at this level, in a few words."""
    if alpha <= 0:
        return "two rounds in a row did not publish, so the streak is over and no level is left"
    return f"too few replicates to publish: n={n}, at least {_replicates_for(alpha)} are asked for"


def no_useful_gain(c: Comparison, smallest_gain_points: float) -> str:
    """Why a round is futile."""
    upper = points(c.upper)
    return f"no useful gain: the upper limit against {c.control} is {upper}, below {smallest_gain_points:.1f}"


def guard(difference: float, guard_points: float, holds: bool) -> str:
    """What the guard found; NaN: no ID suite."""
    if math.isnan(difference):
        return "no ID suite, so no guard"
    relation = "at least" if holds else "below the guard of"
    return f"ID against the previous version {points(difference)}, {relation} {points(-guard_points)}"


def screened(gains: Mapping[str, tuple[float, float, int]], best: str | None, chosen: str | None) -> str:
    """Why this strategy is the candidate; gains: mean, standard error and n of each, in recipe order."""
    figures = ", ".join(
        f"{name} {points(mean)} ± {'?' if math.isnan(error) else f'{error:.1f}'} (n={n})"
        for name, (mean, error, n) in gains.items()
    )
    told = f"mean gain over random ± standard error on steer suites: {figures}"
    if best is None:
        return "stratified random: no strategy was screened"
    if chosen is None:
        return f"stratified random: the best, {best}, is not one standard error above random ({told})"
    return f"{chosen}: the highest gain ({told})"
