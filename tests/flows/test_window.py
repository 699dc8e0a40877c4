"""A part of the loop: where it begins and ends, what must be in the lake, what is computed again and compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.errors import DriftError, UserError
from flows.execute import Request, changes, execute, loop, run_of
from flows.recipe import load_recipe
from flows.window import STAGES, Window, place_of, window_of
from storage.artifacts import Lake
from tests.tiny import tiny_recipe


def run(lake: Lake, **request: object) -> dict:
    """The record of the run that answers a request, computed without Prefect."""
    run_id = execute(lake, Request(**request), loop, say=lambda _: None)  # type: ignore[arg-type]
    return next(r for r in lake.runs() if r["run"] == run_id)


def computed(record: dict) -> list[str]:
    return [s["stage"] for s in record["steps"] if not s["reused"]]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Lake, dict]:
    folder = tmp_path_factory.mktemp("window")
    recipe = tiny_recipe(folder, steps=2, rows=40, added_rows=20, candidates=60)
    lake = Lake(folder / "lake")
    stopped = run(lake, recipe=str(recipe), stop_after="select")
    return recipe, lake, stopped | {"whole": run(lake, recipe=str(recipe))}


def test_places_follow_the_loop():
    loop_order = [
        place_of(*p)
        for p in (
            ("ingest", 0, ""), ("base", 0, ""), ("embed", 0, ""), ("score", 1, ""), ("select", 1, "screen"),
            ("evaluate", 1, "screen"), ("screen", 1, "screen"), ("synthesize", 1, "confirm"), ("train", 1, "confirm"),
            ("audit", 1, ""), ("decide", 1, "confirm"), ("select", 1, "full"), ("unpublished", 1, ""), ("stop", 1, ""),
            ("score", 2, ""), ("base", 2, ""), ("evaluate", 2, "sealed"),
        )
    ]  # fmt: skip
    assert loop_order == sorted(loop_order) and len(set(loop_order)) == len(loop_order)


def test_a_run_that_stops_early_is_complete_and_books_nothing(done):
    _, lake, record = done
    assert record["state"] == "completed" and record["stopped_after"] == {"stage": "select", "round": 1}
    assert [s["stage"] for s in record["steps"]] == ["ingest", "base", "score", "synthesize", "select"]
    assert computed(record["whole"])[0] == "train" and record["whole"]["steps"][-1]["stage"] == "sealed"
    assert len(lake.alpha_spent("tiny")) == 2  # one test of two suites, by the second run alone


def test_what_comes_before_must_be_in_the_lake(tmp_path):
    recipe = tiny_recipe(tmp_path, steps=2)
    with pytest.raises(UserError, match=r"begins at select, and stage ingest.*--start-at ingest"):
        run(Lake(tmp_path / "lake"), recipe=str(recipe), start_at="select")
    assert not Lake(tmp_path / "lake").refs()


@pytest.mark.parametrize(
    ("changed", "stage"),
    [
        ({"select": {"regions": 9}}, "score of round 1"),
        ({"budget": {"rows": 30}}, "ingest"),
        ({"proxy": {"steps": 3}}, "score of round 1"),
        ({"synthesize": {"candidates": 70}}, "synthesize of round 1"),
    ],
)
def test_a_change_of_an_earlier_stage_names_it(done, changed, stage):
    _, lake, record = done
    (section,) = changed
    with pytest.raises(UserError, match=rf"begins at select, and stage {stage}.*alters it \({section}\."):
        run(lake, run_id=record["run"], start_at="select", changed=changed)


def test_a_changed_field_computes_from_its_stage_on(done):
    _, lake, record = done
    given = changes(['select.strategies=["errors_first"]'])
    again = run(lake, run_id=record["run"], start_at="select", stop_after="select", changed=given)
    assert computed(again) == ["select"]
    assert again["rerun_of"] == record["run"] and again["changed"] == ["select.strategies"]


def test_sources_are_not_read_by_a_run_that_begins_later(done):
    _, lake, record = done
    request = Request(run_id=record["run"], start_at="select")
    assert run_of(lake, request).known_files == {}  # of an embedded corpus: it has none
    assert run_of(lake, Request(run_id=record["run"])).known_files is None


def test_force_computes_again_and_compares(done):
    _, lake, record = done
    before, alpha = lake.refs(), lake.alpha_spent("tiny")
    again = run(lake, run_id=record["whole"]["run"], start_at="select", force=True)
    assert {"select", "train", "evaluate", "audit", "decide", "sealed"} <= set(computed(again))
    assert not {"ingest", "base", "score", "synthesize", "stop"} & set(computed(again))
    assert (lake.refs(), lake.alpha_spent("tiny")) == (before, alpha)
    assert not list(lake.root.glob("work/*/*.force"))
    only = run(lake, run_id=record["whole"]["run"], start_at="decide", stop_after="decide", force=True)
    assert computed(only) == ["decide"]


def test_other_bytes_are_a_drift_that_deletes_nothing(done, monkeypatch):
    from flows import decide

    _, lake, record = done
    before = lake.refs()
    monkeypatch.setattr(decide, "_line", lambda *_: "another wording")
    monkeypatch.setattr(decide, "compare_arms", lambda *a, real=decide.compare_arms: real(*a).reverse())
    with pytest.raises(DriftError, match="table comparisons, row 0"):
        run(lake, run_id=record["whole"]["run"], start_at="decide", stop_after="decide", force=True)
    assert lake.refs() == before and lake.runs()[-1]["state"] == "failed"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"start_at": "train", "stop_after": "base"}, "exchange them"),
        ({"start_at": "selekt"}, "there is no stage 'selekt'; stages: ingest, base"),
        ({"start_at": "screen"}, "has no screen"),
        ({"round": 3}, "there is no round 3.*rounds = 1"),
        ({"changed": {"selekt": {"regions": 2}}}, "selekt: unknown field; did you mean 'select'"),
        ({"changed": {"select": {"region": 2}}}, "select.region: unknown field; did you mean 'regions'"),
        ({"changed": {"select": {"strategies": ["best"]}}}, "'best' is not known"),
        ({"run_id": "nope"}, "0 runs begin with 'nope'"),
        ({"recipe": "other", "run_id": None}, "there is no recipe other"),
        ({"recipe": "other"}, "not both"),
    ],
)
def test_refusals_say_why(done, request_, message):
    _, lake, record = done
    with pytest.raises(UserError, match=message):
        run_of(lake, Request(**({"run_id": record["run"]} | request_)))


@pytest.mark.parametrize("entry", ["rows=3", "budget.rows", "budget.=3", "=3", ".rows=3"])
def test_a_setting_without_section_is_refused(entry):
    with pytest.raises(UserError, match=r"SECTION\.FIELD=VALUE"):
        changes([entry])


def test_the_name_of_a_recipe_stands_for_its_newest_run(done):
    _, lake, record = done
    newest = run(lake, run_id=record["run"], stop_after="base", changed={"select": {"regions": 9}})
    before = lake.runs()
    assert run(lake, recipe="tiny", stop_after="base")["run"] == newest["run"] != record["run"]
    assert run_of(lake, Request(recipe="tiny")).recipe.select.regions == 9
    assert lake.runs() == before


def test_a_partial_section_keeps_the_other_fields(done):
    recipe, lake, record = done
    made = run_of(lake, Request(run_id=record["run"], changed={"decide": {"guard_points": 3.0}})).recipe
    spec = load_recipe(recipe)
    assert made.decide == spec.decide.model_copy(update={"guard_points": 3.0})
    assert made.model_copy(update={"decide": spec.decide}) == spec


def test_every_stage_can_begin_and_end_a_window():
    recipe = load_recipe(Path(__file__).parents[2] / "flows" / "demo.toml")
    for stage in STAGES:
        if stage != "screen":
            window = window_of(recipe, stage, stage, 2, True)
            assert window.repeats(stage, 0 if stage in ("ingest", "base", "embed") else 2, "confirm")
    assert not Window(force=True).repeats("stop", 1) and not Window(force=True).repeats("screen", 1, "screen")


def test_a_found_run_begins_no_artifact(done, monkeypatch):
    recipe, lake, record = done
    monkeypatch.setattr(lake, "draft", lambda *_, **__: pytest.fail("something is computed"))
    assert run(lake, recipe=str(recipe)) == record["whole"]
