"""The judge's proof in small: whole loops through the production rule, as benchmarks/judge.py in full."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from curation.decide.simulate import Cell, bound, power_of_six, simulate

LOOPS = 500
SEED = 11
ROUND, STREAK = 2 / 64, 3 / 64
TIED = ((0.0, 0.0),) * 5

NULLS = [
    Cell("identical arms, one control", ROUND),
    Cell("one control tied, four inferior", ROUND, deficits=(0.0, 1.5, 1.5, 1.5, 1.5)),
    Cell("five tied strategies", ROUND, n=None, strategies=TIED),
    Cell("draws vary as much as trainings", ROUND, draw_ratio=1.0),
    Cell("8 item clusters", ROUND, clusters=8),
    Cell("20 item clusters", ROUND, clusters=20),
    Cell("5 rounds", STREAK, gains=(0.0,) * 5),
    Cell("5 rounds, a gain only in the first", STREAK, gains=(2.0, 0.0, 0.0, 0.0, 0.0)),
    Cell("gain on steer only", ROUND, n=None, strategies=((2.0, 0.0),)),
    Cell("futile at a useful gain", 0.025, event="futile", gains=(1.0,)),
]
MUTANTS = [
    Cell("screen and confirm share replicates", ROUND, strategies=TIED, mutant="shared replicates"),
    Cell("control drawn once", ROUND, draw_ratio=1.0, mutant="control drawn once"),
    Cell("no streak alpha", STREAK, gains=(0.0,) * 5, mutant="no streak alpha"),
    Cell("items ignored", ROUND, clusters=8, mutant="items ignored"),
]


def test_the_bound_is_the_binomials() -> None:
    assert bound(2000, 0.05) == 123
    assert stats.binom.sf(bound(LOOPS, ROUND), LOOPS, ROUND) <= 0.01


@pytest.mark.parametrize("cell", NULLS, ids=lambda cell: cell.name)
def test_nothing_is_rarely_published(cell: Cell) -> None:
    result = simulate(cell, LOOPS, SEED)
    assert result.passes, result


@pytest.mark.parametrize("cell", MUTANTS, ids=lambda cell: cell.name)
def test_mutants_are_caught(cell: Cell) -> None:
    result = simulate(cell, LOOPS, SEED)
    assert not result.passes, result


@pytest.mark.parametrize("gain", [1.0, 1.5, 2.0])
def test_power_is_what_theory_says(gain: float) -> None:
    """Within 2.6 standard errors (99 %) of the exact power at n = 6, at both levels of a streak."""
    for gains, alpha in (((gain,), 2 / 64), ((-5.0, gain), 1 / 64)):
        theory = power_of_six(gain, alpha)
        rate = simulate(Cell(f"gain {gain} at {alpha}", None, gains=gains), LOOPS, SEED).rate
        assert abs(rate - theory) <= 2.6 * np.sqrt(theory * (1 - theory) / LOOPS), (rate, theory)


def test_power_of_the_demo() -> None:
    """n = 8, standardised gain 1.5: .96 at the first level, .90 at the second, within .03."""
    first = simulate(Cell("demo", None, n=8, gains=(1.5,)), LOOPS, SEED).rate
    second = simulate(Cell("demo, second", None, n=8, gains=(-5.0, 1.5)), LOOPS, SEED).rate
    assert first == pytest.approx(0.96, abs=0.03) and second == pytest.approx(0.90, abs=0.03)


def test_a_real_corpus_and_a_screen_can_publish() -> None:
    screened = Cell("screened", None, n=None, strategies=((0.0, 0.0), (2.0, 2.0), (0.5, 0.5)))
    assert simulate(screened, 200, SEED).rate > 0.9
    assert simulate(Cell("items", None, n=8, clusters=45, gains=(2.0,)), 200, SEED).rate > 0.8


def test_the_same_seed_gives_the_same_loops() -> None:
    cell = NULLS[0]
    assert simulate(cell, 50, 1) == simulate(cell, 50, 1)
