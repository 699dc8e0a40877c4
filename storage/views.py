"""What the catalog is filled with: views over the lake's Parquet, tables of its JSON, macros, comments."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from curation.rows import ROWS, TABLES, features_schema
from storage.artifacts import Lake
from storage.contents import Contents, Found, published, steps_in
from storage.layout import artifact_folder, canonical_json

HERE = Path(__file__).parent
DAMAGED = "damaged: "
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
    "damage tables parents counts spec",
    "datasets": "artifact name version:BIGINT parent:BIGINT strategy rows:BIGINT tokens:BIGINT "
    "decision evidence content_fp",
    "runs": "run recipe recipe_hash started state seconds:DOUBLE artifacts steps",
    "steps": "run step:BIGINT round:BIGINT phase stage artifact reused:BOOLEAN",
    "costs": "run stage round:BIGINT phase artifact reused:BOOLEAN seconds:DOUBLE tokens:BIGINT money:DOUBLE "
    "peak_memory_mb:DOUBLE rows:BIGINT rows_a_second:DOUBLE device",
    "alpha_spent": "dataset suite streak:BIGINT round:BIGINT alpha:DOUBLE key",
    "openings": "dataset suite_hash key opened",
}


def literal(text: str) -> str:
    """The text as an SQL literal, quoted by DuckDB."""
    return str(duckdb.ConstantExpression(text))


def identifier(name: str) -> str:
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def fill(connection: duckdb.DuckDBPyConnection, lake: Lake, contents: Contents) -> None:
    """Makes every view, table, macro and comment of the catalog in an empty database."""
    schemas = {**TABLES, "features": features_schema(1), "embeddings": features_schema(1)}
    found = contents.artifacts
    plain = [one for one in found if not one.ref.is_dataset]
    for table, schema in schemas.items():
        connection.execute(_view(lake, table, table, {"artifact": "VARCHAR"}, schema, plain))
    first = {"artifact": "VARCHAR", "dataset": "VARCHAR", "version": "INTEGER"}
    versions = [one for one in found if one.ref.is_dataset]
    connection.execute(_view(lake, "dataset_rows", "rows", first, ROWS, versions))
    for table, records in {**published(contents), **contents.entries}.items():
        _make_table(connection, table, records)
    connection.execute(_constants(contents.entries["runs"], found))
    connection.execute((HERE / "catalog.sql").read_text(encoding="utf-8"))
    _comment(connection)


def _view(
    lake: Lake, name: str, table: str, first: Mapping[str, str], schema: pl.Schema, found: Sequence[Found]
) -> str:
    """SQL of a view with the contract's columns first, whatever the files lack; typed even without files.

    Files of one schema are read together, so that DuckDB opens only the first of them to plan; a filter on
    `artifact` (or dataset, version) is evaluated on file names, and skips the other files.
    """
    types = {**first, **{column: _sql_type(dtype) for column, dtype in schema.items()}}
    empty = ", ".join(f"null::{kind} as {identifier(column)}" for column, kind in types.items())
    groups: dict[str, list[str]] = defaultdict(list)
    selects = [f"select {empty} where false"]
    for one in found:
        if table in one.manifest["schema"] and one.damage:
            selects.append(_refusal(lake, one, types))
        elif table in one.manifest["schema"]:
            folder = artifact_folder(lake.root, one.ref)
            shape = canonical_json([[k, v] for k, v in one.manifest["schema"][table].items()])
            groups[shape] += [
                f"{folder}/{n}" for n in sorted(one.manifest["files"]) if n.startswith(f"{table}/")
            ]
    if "dataset" in first:
        computed = (
            r"'dataset/' || regexp_extract(filename, '([^/]+)/rows/[^/]+$', 1) as artifact, "
            r"regexp_extract(filename, '([^/]+)@v[0-9]+/rows/[^/]+$', 1) as dataset, "
            r"regexp_extract(filename, '@v([0-9]+)/rows/[^/]+$', 1)::integer as version"
        )
    else:
        computed = r"regexp_extract(filename, '([^/]+/[^/]+)/[^/]+/[^/]+$', 1) as artifact"
    cast = " replace (feature::float[] as feature)" if "feature" in schema else ""
    selects += [
        f"select {computed}, * exclude (filename){cast} from read_parquet("
        f"[{', '.join(literal(unglobbed(path)) for path in paths)}], filename = true, hive_partitioning = false)"
        for paths in groups.values()
    ]
    return f"create view {identifier(name)} as {' union all by name '.join(selects)}"


def _refusal(lake: Lake, one: Found, types: Mapping[str, str]) -> str:
    """What stands for the rows of a damaged artifact: an error for whoever asks for them, or for all rows."""
    ref = str(one.ref)
    remedy = (
        ""
        if one.ref.is_dataset
        else f", or remove it with rm -r '{artifact_folder(lake.root, one.ref)}' and run again"
    )
    text = (
        f"{DAMAGED}{ref}: {one.damage}; restore its folder from a backup{remedy}; "
        f"to ask for everything else add: where artifact <> '{ref}'"
    )
    known = {"artifact": literal(ref), "dataset": literal(one.ref.name)}
    if one.ref.is_dataset:
        known["version"] = str(one.ref.version)
    raised = f"error({literal(text)})"
    columns = ", ".join(f"({known.get(c, raised)})::{kind} as {identifier(c)}" for c, kind in types.items())
    return f"select {columns} where {raised}"


def _sql_type(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Array):
        return "FLOAT[]"
    if isinstance(dtype, pl.List):
        return "VARCHAR[]"
    return TYPES[type(dtype)]


def unglobbed(path: str) -> str:
    """The path as a DuckDB pattern that matches only itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


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


def _constants(entries: Sequence[Mapping[str, Any]], found: Sequence[Found]) -> str:
    """Macros whose answers are written into the catalog: a filter that uses them is known when a query is planned."""
    runs = {run["run"]: run for run in entries}
    made = {name: " ".join(dict.fromkeys(_artifacts(run))) for name, run in runs.items()}
    ingests = {name: [a for a in text.split() if a.startswith("ingest/")] for name, text in made.items()}
    ingest = {name: refs[-1] for name, refs in ingests.items() if refs}
    records = [one for one in found if "records" in one.manifest["schema"]]
    last = max(((one.published_ns, str(one.ref)) for one in records), default=(0, ""))[1]
    newest = next(reversed(ingest.values()), last)  # without a run the one published last; or none
    versions = [one.ref for one in found if one.ref.is_dataset]
    latest = {ref.name: str(ref) for ref in sorted(versions, key=lambda ref: ref.version)}
    numbered = {f"{ref.name}@v{ref.version}": str(ref) for ref in versions}
    lines = [
        ("artifacts_of(run)", made, "run", "there is no run ", "from runs", "string_split({}, ' ')"),
        ("ingest_of(run)", {"": newest, **ingest}, "run", "no ingest artifact of run ", "from runs", "{}"),
        ("latest_of(name)", latest, "name", "there is no dataset ", "from datasets", "{}"),
        (
            "dataset_of(name, version)",
            numbered,
            "name || '@v' || version",
            "there is no ",
            "from datasets",
            "{}",
        ),
    ]
    made_sql = []
    for head, values, key, complaint, look, shape in lines:
        known, told = f"{_map(values)}[{key}]", literal(f"; {look} lists what there is")
        raised = f"error({literal(complaint)} || {key} || {told})"  # in a case, because coalesce is not folded then
        body = f"case when {known} is null then {raised} else {known} end"
        made_sql.append(f"create macro {head} as {shape.format(body)}")
    return "; ".join(made_sql)


def _artifacts(run: Mapping[str, Any]) -> list[str]:
    named = run.get("artifacts")
    refs = [step.get("artifact") for step in steps_in(run)] + list(
        named.values() if isinstance(named, dict) else ()
    )
    return [ref for ref in refs if isinstance(ref, str) and ref and " " not in ref]


def _map(values: Mapping[str, str]) -> str:
    pairs = ", ".join(f"{literal(key)}: {literal(value)}" for key, value in values.items())
    return f"(map {{{pairs}}})" if pairs else "(map {'': null::varchar})"


def _comment(connection: duckdb.DuckDBPyConnection) -> None:
    texts = tomllib.loads((HERE / "comments.toml").read_text(encoding="utf-8"))
    found = connection.execute(
        "select distinct c.table_name, column_name, v.view_name is not null from duckdb_columns() c "
        "left join duckdb_views() v on v.view_name = c.table_name and not v.internal where not c.internal"
    ).fetchall()
    lines = [f"comment on macro table {identifier(n)} is {literal(t)}" for n, t in texts["macros"].items()]
    lines += [f"comment on macro {identifier(n)} is {literal(t)}" for n, t in texts["constants"].items()]
    for name, is_view in sorted({(name, is_view) for name, _, is_view in found}):
        text = literal(texts["about"][name])
        lines.append(f"comment on {'view' if is_view else 'table'} {identifier(name)} is {text}")
    for name, column, _ in sorted(found):
        text = texts.get(name, {}).get(column) or texts["columns"].get(column)
        if text is None and name in JSON_TABLES:
            text = "what else the record says under this name"
        if text is not None:
            lines.append(f"comment on column {identifier(name)}.{identifier(column)} is {literal(text)}")
    connection.execute("; ".join(lines))
