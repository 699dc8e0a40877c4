"""A changed recipe in the same lake: nothing is opened, booked or published twice, and nothing goes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.errors import UserError
from flows.base import content_of, refuse_budget
from flows.loop import curate
from flows.recipe import load_recipe
from flows.run import Run
from flows.status import status
from storage.artifacts import Lake
from storage.catalog import query
from tests.plain_run import plain_run
from tests.tiny import tiny_recipe


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    folder = tmp_path_factory.mktemp("changed")
    (folder / "other").mkdir()
    plain_run(tiny_recipe(folder, steps=3, rows=40, added_rows=20, candidates=60), folder / "lake", "first")
    plain_run(
        tiny_recipe(folder / "other", steps=4, rows=40, added_rows=20, candidates=60),
        folder / "lake",
        "second",
    )
    return Lake(folder / "lake", create=False)


def facts_of(lake: Lake, run_id: str) -> dict:
    return status(lake, next(r for r in lake.runs() if r["run"] == run_id))


def test_the_sealed_suite_is_opened_for_the_first_run_only(lake):
    assert facts_of(lake, "first")["sealed"] and facts_of(lake, "first")["sealed_note"] is None
    second = facts_of(lake, "second")
    assert second["run"]["state"] == "completed" and second["sealed"] is None
    assert "stays closed" in second["sealed_note"]
    assert len(lake.refs("sealed")) == 1


def test_alpha_falls_with_every_test_that_did_not_publish(lake):
    levels = [facts_of(lake, r)["rounds"][0]["alpha"] for r in ("first", "second")]
    published = facts_of(lake, "first")["rounds"][0]["decision"] == "publish"
    assert levels == [2 / 64, 2 / 64 if published else 1 / 64]


def test_fields_without_effect_book_nothing(lake):
    before = lake.alpha_spent("tiny")
    run = Run(
        lake,
        load_recipe(lake.root.parent / "tiny.toml"),
        lake.root.parent,
        run_id="third",
        workers=1,
        say=lambda _: None,
    )
    run.recipe = run.recipe.model_copy(
        update={"decide": run.recipe.decide.model_copy(update={"max_replicates": 11})}
    )
    try:
        curate(run)
    finally:
        run.close()
    assert all(step["reused"] for step in run.steps)
    assert lake.alpha_spent("tiny") == before


def test_the_same_base_is_one_version(lake):
    versions = lake.dataset_versions("tiny")
    assert [v["decision"] for v in versions if v["decision"] == "base"] == ["base"]
    assert versions[0]["content_fp"] == content_of(lake.dataset("tiny", 1))


def test_a_budget_beyond_the_pool_is_refused_even_when_the_pool_is_cached(lake):
    recipe = load_recipe(lake.root.parent / "tiny.toml")
    kept = lake.dataset("tiny", 1)
    with pytest.raises(UserError, match="too much for the pool"):
        refuse_budget(
            recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"rows": 10**6})}), kept
        )
    with pytest.raises(UserError, match="tokens"):
        refuse_budget(
            recipe.model_copy(
                update={"budget": recipe.budget.model_copy(update={"rows": None, "tokens": 10**9})}
            ),
            kept,
        )


def test_one_query_leads_from_a_number_to_raw_rows(lake):
    found = query(
        lake,
        "select distinct source, file from path_of('first', 1, 'candidate', 'ood_mean', 'accuracy') where origin = 'real'",
    )
    assert set(found["source"]) == {f"world-{i}" for i in range(6)}


def test_a_stop_for_lack_of_time_stays(tmp_path: Path):
    recipe = tiny_recipe(tmp_path, rounds=3, steps=2, rows=40, added_rows=20, candidates=60)
    recipe.write_text(recipe.read_text().replace("rounds = 3", "minutes = 0.0001\nrounds = 3"))
    run = plain_run(recipe, tmp_path / "lake")
    assert run.facts["stop_reason"] == "budget" and max(s["round"] for s in run.steps) == 1
    again = Run(run.lake, load_recipe(recipe), tmp_path, reuse_only=True, say=lambda _: None)
    curate(again)
    assert [s["artifact"] for s in again.steps] == [s["artifact"] for s in run.steps]
