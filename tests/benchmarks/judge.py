"""The judge's proof in full: 10,000 simulated loops a cell through the production rule.

python tests/benchmarks/judge.py [--quick] [--seed N]     (about two minutes; quick: 2,000 loops, 20 seconds)

A null cell passes at or under the 99 % binomial bound of its own level: 2/64 for one round, 3/64 for a
streak. A power cell passes within 2.6 standard errors of theory. A mutant passes when it is caught.
Reported cells have no verdict. A sound null cell exceeds its bound by chance with one seed in a hundred:
before blaming the rule, look whether another seed shows the same cell. Exit status 1 when a cell fails; the
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time

from curation.decide.simulate import Cell, power_of_six, simulate

ROUND, STREAK = 2 / 64, 3 / 64
TIED = ((0.0, 0.0),) * 5
GAINS = (0.5, 1.0, 1.5, 2.0)

NULLS = [
    Cell("identical arms, one control", ROUND),
    Cell("one control tied, four inferior", ROUND, deficits=(0.0, 1.5, 1.5, 1.5, 1.5)),
    Cell("five tied strategies through the screen", ROUND, n=None, strategies=TIED),
    *(Cell(f"draw over training spread {ratio}", ROUND, draw_ratio=ratio) for ratio in (0.5, 1.0, 2.0)),
    *(Cell(f"{clusters} item clusters crossed", ROUND, clusters=clusters) for clusters in (8, 20, 45)),
    Cell("1 round", ROUND, n=8, gains=(0.0,)),
    Cell("3 rounds", STREAK, gains=(0.0,) * 3),
    Cell("5 rounds", STREAK, gains=(0.0,) * 5),
    Cell("3 rounds, a gain in the first", STREAK, gains=(2.0, 0.0, 0.0)),
    Cell("5 rounds, gains in the first two", STREAK, gains=(2.0, 2.0, 0.0, 0.0, 0.0)),
    Cell("gain on steer only", ROUND, n=None, strategies=((2.0, 0.0),)),
    Cell("futile at a useful gain", 0.025, event="futile", gains=(1.0,)),
]
MUTANTS = [
    Cell("screen and confirm share replicates", ROUND, strategies=TIED, mutant="shared replicates"),
    Cell("control drawn once, draws as trainings", ROUND, draw_ratio=1.0, mutant="control drawn once"),
    Cell("control drawn once, draws twice that", ROUND, draw_ratio=2.0, mutant="control drawn once"),
    Cell("no streak alpha, 3 rounds", STREAK, gains=(0.0,) * 3, mutant="no streak alpha"),
    Cell("no streak alpha, 5 rounds", STREAK, gains=(0.0,) * 5, mutant="no streak alpha"),
    Cell("items ignored, 8 clusters", ROUND, clusters=8, mutant="items ignored"),
]
REPORTED = [
    Cell("skewed to gains, no gain", None, skew=1),
    Cell("skewed to losses, no gain", None, skew=-1),
    Cell("five tied controls", None, deficits=(0.0,) * 5),
    *(Cell(f"gain {gain}, n 8", None, n=8, gains=(gain,)) for gain in GAINS),
    Cell("gain 1.5, n 8, second level", None, n=8, gains=(-5.0, 1.5)),
    *(Cell(f"gain 2, n 8, {c} clusters", None, n=8, clusters=c, gains=(2.0,)) for c in (8, 20, 45)),
    Cell("gain 2 for one of three screened", None, n=None, strategies=((0.0, 0.0), (2.0, 2.0), (0.5, 0.5))),
]
POWERS = [
    (Cell(f"gain {gain} at {level}", None, gains=gains), power_of_six(gain, alpha))
    for gain in GAINS
    for gains, alpha, level in (((gain,), 2 / 64, "2/64"), ((-5.0, gain), 1 / 64, "1/64"))
]


def main() -> int:
    parser = argparse.ArgumentParser(description="The judge's proof in full.")
    parser.add_argument("--quick", action="store_true", help="2,000 loops a cell")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    loops = 2000 if args.quick else 10_000
    started = time.perf_counter()
    rows: list[dict[str, object]] = []

    def told(kind: str, name: str, rate: float, against: str, passed: bool | None) -> None:
        word = "reported" if passed is None else "pass" if passed else "FAIL"
        print(f"{kind:7} {name:42} {rate:7.4f}  {against:24} {word}", flush=True)
        rows.append({"kind": kind, "cell": name, "rate": rate, "against": against, "passed": passed})

    for kind, cells in (("null", NULLS), ("mutant", MUTANTS), ("other", REPORTED)):
        for cell in cells:
            result = simulate(cell, loops, args.seed)
            against = "" if result.bound is None else f"{result.events} of at most {result.bound}"
            passed = None if result.bound is None else result.passes == (kind == "null")
            told(kind, cell.name, result.rate, against, passed)
    for cell, theory in POWERS:
        rate = simulate(cell, loops, args.seed).rate
        tolerance = 2.6 * math.sqrt(theory * (1 - theory) / loops)
        told("power", cell.name, rate, f"{theory:.4f} ± {tolerance:.4f}", abs(rate - theory) <= tolerance)

    failed = [row["cell"] for row in rows if row["passed"] is False]
    seconds = round(time.perf_counter() - started, 1)
    figures = {"benchmark": "judge", "loops": loops, "seconds": seconds, "failed": failed, "cells": rows}
    print(json.dumps(figures))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
