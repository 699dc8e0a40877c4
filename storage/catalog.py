"""The lens on a lake: a DuckDB file of views over its Parquet, rebuilt at any time, never the truth."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import DataError, UserError
from storage import shards
from storage.answers import answer, lock
from storage.artifacts import Lake
from storage.contents import contents_of
from storage.layout import MANIFEST, Ref, artifact_folder, canonical_json
from storage.views import DAMAGED, fill, identifier, literal

__all__ = ["build_catalog", "catalog_path", "fresh_catalog", "identifier", "literal", "query", "query_few"]

T = TypeVar("T")
_kept: dict[
    tuple[int, str, str], duckdb.DuckDBPyConnection
] = {}  # of the last lake asked: (process, lake, state)
MEMORY = "1500MB"  # of one query; what needs more goes to temporary files
ABOUT_STATEMENT = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.PermissionException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
)


def catalog_path(lake: Lake) -> Path:
    """Where the catalog lies: in the lake, or in the user's cache folder when the lake is read-only."""
    if os.access(lake.root, os.W_OK):
        return lake.root / "catalog.duckdb"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(str(lake.root).encode(), digest_size=8).hexdigest()
    return cache / "gradus" / name / "catalog.duckdb"


def build_catalog(lake: Lake, doubted: Iterable[Ref] = ()) -> Path:
    """Path of a fresh catalog; whoever has the old one open keeps it, new connections see the new one.

    Of `doubted` artifacts the checksums are compared: a damaged one refuses to be read, and stays so.
    """
    with _building(lake) as path:
        _build(lake, path, doubted)
    return path


@contextmanager
def _building(lake: Lake) -> Generator[Path]:
    path = catalog_path(lake)
    with (
        shards.disk_errors("the catalog was not built", "the lake is untouched"),
        shards.locked(path.with_name(".catalog.lock")),
    ):
        yield path


def _build(lake: Lake, path: Path, doubted: Iterable[Ref] = ()) -> None:
    for leftover in path.parent.glob(".catalog.*.building*"):
        leftover.unlink()
    if path.parent == lake.root:
        shards.sweep(lake.root)
    aside = path.with_name(f".catalog.{os.getpid()}.{secrets.token_hex(4)}.building")
    lake.fetch_tables()
    state = _state(
        lake
    )  # before anything is read: what is published meanwhile makes this catalog stale, not wrong
    doubts = {*doubted, *_doubted_before(path)}
    contents = contents_of(lake, doubts)
    still = [[str(one.ref)] for one in contents.artifacts if one.damage and one.ref in doubts]
    try:
        with duckdb.connect(aside, config={"threads": _threads()}) as connection:
            fill(connection, lake, contents)
            connection.execute("create schema gradus")
            connection.execute(f"create table gradus.about as select {literal(state)} as state")
            connection.execute("create table gradus.doubted (artifact varchar)")
            for name in still:
                connection.execute("insert into gradus.doubted values (?)", name)
            connection.execute("checkpoint")
        _swap(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _swap(aside: Path, path: Path) -> None:
    aside.chmod(0o444)
    descriptor = os.open(aside, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    path.with_name(path.name + ".wal").unlink(missing_ok=True)
    aside.replace(path)
    shards.fsync_folder(path.parent)


def _threads() -> int:
    return max(1, len(os.sched_getaffinity(0)))


def _state(lake: Lake) -> str:
    """A digest of everything that a catalog shows, cheap enough to take before every query.

    An artifact's manifest stands for it. A file that was lost, damaged or restored is another file.
    """
    folders = [*(f"artifacts/{kind}" for kind in _names(f"{lake.root}/artifacts")), "datasets"]
    files = [f"{folder}/{name}/{MANIFEST}" for folder in folders for name in _names(f"{lake.root}/{folder}")]
    folders = ["runs"]
    for kind in ("costs", "alpha", "openings"):
        folders += [f"{kind}/{name}" for name in _names(f"{lake.root}/{kind}")]
    files += [f"{folder}/{name}" for folder in folders for name in _names(f"{lake.root}/{folder}")]
    stamps = [[file, _stamp(f"{lake.root}/{file}")] for file in files]
    body = canonical_json([_edition(), duckdb.__version__, str(lake.root), stamps])
    return hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@cache
def _edition() -> str:
    """A digest of what makes a catalog: one that other code made is rebuilt."""
    parts = ("contents.py", "views.py", "catalog.sql", "comments.toml")
    body = b"".join((Path(__file__).parent / name).read_bytes() for name in parts)
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def _stamp(path: str) -> list[int]:
    try:
        stat = os.stat(path)  # noqa: PTH116 (much quicker)
    except OSError:
        return []
    return [stat.st_mtime_ns, stat.st_size, stat.st_ino]


def _names(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208 (much quicker)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _open(path: Path) -> duckdb.DuckDBPyConnection:
    """A connection of its own to the catalog, read-only: one that this process has open already may be an old one."""
    name = f"gradus-{os.getuid()}-{os.getpid()}-{secrets.token_hex(4)}.spill"  # one each: DuckDB removes its own only
    spill = str(Path(tempfile.gettempdir()) / name)
    config: dict[str, Any] = {"threads": _threads(), "memory_limit": MEMORY, "temp_directory": spill}
    connection = duckdb.connect(config=config)
    try:
        connection.execute(f"attach {literal(str(path))} as catalog (read_only)")
        connection.execute("use catalog")
    except BaseException:
        connection.close()
        raise
    return connection


def _doubted_before(path: Path) -> list[Ref]:
    with suppress(duckdb.Error), _open(path) as connection:
        return [Ref.parse(name) for (name,) in connection.execute("from gradus.doubted").fetchall()]
    return []


def fresh_catalog(lake: Lake) -> Path:
    """Path of a catalog that shows the lake as it is: the one there is, or a new one."""
    _open_fresh(lake).close()
    return catalog_path(lake)


def _open_fresh(lake: Lake) -> duckdb.DuckDBPyConnection:
    lake.refresh()
    connection = _open_if_fresh(lake)
    if connection is None:
        with _building(lake) as path:
            connection = _open_if_fresh(lake)  # another process may have built it while this one waited
            if connection is None:
                _build(lake, path)
    return connection or _open(catalog_path(lake))


def _open_if_fresh(lake: Lake) -> duckdb.DuckDBPyConnection | None:
    with suppress(duckdb.Error):  # damaged or of another edition: it is only a lens, and is made again
        connection = _open(catalog_path(lake))
        try:
            if connection.execute("select state from gradus.about").fetchall() == [(_state(lake),)]:
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
    return None


def query(lake: Lake, sql: str, values: Sequence[Any] = (), limit: int | None = None) -> pl.DataFrame:
    """What one SELECT gives on a fresh catalog; it can read this lake's files only, and write nothing.

    `values` are bound to the `?` of the statement. DESCRIBE and SHOW TABLES tell the comments too. Of two columns
    of one name the second is `name_1`. `limit`: so many rows at most, and no more are computed.
    """
    return _asked(lake, lambda connection: answer(lake, connection, sql, values, limit))


def query_few(lake: Lake, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a short answer to a SELECT of our own: as `query`, planned once, on a connection that is kept.

    Opening one and planning twice would take a third of the time of `explain_row`.
    """

    def ask(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
        return connection.execute(sql).fetchall()

    with suppress(duckdb.Error), _kept_fresh(lake).cursor() as cursor:
        cursor.execute("use catalog")
        return ask(cursor)
    return _asked(lake, ask)  # the lake's files or the statement: this finds out


def _kept_fresh(lake: Lake) -> duckdb.DuckDBPyConnection:
    """This process's locked connection to a fresh catalog: the one of the call before, while the lake is as it was."""
    lake.refresh()
    process, root = os.getpid(), str(lake.root)
    kept = _kept.get((process, root, _state(lake)))
    if kept is None:
        for old in [key for key in _kept if key[0] == process]:  # a parent's is not ours to close
            del _kept[old]
        kept = _open_fresh(lake)
        lock(lake, kept)
        _kept[process, root, kept.execute("select state from gradus.about").fetchall()[0][0]] = kept
    return kept


def _asked(lake: Lake, ask: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
    """What `ask` gives on a fresh catalog; on a rebuilt one when the lake's files turn out to be others."""
    try:
        with _open_fresh(lake) as connection:
            return ask(connection)
    except duckdb.Error as error:
        if not _about_files(lake, error):
            raise UserError(
                f"{error}\nviews and macros: `show tables`, `describe rows`, explain_row(id)"
            ) from error
        path = build_catalog(lake, _suspects(lake, error))  # a repaired lake is read, a damaged one named
    try:
        with _open(path) as connection:
            return ask(connection)
    except duckdb.Error as error:
        found, text = str(error).partition(DAMAGED)[1:]
        raise DataError(text if found else f"the lake cannot be read: {error}") from error


def _about_files(lake: Lake, error: duckdb.Error) -> bool:
    """Is it the lake's files that an error is about, not the statement?"""
    text = str(error)
    if DAMAGED in text or isinstance(error, ABOUT_STATEMENT):
        return DAMAGED in text
    return isinstance(error, duckdb.IOException) or f"{lake.root}/" in text or type(error) is duckdb.Error


def _suspects(lake: Lake, error: duckdb.Error) -> list[Ref]:
    """Artifacts whose bytes an error puts in doubt: those it names; of a footer that is no Parquet it names none."""
    text, folders = str(error), {ref: artifact_folder(lake.root, ref) for ref in lake.refs()}
    if DAMAGED in text:
        return []
    if type(error) is duckdb.Error:
        return [
            ref for ref, folder in folders.items() if not all(map(_has_footer, folder.glob("*/*.parquet")))
        ]
    return [ref for ref, folder in folders.items() if f"{folder}/" in text]


def _has_footer(path: Path) -> bool:
    try:
        return pq.read_metadata(path) is not None
    except (pa.ArrowException, OSError):
        return False
