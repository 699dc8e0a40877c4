"""Whole simulated loops through the production rule: how often it publishes with a gain, and without.

A cell describes a situation; its loops draw replicate scores and hand them to `choose_strategy`, `judge`,
`alpha_for` and `stop_reason` as the real loop does. A mutant breaks one rule on purpose and must be caught.
Gains are standardised: in standard deviations of a replicate's difference to a control. Training spreads
are such that this deviation is 2 points with draw_ratio 0. Source: the decision rule of the loop, section
6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import integrate, special, stats

from curation.decide.facts import ControlFacts, Verdict
from curation.decide.rule import alpha_for, choose_strategy, judge, stop_reason, unpublished_rounds_in_streak
from curation.decide.statistics import confirming_replicates
from curation.randomness import generator

TRAINING_SD_POINTS = math.sqrt(2.0)
SMALLEST_GAIN_POINTS = 2.0
SCREEN_REPLICATES = 4
N_BUDGET = 12
CLUSTER_SD_POINTS = 3.0  # what makes a few item clusters differ for good
CELL_SD_POINTS = 4.0

Mutant = Literal["shared replicates", "control drawn once", "no streak alpha", "items ignored"]


@dataclass(frozen=True)
class Cell:
    """One simulated situation.

    level: the most false alarms a loop may have; None: a power cell. event: what counts as the alarm. n:
    confirming replicates; None: from the screen's spread. gains: of a fixed candidate over the closest
    control, one a round. strategies: (steer gain, judge gain) of those that compete in a screen, in every
    round, in place of gains. deficits: how far each control is below the closest one. draw_ratio: spread of
    a control's draws over that of trainings. clusters: item clusters crossed with replicates (a real
    corpus); 0: none. skew: -1, 0 or 1, the tail of exponential differences.
    """

    name: str
    level: float | None
    event: Literal["publish", "futile"] = "publish"
    n: int | None = 6
    gains: tuple[float, ...] = (0.0,)
    strategies: tuple[tuple[float, float], ...] = ()
    deficits: tuple[float, ...] = (0.0,)
    draw_ratio: float = 0.0
    clusters: int = 0
    skew: int = 0
    mutant: Mutant | None = None


@dataclass(frozen=True)
class CellResult:
    """What the loops of a cell did: loops with at least one event, and with at least one false publish.

    An event of a power cell is any publish; of a null cell a publish without a gain (or a futile with one).
    """

    name: str
    loops: int
    events: int
    bound: int | None  # null cells: the most events allowed, 99 % of the binomial at the cell's level

    @property
    def rate(self) -> float:
        """Events a loop."""
        return self.events / self.loops

    @property
    def passes(self) -> bool:
        """Whether a null cell is at or under its bound; true for cells without one."""
        return self.bound is None or self.events <= self.bound


def simulate(cell: Cell, loops: int, seed: int) -> CellResult:
    """The result of `loops` simulated loops of a cell; depends on the seed and the cell's name only."""
    rng = generator(seed, "simulated loops", cell.name)
    events = sum(_loop(cell, rng) for _ in range(loops))
    return CellResult(cell.name, loops, events, None if cell.level is None else bound(loops, cell.level))


def bound(loops: int, level: float) -> int:
    """The events in `loops` that a rate of `level` exceeds in at most 1 % of trials: 123 in 2,000 at 5 %."""
    return int(stats.binom.ppf(0.99, loops, level))


def power_of_six(gain: float, alpha: float) -> float:
    """The exact power of the sign-flip test at n = 6 for normal differences of standardised gain.

    At 1/64 all six must be positive. At 2/64 one may also be negative if it is the smallest in size: only
    then does exactly one other pattern reach the observed sum.
    """
    all_positive = float(special.ndtr(gain)) ** 6
    if alpha < 2 / 64:
        return all_positive

    def one_negative(size: float) -> float:
        density = math.exp(-((size + gain) ** 2) / 2) / math.sqrt(2 * math.pi)
        return density * float(special.ndtr(gain - size)) ** 5

    return all_positive + 6 * integrate.quad(one_negative, 0, 12)[0]


def _loop(cell: Cell, rng: np.random.Generator) -> bool:
    """Whether the cell's event happened in one whole loop."""
    decisions: list[str] = []
    event = False
    for gain in cell.gains:
        alpha = alpha_for(0 if cell.mutant == "no streak alpha" else unpublished_rounds_in_streak(decisions))
        verdict, true_gain = _round(cell, gain, alpha, rng)
        decisions.append(verdict.decision)
        counts = cell.level is None or cell.event == "futile" or true_gain <= 0
        event |= verdict.decision == cell.event and counts
        stop = stop_reason(decisions, len(cell.gains) - len(decisions), False, None)
        if stop is not None and not (stop == "streak" and cell.mutant == "no streak alpha"):
            break
    return event


def _round(cell: Cell, gain: float, alpha: float, rng: np.random.Generator) -> tuple[Verdict, float]:
    """The verdict of one round, and the true gain of the candidate that it judged."""
    if not cell.strategies:
        n = cell.n or N_BUDGET
        candidate = gain * _sd(cell) + _noise(cell, (n,), rng)
        return _judge(cell, candidate, _controls(cell, n, rng), alpha, rng), gain
    shared = cell.mutant == "shared replicates"
    n_screen = cell.n or N_BUDGET if shared else SCREEN_REPLICATES
    scores = _noise(cell, (len(cell.strategies), n_screen), rng)
    controls = _controls(cell, n_screen, rng)
    differences = {
        str(i): steer * _sd(cell) + scores[i] - controls[0] for i, (steer, _) in enumerate(cell.strategies)
    }
    chosen, _ = choose_strategy(differences)
    gain = 0.0 if chosen is None else cell.strategies[int(chosen)][1]
    if shared and chosen is not None:
        return _judge(cell, gain * _sd(cell) + scores[int(chosen)], controls, alpha, rng), gain
    spread = float(np.std(differences[chosen or "0"], ddof=1))
    n = cell.n or confirming_replicates(spread, SMALLEST_GAIN_POINTS, alpha, N_BUDGET)
    candidate = gain * _sd(cell) + _noise(cell, (n,), rng)
    return _judge(cell, candidate, _controls(cell, n, rng), alpha, rng), gain


def _judge(
    cell: Cell, candidate: np.ndarray, controls: np.ndarray, alpha: float, rng: np.random.Generator
) -> Verdict:
    """The production verdict on these scores, (n,) and (controls, n) points; the guard holds."""
    facts = []
    for i, scores in enumerate(controls):
        differences, cells = candidate - scores, None
        if cell.clusters:
            shape = (differences.size, cell.clusters)
            cells = differences[:, None] + rng.normal(0, CLUSTER_SD_POINTS, shape[1])
            cells = cells + rng.normal(0, CELL_SD_POINTS, shape)
            differences = cells.mean(axis=1)
        facts.append(ControlFacts(f"control {i}", differences, differences, cells))
    real_corpus = cell.clusters > 0 and cell.mutant != "items ignored"
    guard = np.zeros(candidate.size)
    return judge(facts, guard, alpha, SMALLEST_GAIN_POINTS, 1.0, real_corpus, endpoint_is_accuracy=True)


def _controls(cell: Cell, n: int, rng: np.random.Generator) -> np.ndarray:
    """Scores of the controls in n replicates, (controls, n) points: draw, training, deficit."""
    shape = (len(cell.deficits), n)
    drawn = (shape[0], 1) if cell.mutant == "control drawn once" else shape
    draws = rng.normal(0, cell.draw_ratio * TRAINING_SD_POINTS, drawn)
    return _noise(cell, shape, rng) + draws - np.asarray(cell.deficits)[:, None] * _sd(cell)


def _noise(cell: Cell, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Training noise in points, mean 0; with a skew, that of one arm only, so that differences are skewed."""
    if cell.skew and len(shape) == 1:
        return cell.skew * _sd(cell) * (rng.exponential(size=shape) - 1.0)
    return rng.normal(0, 0.0 if cell.skew else TRAINING_SD_POINTS, shape)


def _sd(cell: Cell) -> float:
    """Standard deviation in points of a replicate's difference to one control, over all items."""
    return TRAINING_SD_POINTS * math.sqrt(2.0 + cell.draw_ratio**2)
