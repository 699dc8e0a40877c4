"""Runs a recipe without Prefect: python -m tests.plain_run RECIPE LAKE. For tests that kill it."""

from __future__ import annotations

import sys
from pathlib import Path

from flows.loop import curate
from flows.recipe import load_recipe
from flows.run import Run
from storage.artifacts import Lake


def plain_run(recipe: Path, lake: Path, run_id: str = "test", workers: int = 2) -> Run:
    """A completed run, its record saved; raises what the loop raises."""
    run = Run(
        Lake(lake), load_recipe(recipe), recipe.parent, run_id=run_id, workers=workers, say=lambda _: None
    )
    run.save("running")
    try:
        curate(run)
        run.save("completed")
    finally:
        run.close()
    return run


if __name__ == "__main__":
    plain_run(Path(sys.argv[1]), Path(sys.argv[2]))
