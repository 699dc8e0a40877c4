"""Is every skill of the embedded corpus learnable at the demo's budget? An unlearnable one hides every data effect.

Trains the demo's model on a corpus balanced over skills and prints the accuracy of each skill on fresh rows.
`python tests/benchmarks/learnability.py [--quick]`; the last line is JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import torch

from curation.proxies import encode, make_reader, predict
from curation.randomness import generator
from curation.train.fit import fit
from curation.world import SKILLS, make_world, write_row
from flows.recipe import load_recipe

ROWS_A_SKILL = 300
ITEMS_A_SKILL = 200
DEMO = Path(__file__).parents[2] / "flows" / "demo.toml"


def draw(world, skill: str, n: int, purpose: str) -> pl.DataFrame:
    rng = generator(world.seed, purpose, world.index, skill)
    regions = [r for r in world.seen if r[0] == skill]
    rows = [write_row(rng, regions[i]) for i in rng.integers(len(regions), size=n)]
    return pl.DataFrame(
        {"prompt": [p for p, _ in rows], "response": [r for _, r in rows], "label": [None] * n}
    )


def main() -> None:
    torch.set_num_threads(1)
    recipe = load_recipe(DEMO)
    worlds = range(1 if "--quick" in sys.argv else 4)
    accuracy: dict[str, list[float]] = {skill: [] for skill in SKILLS}
    for index in worlds:
        world = make_world(recipe.seed + 1000, index)  # not the demo's worlds
        pool = pl.concat([draw(world, skill, ROWS_A_SKILL, "balanced") for skill in SKILLS])
        reader = make_reader(recipe.proxy, pool)
        model = fit(recipe.proxy, reader, encode(reader, pool), index).model
        for skill in SKILLS:
            items = draw(world, skill, ITEMS_A_SKILL, "fresh")
            accuracy[skill].append(float(predict(model, encode(reader, items))["correct"].mean() * 100))
    print(f"{'skill':<10}{'accuracy of each world, %':>30}")
    for skill, values in accuracy.items():
        print(f"{skill:<10}{' '.join(f'{v:6.1f}' for v in values):>30}")
    print(
        json.dumps(
            {"least_mean_accuracy": min(sum(v) / len(v) for v in accuracy.values()), "worlds": len(worlds)}
        )
    )


if __name__ == "__main__":
    main()
