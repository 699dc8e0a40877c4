"""Rows by a beginning of their id, or by the words in them."""

from __future__ import annotations

import re

import polars as pl

from curation.errors import UserError
from storage.artifacts import Lake
from storage.catalog import query


def row_id_of(lake: Lake, beginning: str) -> str:
    """The whole id of the one row whose id begins so."""
    if not re.fullmatch(r"[^\s'\"%]{4,64}", beginning):
        raise UserError(
            f'{beginning!r} is no row id; at least 4 of its 32 hex digits: gradus sql "select row_id, prompt from rows limit 5"'
        )
    if (
        len(beginning) == 32
        and not query(lake, "select 1 from every_row where row_id = ? limit 1", [beginning]).is_empty()
    ):
        return beginning
    found = query(
        lake,
        "select distinct row_id from every_row where starts_with(row_id, ?) order by 1 limit 3",
        [beginning],
    )["row_id"].to_list()
    if len(found) > 1 and beginning not in found:
        raise UserError(
            f"more than one row begins with {beginning}: {found[0]}, {found[1]} …; give more digits"
        )
    if not found:
        raise UserError(f"no row {beginning} in {lake.root}")
    return beginning if beginning in found else found[0]


FIND = """
with found as (
  select row_id, any_value(source) as source, any_value(label) as label, any_value(origin) as origin,
    any_value(prompt) as prompt, any_value(response) as response, any_value(body) as body
  from (select *, lower(concat_ws(' ', prompt, response)) as body from every_row)
  where {every_word} group by row_id
)
select row_id, round(contains(body, $1)::int + ({alone}) / {n} + ({covered}) / length(body), 4) as score,
  source, label, origin, prompt, response
from found order by score desc, row_id limit {k}
"""


def find_rows(lake: Lake, text: str, k: int = 20) -> pl.DataFrame:
    """The k rows that best fit a search: every word of `text` occurs in their prompt or response, in any case.

    row_id, score, source, label, origin, prompt, response; best first. The score is 1 where the words stand together
    as typed, plus the share of them that are words there and not parts of longer ones, plus their share of the text.
    Dropped rows are found as well.
    """
    words = list(dict.fromkeys(text.lower().split()))
    if not words:
        raise UserError("nothing to look for: gradus find 'lost card'")
    if k < 1:
        raise UserError(f"k = {k}: ask for 1 row or more")
    n = len(words)
    here, alone = range(2, n + 2), range(n + 2, 2 * n + 2)
    sql = FIND.format(
        every_word=" and ".join(f"contains(body, ${i})" for i in here),
        alone=" + ".join(f"regexp_matches(body, ${i})::int" for i in alone),
        covered=" + ".join(f"(length(body) - length(replace(body, ${i}, '')))" for i in here),
        n=n,
        k=int(k),
    )
    patterns = [rf"(^|[^\pL\pN]){re.escape(word)}([^\pL\pN]|$)" for word in words]
    return query(lake, sql, [" ".join(text.lower().split()), *words, *patterns])
