"""Nearest rows in gradient or embedding space: exactly through DuckDB, or through an index made beforehand."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from curation.errors import DataError, UserError
from storage.artifacts import Lake
from storage.find import query_whole, row_id_of
from storage.layout import Ref
from storage.vector_index import VectorIndex, build_index, nearest_first, open_index, suite_items
from storage.vectors import all_cosines

__all__ = ["SPACES", "Place", "build_index", "nearest_rows", "place_of"]

SPACES = {"gradient": "features", "embedding": "embeddings"}
TEXTS = """
select row_id, any_value(source) as source, any_value(label) as label, any_value(origin) as origin,
  any_value(prompt) as prompt, any_value(response) as response
from {view} where row_id in (select unnest(?::varchar[])) group by row_id
"""


@dataclass(frozen=True)
class Place:
    """Where a row's vector lies: an artifact, its table, and the proxy or encoder that gave it."""

    row_id: str
    ref: Ref
    table: str
    proxy: str
    vector: np.ndarray


def nearest_rows(
    lake: Lake,
    row_id: str,
    k: int = 10,
    space: str = "gradient",
    proxy: str | None = None,
    exact: bool = False,
) -> pl.DataFrame:
    """The k rows nearest to a row by plain cosine, nearest first: row_id, cosine, source, label, origin, texts, proxy.

    A beginning of the row's id, and of the proxy's name, is enough when no other begins so. A row that several artifacts have is looked up in
    the newest run's. Through the index of that artifact when there is one (`build_index`) and `exact` is not asked
    for: a tenth of the time, cosines exact, and one in a hundred neighbours may be a later one. Items of suites are
    nobody's neighbours; neither are rows whose vector has no direction.
    """
    if k < 1:
        raise UserError(f"k = {k}: ask for 1 row or more")
    place = place_of(lake, row_id, space, proxy)
    index = None if exact else usable_index(lake, place.ref, place.table)
    if index is None:
        found = exact_search(lake, place, k + 1)
    else:
        with _reading(place):
            found = index.search(place.vector, place.proxy, k + 1)
    found = found.filter(pl.col("row_id") != place.row_id).head(k)
    return found.join(
        _texts(lake, found["row_id"]), on="row_id", how="left", maintain_order="left"
    ).with_columns(proxy=pl.lit(place.proxy), artifact=pl.lit(str(place.ref)))


def _texts(lake: Lake, ids: pl.Series) -> pl.DataFrame:
    """The rows' texts; versions hold copies of rows, and are asked only for what no other artifact has any more."""
    texts = query_whole(lake, TEXTS.format(view="rows"), [ids.to_list()])
    left = ids.filter(~ids.is_in(texts["row_id"].implode()))
    return (
        texts
        if left.is_empty()
        else texts.vstack(query_whole(lake, TEXTS.format(view="dataset_rows"), [left.to_list()]))
    )


def exact_search(lake: Lake, place: Place, count: int) -> pl.DataFrame:
    """(row_id, cosine) of the `count` nearest rows, from all vectors of the place."""
    paths = lake.paths(place.ref, place.table)
    with _reading(place):
        cosine = all_cosines(paths, place.vector)
    names = lake.read(place.ref, place.table, ["row_id", "proxy"])
    mine = (pl.col("proxy") == place.proxy) & ~pl.col("row_id").is_in(suite_items(lake))
    return nearest_first(names.with_columns(cosine=cosine).filter(mine).select("row_id", "cosine"), count)


@contextmanager
def _reading(place: Place) -> Generator[None]:
    try:
        yield
    except (OSError, ValueError, IndexError, RuntimeError, pa.ArrowException) as error:
        raise DataError(
            f"{place.ref}: its {place.table} cannot be read ({error}); restore the artifact"
        ) from error


def usable_index(lake: Lake, ref: Ref, table: str) -> VectorIndex | None:
    """The index of these vectors; None, and a warning, when it is damaged: the exact search needs none."""
    try:
        return open_index(lake, ref, table)
    except DataError as error:
        warnings.warn(
            f"{error}; searched exactly. `gradus nearest ROW_ID --build` makes it again", stacklevel=3
        )
        return None


def place_of(lake: Lake, beginning: str, space: str = "gradient", proxy: str | None = None) -> Place:
    """Where the row's vector lies: in the newest run's artifact that has one, of this proxy when one is named."""
    if space not in SPACES:
        raise UserError(f"there is no space {space!r}; spaces: {', '.join(SPACES)}")
    table = SPACES[space]
    row_id = beginning if len(beginning) == 32 else row_id_of(lake, beginning)
    found = query_whole(lake, f"select artifact, proxy, feature from {table} where row_id = ?", [row_id])
    if found.is_empty():
        row_id_of(lake, row_id)  # says so when there is no such row
        raise UserError(_none_has(lake, row_id, table))
    names = sorted(set(found["proxy"]))
    named = (
        names if proxy is None else [n for n in names if n == proxy] or _beginning_so(names, proxy, row_id)
    )
    newest = _newest_first(lake)
    mine = found.filter(pl.col("proxy").is_in(named)).rows(named=True)
    line = min(mine, key=lambda f: (newest.index(f["artifact"]), f["proxy"]))
    vector = np.array(line["feature"], dtype=np.float32)
    if not np.any(vector) or not np.isfinite(vector).all():
        what = "not finite" if np.any(vector) else "zero"
        raise UserError(
            f"the {space} of {row_id} under {line['proxy']} is {what}: it has no direction, and no neighbours"
        )
    return Place(row_id, Ref.parse(line["artifact"]), table, line["proxy"], vector)


def _beginning_so(names: list[str], proxy: str, row_id: str) -> list[str]:
    found = [name for name in names if name.startswith(proxy)]
    if len(found) == 1:
        return found
    how = "more than one proxy begins" if found else "no proxy begins"
    raise UserError(f"{how} with {proxy!r} for {row_id}; it has: {', '.join(found or names)}")


def _none_has(lake: Lake, row_id: str, table: str) -> str:
    if query_whole(lake, f"select 1 from {table} limit 1").is_empty():
        why = "no run has scored rows yet" if table == "features" else "only a proxy of kind head embeds rows"
        return f"there are no {table} in {lake.address}: {why}"
    return f"row {row_id} has none of the {table}: it was dropped, or not in what was scored; gradus explain {row_id}"


def _newest_first(lake: Lake) -> list[str]:
    """Names of all artifacts: the newest run's first, scored before synthesized, then those of no run."""
    steps = [s for run in reversed(lake.runs()) for s in reversed(run.get("steps") or [])]
    named = dict.fromkeys(s["artifact"] for s in steps)
    return [*(a for a in named if not a.startswith("synthesize/")), *named, *map(str, lake.refs())]
