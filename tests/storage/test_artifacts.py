"""Artifacts: whole or not at all, the same bytes for the same content, one winner."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from lakes import features, rows, scores

from curation.errors import DataError, DriftError, UserError
from storage import shards
from storage.artifacts import Lake, Ref
from storage.lineage import ancestors

FP = "0123456789ab"
REPO = Path(__file__).parents[2]


def publish(lake: Lake, name: str = "x", n: int = 4, **manifest: object) -> Ref:
    with lake.draft("ingest", name, FP, {"stage": "ingest", "spec": {"a": 1}, **manifest}) as draft:
        draft.write_shard("b", {"rows": rows(n, n)}, {"model.bin": b"\x00\x01"})
        draft.write_shard("a", {"rows": rows(n), "features": features(n)})
        return draft.publish({"seen": 2 * n})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_round_trip(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    assert lake.find("ingest", "x", FP) is None
    ref = publish(lake)
    assert lake.find("ingest", "x", FP) == ref == Ref("ingest", "x", FP)
    assert lake.read(ref, "rows").equals(rows(8))  # shard a before shard b
    assert lake.read(ref, "features").equals(features(4))
    assert lake.read(ref, "features").schema["feature"] == pl.Array(pl.Float16, 8)
    assert lake.read(ref, "rows", ["n_chars", "row_id"]).columns == ["n_chars", "row_id"]
    assert lake.scan(ref, "rows").filter(pl.col("n_chars") > 25).collect().height == 2
    assert lake.tables(ref) == ["features", "rows"]
    assert lake.read_file(ref, "model.bin") == b"\x00\x01"
    empty = lake.read(ref, "ledger")
    assert empty.is_empty() and empty.schema["value"] == pl.Float64
    manifest = lake.manifest(ref)
    assert manifest["rows"] == {"features": 4, "rows": 8} and manifest["counts"] == {"seen": 8}
    assert manifest["schema"]["features"]["feature"] == "Array(Float16, shape=(8,))"
    lake.verify(ref)
    assert not list((lake.root / "work").rglob("*.parquet"))


def test_bytes_depend_on_content_only(tmp_path: Path) -> None:
    publish(Lake(tmp_path / "one"))
    lake = Lake(tmp_path / "two")
    pieces = pl.concat([rows(9).slice(0, 1), rows(9).slice(1, 3)], rechunk=False)
    with lake.draft("ingest", "x", FP, {"spec": {"a": 1}, "stage": "ingest"}) as draft:
        draft.write_shard("a", {"features": features(4), "rows": pieces})
        draft.write_shard("b", {"rows": rows(9).slice(4, 4)}, {"model.bin": b"\x00\x01"})
        draft.publish({"seen": 8})
    assert tree(tmp_path / "one" / "artifacts") == tree(tmp_path / "two" / "artifacts")


def test_empty_tables_are_typed_and_legal(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with lake.draft("score", "x", FP, {}) as draft:
        draft.write_shard("a", {"features": features(3, d=16).clear(), "rows": rows(0)})
        ref = draft.publish()
    assert lake.read(ref, "features").schema["feature"] == pl.Array(pl.Float16, 16)
    assert lake.read(ref, "rows").schema == rows(1).schema


@pytest.mark.parametrize(
    ("table", "frame"),
    [
        ("rows", rows(2).drop("label")),
        ("rows", rows(2).with_columns(pl.col("n_chars").cast(pl.Int32))),
        ("rows", rows(2).select(reversed(rows(2).columns))),
        ("features", scores(2)),
        ("features", features(2).with_columns(pl.col("feature").cast(pl.Array(pl.Float32, 8)))),
        ("nonsense", rows(2)),
    ],
)
def test_schema_is_refused(tmp_path: Path, table: str, frame: pl.DataFrame) -> None:
    with Lake(tmp_path).draft("ingest", "x", FP, {}) as draft:
        with pytest.raises(DataError):
            draft.write_shard("a", {"scores": scores(1), table: frame})
        assert draft.done() == set()


def test_shards_of_two_schemas_or_one_file_name_are_refused(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with lake.draft("score", "x", FP, {}) as draft:
        draft.write_shard("a", {"features": features(2, d=8)})
        draft.write_shard("b", {"features": features(2, d=16)})
        with pytest.raises(DataError, match="shard b has another schema than a"):
            draft.publish()
    with lake.draft("score", "y", FP, {}) as draft:
        draft.write_shard("a", {}, {"f": b"1"})
        draft.write_shard("b", {}, {"f": b"2"})
        with pytest.raises(DataError, match="two shards wrote the file 'f'"):
            draft.publish()
    assert lake.refs() == []


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", ""])
def test_hostile_names(tmp_path: Path, name: str) -> None:
    lake = Lake(tmp_path)
    with pytest.raises(UserError), lake.draft("ingest", name, FP, {}):
        pass
    with lake.draft("ingest", "x", FP, {}) as draft:
        with pytest.raises(UserError):
            draft.write_shard(name, {})
        with pytest.raises(UserError):
            draft.write_shard("a", {}, {name: b""})


def test_finished_shards_stay_and_are_not_redone(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with pytest.raises(RuntimeError), lake.draft("ingest", "x", FP, {}) as draft:
        draft.write_shard("a", {"rows": rows(3)})
        raise RuntimeError("the stage failed")
    (draft.work_path / "tmp" / "b.1.dead").mkdir(parents=True)
    with lake.draft("ingest", "x", FP, {}) as draft:
        assert draft.done() == {"a"} and not (draft.work_path / "tmp").exists()
        draft.write_shard("a", {"rows": rows(1)})
        assert draft.read_shard("a", "rows").height == 3
        draft.publish()
    with lake.draft("ingest", "x", FP, {}) as draft:
        assert draft.published == Ref("ingest", "x", FP) == draft.publish()
        assert draft.done() == {"a"}


def test_leftovers_after_publishing_are_cleaned(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    ref = publish(lake)
    work = tmp_path / "work" / "ingest" / f"x@{FP}"
    (work / "publish").mkdir(parents=True)
    assert publish(lake) == ref
    assert not work.exists()


def test_shards_from_worker_processes(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with lake.draft("ingest", "x", FP, {}) as draft:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            jobs = [
                pool.submit(shards.write_shard, draft.work_path, f"{i}", {"rows": rows(5, 5 * i)})
                for i in range(4)
            ]
            for job in jobs:
                job.result()
        ref = draft.publish()
    assert lake.read(ref, "rows").equals(rows(20))


def test_second_draft_waits_then_finds_it_published(tmp_path: Path) -> None:
    lake, seen = Lake(tmp_path), []

    def second() -> None:
        with Lake(tmp_path).draft("ingest", "x", FP, {}) as draft:
            seen.append((draft.published, draft.publish()))

    with lake.draft("ingest", "x", FP, {}) as draft:
        other = threading.Thread(target=second)
        other.start()
        draft.write_shard("a", {"rows": rows(3)})
        other.join(0.2)
        assert other.is_alive() and not seen
        ref = draft.publish()
    other.join(10)
    assert seen == [(ref, ref)]


RACE = """
import sys
sys.path.insert(0, sys.argv[2])
from lakes import rows
from storage.artifacts import Lake
lake = Lake(sys.argv[1])
for name in "abcdef":
    with lake.draft("ingest", name, "0123456789ab", {}) as draft:
        won = draft.published is None
        for i in range(3):
            draft.write_shard(str(i), {"rows": rows(20, 20 * i)})
        draft.publish()
    print(name, won)
"""


def test_concurrent_writers_have_one_winner_each(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path), str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    writers = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    wins = [line for text in said for line in text.splitlines() if line.endswith("True")]
    assert sorted(wins) == [f"{name} True" for name in "abcdef"]
    lake = Lake(tmp_path)
    for ref in lake.refs("ingest"):
        lake.verify(ref)
        assert lake.read(ref, "rows").equals(rows(60))
    assert len(lake.refs()) == 6


def test_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with shards.locked(lock):
        child = os.fork()
        if child == 0:
            threading.Event().wait(5)
            os._exit(0)
    with shards.locked(lock):  # would wait for the child
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, 9)
    os.waitpid(child, 0)


def test_force_compares_bytes(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    ref = publish(lake)
    before = tree(tmp_path / "artifacts")

    def again(frame: pl.DataFrame) -> Ref:
        with lake.draft("ingest", "x", FP, {}, force=True) as draft:
            assert draft.published is None and draft.done() == set()
            draft.write_shard("b", {"rows": rows(4, 4)}, {"model.bin": b"\x00\x01"})
            draft.write_shard("a", {"rows": frame, "features": features(4)})
            return draft.publish()

    assert again(rows(4)) == ref
    with pytest.raises(DriftError, match=r"rows/a.parquet has other bytes \(table rows, row 2;"):
        again(
            rows(4).with_columns(
                pl.when(pl.col("n_chars") == 22).then(0).otherwise("n_chars").alias("n_chars")
            )
        )
    assert again(rows(4)) == ref
    assert tree(tmp_path / "artifacts") == before


def test_verify_names_the_changed_file(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    ref = publish(lake)
    path = tmp_path / "artifacts" / "ingest" / f"x@{FP}" / "rows" / "a.parquet"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DriftError, match=r"rows/a\.parquet"):
        lake.verify(ref)


def test_half_deleted_says_what_to_type(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    ref = publish(lake)
    folder = tmp_path / "artifacts" / "ingest" / f"x@{FP}"
    (folder / "rows" / "b.parquet").unlink()
    for use in (lambda: lake.verify(ref), lambda: lake.read(ref, "rows")):
        with pytest.raises(DataError, match=r"rows/b\.parquet.* is missing; .*rm -r"):
            use()
    (folder / "manifest.json").unlink()
    assert lake.find("ingest", "x", FP) is None
    for use in (lambda: lake.verify(ref), lambda: publish(lake)):
        with pytest.raises(DataError, match=r"has no manifest\.json; .*rm -r"):
            use()
    shutil.rmtree(folder)
    lake.verify(publish(lake))


def test_questions_with_no_answer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no lake"):
        Lake(tmp_path / "none", create=False)
    lake = Lake(tmp_path)
    with pytest.raises(UserError, match="is not in the lake"):
        lake.read(Ref("ingest", "x", FP), "rows")
    ref = publish(lake)
    with pytest.raises(UserError, match="there is no table 'nope'"):
        lake.read(ref, "nope")
    with pytest.raises(UserError, match="no such column"):
        lake.read(ref, "rows", ["nope"])
    with pytest.raises(UserError, match=r"it has: model\.bin"):
        lake.read_file(ref, "../manifest.json")


@pytest.mark.parametrize("marker", ['{"format": 2}', '{"format": "x"}', "{}"])
def test_newer_format_is_refused(tmp_path: Path, marker: str) -> None:
    (tmp_path / "lake.json").write_text(marker)
    with pytest.raises(UserError, match="nothing was changed"):
        Lake(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lake.json"]


@pytest.mark.parametrize(
    ("code", "word"), [(errno.ENOSPC, "full"), (errno.EACCES, "denied"), (errno.EROFS, "read-only")]
)
def test_disk_errors_say_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, word: str
) -> None:
    lake = Lake(tmp_path)

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with lake.draft("ingest", "x", FP, {}) as draft:
        draft.write_shard("a", {"rows": rows(3)})
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            with pytest.raises(
                UserError, match=f"shard b was not written: .*{word}.*finished shards are kept in"
            ):
                draft.write_shard("b", {"rows": rows(3)})
            with pytest.raises(
                UserError, match=f"x@{FP} was not published: .*{word}.*finished shards are kept in"
            ):
                draft.publish()
        assert draft.done() == {"a"} and not list((draft.work_path / "tmp").iterdir())
        assert lake.read(draft.publish(), "rows").height == 3


READER = """
import sys
sys.path.insert(0, sys.argv[2])
from curation.errors import UserError
from lakes import rows
from storage.artifacts import Lake
from storage.catalog import query
lake = Lake(sys.argv[1])
ref = lake.refs()[0]
lake.verify(ref)
with lake.draft("ingest", "x", ref.fingerprint, {}) as draft:
    assert draft.published == ref
try:
    with lake.draft("ingest", "new", ref.fingerprint, {}) as draft:
        pass
except UserError as error:
    assert "access is denied" in str(error), error
else:
    raise SystemExit("a read-only lake was written")
print(query(lake, "select count(*) from rows").item())
"""


def test_read_only_lake(tmp_path: Path) -> None:
    root = tmp_path / "lake"
    publish(Lake(root))
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    env = {**os.environ, "PYTHONPATH": str(REPO), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", READER, str(root), str(Path(__file__).parent)]
    if os.getuid() == 0:  # root writes anywhere, unless it gives that up
        if not shutil.which("setpriv"):
            pytest.skip("needs setpriv to test as root")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)
    assert done.stdout == "8\n", done.stderr
    assert list((tmp_path / "cache").glob("gradus/*/catalog.duckdb"))
    assert not (root / "catalog.duckdb").exists()


def test_ancestors(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    first = publish(lake, "a")
    second = publish(lake, "b", parents=[str(first)])
    third = publish(lake, "c", parents=[str(second), str(first)])
    assert ancestors(lake.root, third) == [(third, second), (third, first), (second, first)]
