"""Rows by a beginning of their id, or by the words in them."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

import polars as pl

from curation.errors import DataError, UserError
from curation.rows import TABLES
from storage.artifacts import Lake
from storage.catalog import literal, query, query_few

MOST_WORDS = 100
WHOLE = re.compile(r"[0-9a-f]{32}")
VIEWS = (*TABLES, "features", "embeddings", "dataset_rows", "every_row")


def query_whole(lake: Lake, sql: str, values: Sequence[Any] = ()) -> pl.DataFrame:
    """`query`, without the damaged artifacts, of which it warns; the SELECT has no WITH of its own."""
    damaged = _damaged(lake)
    try:
        return query(lake, _without(damaged, sql), values)
    except DataError:
        now = _damaged(lake)  # reading may have found more
        if now == damaged:
            raise
        return query(lake, _without(now, sql), values)


def _damaged(lake: Lake) -> list[str]:
    sql = "select artifact, damage from artifacts where damage is not null order by 1"
    lines = query(lake, sql).rows()
    for artifact, damage in lines:
        warnings.warn(f"{artifact} is damaged and was left out: {damage}", stacklevel=4)
    return [artifact for artifact, _ in lines]


def _without(damaged: list[str], sql: str) -> str:
    if not damaged:
        return sql
    names = ", ".join(map(literal, damaged))
    views = (f"{v} as not materialized (from main.{v} where artifact not in ({names}))" for v in VIEWS)
    return f"with {', '.join(views)} {sql}"


def row_id_of(lake: Lake, beginning: str) -> str:
    """The whole id of the one row whose id begins so."""
    if not re.fullmatch(r"[0-9a-f]{4,32}", beginning):
        raise UserError(
            f'{beginning!r} is no row id; at least 4 of its 32 digits 0-9a-f: gradus sql "select row_id, prompt from rows limit 5"'
        )
    begins = "row_id = $1"
    if len(beginning) < 32:
        begins = "row_id >= $1 and row_id < $1 || 'g' and starts_with(row_id, $1)"  # a range skips row groups
    sql = f"select distinct row_id from every_row where {begins} order by 1 limit 3"
    found = query_whole(lake, sql, [beginning])["row_id"].to_list()
    if len(found) > 1:
        raise UserError(
            f"more than one row begins with {beginning}: {found[0]}, {found[1]} …; give more digits"
        )
    if not found:
        raise UserError(f"no row {beginning} in {lake.address}")
    return found[0]


def explain_row(lake: Lake, beginning: str) -> pl.DataFrame:
    """(what, detail) of the one row whose id begins so: its source, decisions, scores and selections."""
    row_id = beginning if WHOLE.fullmatch(beginning) else row_id_of(lake, beginning)
    found = query_few(lake, f"from explain_row({literal(row_id)})")  # a macro takes no bound values
    lines = pl.DataFrame(found, {"what": pl.String, "detail": pl.String}, orient="row")
    if "row" not in lines["what"]:
        row_id_of(lake, row_id)  # says so when there is no such row
    return lines


FIND = """
select row_id, round(contains(body, lower($1))::int + ({alone}) / {n} + ({covered}) / length(body), 4) as score,
  source, label, origin, prompt, response
from (
  select row_id, any_value(source) as source, any_value(label) as label, any_value(origin) as origin,
    any_value(prompt) as prompt, any_value(response) as response, any_value(body) as body
  from (select *, lower(concat_ws(' ', prompt, response)) as body from every_row)
  where {every_word} group by row_id
)
order by score desc, row_id limit {k}
"""
ALONE = r"'(^|[^\pL\pN])' || regexp_escape({word}) || '([^\pL\pN]|$)'"


def find_rows(lake: Lake, text: str, k: int = 20) -> pl.DataFrame:
    """The k rows that best fit a search: every word of `text` occurs in their prompt or response, in any case.

    row_id, score, source, label, origin, prompt, response; best first. The score is 1 where the words stand together
    as typed, plus the share of them that are words there and not parts of longer ones, plus their share of the text.
    Dropped rows are found as well.
    """
    typed = unicodedata.normalize("NFC", text).split()  # as texts are when they are ingested
    words = list(dict.fromkeys(typed))
    if not words:
        raise UserError("nothing to look for: gradus find 'lost card'")
    if len(words) > MOST_WORDS:
        raise UserError(
            f"{len(words)} words to look for: at most {MOST_WORDS}; a few that are rare find a text as well"
        )
    if k < 1:
        raise UserError(f"k = {k}: ask for 1 row or more")
    n = len(words)
    here = [
        f"lower(${i})" for i in range(2, n + 2)
    ]  # lower-cased where the texts are: Σ has two small letters
    sql = FIND.format(
        every_word=" and ".join(f"contains(body, {word})" for word in here),
        alone=" + ".join(f"regexp_matches(body, {ALONE.format(word=word)})::int" for word in here),
        covered=" + ".join(f"(length(body) - length(replace(body, {word}, '')))" for word in here),
        n=n,
        k=int(k),
    )
    return query_whole(lake, sql, [" ".join(typed), *words])
