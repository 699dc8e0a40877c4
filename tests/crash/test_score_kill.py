"""kill -9 while rows are scored: finished shards are not made again, and the bytes are those of a whole run."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
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
    """Shard key -> inode of the feature shards, in drafts and artifacts of the score stage, while they move."""
    found: dict[str, int] = {}
    for folder, _, names in os.walk(lake):  # passes over folders that are renamed meanwhile
        here = Path(folder)
        for name in names:
            key = here.name if name == "features.parquet" else Path(name).stem
            if key.startswith("rows-") and (here.parent.name == "shards" or here.name == "features"):
                with suppress(FileNotFoundError):
                    found[key] = (here / name).stat().st_ino
    return found


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


def test_shards_cut_otherwise_before_a_kill_are_not_published(tmp_path: Path) -> None:
    recipe = recipe_in_small_shards(tmp_path)
    process = start(recipe, tmp_path / "killed")
    deadline = time.monotonic() + 120
    while (
        len(feature_files(tmp_path / "killed")) < 3 and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    time.sleep(2)
    recipe.write_text(
        recipe.read_text(encoding="utf-8").replace("shard_rows = 16", "shard_rows = 40"), encoding="utf-8"
    )
    run = plain_run(recipe, tmp_path / "killed")
    features = run.lake.read(run.lake.refs("score")[0], "features", ["row_id"])
    assert features["row_id"].is_unique().all()
