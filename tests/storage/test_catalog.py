"""The catalog: every table typed, accounting that balances, swaps that no reader notices, nothing written."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import duckdb
import polars as pl
import pytest
from lakes import features, ingested, rows, scores

from curation.errors import UserError
from curation.rows import TABLES
from storage.artifacts import Lake, Ref
from storage.catalog import build_catalog, catalog_path, query

FP, FP2 = "0123456789ab", "ba9876543210"
REPO = Path(__file__).parents[2]
NATIVE = ["artifacts", "datasets", "runs", "costs", "alpha_spent", "openings"]


def ingest(lake: Lake, fp: str = FP, tables: dict[str, pl.DataFrame] | None = None) -> Ref:
    with lake.draft("ingest", "x", fp, {"stage": "ingest", "spec": {"deep": [1]}}) as draft:
        draft.write_shard("a", tables or ingested())
        return draft.publish()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path / "it's a [lake]*")
    ingest(lake)
    with lake.draft("score", "x", FP, {}) as draft:
        draft.write_shard("a=1", {"features": features(3), "scores": scores(3)})
        draft.write_shard("b", {"features": features(2, start=3)})
        draft.publish()
    lake.publish_dataset("x", rows(4), "base", None, "publish", "", 10, "one")
    lake.publish_dataset("x", pl.concat([rows(2), rows(3, 10)]), "errors_first", 1, "publish", "", 10, "two")
    return lake


def test_empty_lake_has_every_table_typed(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    found = set(query(lake, "show tables")["name"])
    views = [*TABLES, "features", "embeddings", "dataset_rows"]
    assert found >= {*views, *NATIVE, "accounting", "accounting_all"}
    for name in [*views, *NATIVE, "accounting", "accounting_all"]:
        assert query(lake, f"from {name}").is_empty()
    for name in views:
        assert query(lake, f"from {name}").columns[0] == "artifact"
    assert query(lake, "from features").schema["feature"] == pl.List(pl.Float32)
    assert query(lake, "from rows").schema["n_chars"] == pl.Int64


def test_views_show_the_lake(lake: Lake) -> None:
    shown = query(
        lake, "select * exclude (artifact) from rows where artifact like 'ingest/%' order by n_chars, source"
    )
    assert shown.sort("row_id").equals(ingested()["rows"].sort("row_id"))
    vectors = query(lake, "from features order by row_id")
    assert vectors["artifact"].unique().to_list() == [f"score/x@{FP}"]
    assert vectors["feature"].to_list()[0] == features(3)["feature"].to_list()[0]
    near = (
        "select row_id from features order by list_cosine_similarity(feature, (select feature from features "
    )
    assert query(lake, f"{near} where row_id = 'tickets-00002')) desc limit 1").item() == "tickets-00002"
    assert query(lake, "select artifact, version, rows, parent from datasets").rows() == [
        ("dataset/x@v1", 1, 4, None),
        ("dataset/x@v2", 2, 5, 1),
    ]
    spec = query(lake, "select spec from artifacts where kind = 'ingest'").item()
    assert spec == '{"deep":[1]}'
    assert query(lake, "select comment from duckdb_views() where view_name = 'rows'").item()
    assert query(
        lake, "select comment from duckdb_columns() where table_name = 'rows' and column_name = 'row_id'"
    ).item()


def test_accounting_balances(lake: Lake) -> None:
    assert query(lake, "from accounting").rows() == [
        ("clean", 2, 2, None, 0),
        ("tickets", 10, 4, "exact_copy", 2),
        ("tickets", 10, 4, "near_copy", 2),
        ("tickets", 10, 4, "contaminated", 1),  # and too_long, but a row is dropped once
        ("tickets", 10, 4, "unparsable", 1),
    ]
    off = "from accounting_all group by artifact, source having max(read) <> max(kept) + sum(dropped)"
    assert query(lake, f"select artifact {off}").is_empty()
    kept = query(lake, "select source, max(kept) from accounting group by all order by all").rows()
    assert (
        kept
        == query(
            lake, "select source, count(*) from rows where artifact like 'ingest/%' group by all order by all"
        ).rows()
    )
    assert query(lake, "from drops()").height == 7
    assert query(lake, "select sum(dropped) from accounting").item() == 6


def test_accounting_is_of_the_newest_run(lake: Lake) -> None:
    tables = ingested()
    tables["records"] = tables["records"].filter(pl.col("source") == "clean")
    ref = ingest(lake, FP2, {**tables, "ledger": tables["ledger"].clear()})
    assert query(lake, "from accounting").rows() == [("clean", 2, 2, None, 0)]  # no run: the last one
    lake.save_run("1", {"started": "1", "artifacts": {"ingest": str(ref)}})
    lake.save_run("2", {"started": "2", "artifacts": {"ingest": f"ingest/x@{FP}"}})
    lake.save_run("3", {"started": "3", "artifacts": {}})
    assert query(lake, "from accounting").height == 5
    assert query(lake, "from accounting_all").height == 6


def test_one_identifier_in_two_worlds_still_balances(tmp_path: Path) -> None:
    lake, tables = Lake(tmp_path), ingested()
    ingest(lake, FP, {name: pl.concat([frame, frame]) for name, frame in tables.items()})
    assert query(
        lake, "select read, kept, sum(dropped) from accounting where source = 'tickets' group by all"
    ).rows() == [(20, 8, 12)]


def test_macros(lake: Lake) -> None:
    dropped = query(lake, "from explain_row('tickets-00006')").rows()
    assert ("ledger", "ingest, round 0, drop, contaminated, twin suite new-topics") in dropped
    kept = query(lake, "from explain_row('tickets-00001')")
    assert {"record", "row", "prompt", "response", "ledger", "score", "dataset"} == set(kept["what"])
    assert (
        query(lake, "from curated('x')")["row_id"].to_list()
        == pl.concat([rows(2), rows(3, 10)])["row_id"].to_list()
    )
    assert query(lake, "from curated_at('x', 1)").select(rows(1).columns).equals(rows(4))
    changed = query(lake, "select change, count(*) from what_changed('x', 1, 2) group by all order by all")
    assert changed.rows() == [("added", 3), ("removed", 2)]


def test_json_tables_take_any_shape(lake: Lake) -> None:
    lake.save_run("1", {"started": "1", 'it\'s "odd"': {"deep": [1, None]}, "Mixed": 1, "n": 2**70})
    lake.save_run("2", {"started": "2", "Mixed": "two"})
    lake.add_cost("1", {"stage": "score", "seconds": 1, "estimated": {"seconds": 2}})
    shown = query(lake, "select * from runs order by started").rows(named=True)
    assert shown[0]['it\'s "odd"'] == '{"deep":[1,null]}' and [row["Mixed"] for row in shown] == ["1", "two"]
    assert query(lake, "select seconds, estimated from costs").rows() == [(1.0, '{"seconds":2}')]


def test_a_query_sees_what_was_just_published(lake: Lake) -> None:
    assert query(lake, "select count(*) from alpha_spent").item() == 0
    lake.spend_alpha("x", "judge", 0, 1, 0.05, "k")
    assert query(lake, "select alpha from alpha_spent").item() == 0.05
    built = catalog_path(lake).stat().st_ino
    query(lake, "from rows")
    assert catalog_path(lake).stat().st_ino == built
    assert stat.S_IMODE(catalog_path(lake).stat().st_mode) == 0o444


def test_a_moved_or_damaged_catalog_is_rebuilt(lake: Lake, tmp_path: Path) -> None:
    build_catalog(lake)
    moved = Lake(shutil.move(lake.root, tmp_path / "moved"), create=False)
    assert query(moved, "select count(*) from dataset_rows").item() == 9
    path = catalog_path(moved)
    path.unlink()
    path.write_bytes(b"not a database" * 999)
    path.with_name("catalog.duckdb.wal").write_bytes(b"stale")
    assert query(moved, "select count(*) from dataset_rows").item() == 9
    assert [p.name for p in moved.root.iterdir() if "catalog" in p.name and not p.name.startswith(".")] == [
        path.name
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "drop view rows",
        "insert into runs values ('x')",
        "copy rows to 'x.csv'",
        "explain analyze copy rows to 'x.csv'",
        "explain copy rows to 'x.csv'",
        "explain /* */ copy rows to 'x.csv'",
        "explain select 1; copy rows to 'x.csv'",
        "explain delete from runs",
        "copy (pivot runs on state) to 'x.csv'",
        "attach 'x.db'",
        "set threads = 1",
        "export database 'x'",
        "create temp table x as select 1",
        "select 1; select 2",
        "",
    ],
)
def test_only_one_select(lake: Lake, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lake.root)
    with pytest.raises(UserError, match="one SELECT at a time"):
        query(lake, sql)
    assert not list(lake.root.glob("x*"))


@pytest.mark.parametrize(
    "sql", ["select * from read_text('/etc/hostname')", "from '/etc/passwd'", "from sys"]
)
def test_no_file_outside_the_lake(lake: Lake, sql: str) -> None:
    with pytest.raises(UserError):
        query(lake, sql)


def test_columns_of_one_name_are_told_apart(lake: Lake) -> None:
    assert query(lake, "select 1 as a, 2 as a, 3 as a_1, 4 as a").row(0, named=True) == {
        "a": 1,
        "a_2": 2,
        "a_1": 3,
        "a_3": 4,
    }
    joined = query(lake, "select * from rows r join ledger l on l.row_id = r.row_id")
    assert {"artifact", "artifact_1", "row_id_1"} <= set(joined.columns) and joined.height


@pytest.mark.parametrize(
    "value",
    [
        "interval 1 day",
        "union_value(k := 1)",
        "'infinity'::date",
        "'-infinity'::timestamp",
        "date '20000-01-01'",
    ],
)
def test_what_only_duckdb_knows_is_to_be_cast(lake: Lake, value: str) -> None:
    with pytest.raises(UserError, match="::varchar"):
        query(lake, f"select {value} as x")
    assert query(lake, f"select ({value})::varchar as x").item()


def test_explain_tells_the_plan(lake: Lake) -> None:
    assert "PARQUET" in query(lake, "explain select row_id from scores")["explain_value"].item().upper()
    assert query(lake, "EXPLAIN ANALYZE from runs").height == 1


def test_a_limit_is_computed_not_cut(lake: Lake) -> None:
    assert query(lake, "select i from range(10_000_000_000) r(i)", limit=3)["i"].to_list() == [0, 1, 2]
    assert query(lake, "from dataset_rows order by row_id desc", limit=2).equals(
        query(lake, "from dataset_rows order by row_id desc limit 2")
    )
    assert (
        query(lake, "explain select 1", limit=5).height == 1
        and query(lake, "show tables", limit=5).height == 5
    )


def test_errors_keep_the_hint(lake: Lake) -> None:
    with pytest.raises(UserError, match='Did you mean "rows"'):
        query(lake, "from rowz")
    with pytest.raises(UserError, match=r"row_id(.|\n)*describe rows"):
        query(lake, "select row_ids from rows")


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    text = "'; drop table runs; -- \x1b[31m \" \\ {} %s $1"
    lake.publish_dataset("x", rows(1).with_columns(prompt=pl.lit(text)), text, None, "publish", text, 1, text)
    lake.save_run(text[:20], {text: text})
    assert query(lake, "select prompt from curated('x')").item() == text
    assert query(lake, "select strategy from datasets").item() == text
    assert query(lake, "from runs").row(0, named=True)[text] == text


READER = """
import sys
import duckdb
for i in range(200):
    with duckdb.connect(sys.argv[1], read_only=True, config={"threads": 1}) as connection:
        found = connection.execute("select sum(dropped), count(distinct source) from accounting").fetchone()
        assert found == (6, 2), found
        assert connection.execute("select count(*) from rows").fetchone()[0] >= 6
print("no errors")
"""


def test_swap_while_another_process_queries(lake: Lake) -> None:
    lake.save_run("1", {"started": "1", "artifacts": {"ingest": f"ingest/x@{FP}"}})
    path = build_catalog(lake)
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", READER, str(path)]
    reader = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    swaps = 0
    while reader.poll() is None and swaps < 500:
        ingest(lake, f"{swaps:012x}")
        build_catalog(lake)
        swaps += 1
    out, err = reader.communicate(timeout=60)
    assert out == "no errors\n", err
    assert swaps > 5


def test_stock_duckdb_reads_the_catalog(lake: Lake) -> None:
    with duckdb.connect(build_catalog(lake), read_only=True) as connection:
        assert connection.execute("from accounting").fetchone() == ("clean", 2, 2, None, 0)
        assert connection.execute("select count(*) from explain_row('tickets-00001')").fetchone() != (0,)
