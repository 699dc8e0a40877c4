"""Files that appear whole or not at all: fixed Parquet bytes, locks, and the shards of a draft."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from curation.errors import DataError, UserError
from curation.rows import TABLES, check
from storage.layout import FILES, checked_name

ROWS_A_GROUP = 32_768  # measured: one row is found soonest, and counting is as quick as with larger groups
VECTORS_A_GROUP = 65_536
PAGE_BYTES = 1 << 16  # what a reader unpacks to find one row; also the most that a dictionary may have
VECTOR_TABLES = ("features", "embeddings")
DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "access is denied",
    errno.EPERM: "the operation is not permitted",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk failed",
}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
_held: set[int] = set()


def _close_held() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# A forked worker must not keep its parent's lock alive after the parent was killed.
os.register_at_fork(after_in_child=_close_held)


@contextmanager
def disk_errors(doing: str, kept: str) -> Generator[None]:
    """Turns a full, denied or failing disk into a `UserError` that says what was kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"{doing}: {DISK[error.errno]}{where}; {kept}; repair that and run again") from error


@contextmanager
def locked(path: Path, shared: bool = False) -> Generator[None]:
    """Holds the lock file `path`, after waiting for it; the kernel frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def _take(path: Path, how: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, how)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever held it removed the file: take the new one


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Makes the bytes of a file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """The folder is there, and a power cut does not take its name, nor those of the folders made for it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        fsync_folder(made.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """A new file at `path`, fsynced; not atomic: write aside and rename."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def aside_of(path: Path) -> Path:
    """A name beside `path` that nobody else uses, hidden from every listing."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def replace_file(path: Path, data: bytes) -> None:
    """`path` holds `data`, whole: readers see the old bytes or the new ones."""
    make_folder(path.parent)
    aside = aside_of(path)
    try:
        write_bytes(aside, data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    """True when this call made `path`, whole; False when it was there, and stays as it is."""
    make_folder(path.parent)
    aside = aside_of(path)
    try:
        write_bytes(aside, data)
        place(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return True


def place(source: Path, target: Path) -> None:
    """The same bytes under a second name: a hard link, or a copy where there are none; never overwrites."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        write_bytes(target, source.read_bytes())


def move_folder(aside: Path, target: Path) -> bool:
    """True when the folder was renamed into place; False when another was there first. Durable."""
    make_folder(target.parent)
    try:
        aside.rename(target)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    fsync_folder(target.parent)
    return True


def sweep(root: Path) -> None:
    """Removes what killed processes left beside entries: their unfinished files, an hour old or more."""
    for folder in (".", "runs", "reports", "costs/*", "alpha/*", "openings/*"):
        for path in root.glob(f"{folder}/.*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()


def read_json(path: Path) -> Any:
    """The value in a JSON file; `DataError` that names the file when it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); restore it from a backup") from error


def digest_of(path: Path) -> dict[str, Any]:
    """Size in bytes and BLAKE2b-128 in hex of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def check_table(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame itself when it fits the contract of its table; `DataError` otherwise."""
    if table not in TABLES and table not in VECTOR_TABLES:
        raise DataError(f"there is no table {table!r}; tables: {', '.join([*TABLES, *VECTOR_TABLES])}")
    if table in VECTOR_TABLES and not isinstance(frame.schema.get("feature"), pl.Array):
        raise DataError(
            f"table {table!r} does not fit its contract: feature is {frame.schema.get('feature')}, "
            "expected an array of float16"
        )
    return check(table, frame)


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """A new Parquet file, fsynced; equal frames give equal bytes. A table of vectors is not compressed (it cannot be).

    A Bloom filter on `row_id` lets a query for one row skip the row groups without it. Other bytes for equal frames
    need another `layout.WRITING`.
    """
    arrow = frame.rechunk().to_arrow().combine_chunks()
    vectors = any(isinstance(dtype, pl.Array) for dtype in frame.dtypes)
    group = VECTORS_A_GROUP if vectors else ROWS_A_GROUP
    bloom = not vectors and frame.schema.get("row_id") == pl.String
    page = None if vectors else PAGE_BYTES
    by_column: dict[str, Any] = {
        "use_dictionary": [name for name, dtype in frame.schema.items() if dtype == pl.String] or False,
        "write_statistics": [name for name, dtype in frame.schema.items() if not dtype.is_nested()],
    }
    with path.open("xb") as file:
        pq.write_table(
            arrow,
            file,
            version="2.6",
            compression="none" if vectors else "zstd",
            compression_level=None if vectors else 3,
            row_group_size=group,
            data_page_size=page,
            dictionary_pagesize_limit=page,
            bloom_filter_options={"row_id": {"ndv": max(1, min(len(frame), group)), "fpp": 0.01}}
            if bloom
            else None,
            **by_column,
        )
        file.flush()
        os.fsync(file.fileno())


def read_parquet(paths: list[Path], columns: list[str] | None = None) -> pl.DataFrame:
    """Frames of these files, one after another; `DataError` names a file that is missing or damaged."""
    try:
        return pl.concat([_read_one(path, columns) for path in paths], rechunk=False)
    except (pl.exceptions.ShapeError, pl.exceptions.SchemaError) as error:
        raise DataError(f"{paths[0].parent} has files of different schemas: {error}") from error


def _read_one(path: Path, columns: list[str] | None) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path, columns=columns, glob=False, hive_partitioning=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except pl.exceptions.ColumnNotFoundError as error:
        raise UserError(f"{path.parent.name} has no such column: {error}") from error
    except (pl.exceptions.ComputeError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return frame if columns is None else frame.select(columns)


def write_shard(
    work_path: Path, key: str, tables: Mapping[str, pl.DataFrame], files: Mapping[str, bytes] | None = None
) -> None:
    """A finished shard in a draft's work folder, whole or not at all, from any process; idempotent.

    Lines of a ledger are put in order of `row_id`, so that those of one row are found without reading the others.
    """
    final = Path(work_path) / "shards" / checked_name("shard key", key)
    for table, frame in tables.items():
        check_table(table, frame)
    for name in files or {}:
        checked_name("file", name)
    if final.exists():
        return
    aside = Path(work_path) / "tmp" / f"{key}.{os.getpid()}.{secrets.token_hex(4)}"
    with disk_errors(f"shard {key} was not written", f"finished shards are kept in {work_path}"):
        try:
            _fill(aside, tables, files or {})
            move_folder(aside, final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _fill(aside: Path, tables: Mapping[str, pl.DataFrame], files: Mapping[str, bytes]) -> None:
    (aside / FILES).mkdir(parents=True)
    for table, frame in tables.items():
        ordered = frame.sort("row_id", maintain_order=True) if table == "ledger" else frame
        write_parquet(aside / f"{table}.parquet", ordered)
    for name, data in files.items():
        write_bytes(aside / FILES / name, data)
    fsync_folder(aside / FILES)
    fsync_folder(aside)


def adopt_shard(work_path: Path, key: str, tables: Mapping[str, Path]) -> None:
    """A finished shard whose tables are published files of another artifact, under a second name."""
    final = work_path / "shards" / checked_name("shard key", key)
    aside = work_path / "tmp" / f"{key}.{os.getpid()}.{secrets.token_hex(4)}"
    with disk_errors(f"shard {key} was not taken over", f"finished shards are kept in {work_path}"):
        try:
            (aside / FILES).mkdir(parents=True)
            for table, path in tables.items():
                place(path, aside / f"{checked_name('table', table)}.parquet")
            fsync_folder(aside / FILES)
            fsync_folder(aside)
            move_folder(aside, final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def read_shard(work_path: Path, key: str, table: str) -> pl.DataFrame:
    """One table of a finished shard of a draft, from any process."""
    checked_name("shard key", key)
    return read_parquet([work_path / "shards" / key / f"{checked_name('table', table)}.parquet"])


def read_shard_file(work_path: Path, key: str, name: str) -> bytes:
    """The bytes of a plain file of a finished shard of a draft, from any process."""
    checked_name("shard key", key)
    return (work_path / "shards" / key / FILES / checked_name("file", name)).read_bytes()


def finished_shards(work_path: Path) -> set[str]:
    """Keys of the shards that need not be made again."""
    folder = work_path / "shards"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
