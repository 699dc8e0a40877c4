"""One question to the catalog and its answer: nothing but a SELECT, no file outside the lake, columns told apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from typing import Any

import duckdb
import polars as pl

from curation.errors import UserError
from storage.artifacts import Lake
from storage.views import identifier, literal, unglobbed

NAMED = re.compile(r'\s*(?:describe|desc|show)\s+(?:table\s+|view\s+)?"?(\w+)"?\s*;?\s*', re.IGNORECASE)
LISTED = """
select name, comment from (
  select table_name as name, comment, 1 as part from duckdb_tables() where schema_name = 'main' and not internal
  union all select view_name, comment, 1 from duckdb_views() where schema_name = 'main' and not internal
  union all select function_name || '(' || array_to_string(parameters, ', ') || ')', comment, 2
    from duckdb_functions() where function_type in ('macro', 'table_macro') and not internal
) order by part, name
"""
DESCRIBED = """
select column_name, data_type as column_type, comment from duckdb_columns()
where schema_name = 'main' and not internal and table_name = ? order by column_index
"""
ABOUT_MACRO = """
select function_name as macro, parameters, comment from duckdb_functions()
where function_type in ('macro', 'table_macro') and not internal and lower(function_name) = lower(?)
"""
EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?", re.IGNORECASE)


def answer(
    lake: Lake, connection: duckdb.DuckDBPyConnection, sql: str, values: Sequence[Any], limit: int | None
) -> pl.DataFrame:
    """What the statement gives; the connection is for this one answer, because it is locked first."""
    lock(lake, connection)
    asked = EXPLAIN.match(sql)
    _refuse_others(connection, sql[asked.end() :] if asked else sql)
    named = NAMED.fullmatch(sql)
    if named and named[1].casefold() == "tables":
        sql, values = LISTED, ()
    elif named and connection.execute(DESCRIBED, [named[1].casefold()]).fetchall():
        sql, values = DESCRIBED, [named[1].casefold()]
    elif named and connection.execute(ABOUT_MACRO, [named[1]]).fetchall():
        sql, values = ABOUT_MACRO, [named[1]]
    relation = connection.sql(sql, params=list(values))
    return _frame(relation if limit is None else relation.limit(limit))


def lock(lake: Lake, connection: duckdb.DuckDBPyConnection) -> None:
    """From here on the connection reads this lake's files and its own spill, and nothing else."""
    spill = connection.execute("select current_setting('temp_directory')").fetchall()[0][0]
    allowed = sorted({f"{lake.root}/", unglobbed(f"{lake.root}/"), f"{spill}/"})
    connection.execute(f"set allowed_directories = [{', '.join(map(literal, allowed))}]")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _frame(relation: duckdb.DuckDBPyRelation) -> pl.DataFrame:
    """Its rows, with columns of different names; `UserError` when it holds what only DuckDB knows."""
    table = relation.to_arrow_table()
    names = list[str]()
    for name in table.column_names:
        free = (n for k in count(1) if (n := f"{name}_{k}") not in {*names, *table.column_names})
        names.append(next(free) if name in names else name)
    try:
        frame = pl.DataFrame(table.rename_columns(names))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(
            "a column of the answer has a type that only DuckDB knows (an interval, a union, ...); "
            "cast it in the query: column::varchar"
        ) from error
    for column in frame.select(pl.col(pl.Date, pl.Datetime)):
        if not column.drop_nulls().dt.year().is_between(1, 9999).fill_null(False).all():
            raise UserError(
                f"{column.name} has dates that are none elsewhere; cast it: {identifier(column.name)}::varchar"
            )
    return frame.with_columns(pl.col(pl.Decimal(38, 0)).cast(pl.Int128))  # sums of whole numbers


def _refuse_others(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    statements = connection.extract_statements(sql)
    try:
        kinds = [statement.type.name for statement in statements]
    except ValueError:
        kinds = ["a statement of another kind"]
    if kinds != ["SELECT"]:
        raise UserError(
            "the catalog answers one SELECT at a time (also FROM, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN) and "
            f"changes nothing; got: {', '.join(kinds) or 'no statement'}"
        )
