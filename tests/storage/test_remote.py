"""A lake in an object store: the bytes of a local one, whatever machine writes, and whatever goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from curation.errors import DataError, TransientError, UserError
from storage import remote, store
from storage.artifacts import Draft, Lake
from storage.catalog import query
from storage.layout import Ref
from tests.object_store import files, needs_store
from tests.storage.lakes import rows

FP = "0" * 12
Machine = Callable[[str], Lake]


@pytest.fixture
def machine(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The lake as another machine opens it: with a mirror of its own."""

    def opened(name: str) -> Lake:
        monkeypatch.setenv("GRADUS_CACHE", str(tmp_path / name))
        return Lake(f"s3://{bucket}/lake")

    return opened


def publish(lake: Lake, n: int = 20, fp: str = FP, extra: bytes = b"model") -> Ref:
    with lake.draft("ingest", "pool", fp, {"stage": "ingest"}) as draft:
        fill(draft, n, extra)
        return draft.publish({"rows": n})


def fill(draft: Draft, n: int, extra: bytes = b"model") -> None:
    draft.write_shard("a", {"rows": rows(n)}, {"model.bin": extra})
    draft.write_shard("b.2", {"rows": rows(n, start=n)})


def publish_version(lake: Lake, content: str, n: int = 5) -> int:
    return lake.publish_dataset("set", rows(n), "base", None, "publish", "", n, content)


def all_at_once(jobs: list[Callable[[], object]]) -> list[object]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


@needs_store
def test_same_manifests_as_a_local_lake_and_readable_elsewhere(machine: Machine, tmp_path: Path) -> None:
    here, local = machine("one"), Lake(tmp_path / "local")
    for lake in (here, local):
        ref = publish(lake)
        assert publish_version(lake, "c1") == 1
        lake.save_report("run.html", b"<p>")
    there = machine("two")
    assert there.root != here.root and there.address == here.address
    assert there.refs() == local.refs() == here.refs()
    for each in local.refs():
        assert there.manifest(each) == local.manifest(each)
        names = [f"{n}/manifest.json" for n in (f"artifacts/ingest/pool@{FP}", "datasets/set@v1")]
        assert all((there.root / n).read_bytes() == (local.root / n).read_bytes() for n in names)
    assert there.read(ref, "rows").equals(local.read(ref, "rows"))
    assert there.read_file(ref, "model.bin") == b"model"
    assert there.dataset("set", 1).equals(local.dataset("set", 1))
    assert there.dataset_folders() == [("set", 1)]
    assert there.reports() == {"run.html"}
    assert (path := there.report("run.html")) and path.read_bytes() == b"<p>"
    there.verify(ref)


@needs_store
def test_the_mirrors_folder_opens_the_lake_too(machine: Machine) -> None:
    lake = machine("one")
    again = Lake(lake.root)
    publish(again)
    assert again.address == lake.address
    assert machine("two").find("ingest", "pool", FP)
    assert Lake(Path(lake.address)).root == machine("two").root  # a path has one slash where a URL has two


@needs_store
def test_an_upload_without_its_manifest_is_not_seen(
    machine: Machine, bucket: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, made = machine("one"), store.Store.create

    def cut(self: store.Store, name: str, data: bytes) -> bool:
        if name.endswith("manifest.json"):
            raise TransientError("cut")
        return made(self, name, data)

    monkeypatch.setattr(store.Store, "create", cut)
    with pytest.raises(TransientError, match="cut"):
        publish(lake)
    monkeypatch.undo()
    assert [name for name in files(endpoint).find(bucket) if "/data/" in name]
    assert lake.refs() == [] and lake.find("ingest", "pool", FP) is None
    before = {n: e["LastModified"] for n, e in files(endpoint).find(bucket, detail=True).items()}
    with lake.draft("ingest", "pool", FP, {"stage": "ingest"}) as draft:
        assert draft.done() == {"a", "b.2"}  # nothing is made again
        draft.publish({"rows": 20})
    after = {n: e["LastModified"] for n, e in files(endpoint).find(bucket, detail=True).items()}
    assert {n: after[n] for n in before} == before  # nor sent again


@needs_store
def test_damaged_and_lost_objects_are_told(machine: Machine, bucket: str, endpoint: str) -> None:
    ref = publish(machine("one"))
    folder = f"{bucket}/lake/data/artifacts/ingest/pool@{FP}/rows"
    (name,) = files(endpoint).glob(f"{folder}/a.*.parquet")
    files(endpoint).pipe_file(name, b"x" * files(endpoint).size(name))
    other = machine("two")
    with pytest.raises(DataError, match=r"rows/a\.[0-9a-f]{16}\.parquet is damaged"):
        other.read(ref, "rows")
    assert not list(other.root.glob("artifacts/*/*/rows/*"))
    assert query(other, "select damage from artifacts").item() == "rows/a.parquet is missing"
    files(endpoint).rm_file(name)
    with pytest.raises(DataError, match="lacks an object"):
        other.read(ref, "rows")


@needs_store
def test_a_damaged_mirror_is_mended(machine: Machine) -> None:
    lake = machine("one")
    ref = publish(lake)
    path = lake.paths(ref, "rows")[0]
    path.write_bytes(b"torn")
    assert lake.read(ref, "rows").height == 40
    path.unlink()
    assert lake.read(ref, "rows").height == 40


@needs_store
def test_of_two_writers_of_an_artifact_one_wins_and_the_other_takes_it(machine: Machine) -> None:
    lakes = [machine(str(i)) for i in range(4)]
    refs = all_at_once(
        [lambda i=i, lake=lake: publish(lake, extra=bytes([i])) for i, lake in enumerate(lakes)]
    )
    assert set(refs) == {Ref("ingest", "pool", FP)}
    ref = Ref("ingest", "pool", FP)
    told = {lake.read_file(ref, "model.bin") for lake in lakes}
    assert len(told) == 1 and told == {machine("fresh").read_file(ref, "model.bin")}
    assert len({str(lake.manifest(ref)) for lake in lakes}) == 1


@needs_store
def test_every_content_gets_one_number(machine: Machine) -> None:
    lakes = [machine(str(i)) for i in range(6)]
    contents = ["a", "b", "c", "a", "b", "c"]
    jobs = [
        lambda lake=lake, c=c: publish_version(lake, c, 5 + ord(c))
        for lake, c in zip(lakes, contents, strict=True)
    ]
    numbers = dict(zip(range(6), all_at_once(jobs), strict=True))
    assert sorted(set(numbers.values())) == [1, 2, 3]
    assert all(numbers[i] == numbers[i + 3] for i in range(3))
    versions = machine("fresh").dataset_versions("set")
    assert sorted(v["content_fp"] for v in versions) == ["a", "b", "c"]


@needs_store
def test_bookings_are_made_once(machine: Machine) -> None:
    lakes = [machine(str(i)) for i in range(6)]
    spent = all_at_once(
        [lambda lake=lake: lake.spend_alpha("set", "judge", 0, 1, 0.05, "k") for lake in lakes]
    )
    assert sum(map(bool, spent)) == 1
    assert all(len(lake.alpha_spent()) == 1 for lake in lakes)
    assert sum(lake.open_sealed("set", "suite", "key") for lake in lakes) == 1
    with pytest.raises(UserError, match="was opened for set"):
        machine("fresh").open_sealed("set", "suite", "another")
    assert len(lakes[5].openings()) == 1


@needs_store
def test_records_of_other_machines_are_seen_as_they_change(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    for state in ("running", "stopped"):  # as long as the other, and within the same second
        one.save_run("r", {"state": state, "started": "2026"})
        one.add_cost("r", {"stage": state})
        assert [run["state"] for run in two.runs()] == [state] == [run["state"] for run in one.runs()]
    assert [cost["stage"] for cost in two.costs("r")] == ["running", "stopped"]


@needs_store
def test_what_was_removed_from_the_store_is_gone_everywhere(
    machine: Machine, bucket: str, endpoint: str
) -> None:
    one, two = machine("one"), machine("two")
    ref = publish(one)
    assert two.read(ref, "rows").height == 40
    remote.clean(one.root, one.root / "artifacts" / "ingest" / f"pool@{FP}")
    assert not [name for name in files(endpoint).find(bucket) if "pool@" in name]
    assert two.refs() == [] and two.find("ingest", "pool", FP) is None


@needs_store
def test_shards_are_handed_over_and_cleaned_away(machine: Machine, bucket: str, endpoint: str) -> None:
    one, two = machine("one"), machine("two")
    with two.draft("ingest", "pool", FP, {"stage": "ingest"}) as draft:
        fill(draft, 20)
        work = draft.work_path.relative_to(two.root).as_posix()
        two.send_shard(work, "a")
    with one.draft("ingest", "pool", FP, {"stage": "ingest"}) as draft:
        assert one.fetch_shards(work, ["a", "b.2"]) == {"a"} == draft.done()
        assert draft.read_shard("a", "rows").equals(rows(20))
        fill(draft, 20)
        ref = draft.publish({"rows": 20})
    assert one.read_file(ref, "model.bin") == b"model"
    assert not [name for name in files(endpoint).find(bucket) if "/work/" in name]


@needs_store
def test_the_catalog_of_a_fresh_mirror_shows_the_lake(machine: Machine) -> None:
    publish(machine("one"))
    two = machine("two")
    assert query(two, "select count(*) from rows").item() == 40
    publish(machine("one"), n=3, fp="1" * 12)
    assert query(two, "select count(*) from rows").item() == 46


@needs_store
def test_what_cannot_be_opened_is_said(bucket: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=rf"no lake in s3://{bucket}/none; .*--lake s3://{bucket}/none"):
        Lake(f"s3://{bucket}/none", create=False)
    with pytest.raises(UserError, match="no such bucket"):
        Lake("s3://no-such-bucket-here/lake")
    files(endpoint).clear_instance_cache()  # the next client reads the environment again
    monkeypatch.setattr(store, "TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(TransientError, match=r"does not answer .* run the same command again"):
        Lake(f"s3://{bucket}/elsewhere")
    files(endpoint).clear_instance_cache()


@pytest.mark.parametrize(
    "address", ["s3://key:secret@bucket/x", "s3://b/../x", "s3://b/x?y", "s3://", "file:///x"]
)
def test_strange_addresses_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(UserError, match="cannot hold a lake") as told:
        Lake(address)
    assert "secret" not in str(told.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*args: object, **more: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"pip install 'gradus\[s3\]'"):
        Lake("s3://bucket/missing-package")


def test_a_store_that_overwrites_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("GRADUS_CACHE", str(tmp_path))
    assert Lake("memory://keeps/lake").refs() == []
    whole = MemoryFileSystem.pipe_file
    monkeypatch.setattr(
        MemoryFileSystem, "pipe_file", lambda self, path, value, mode="": whole(self, path, value)
    )
    with pytest.raises(UserError, match="lets a second writer overwrite the first"):
        Lake("memory://overwrites/lake")
    assert not MemoryFileSystem().exists("memory://overwrites/lake/lake.json")


def test_a_busy_store_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("GRADUS_CACHE", str(tmp_path))
    monkeypatch.setattr(store.time, "sleep", lambda _: None)
    lake, whole, refused = Lake("memory://busy/lake"), MemoryFileSystem.pipe_file, []

    def busy(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite") -> None:
        if len(refused) < 2:
            refused.append(path)
            raise OSError(16, "SlowDown")
        whole(self, path, value, mode)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", busy)
    assert lake.spend_alpha("set", "judge", 0, 1, 0.05, "k")
    assert len(refused) == 2 and len(lake.alpha_spent()) == 1


def test_denied_access_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("GRADUS_CACHE", str(tmp_path))
    lake, asked = Lake("memory://denied/lake"), []

    def denied(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite") -> None:
        asked.append(path)
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", denied)
    with pytest.raises(UserError, match="denies access"):
        lake.save_run("r", {"state": "running"})
    assert len(asked) == 1


def test_names_that_leave_the_mirror_are_not_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("GRADUS_CACHE", str(tmp_path / "cache"))
    lake = Lake("memory://names/lake")
    MemoryFileSystem().pipe_file("/names/lake/artifacts/x/../manifest.json", b"{}")
    MemoryFileSystem().pipe_file("/names/lake/artifacts/x/y/manifest.json", b"{}")
    assert lake.refs() == []
    with pytest.raises(DataError, match="no Gradus writes"):
        remote.fetch(lake.root, lake.root / "artifacts", {"../../x": {"bytes": 1, "blake2b": "0" * 32}})


def test_a_plain_lake_has_no_store(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    assert lake.address == str(lake.root) and remote.of(lake.root) is None
    assert publish(lake) and lake.fetch_shards("work/x", ["a"]) == set()
    assert isinstance(lake.read(publish(lake), "rows"), pl.DataFrame)
