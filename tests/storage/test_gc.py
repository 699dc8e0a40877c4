"""What gc may take: never a part of a version's lineage, never what a run needs; killed anywhere it leaves a whole lake."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from curation.errors import DataError, UserError
from storage import gc, shards
from storage.artifacts import Lake, Ref, fingerprint
from storage.layout import artifact_folder
from tests.storage.lakes import rows

OLD = "2020-01-01T00:00:00+00:00"


def make(lake: Lake, kind: str, *parents: Ref, n: int = 3, name: str = "d", spec: int = 0) -> Ref:
    fp = fingerprint(kind, "1", {"n": n, "spec": spec}, [str(p) for p in parents])
    with lake.draft(kind, name, fp, {"parents": [str(p) for p in parents]}) as draft:
        draft.write_shard(f"s{n}", {"rows": rows(n)})
        return draft.publish()


def save(lake: Lake, run: str, *refs: Ref, state: str = "completed", started: str = OLD) -> None:
    steps = [{"stage": r.kind, "round": 1, "phase": "", "artifact": str(r)} for r in refs]
    lake.save_run(run, {"state": state, "started": started, "seconds": 1.0, "steps": steps})


def publish(lake: Lake, evidence: Ref, n: int = 3) -> Ref:
    number = lake.publish_dataset("d", rows(n), "s", None, "publish", str(evidence), 9, f"content {n}")
    return Ref("dataset", "d", f"v{number}")


def tell(lake: Lake, since: float | None = None, **more: bool) -> dict[str, gc.Unneeded]:
    found = gc.unneeded(lake.root, since or time.time() + 1, lambda run: run["state"] == "running", **more)
    return {one.artifact or one.path: one for one in found}


def take(lake: Lake, **more: bool) -> dict:
    return gc.remove(lake.root, lambda: list(tell(lake, **more).values()), {})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture
def chain(lake: Lake) -> dict[str, Ref]:
    """A version's lineage, what its run made beside it, and what another run made of the same pool."""
    pool = make(lake, "ingest", n=9)
    made = {"pool": pool, "train": make(lake, "train", pool), "full": make(lake, "select", pool, n=4)}
    made["decide"] = make(lake, "decide", made["train"])
    made |= {"other": make(lake, "train", pool, n=5), "last": make(lake, "evaluate", pool, n=6)}
    publish(lake, made["decide"])
    save(lake, "won", *(made[k] for k in ("pool", "train", "decide", "full")))
    save(lake, "lost", pool, made["other"], made["last"], state="failed")
    return made


def test_a_lineage_stays_and_the_rest_goes(lake, chain):
    assert set(tell(lake)) == {str(chain["other"]), str(chain["last"])}
    assert "lost (failed)" in tell(lake)[str(chain["other"])].why
    before = {ref: lake.manifest(ref) for ref in lake.refs()}
    size = sum(one.bytes for one in tell(lake).values())
    done = take(lake)
    assert done["bytes_freed"] == size > 0 and len(done["removed"]) == 2
    assert set(lake.refs()) == set(before) - {chain["other"], chain["last"]}
    for ref in lake.refs():
        lake.verify(ref)
    assert not tell(lake) and not list((lake.root / "work").glob(".removed/*"))


def test_what_is_young_or_in_progress_stays(lake, chain):
    assert not tell(lake, since=time.time() - 60)
    save(lake, "lost", chain["other"], state="running")
    assert set(tell(lake)) == {str(chain["last"])}


def test_a_run_seen_lately_keeps_what_it_found(lake, chain):
    for ref in lake.refs():
        os.utime(artifact_folder(lake.root, ref) / "manifest.json", (1e9, 1e9))
    save(lake, "lately", chain["last"], started="2099-01-01T00:00:00+00:00")
    assert set(tell(lake)) == {str(chain["other"])}


def test_candidates_stay_until_they_are_dropped(lake, chain):
    beside = make(lake, "train", chain["pool"], n=7)
    decided = make(lake, "decide", beside, n=2)
    kept = lake.publish_candidate("d", rows(2), "s", 1, str(decided), 9, "other content")
    assert not {str(beside), str(kept)} & set(tell(lake))
    dropped = tell(lake, drop_candidates=True)
    assert {str(beside), str(kept)} <= set(dropped) and str(decided) not in dropped
    assert str(kept) not in tell(lake, since=time.time() - 60, drop_candidates=True)


@pytest.mark.parametrize("seed", range(4))
def test_no_version_loses_an_ancestor_in_any_graph(tmp_path, seed):
    lake, draw = Lake(tmp_path / "lake"), random.Random(seed)
    refs: list[Ref] = []
    for n in range(25):
        parents = draw.sample(refs, min(len(refs), draw.randrange(3)))
        refs.append(make(lake, draw.choice(["train", "decide", "score"]), *parents, spec=n))
    for n in range(3):
        publish(lake, draw.choice(refs), n + 1)
        save(lake, f"run{n}", *draw.sample(refs, 4))
    needed, ahead = set(), [r for r in lake.refs() if r.is_dataset]
    while ahead:
        manifest = lake.manifest(ref := ahead.pop())
        needed.add(ref)
        ahead += [Ref.parse(t) for t in [*manifest["parents"], manifest.get("evidence")] if t]
    assert len(needed) < len(refs) and len(take(lake)["removed"])
    for ref in needed:
        lake.verify(ref)


def test_an_artifact_found_by_a_run_is_not_taken_before_it_is_noted(lake, chain):
    done = threading.Event()
    thread = threading.Thread(target=lambda: (take(lake), done.set()))
    with gc.noting(lake.root), gc.noting(lake.root):  # runs do not wait for each other
        assert lake.find("train", "d", chain["other"].fingerprint)
        thread.start()
        assert not done.wait(0.3)
        save(lake, "begun", chain["other"], state="running")
    thread.join(10)
    assert done.is_set() and chain["other"] in lake.refs() and chain["last"] not in lake.refs()


@pytest.mark.parametrize("where", ["move", "empty"])
def test_killed_in_the_middle_the_next_goes_on(lake, chain, monkeypatch, where):
    size = sum(one.bytes for one in tell(lake).values())
    with monkeypatch.context() as patch:
        if where == "move":
            real, calls = gc._move, []
            patch.setattr(
                gc, "_move", lambda *a: real(*a) if not calls.append(a) and len(calls) < 2 else 1 / 0
            )
        else:
            patch.setattr(gc.shutil, "rmtree", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take(lake)
    for ref in lake.refs():
        lake.verify(ref)  # whole, or not there
    assert len([r for r in (chain["other"], chain["last"]) if r in lake.refs()]) == (where == "move")
    assert take(lake)["bytes_freed"] == size
    assert not tell(lake) and chain["other"] not in lake.refs()


def test_a_removed_artifact_is_explained_until_it_is_made_again(lake, chain):
    take(lake)
    with pytest.raises(UserError, match=r"gradus gc. removed it on 20\d\d-.*recipe of lost, run again"):
        lake.manifest(chain["other"])
    assert make(lake, "train", chain["pool"], n=5) == chain["other"]
    lake.verify(chain["other"])


def test_unfinished_work_goes_unless_a_process_holds_it_or_it_is_young(lake):
    with lake.draft("train", "d", "0" * 12, {}) as draft:
        draft.write_shard("s", {"rows": rows(2)})
        assert not tell(lake)
    name = draft.work_path.relative_to(lake.root).as_posix()
    assert set(tell(lake)) == {name} and not tell(lake, since=time.time() - 60)
    assert take(lake)["removed"] and not draft.work_path.exists()
    assert not list(lake.root.glob("work/train/*.lock"))


def test_half_deleted_rests_go_but_a_broken_lineage_stops_all(lake, chain):
    (artifact_folder(lake.root, chain["other"]) / "manifest.json").unlink()
    assert tell(lake)[str(chain["other"])].why == "half deleted"
    (artifact_folder(lake.root, chain["train"]) / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"nothing was removed.*half deleted"):
        take(lake)
    assert chain["last"] in lake.refs()


def test_a_record_that_cannot_be_read_stops_all(lake, chain):
    (lake.root / "runs" / "odd.json").write_text("{")
    with pytest.raises(DataError, match=r"nothing was removed: .*odd\.json"):
        take(lake)


def test_shared_bytes_are_not_counted_as_freed(lake, chain):
    kept = next((artifact_folder(lake.root, chain["pool"]) / "rows").iterdir())
    goes = artifact_folder(lake.root, chain["last"]) / "rows"
    shards.place(kept, goes / "shared.parquet")
    shards.place(goes / "s6.parquet", goes / "twice.parquet")
    listed = sum(one.bytes for one in tell(lake).values())
    twice, shared = (goes / "twice.parquet").stat().st_size, kept.stat().st_size
    assert take(lake)["bytes_freed"] == listed - twice - shared
