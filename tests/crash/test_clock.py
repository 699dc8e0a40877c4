"""A clock that is put back: nothing is found wrongly, nothing takes negative time, and the order of runs is said."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from flows.execute import carry_out
from flows.loop import _minutes_left
from flows.recipe import load_recipe
from flows.run import Run
from storage.artifacts import Draft, Lake, Ref
from tests.crash.test_lake_kill import published
from tests.storage.lakes import rows
from tests.tiny import tiny_recipe

DAY = 86_400.0
real_time = time.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Call it with the seconds by which the clock is wrong from now on."""

    def put(by_seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real_time() + by_seconds)

    return put


def begin(lake: Path, folder: Path, run_id: str, said: list[str] | None = None, **fields: object) -> Run:
    recipe = load_recipe(tiny_recipe(folder, **fields))
    return Run(Lake(lake), recipe, folder, run_id=run_id, say=(said if said is not None else []).append)


def one_stage(run: Run, wait=lambda: None) -> Ref:
    def compute(draft: Draft) -> None:
        draft.write_shard("all", {"rows": rows(3)})
        wait()

    return run.stage("ingest", "1", {"n": 3}, [], compute)


def test_a_stage_and_a_run_never_take_negative_time(tmp_path: Path, clock) -> None:
    run = begin(tmp_path / "lake", tmp_path, "r")
    carry_out(run, lambda run: one_stage(run, lambda: clock(-DAY)))
    (cost,), (record,) = run.lake.costs(), run.lake.runs()
    assert 0 <= cost["seconds"] < 60 and 0 <= record["seconds"] < 60
    assert cost["rows_a_second"] <= 3 / 1e-3


def test_the_budget_of_minutes_goes_on(tmp_path: Path, clock) -> None:
    run = begin(tmp_path / "lake", tmp_path, "r")
    run.recipe = run.recipe.model_copy(
        update={"budget": run.recipe.budget.model_copy(update={"minutes": 1.0})}
    )
    clock(-DAY)
    left = _minutes_left(run)
    assert left is not None and left <= 1


def test_what_is_there_is_found_and_bytes_know_no_time(tmp_path: Path, clock) -> None:
    for name, wrong in (("now", 0.0), ("back", -400 * DAY)):
        clock(wrong)
        carry_out(begin(tmp_path / name, tmp_path, "r"), one_stage)
    assert published(tmp_path / "now") == published(tmp_path / "back")
    clock(-900 * DAY)
    again = begin(tmp_path / "now", tmp_path, "again")
    carry_out(again, lambda run: one_stage(run, lambda: pytest.fail("was computed again")))
    assert again.steps[0]["reused"]


def test_a_run_by_an_earlier_clock_says_which_one_counts_as_newest(tmp_path: Path, clock) -> None:
    carry_out(begin(tmp_path / "lake", tmp_path, "first"), one_stage)
    clock(-DAY)
    said: list[str] = []
    second = begin(tmp_path / "lake", tmp_path, "second", said)
    second.started = time.time()
    carry_out(second, one_stage)
    assert [record["run"] for record in second.lake.runs()] == ["second", "first"]
    clock(0)
    unsaid: list[str] = []
    carry_out(begin(tmp_path / "lake", tmp_path, "third", unsaid), one_stage)
    assert any("clock is behind: run first" in line and "gradus status second" in line for line in said)
    assert not any("clock is behind" in line for line in unsaid)
