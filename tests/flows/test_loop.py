"""The whole loop on a tiny embedded corpus: what is written, what is found again, what a changed field redoes."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from flows.loop import curate
from flows.recipe import load_recipe
from flows.run import NotCached, Run
from flows.status import status
from storage.artifacts import Lake, Ref
from storage.catalog import query
from tests.plain_run import plain_run
from tests.tiny import tiny_recipe

ARMS = {"previous", "candidate", "untargeted", "errors_first", "gradient_logdet", "surface_logdet"}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Lake]:
    folder = tmp_path_factory.mktemp("loop")
    recipe = tiny_recipe(folder, rounds=2)
    plain_run(recipe, folder / "lake")
    return recipe, Lake(folder / "lake", create=False)


def found_again(recipe: Path, lake: Lake, **changes: object) -> list[str]:
    """The stages that are in the lake for a recipe, up to the first that is not."""
    run = Run(lake, load_recipe(recipe), recipe.parent, reuse_only=True, say=lambda _: None)
    run.recipe = run.recipe.model_copy(update=changes)
    try:
        curate(run)
    except NotCached as missing:
        return [s["stage"] for s in run.steps] + [f"missing {missing}"]
    return [s["stage"] for s in run.steps]


def test_status_has_both_rounds_every_arm_and_one_sealed_result(done):
    _, lake = done
    facts = status(lake, lake.runs()[-1])
    json.dumps(facts, allow_nan=False)
    assert [r["round"] for r in facts["rounds"]] == [1, 2]
    assert set(facts["rounds"][0]["arms"]) == ARMS
    assert set(facts["rounds"][1]["arms"]) == {"previous", "candidate", "untargeted"}
    for r in facts["rounds"]:
        assert all(arm["n"] == 6 for arm in r["arms"].values())
        means = [c for c in r["comparisons"] if c["suite"] == "ood_mean" and c["arm"] == "candidate"]
        assert {c["control"] for c in means} == set(r["arms"]) - {"candidate"}
        assert all(c["n"] == 6 and 1 / 64 <= c["p"] <= 1 for c in means)
        assert r["decision"] in ("publish", "keep", "futile", "inconclusive")
    assert [r["alpha"] for r in facts["rounds"]] == [
        2 / 64,
        1 / 64 if facts["rounds"][0]["decision"] != "publish" else 2 / 64,
    ]
    assert set(facts["sealed"]["arms"]) == {"previous", "candidate", "untargeted"}
    assert facts["published"] == {
        "name": "tiny",
        "version": 1 + sum(r["decision"] == "publish" for r in facts["rounds"]),
    }
    read = facts["accounting"]
    assert read["rows_read"] == read["rows_kept"] + read["rows_dropped"]


def test_accounting_balances_for_every_source(done):
    _, lake = done
    table = query(lake, "from accounting")
    per_source = table.group_by("source").agg(
        pl.col("read").first(), pl.col("kept").first(), pl.col("dropped").sum()
    )
    assert len(per_source) == 6
    assert (per_source["read"] == per_source["kept"] + per_source["dropped"]).all()
    assert {"unparsable", "exact_copy", "empty"} & set(table["reason"])


def test_arms_have_equal_rows_steps_and_tokens(done):
    _, lake = done
    models = pl.concat([lake.read(r, "models") for r in lake.refs("train")]).filter(pl.col("round") == 1)
    for _, arms in models.filter(pl.col("arm") != "previous").group_by("replicate"):
        assert arms["steps"].n_unique() == 1 and arms["rows"].n_unique() == 1 and arms["seed"].n_unique() == 1
        assert arms["tokens"].max() <= 1.03 * arms["tokens"].min()


def test_no_accepted_row_is_a_suite_item_and_all_are_verified(done):
    from curation.world import solve

    _, lake = done
    rows = pl.concat([lake.read(r, "rows") for r in lake.refs("base")]).filter(
        pl.col("origin") == "synthetic"
    )
    items = pl.concat([lake.read(r, "suite_items") for r in lake.refs("ingest")])
    assert not set(rows["prompt"]) & set(items["prompt"])
    assert all(solve(p) == r for p, r in rows.select("prompt", "response").iter_rows())


def test_a_second_run_finds_everything(done):
    recipe, lake = done
    stages = found_again(recipe, lake)
    assert stages[0] == "ingest" and stages[-1] == "sealed" and not any("missing" in s for s in stages)


def test_a_changed_field_redoes_only_what_depends_on_it(done):
    recipe, lake = done
    spec = load_recipe(recipe)
    gain = spec.decide.model_copy(update={"smallest_gain_points": 5.0})
    assert found_again(recipe, lake, decide=gain)[-2:] == ["audit", "missing decide"]
    strategies = spec.select.model_copy(update={"strategies": ("errors_first",)})
    assert found_again(recipe, lake, select=strategies)[-2:] == ["synthesize", "missing select"]
    candidates = spec.synthesize.model_copy(update={"candidates": 120})
    assert found_again(recipe, lake, synthesize=candidates)[-1] == "missing synthesize"
    assert found_again(recipe, lake, seed=8) == ["missing ingest"]


def test_spent_alpha_is_booked_once_a_round(done):
    _, lake = done
    entries = lake.alpha_spent("tiny")
    assert sorted((e["round"], e["suite"]) for e in entries) == [
        (r, s) for r in (1, 2) for s in ("held_out", "rare")
    ]
    assert len(lake.openings()) == 6  # the sealed suite of each world, once


def test_every_published_artifact_is_as_its_manifest_says(done):
    _, lake = done
    for ref in lake.refs():
        lake.verify(ref)
        assert "run" not in lake.manifest(ref)
    assert {Ref.parse(s["artifact"]).kind for s in lake.runs()[-1]["steps"]} >= {
        "ingest",
        "score",
        "decide",
        "sealed",
    }
