"""kill -9 while rows are scored: finished shards are not made again, and the bytes are those of a whole run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from storage.artifacts import Lake
from tests.crash.test_run_kill import content, start
from tests.plain_run import plain_run
from tests.tiny import tiny_recipe


def recipe_in_small_shards(folder: Path, **fields: object) -> Path:
    recipe = tiny_recipe(folder, steps=2, worlds=6, **fields)
    recipe.write_text(recipe.read_text(encoding="utf-8") + "\n[score]\nshard_rows = 16\n", encoding="utf-8")
    return recipe


def feature_files(lake: Path) -> dict[str, int]:
    """Shard key -> inode of the feature shards, in drafts and artifacts of the score stage."""
    found = {p.parent.name: p.stat().st_ino for p in lake.glob("**/shards/rows-*/features.parquet")}
    return found | {
        p.stem: p.stat().st_ino for p in (lake / "artifacts" / "score").glob("**/features/*.parquet")
    }


def test_only_unfinished_shards_are_computed_after_a_kill(tmp_path: Path) -> None:
    recipe = recipe_in_small_shards(tmp_path)
    plain_run(recipe, tmp_path / "whole")
    process = start(recipe, tmp_path / "killed")
    before: dict[str, int] = {}
    deadline = time.monotonic() + 120
    while len(before) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
        before = feature_files(tmp_path / "killed")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    time.sleep(2)  # its workers end when they see that their parent is gone
    before = feature_files(tmp_path / "killed")
    assert len(before) >= 5
    plain_run(recipe, tmp_path / "killed")
    after = feature_files(tmp_path / "killed")
    assert {key: after[key] for key in before} == before
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_another_run_takes_over_the_features_of_the_same_proxy_and_rows(tmp_path: Path) -> None:
    recipe = recipe_in_small_shards(tmp_path)
    plain_run(recipe, tmp_path / "lake")
    before = feature_files(tmp_path / "lake")
    recipe.write_text(
        recipe.read_text(encoding="utf-8").replace("[select]\n", "[select]\nregions = 4\n"), encoding="utf-8"
    )
    plain_run(recipe, tmp_path / "lake")
    assert len(Lake(tmp_path / "lake").refs("score")) == 2
    assert feature_files(tmp_path / "lake") == before
