"""A set of rows as a folder for other tools, with a card and checksums: whole or not at all, equal bytes for equal rows."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import DataError, UserError
from curation.rows import ROWS
from storage import shards
from storage.artifacts import Lake, Ref
from storage.formats import Part, Shape, schema_of, write_split
from storage.layout import pretty_json

CARD, MANIFEST, CHECKSUMS = "README.md", "export.json", "checksums.sha256"
PAUSE_SECONDS = 0.2
NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)


def rows_of_artifact(lake: Lake, ref: Ref) -> list[Part]:
    """All rows of an artifact, once its bytes are found to be as published; errors say what is broken."""
    lake.verify(ref)
    return [Part(path) for path in lake.paths(ref, "rows")]


def rows_by_id(lake: Lake, refs: Sequence[Ref], row_ids: pl.Series) -> list[Part]:
    """The rows of these ids, each once, in the order of the artifacts that hold them; `DataError`: some are in none."""
    left, parts = row_ids.unique(), list[Part]()
    for ref in refs:
        lake.verify(ref)
        for path in lake.paths(ref, "rows"):
            ids = pl.read_parquet(path, columns=["row_id"], glob=False, hive_partitioning=False)["row_id"]
            kept = ids.is_in(left.implode()) & ids.is_first_distinct()
            if kept.any():
                parts.append(Part(path, kept))
                left = left.filter(~left.is_in(ids.filter(kept).implode()))
    if len(left):
        where = ", ".join(map(str, refs))
        raise DataError(f"{len(left)} of {row_ids.n_unique()} rows are in none of {where}; first: {left[0]}")
    return parts


def row_counts(parts: Sequence[Part], split: str | None = None) -> pl.DataFrame:
    """(split, source, licence, origin, rows) of the rows; `UserError` when there are none of the split asked for."""
    keys = ["split", "source", "licence", "origin"]
    empty = pl.DataFrame(schema={name: ROWS[name] for name in keys} | {"rows": pl.UInt32})
    counts = (
        pl.concat([empty, *(_counted(part, keys) for part in parts)])
        .group_by(keys)
        .agg(pl.col("rows").sum())
        .sort(keys)
    )
    have = counts["split"].unique().sort().to_list()
    if split is not None and split not in have:
        raise UserError(f"there is no split {split!r}; splits: {', '.join(have) or 'none, it has no rows'}")
    return counts if split is None else counts.filter(pl.col("split") == split)


def _counted(part: Part, keys: list[str]) -> pl.DataFrame:
    """How many rows of a part have the same keys, which are read as dictionaries: a text shared by all is held once."""
    table = pq.ParquetFile(part.path, read_dictionary=keys, pre_buffer=False).read(keys)
    frame = pl.DataFrame(table.unify_dictionaries())
    if part.kept is not None:
        frame = frame.filter(part.kept)
    return frame.group_by(keys).len("rows").with_columns(pl.col(keys).cast(pl.String))


def export(
    lake: Lake,
    parts: Sequence[Part],
    counts: pl.DataFrame,
    target: Path,
    shape: Shape,
    identity: Mapping[str, Any],
    card: Callable[[Mapping[str, Any]], str],
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the rows of these splits, a card, `export.json` and `checksums.sha256` to `target`; gives `export.json`.

    `identity` says what the rows are; `card` makes README.md of `export.json`. Equal rows give equal bytes. A killed
    or failed export leaves `target` as it was.
    """
    target = target.expanduser().absolute()
    if target.resolve().is_relative_to(lake.root):
        raise UserError(
            f"{target} is inside the lake {lake.root}, which holds what is published; export elsewhere"
        )
    kept = "nothing was exported, and the lake is untouched"
    with shards.disk_errors(f"{target} was not written", kept), _aside(target, overwrite) as aside:
        splits = dict(counts.group_by("split").agg(pl.col("rows").sum()).sort("split").iter_rows())
        splits = splits or {"train": 0}  # so that a reader of an empty set finds a file with its columns
        digests = dict[Path, tuple[Any, int]]()
        with _disk_errors_of_polars(), _following(aside, digests):
            for split, rows in splits.items():
                write_split(aside, parts, split, rows, shape)
        _digest(aside, digests)
        facts: dict[str, Any] = {
            **identity,
            "rows": int(counts["rows"].sum()),
            "splits": splits,
            "format": shape.format,
            "layout": shape.layout,
            "gzip": shape.gzip,
            "columns": schema_of(shape),
            "files": {
                str(path.relative_to(aside)): {"bytes": size, "sha256": digest.hexdigest()}
                for path, (digest, size) in sorted(digests.items())
            },
            "gradus": version("gradus"),
        }
        told = {CARD: card(facts).encode(), MANIFEST: pretty_json(facts)}
        for name, data in told.items():
            shards.write_bytes(aside / name, data)
        sums = {name: found["sha256"] for name, found in facts["files"].items()}
        sums |= {name: hashlib.sha256(data).hexdigest() for name, data in told.items()}
        lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
        shards.write_bytes(aside / CHECKSUMS, "".join(lines).encode())
    return facts


@contextmanager
def _aside(target: Path, overwrite: bool) -> Generator[Path]:
    """A folder that becomes `target` when the block ends well, and goes when it does not. One export a target at a time."""
    beside = target.parent / f".{target.name}.gradus"
    new, old, lock = beside.with_suffix(".gradus-new"), beside.with_suffix(".gradus-old"), beside
    with _folder_errors(target), shards.locked(lock):
        try:
            _put_back(old, target)  # killed between the two renames below
            shutil.rmtree(new, ignore_errors=True)
            _refuse(target, overwrite)
            new.mkdir()
            yield new
            for folder in (*(path for path in new.iterdir() if path.is_dir()), new):
                shards.fsync_folder(folder)
            _refuse(target, overwrite)  # writing took a while
            if target.exists():
                target.rename(old)
            new.rename(target)
            shards.fsync_folder(target.parent)
        finally:
            _put_back(old, target)
            shutil.rmtree(new, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _put_back(old: Path, target: Path) -> None:
    """What was moved out of the way is the target again, or goes when a new one took its place."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _folder_errors(target: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_FOLDER:
            raise
        raise UserError(
            f"{target} cannot be a folder ({error.strerror}); nothing was written; give another --to"
        ) from error


def _refuse(target: Path, overwrite: bool) -> None:
    """Raises when something is in the way that no export wrote."""
    if not (target.exists() or target.is_symlink()):
        return
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        return
    mine = None if target.is_symlink() else _written(target)
    if not overwrite or mine is None:
        more = "--overwrite replaces an earlier export" if not overwrite else "it is no earlier export"
        raise UserError(
            f"{target} is there already and not empty; nothing was written; {more}; or give another --to"
        )
    others = [path for path in sorted(target.rglob("*")) if not path.is_dir() or path.is_symlink()]
    others = [str(path.relative_to(target)) for path in others if str(path.relative_to(target)) not in mine]
    if others:
        raise UserError(
            f"{target} holds files that no export wrote ({', '.join(others[:3])}); nothing was written; give another --to"
        )


def _written(target: Path) -> set[str] | None:
    """Names of the files that an export wrote there; None when none did."""
    try:
        facts = json.loads((target / MANIFEST).read_bytes())
        if "gradus" in facts:
            return {CARD, MANIFEST, CHECKSUMS, *facts["files"]}
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None


@contextmanager
def _following(folder: Path, digests: dict[Path, tuple[Any, int]]) -> Generator[None]:
    """Takes digests while files are written and has the disk at work, so that little is left to do at the end."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(PAUSE_SECONDS):
            with suppress(OSError):  # a full disk is told by who writes, and by the last fsync
                _digest(folder, digests)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _digest(folder: Path, digests: dict[Path, tuple[Any, int]]) -> None:
    """SHA-256 and size of all files in the folder, made durable; only what they grew by since the last call is read."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest, size = digests.setdefault(path, (hashlib.sha256(), 0))
            file.seek(size)
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
                digests[path] = digest, size
            os.fsync(file.fileno())


@contextmanager
def _disk_errors_of_polars() -> Generator[None]:
    """Gives an `OSError` of polars the number that it says in words only, and names damaged Parquet."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, pa.ArrowException) as error:
        code = next((n for n in shards.DISK if f"(os error {n})" in str(error)), None)
        if code is not None:
            raise OSError(code, os.strerror(code)) from error
        if isinstance(error, OSError):
            raise
        raise DataError(f"the rows cannot be read or written: {error}") from error
