"""Every engine makes the same bytes, fails with the same error, and goes on when a worker is lost."""

from __future__ import annotations

import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from curation.errors import DataError, TransientError, UserError
from flows import engines
from flows.engines import ENGINES, Engine, ShardWork, checked_engine, compute, grouped
from flows.orchestrate import curate_with_prefect
from flows.recipe import load_recipe
from flows.run import Run
from storage.artifacts import Lake
from storage.shards import finished_shards, read_shard
from tests.crash.test_run_kill import content
from tests.number_shard import number_shard
from tests.plain_run import plain_run
from tests.tiny import tiny_recipe

pytestmark = pytest.mark.xdist_group("prefect")
WITH_TASKS = [
    "threads",
    *(
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                find_spec(f"prefect_{name}") is None, reason=f"pip install 'gradus[{name}]'"
            ),
        )
        for name in ("dask", "ray")
    ),
]


@pytest.fixture
def shards(tmp_path: Path) -> ShardWork:
    lake = Lake(tmp_path / "lake")
    (lake.root / "work/x").mkdir(parents=True)
    return ShardWork(str(lake.root), "work/x", number_shard)


def folder_of(shards: ShardWork) -> Path:
    return Path(shards.lake) / shards.folder


def in_flow(engine: Engine, shards: ShardWork, jobs: dict[str, tuple]) -> int:
    """How many shards the engine said were finished, mapped within a flow that holds what no worker could take."""
    from prefect import flow

    unpicklable = threading.Lock()

    @flow(name="maps")
    def maps() -> int:
        assert unpicklable
        return sum(1 for _ in engine.map(shards, jobs, "numbers"))

    return maps()


def test_an_unknown_engine_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no engine 'spark'; engines: processes, threads, dask, ray"):
        checked_engine("spark")
    monkeypatch.setenv("GRADUS_ENGINE", "threads")
    assert checked_engine() == "threads"
    monkeypatch.delenv("GRADUS_ENGINE")
    assert checked_engine() == "processes"
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gradus\[ray\]'"):
        checked_engine("ray")


def test_shards_are_grouped_into_few_tasks_and_none_is_left_out() -> None:
    assert grouped({}) == []
    assert [list(group) for group in grouped({"a": (), "b": ()})] == [["a"], ["b"]]
    jobs = {f"s{i:04d}": (i,) for i in range(1001)}
    groups = grouped(jobs)
    assert 20 <= len(groups) <= 200
    assert {key: job for group in groups for key, job in group.items()} == jobs


def test_a_transient_error_is_retried_and_then_told(
    shards: ShardWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    compute(shards, {"flaky": (-2,)})
    assert finished_shards(folder_of(shards)) == {"flaky"}
    assert len(slept) == 2 and 0.5 <= slept[0] <= 1.5 and 1 <= slept[1] <= 3

    def never(*_: object) -> None:
        raise TransientError("no answer")

    with pytest.raises(TransientError, match="no answer"):
        engines._attempt(never)
    assert len(slept) == 2 + engines.RETRIES


def test_shards_that_other_machines_finished_are_not_made_again(shards: ShardWork) -> None:
    number_shard(folder_of(shards), "a", 1)
    compute(ShardWork(shards.lake, shards.folder, number_shard, shared=True), {"a": (1,), "b": (2,)})
    assert (folder_of(shards) / "tried").read_text().split() == ["a", "b"]


def test_a_failing_shard_stops_the_map_and_keeps_the_finished(shards: ShardWork) -> None:
    engine = Engine("processes", 1)
    with pytest.raises(DataError, match="row 7 of shard bad"):
        list(engine.map(shards, {"good": (1,), "bad": (-1,)}, "numbers"))
    assert finished_shards(folder_of(shards)) == {"good"}
    list(engine.map(shards, {"later": (2,)}, "numbers"))  # the engine can be used again
    engine.close()
    assert read_shard(folder_of(shards), "later", "scores")["value"].to_list() == [2.0]


def test_a_killed_process_is_told_with_what_to_do(shards: ShardWork) -> None:
    with pytest.raises(TransientError, match=r"worker process was lost .* the same command again"):
        list(Engine("processes", 1).map(shards, {"gone": (-3,)}, "numbers"))


@pytest.mark.parametrize("name", WITH_TASKS)
def test_tasks_finish_all_shards_and_fail_as_processes_do(
    name: str, server: None, shards: ShardWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "MAX_TASKS", 2)
    shared = ShardWork(shards.lake, shards.folder, number_shard, shared=name != "threads")
    lost = (
        {} if name == "threads" else {"lost": (-3,)}
    )  # a cluster gives the shards of a lost worker to another
    jobs = {f"s{i}": (i,) for i in range(5)} | lost
    engine = Engine(name, 2)
    assert in_flow(engine, shared, jobs) == len(jobs)
    assert finished_shards(folder_of(shards)) == set(jobs)
    if lost:
        assert (folder_of(shards) / "tried").read_text().split().count("lost") == 2
    with pytest.raises(DataError, match="row 7 of shard bad"):
        in_flow(engine, shared, {"bad": (-1,)})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("engines")
    recipe = tiny_recipe(folder, steps=2)
    plain_run(recipe, folder / "plain")
    return recipe, content(folder / "plain")


def run_on(engine: str, recipe: Path, lake: Path) -> Run:
    run = Run(
        Lake(lake),
        load_recipe(recipe),
        recipe.parent,
        run_id=engine,
        workers=2,
        say=lambda _: None,
        engine=engine,
    )
    try:
        curate_with_prefect(run)
    finally:
        run.close()
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_TASKS)
def test_the_loop_gives_the_same_bytes(
    name: str, server: None, plain: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, expected = plain
    if name == "dask":
        with a_growing_cluster(tmp_path / "lake") as (address, added):
            monkeypatch.setenv("GRADUS_DASK_ADDRESS", address)
            run_on(name, recipe, tmp_path / "lake")
            assert added.is_set()
    else:
        run_on(name, recipe, tmp_path / "lake")
    assert content(tmp_path / "lake") == expected


class a_growing_cluster:
    """Two Dask workers, and a third from the moment on when rows are scored."""

    def __init__(self, lake: Path) -> None:
        self.lake, self.added, self.over = lake, threading.Event(), threading.Event()

    def __enter__(self) -> tuple[str, threading.Event]:
        from distributed import LocalCluster

        self.cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=40
        )
        self.watcher = threading.Thread(target=self.grow)
        self.watcher.start()
        return self.cluster.scheduler_address, self.added

    def grow(self) -> None:
        while not self.over.wait(0.05):
            if any(self.lake.glob("work/score/*/shards/*")):
                self.cluster.scale(3)
                self.added.set()
                return

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.watcher.join()
        self.cluster.close()


def test_every_engine_is_explained() -> None:
    assert set(ENGINES) == {"processes", *engines.RUNNERS}
