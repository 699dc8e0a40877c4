"""The questions, as Gradus answers them: each takes the lake and what is asked, and gives a frame."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from storage.artifacts import Lake, Ref
from storage.catalog import build_catalog, query
from storage.find import explain_row

NAME = "bench"


def lake_of(root: str) -> Lake:
    return Lake(root, create=False)


def counts(root: str, asked: None) -> pl.DataFrame:
    return query(lake_of(root), "select reason, count(*) as n from ledger group by reason")


def explain(root: str, asked: str) -> pl.DataFrame:
    return explain_row(lake_of(root), asked)


def changed(root: str, asked: None) -> pl.DataFrame:
    return query(lake_of(root), f"from what_changed('{NAME}', 1, 2)")


def rebuild(root: str, asked: None) -> pl.DataFrame:
    return pl.DataFrame({"path": [str(build_catalog(lake_of(root)))]})


def nearest(root: str, asked: str) -> pl.DataFrame:
    from storage.neighbours import nearest_rows

    return nearest_rows(lake_of(root), asked, k=10, exact=True)


def nearest_index(root: str, asked: str) -> pl.DataFrame:
    from storage.neighbours import nearest_rows

    return nearest_rows(lake_of(root), asked, k=10)


def build(root: str, asked: None) -> str:
    from storage.neighbours import build_index

    lake = lake_of(root)
    ref = next(ref for ref in lake.refs("score") if "features" in lake.tables(ref))
    build_index(lake, ref, "features")
    return str(ref)


def find(root: str, asked: str) -> pl.DataFrame:
    from storage.find import find_rows

    return find_rows(lake_of(root), asked, k=20)


def export(root: str, asked: list[str]) -> list[str]:
    """The format and the folder."""
    from storage import export as exports

    lake = lake_of(root)
    parts = exports.rows_of_artifact(lake, Ref("dataset", NAME, "v3"))
    counts = exports.row_counts(parts)
    exports.export(
        lake, parts, counts, Path(asked[1]), exports.Shape(asked[0]), {"artifact": NAME}, lambda facts: ""
    )
    return asked
