"""The lake: find, make, publish, read and verify artifacts. A reader sees an artifact whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

from curation.errors import DataError, DriftError, UserError
from curation.rows import TABLES, features_schema
from storage import ledger, remote, shards
from storage.layout import (
    FILES,
    FORMAT,
    MANIFEST,
    Ref,
    artifact_folder,
    checked_name,
    fingerprint,
    lock_path,
    pretty_json,
    published_refs,
    work_folder,
)
from storage.lineage import compare, damage_of, describe, half_deleted, read_manifest

__all__ = ["Draft", "Lake", "Ref", "fingerprint"]


class Draft:
    """An artifact being made; finished shards survive a kill. `published` is set when it exists already."""

    def __init__(
        self, root: Path, ref: Ref, manifest: Mapping[str, Any], work_path: Path, force: bool
    ) -> None:
        self.ref, self.work_path = ref, work_path
        self.published: Ref | None = None
        self._root, self._manifest, self._force = root, dict(manifest), force

    def done(self) -> set[str]:
        """Keys of finished shards; of the published ones when it is published."""
        if self.published is not None:
            return {
                Path(name).stem
                for name in read_manifest(self._root, self.ref)["files"]
                if name[-8:] == ".parquet"
            }
        return shards.finished_shards(self.work_path)

    def write_shard(
        self, key: str, tables: Mapping[str, pl.DataFrame], files: Mapping[str, bytes] | None = None
    ) -> None:
        """Finishes a shard; does nothing when it is finished already."""
        if self.published is None:
            shards.write_shard(self.work_path, key, tables, files)

    def read_shard(self, key: str, table: str) -> pl.DataFrame:
        """One table of a finished shard."""
        return shards.read_shard(self.work_path, key, table)

    def keep(self, keys: Iterable[str]) -> None:
        """Forgets finished shards of other keys: what a killed run cut otherwise must not be published beside them."""
        if self.published is None:
            for key in shards.finished_shards(self.work_path) - set(keys):
                shutil.rmtree(self.work_path / "shards" / key)

    def adopt(self, keys: Iterable[str], table: str) -> int:
        """How many of these shards were taken over from published artifacts of this kind and name, byte for byte.

        Only for shards of one table whose key names their content. A forced draft computes everything again.
        """
        wanted = set(keys) - self.done()
        if self._force or self.published is not None or not wanted:
            return 0
        asked = len(wanted)
        remote.refresh(self._root, "artifacts")
        for ref in published_refs(self._root):
            if (ref.kind, ref.name) != (self.ref.kind, self.ref.name) or not wanted:
                continue
            with suppress(
                DataError, FileNotFoundError
            ):  # a damaged artifact lends nothing; computing is always right
                files = read_manifest(self._root, ref)["files"]
                have = {k: f"{table}/{k}.parquet" for k in sorted(wanted) if f"{table}/{k}.parquet" in files}
                folder = artifact_folder(self._root, ref)
                remote.fetch(self._root, folder, {name: files[name] for name in have.values()})
                for key, name in have.items():
                    path = folder / name
                    if shards.digest_of(path) == files[name]:
                        shards.adopt_shard(self.work_path, key, {table: path})
                        wanted.discard(key)
        return asked - len(wanted)

    def publish(self, counts: Mapping[str, Any] | None = None) -> Ref:
        """The reference of all finished shards, published whole; an earlier winner's when there is one."""
        if self.published is not None:
            return self.published
        kept = f"finished shards are kept in {self.work_path}"
        with shards.disk_errors(f"{self.ref} was not published", kept):
            aside = self._lay_out(dict(counts or {}))
            folder = artifact_folder(self._root, self.ref)
            if self._force and remote.copied(self._root, folder / MANIFEST):
                self._agree(aside)
            elif not remote.move_folder(self._root, aside, folder):
                read_manifest(self._root, self.ref)  # another machine won; a half-deleted folder raises here
            remote.clean(self._root, self.work_path)
            shutil.rmtree(self.work_path)
        self.published = self.ref
        return self.ref

    def _agree(self, aside: Path) -> None:
        try:
            compare(self._root, self.ref, aside)
        except DriftError:
            shutil.rmtree(self.work_path / "shards")  # the next forced run computes, and does not resume
            raise

    def _lay_out(self, counts: dict[str, Any]) -> Path:
        aside = self.work_path / "publish"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for key in sorted(self.done()):
            _lay_shard(self.work_path / "shards" / key, aside)
        shards.write_bytes(aside / MANIFEST, pretty_json(describe(self.ref, self._manifest, counts, aside)))
        for folder in (*(path for path in aside.iterdir() if path.is_dir()), aside):
            shards.fsync_folder(folder)
        return aside


def _lay_shard(shard: Path, aside: Path) -> None:
    for table in sorted(shard.glob("*.parquet")):
        (aside / table.stem).mkdir(exist_ok=True)
        shards.place(table, aside / table.stem / f"{shard.name}.parquet")
    for file in sorted((shard / FILES).iterdir()):
        (aside / FILES).mkdir(exist_ok=True)
        try:
            shards.place(file, aside / FILES / file.name)
        except FileExistsError as error:
            raise DataError(f"two shards wrote the file {file.name!r}, the second is {shard.name}") from error


class Lake:
    """Everything published, in a folder or an object store (`s3://bucket/prefix`), open to any number of processes.

    `address` opens it again, also on other machines; `root` is the folder, of an object store its mirror here.
    """

    def __init__(self, root: Path | str, create: bool = True) -> None:
        self.root = remote.folder_of(root, create)
        store = remote.of(self.root)
        self.address = str(self.root) if store is None else store.url
        marker = self.root / "lake.json"
        if not marker.exists():
            if not create:
                raise UserError(
                    f"there is no lake in {self.root}; `gradus run RECIPE --lake {self.root}` makes one"
                )
            with shards.disk_errors(f"no lake was made in {self.root}", "nothing was written"):
                shards.create_file(marker, pretty_json({"format": FORMAT}))
        found = shards.read_json(marker).get("format")
        if not isinstance(found, int) or found > FORMAT:
            raise UserError(
                f"the lake {self.address} has layout format {found}, this Gradus knows up to {FORMAT}; "
                "nothing was changed; upgrade Gradus or use another --lake"
            )

    def find(self, kind: str, name: str, fp: str) -> Ref | None:
        """The reference when the artifact is published; None otherwise."""
        ref = Ref(kind, name, fp)
        return ref if remote.copied(self.root, artifact_folder(self.root, ref) / MANIFEST) else None

    def refs(self, kind: str | None = None) -> list[Ref]:
        """All published artifacts and datasets, sorted; of one kind when given."""
        remote.refresh(self.root, "artifacts", "datasets")
        return [ref for ref in published_refs(self.root) if kind in (None, ref.kind)]

    @contextmanager
    def draft(
        self, kind: str, name: str, fp: str, manifest: Mapping[str, Any], force: bool = False
    ) -> Generator[Draft]:
        """The one draft of this artifact; waits while another process has it.

        `force` makes it again aside, and `publish` then compares bytes: `DriftError` when they differ.
        """
        ref = Ref(kind, name, fp)
        work = work_folder(self.root, ref, ".force" if force else "")
        draft = Draft(self.root, ref, manifest, work, force)
        draft.published = None if force else self.find(kind, name, fp)
        if draft.published is not None and not (work.exists() and os.access(self.root, os.W_OK)):
            yield draft
            return
        with ExitStack() as held:
            with shards.disk_errors(f"{ref} was not begun", f"finished shards are kept in {work}"):
                held.enter_context(shards.locked(lock_path(work)))
                draft.published = None if force else self.find(kind, name, fp)
                _clean(work, whole=draft.published is not None)
            if draft.published is None and not force and artifact_folder(self.root, ref).exists():
                read_manifest(self.root, ref)  # raises: half deleted
            yield draft
            if draft.published is not None:
                lock_path(work).unlink(missing_ok=True)

    def read(self, ref: Ref, table: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """A table of an artifact, in shard-key order; empty and typed when no shard has it."""
        paths = self.paths(ref, table)
        try:
            if paths:
                return shards.read_parquet(paths, list(columns) if columns is not None else None)
        except DataError as error:
            raise DataError(half_deleted(ref, artifact_folder(self.root, ref), str(error))) from error
        frame = _empty(table)
        return frame if columns is None else frame.select(columns)

    def scan(self, ref: Ref, table: str) -> pl.LazyFrame:
        """The same, lazily: only the columns and rows asked for are read."""
        paths = self.paths(ref, table)
        if not paths:
            return _empty(table).lazy()
        return pl.scan_parquet(paths, glob=False, hive_partitioning=False)

    def tables(self, ref: Ref) -> list[str]:
        """Names of the tables that an artifact has."""
        return sorted(self.manifest(ref)["rows"])

    def paths(self, ref: Ref, table: str) -> list[Path]:
        """Absolute Parquet paths of a table, in shard-key order; none when no shard has it.

        `DataError`: one is missing, or has another size than it was published with.
        """
        files, folder = self.manifest(ref)["files"], artifact_folder(self.root, ref)
        mine = {name: facts for name, facts in files.items() if name.startswith(f"{table}/")}
        remote.fetch(self.root, folder, mine)
        if damage := damage_of(folder, mine):
            raise DataError(half_deleted(ref, folder, damage))
        return [folder / name for name in sorted(mine, key=lambda name: name.removesuffix(".parquet"))]

    def files(self, ref: Ref) -> list[str]:
        """Names of the plain files that an artifact has."""
        return [
            n.removeprefix(f"{FILES}/")
            for n in sorted(self.manifest(ref)["files"])
            if n.startswith(f"{FILES}/")
        ]

    def read_file(self, ref: Ref, name: str) -> bytes:
        """The bytes of a plain file of an artifact."""
        if name not in (have := self.files(ref)):
            raise UserError(f"{ref} has no file {name!r}; it has: {', '.join(have) or 'none'}")
        folder, whole = artifact_folder(self.root, ref), f"{FILES}/{name}"
        remote.fetch(self.root, folder, {whole: self.manifest(ref)["files"][whole]})
        try:
            return (folder / whole).read_bytes()
        except FileNotFoundError as error:
            raise DataError(half_deleted(ref, folder, f"{whole} is missing")) from error

    def manifest(self, ref: Ref) -> dict[str, Any]:
        """The manifest: fingerprint, spec, parents, schema, rows, counts, files."""
        return read_manifest(self.root, ref)

    def verify(self, ref: Ref) -> None:
        """Nothing when all bytes are as published; `DataError`: a file is gone, `DriftError`: one changed."""
        folder, files = artifact_folder(self.root, ref), self.manifest(ref)["files"]
        remote.fetch(self.root, folder, files)
        for name, expected in sorted(files.items()):
            if not (folder / name).is_file():
                raise DataError(half_deleted(ref, folder, f"{name} is missing"))
            found = shards.digest_of(folder / name)
            if found != expected:
                raise DriftError(
                    f"{ref}: {name} was changed after publishing: {found}, published as {expected}"
                )

    def publish_dataset(
        self,
        name: str,
        frame: pl.DataFrame,
        strategy: str,
        parent: int | None,
        decision: str,
        evidence: str,
        tokens: int,
        content_fp: str,
    ) -> int:
        """N of `dataset/name@vN` with these rows; the earlier N when `content_fp` was published before."""
        facts = {
            "parent": parent,
            "strategy": strategy,
            "decision": decision,
            "evidence": evidence,
            "tokens": tokens,
            "content_fp": content_fp,
            "parents": [] if parent is None else [str(Ref("dataset", name, f"v{parent}"))],
        }
        return ledger.publish_dataset(self.root, name, frame, facts)

    def publish_candidate(
        self,
        name: str,
        frame: pl.DataFrame,
        strategy: str,
        parent: int | None,
        evidence: str,
        tokens: int,
        content_fp: str,
    ) -> Ref:
        """`candidate/name@fingerprint` that holds these rows; the same one for the same `content_fp`."""
        facts = {
            "strategy": strategy,
            "parent": parent,
            "evidence": evidence,
            "tokens": tokens,
            "content_fp": content_fp,
        }
        parents = [] if parent is None else [str(Ref("dataset", name, f"v{parent}"))]
        fp = fingerprint("candidate", "1", {"name": name, "content_fp": content_fp}, parents)
        with self.draft("candidate", name, fp, {**facts, "stage": "candidate", "parents": parents}) as draft:
            draft.write_shard("all", {"rows": frame})
            return draft.publish()

    def dataset_folders(self) -> list[tuple[str, int]]:
        """(name, number) of every version that has a folder, half-deleted ones too, ascending."""
        return ledger.dataset_folders(self.root)

    def dataset_versions(self, name: str) -> list[dict[str, Any]]:
        """Manifests of a dataset's versions, oldest first, each with `version`, and `rows` as a number."""
        return ledger.dataset_versions(self.root, name)

    def dataset(self, name: str, version: int) -> pl.DataFrame:
        """The rows of one version of a dataset."""
        return self.read(Ref("dataset", name, f"v{version}"), "rows")

    def spend_alpha(self, dataset: str, suite: str, streak: int, round: int, alpha: float, key: str) -> bool:
        """True when this call booked the spending, False when the same `key` had; it is never unbooked."""
        entry = {
            "dataset": dataset,
            "suite": suite,
            "streak": streak,
            "round": round,
            "alpha": alpha,
            "key": key,
        }
        return ledger.spend_alpha(self.root, entry)

    def alpha_spent(self, dataset: str | None = None) -> list[dict[str, Any]]:
        """Entries of spent alpha: dataset, suite, streak, round, alpha, key; of one dataset when given."""
        return ledger.alpha_spent(self.root, dataset)

    def open_sealed(self, dataset: str, suite_hash: str, key: str) -> bool:
        """True when this call opened the suite, False when this `key` had; `UserError` when another had."""
        return ledger.open_sealed(self.root, dataset, suite_hash, key)

    def openings(self) -> list[dict[str, Any]]:
        """When sealed suites were opened: dataset, suite_hash, key, opened (UTC)."""
        return ledger.openings(self.root)

    def save_run(self, run_id: str, run: Mapping[str, Any]) -> None:
        """The run's record is this one now; readers see the old or the new one, whole."""
        ledger.save_run(self.root, run_id, run)

    def runs(self) -> list[dict[str, Any]]:
        """Records of all runs, newest last (by `started`), each with `run`."""
        return ledger.runs(self.root)

    def add_cost(self, run_id: str, cost: Mapping[str, Any]) -> None:
        """One more entry in the run's costs."""
        ledger.add_cost(self.root, run_id, cost)

    def costs(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """Cost entries in the order of booking, each with `run`; of one run when given."""
        return ledger.costs(self.root, run_id)

    def reports(self) -> set[str]:
        """File names of the reports that are written."""
        return {name for name in remote.names(self.root, "reports") if name.endswith(".html")}

    def report(self, name: str) -> Path | None:
        """Path of the report `name` on this machine; None when it is not written."""
        path = self.root / "reports" / checked_name("report", name)
        return path if remote.copied(self.root, path) else None

    def save_report(self, name: str, data: bytes) -> Path:
        """Path of the report `reports/name`, which holds `data` now."""
        path = self.root / "reports" / checked_name("report", name)
        with shards.disk_errors(f"the report {name} was not written", "everything published is kept"):
            remote.replace_file(self.root, path, data)
        return path

    def refresh(self) -> None:
        """The folder has every manifest and record of the lake: an object store is asked for what is new."""
        remote.refresh(self.root, *remote.SMALL)

    def fetch_tables(self) -> None:
        """The folder has the files of all tables; of an object store they are fetched now, but for damaged ones."""
        if remote.of(self.root) is not None:
            for ref in self.refs():
                with suppress(DataError):
                    files = self.files_here(self.manifest(ref)["files"])
                    remote.fetch(self.root, artifact_folder(self.root, ref), files)

    def files_here(self, files: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of an artifact's files that a reader of all tables finds in the folder: all, or of a mirror tables only."""
        if remote.of(self.root) is None:
            return files
        return {name: facts for name, facts in files.items() if not name.startswith(f"{FILES}/")}

    def send_shard(self, work: str, key: str) -> None:
        """A finished shard of a draft, whose folder is `work` in the lake, is there for other machines too."""
        remote.send_shard(self.root, self.root / work, key)

    def fetch_shards(self, work: str, keys: Iterable[str]) -> set[str]:
        """Those of these shards that are finished, on whatever machine; they can be read here now."""
        return remote.fetch_shards(self.root, self.root / work, set(keys))


def _empty(table: str) -> pl.DataFrame:
    if table in shards.VECTOR_TABLES:
        return pl.DataFrame(schema=features_schema(0))
    if table not in TABLES:
        raise UserError(f"there is no table {table!r}; tables: {', '.join([*TABLES, *shards.VECTOR_TABLES])}")
    return pl.DataFrame(schema=TABLES[table])


def _clean(work: Path, whole: bool) -> None:
    for leftover in (work,) if whole else (work / "tmp", work / "publish"):
        with suppress(FileNotFoundError):
            shutil.rmtree(leftover)
