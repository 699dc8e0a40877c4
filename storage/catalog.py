"""The lens on a lake: a DuckDB file of views over its Parquet, rebuilt at any time, never the truth."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from curation.errors import DataError, UserError
from curation.rows import ROWS, TABLES, features_schema
from storage import shards
from storage.artifacts import Lake
from storage.layout import MANIFEST, Ref, artifact_folder, canonical_json
from storage.lineage import ACCOUNTING, COLUMNS, COMMENTS, MACROS

EDITION = 2  # of the views below: a catalog of another edition is rebuilt
TYPES: dict[type[pl.DataType], str] = {
    pl.String: "VARCHAR",
    pl.Int32: "INTEGER",
    pl.Int64: "BIGINT",
    pl.Float64: "DOUBLE",
    pl.Boolean: "BOOLEAN",
}
PLAIN = {"VARCHAR": pl.String, "BIGINT": pl.Int64, "DOUBLE": pl.Float64, "BOOLEAN": pl.Boolean}
JSON_TABLES = {
    "artifacts": "artifact kind name fingerprint stage code_version published rows:BIGINT bytes:BIGINT "
    "missing_files:BIGINT tables parents counts spec",
    "datasets": "artifact name version:BIGINT parent:BIGINT strategy rows:BIGINT tokens:BIGINT "
    "decision evidence",
    "runs": "run recipe started state artifacts steps",
    "costs": "run stage round:BIGINT seconds:DOUBLE tokens:BIGINT money:DOUBLE",
    "alpha_spent": "dataset suite streak:BIGINT round:BIGINT alpha:DOUBLE key",
    "openings": "dataset suite_hash key opened",
}


def literal(text: str) -> str:
    """The text as an SQL literal, quoted by DuckDB."""
    return str(duckdb.ConstantExpression(text))


def identifier(name: str) -> str:
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def catalog_path(lake: Lake) -> Path:
    """Where the catalog lies: in the lake, or in the user's cache folder when the lake is read-only."""
    if os.access(lake.root, os.W_OK):
        return lake.root / "catalog.duckdb"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(str(lake.root).encode(), digest_size=8).hexdigest()
    return cache / "gradus" / name / "catalog.duckdb"


def build_catalog(lake: Lake) -> Path:
    """Path of a fresh catalog; whoever has the old one open keeps it, new connections see the new one."""
    path = catalog_path(lake)
    with (
        shards.disk_errors("the catalog was not built", "the lake is untouched"),
        shards.locked(path.with_name(".catalog.lock")),
    ):
        for leftover in path.parent.glob(".catalog.*.building*"):
            leftover.unlink()
        if path.parent == lake.root:
            shards.sweep(lake.root)
        aside = path.with_name(f".catalog.{os.getpid()}.{secrets.token_hex(4)}.building")
        try:
            with duckdb.connect(aside, config={"threads": _threads()}) as connection:
                _fill(connection, lake)
                connection.execute("checkpoint")
            _swap(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    return path


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


def _fill(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    state = _state(lake)  # first: what is published meanwhile makes this catalog stale, not wrong
    known = {ref: (lake.manifest(ref), _missing(lake, ref)) for ref in lake.refs()}
    whole = {ref: manifest for ref, (manifest, missing) in known.items() if not missing}
    schemas = {**TABLES, "features": features_schema(1), "embeddings": features_schema(1)}
    for table, schema in schemas.items():
        paths = [path for ref in whole if not ref.is_dataset for path in _paths(lake, ref, whole[ref], table)]
        connection.execute(_view(table, schema, paths))
    paths = [path for ref in whole if ref.is_dataset for path in _paths(lake, ref, whole[ref], "rows")]
    connection.execute(_view("dataset_rows", ROWS, paths))
    connection.execute(
        "create view every_row as select * from rows "
        "union all by name select * exclude (dataset, version) from dataset_rows"
    )
    for table, records in _records(lake, known).items():
        _make_table(connection, table, records)
    current = literal(_current_ingest(lake, list(whole.items())))
    connection.execute(f"create macro current_ingest() as {current}")
    connection.execute(ACCOUNTING)
    connection.execute(MACROS)
    _comment(connection)
    connection.execute("create schema gradus")
    connection.execute(f"create table gradus.about as select {literal(state)} as state")


def _missing(lake: Lake, ref: Ref) -> int:
    folder = artifact_folder(lake.root, ref)
    return sum(not (folder / name).is_file() for name in lake.manifest(ref)["files"])


def _paths(lake: Lake, ref: Ref, manifest: Mapping[str, Any], table: str) -> list[str]:
    folder = artifact_folder(lake.root, ref)
    return [str(folder / name) for name in sorted(manifest["files"]) if name.startswith(f"{table}/")]


def _view(name: str, schema: pl.Schema, paths: Sequence[str]) -> str:
    """SQL of a view with the contract's columns first, whatever the files lack; typed even without files."""
    dataset = name == "dataset_rows"
    first = {"artifact": "VARCHAR", **({"dataset": "VARCHAR", "version": "INTEGER"} if dataset else {})}
    types = {**first, **{column: _sql_type(dtype) for column, dtype in schema.items()}}
    empty = ", ".join(f"null::{kind} as {identifier(column)}" for column, kind in types.items())
    sql = f"create view {identifier(name)} as select {empty} where false"
    if not paths:
        return sql
    computed = r"regexp_extract(filename, '([^/]+/[^/]+)/[^/]+/[^/]+$', 1) as artifact"
    if dataset:
        computed = (
            r"'dataset/' || regexp_extract(filename, '([^/]+)/rows/[^/]+$', 1) as artifact, "
            r"regexp_extract(filename, '([^/]+)@v[0-9]+/rows/[^/]+$', 1) as dataset, "
            r"regexp_extract(filename, '@v([0-9]+)/rows/[^/]+$', 1)::integer as version"
        )
    cast = " replace (feature::float[] as feature)" if "feature" in schema else ""
    files = ", ".join(literal(_unglobbed(path)) for path in paths)
    return (
        f"{sql} union all by name select {computed}, * exclude (filename){cast} from read_parquet("
        f"[{files}], union_by_name = true, filename = true, hive_partitioning = false)"
    )


def _sql_type(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Array):
        return "FLOAT[]"
    if isinstance(dtype, pl.List):
        return "VARCHAR[]"
    return TYPES[type(dtype)]


def _unglobbed(path: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def _records(lake: Lake, known: Mapping[Ref, tuple[dict[str, Any], int]]) -> dict[str, list[dict[str, Any]]]:
    artifacts, datasets = [], []
    for ref, (manifest, missing) in known.items():
        seconds = (artifact_folder(lake.root, ref) / MANIFEST).stat().st_mtime
        artifacts.append(
            {
                name: manifest.get(name)
                for name in ("kind", "name", "stage", "code_version", "parents", "counts", "spec")
            }
            | {"artifact": str(ref), "fingerprint": ref.fingerprint, "missing_files": missing}
            | {"published": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")}
            | {"tables": manifest["rows"], "rows": sum(manifest["rows"].values())}
            | {"bytes": sum(file["bytes"] for file in manifest["files"].values())}
        )
        if ref.is_dataset:
            facts = ("name", "parent", "strategy", "tokens", "decision", "evidence", "content_fp")
            datasets.append(
                {"artifact": str(ref), "version": ref.version, "rows": manifest["rows"]["rows"]}
                | {name: manifest.get(name) for name in facts}
            )
    return {
        "artifacts": artifacts,
        "datasets": sorted(datasets, key=lambda entry: (entry["name"], entry["version"])),
        "runs": lake.runs(),
        "costs": lake.costs(),
        "alpha_spent": lake.alpha_spent(),
        "openings": lake.openings(),
    }


def _make_table(connection: duckdb.DuckDBPyConnection, table: str, records: list[dict[str, Any]]) -> None:
    """A native table: the declared columns, then what else the records have; nested values as JSON text."""
    declared = {
        name: kind or "VARCHAR" for name, _, kind in (c.partition(":") for c in JSON_TABLES[table].split())
    }
    spelling: dict[str, str] = {}
    for name in [*declared, *(name for record in records for name in record)]:
        spelling.setdefault(name.casefold(), name)
    frame, types = {}, {}
    for name in spelling.values():
        values = [record.get(name) for record in records]
        types[name] = _column_type(values, declared.get(name, "VARCHAR"))
        fixed = [_json_text(v) for v in values] if types[name] == "VARCHAR" else values
        frame[name] = pl.Series(name, fixed, dtype=PLAIN[types[name]], strict=False)
    columns = ", ".join(f"{identifier(name)} {kind}" for name, kind in types.items())
    connection.execute(f"create table {identifier(table)} ({columns})")
    connection.register("incoming", pl.DataFrame(frame).to_arrow())
    connection.execute(f"insert into {identifier(table)} select * from incoming")
    connection.unregister("incoming")


def _column_type(values: Sequence[Any], declared: str) -> str:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return declared
    if kinds == {bool}:
        return "BOOLEAN"
    if kinds == {int} and declared != "DOUBLE" and all(v is None or abs(v) < 2**63 for v in values):
        return "BIGINT"
    return "DOUBLE" if kinds <= {int, float} else "VARCHAR"


def _json_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else canonical_json(value)


def _current_ingest(lake: Lake, whole: Sequence[tuple[Ref, Mapping[str, Any]]]) -> str:
    """The ingest artifact of the newest run that has one; without a run the one published last; or ''."""
    named = [run["artifacts"].get("ingest") for run in lake.runs() if isinstance(run.get("artifacts"), dict)]
    named = [name for name in named if isinstance(name, str)]
    if named:
        return named[-1]
    ingests = [ref for ref, manifest in whole if "records" in manifest["rows"]]
    times = [((artifact_folder(lake.root, ref) / MANIFEST).stat().st_mtime_ns, str(ref)) for ref in ingests]
    return max(times)[1] if times else ""


def _comment(connection: duckdb.DuckDBPyConnection) -> None:
    found = connection.execute(
        "select distinct c.table_name, column_name, v.view_name is not null from duckdb_columns() c "
        "left join duckdb_views() v on v.view_name = c.table_name and not v.internal where not c.internal"
    ).fetchall()
    for name, is_view in sorted({(name, is_view) for name, _, is_view in found}):
        kind = "view" if is_view else "table"
        connection.execute(f"comment on {kind} {identifier(name)} is {literal(COMMENTS[name])}")
    for name, column, _ in sorted(found):
        if column in COLUMNS:
            target = f"{identifier(name)}.{identifier(column)}"
            connection.execute(f"comment on column {target} is {literal(COLUMNS[column])}")


def _state(lake: Lake) -> str:
    """A digest of everything that a catalog shows, cheap enough to take before every query."""
    entries = [
        p
        for kind in ("runs", "costs/*", "alpha/*", "openings/*")
        for p in lake.root.glob(f"{kind}/[!.]*.json")
    ]
    seen = sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in entries)
    body = canonical_json(
        [EDITION, duckdb.__version__, str(lake.root), [str(ref) for ref in lake.refs()], seen]
    )
    return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()


def fresh_catalog(lake: Lake) -> Path:
    """Path of a catalog that shows the lake as it is: the one there is, or a new one."""
    path = catalog_path(lake)
    if path.exists():
        try:
            with duckdb.connect(path, read_only=True, config={"threads": _threads()}) as connection:
                if connection.execute("select state from gradus.about").fetchall() == [(_state(lake),)]:
                    return path
        except duckdb.Error:
            pass  # damaged or of another edition: it is only a lens, and is made again
    return build_catalog(lake)


def explain_row(lake: Lake, beginning: str) -> pl.DataFrame:
    """(step, what, detail) of the one row whose id begins so: its source, decisions, scores and selections."""
    if not re.fullmatch(r"[0-9a-f]{4,32}", beginning):
        raise UserError(
            f'{beginning!r} is no row id; ids are 32 hex digits: gradus sql "select row_id, prompt from rows limit 5"'
        )
    found = query(
        lake, "select distinct row_id from every_row where starts_with(row_id, ?) limit 3", [beginning]
    )
    if len(found) != 1:
        many = f"more than one row begins with {beginning}; give more digits"
        raise UserError(many if len(found) else f"no row {beginning} in {lake.root}")
    # A macro takes no bound values; `literal` quotes, and the id is hex digits only.
    return query(lake, f"from explain_row({literal(found['row_id'][0])})")


def query(lake: Lake, sql: str, values: Sequence[Any] = ()) -> pl.DataFrame:
    """What one SELECT gives on a fresh catalog; it can read this lake's files only, and write nothing.

    `values` are bound to the `?` of the statement.
    """
    with duckdb.connect(fresh_catalog(lake), read_only=True, config={"threads": _threads()}) as connection:
        allowed = sorted({f"{lake.root}/", _unglobbed(f"{lake.root}/")})
        connection.execute(f"set allowed_directories = [{', '.join(map(literal, allowed))}]")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UserError(
                    "the catalog answers one SELECT at a time (also FROM, DESCRIBE, SHOW, SUMMARIZE) and "
                    f"changes nothing; got: {', '.join(s.type.name for s in statements) or 'no statement'}"
                )
            found = pl.DataFrame(connection.sql(sql, params=list(values)).to_arrow_table())
            return found.with_columns(pl.col(pl.Decimal(38, 0)).cast(pl.Int128))  # sums of whole numbers
        except duckdb.IOException as error:
            raise DataError(
                f"the lake lost a file: {error}; from artifacts where missing_files > 0 names the artifact"
            ) from error
        except duckdb.Error as error:
            raise UserError(
                f"{error}\nviews and macros: `show tables`, `describe rows`, explain_row(id)"
            ) from error
