"""Damage is named, never counted around: what needs the damaged rows is refused, everything else answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import polars as pl
import pytest
from catalog_lake import make_lake
from lakes import rows

from curation.errors import DataError, UserError
from storage import catalog
from storage.artifacts import Lake
from storage.catalog import build_catalog, catalog_path, explain_row, query

SCORE = "score/tickets@333333333333"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_lake(tmp_path / "lake")


def table_file(lake: Lake, table: str = "scores") -> Path:
    return lake.root / "artifacts" / "score" / "tickets@333333333333" / table / "all.parquet"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20:60] = bytes(byte ^ 0xFF for byte in data[20:60])
    path.write_bytes(data)


def flip_footer(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[start : start + 60] = bytes(60)
    path.write_bytes(data)


@pytest.mark.parametrize("built_before", [True, False])
@pytest.mark.parametrize("harm", [Path.unlink, cut, flip_page, flip_footer])
def test_one_damaged_file_is_named_and_the_rest_answers(lake: Lake, harm, built_before: bool) -> None:
    if built_before:
        build_catalog(lake)
    whole = table_file(lake).read_bytes()
    harm(table_file(lake))
    for sql in ("from scores", "select max(value), min(row_id) from scores where row_id = 'tickets-00001'"):
        with pytest.raises(
            DataError, match=f"{SCORE}: .*scores/all.parquet.* restore .*where artifact <> '{SCORE}'"
        ):
            query(lake, sql)
    assert query(lake, "select count(*) from ledger").item() == 6
    assert query(lake, f"from scores where artifact <> '{SCORE}'").is_empty()
    assert query(lake, "select artifact from artifacts where damage is not null").item() == SCORE
    with pytest.raises(DataError, match=SCORE):
        query(lake, "from explain_row('tickets-00001')")
    with (
        duckdb.connect(catalog_path(lake), read_only=True) as plain,
        pytest.raises(duckdb.Error, match=SCORE),
    ):
        plain.execute("select count(*) from scores").fetchall()
    lake.save_run("r2", {"started": "2"})  # makes the catalog anew: the damage is not forgotten
    with pytest.raises(DataError, match=SCORE):
        query(lake, "select value from scores")
    table_file(lake).write_bytes(whole)
    assert query(lake, "select count(*) from scores").item() == 4
    assert query(lake, "from artifacts where damage is not null").is_empty()


def test_a_damaged_version_is_refused_and_the_others_answer(lake: Lake) -> None:
    (lake.root / "datasets" / "tickets@v2" / "rows" / "all.parquet").unlink()
    for sql in (
        "from curated('tickets')",
        "from what_changed('tickets', 1, 2)",
        "select count(*) from dataset_rows",
    ):
        with pytest.raises(DataError, match=r"dataset/tickets@v2.*backup"):
            query(lake, sql)
    assert query(lake, "from curated_at('tickets', 1)").height == 4


def test_an_unreadable_manifest_is_damage_too(lake: Lake) -> None:
    manifest = table_file(lake).parents[1] / "manifest.json"
    for text in ("{", "{}", '{"files": 1}'):
        manifest.write_text(text)
        build_catalog(lake)
        with pytest.raises(DataError, match=f"{SCORE}: its manifest"):
            query(lake, "from scores")
        assert query(lake, "select count(*) from ledger").item() == 6


def test_a_removed_artifact_is_gone(lake: Lake) -> None:
    build_catalog(lake)
    shutil.rmtree(table_file(lake).parents[1])
    assert query(lake, "from scores").is_empty()
    assert query(lake, f"from artifacts where artifact = '{SCORE}'").is_empty()


def test_what_is_not_there_is_said(lake: Lake) -> None:
    for sql, told in (
        ("from curated('nope')", "there is no dataset nope"),
        ("from curated_at('tickets', 9)", "tickets@v9"),
        ("from what_changed('tickets', 1, 9)", "tickets@v9"),
        ("from drops('nope')", "run nope"),
        ("from thin_regions('nope')", "no run nope"),
        ("from path_of('nope', 1, 'candidate', 'ood_mean', 'accuracy')", "no run nope"),
    ):
        with pytest.raises(UserError, match=told):
            query(lake, sql)
    with pytest.raises(UserError, match="no row abcd"):
        explain_row(lake, "abcd")


@pytest.mark.parametrize(
    "name", ["x'); drop table runs; --", "'", "tickets' or true --", "\x1b[31m", "%", "a\x00b"]
)
def test_names_are_only_names(lake: Lake, name: str) -> None:
    with pytest.raises(UserError):
        query(lake, "from curated(?)", [name])
    with pytest.raises(UserError):
        explain_row(lake, name)
    assert query(lake, "select count(*) from rows where row_id = ?", [name]).item() == 0


@pytest.mark.parametrize(
    "sql",
    ["pragma database_list", "install fts", "load fts", "checkpoint", "vacuum", "detach catalog", "use memory",
     "call pragma_version()", "prepare p as select 1", "import database 'x'", "update extensions", "begin",
     "create or replace macro drops() as 1", "comment on table runs is 'x'", "delete from runs", "reset threads"],
)  # fmt: skip
def test_statements_that_are_no_question(lake: Lake, sql: str) -> None:
    with pytest.raises(UserError):
        query(lake, sql)
    assert query(lake, "select count(*) from runs").item() == 1


def test_a_cell_of_ten_megabytes(lake: Lake) -> None:
    text = "ü\x00'\"\n" * 2_000_000
    lake.publish_dataset("big", rows(1).with_columns(prompt=pl.lit(text)), "base", None, "base", "", 1, "big")
    assert query(lake, "select prompt from curated('big')").item() == text
    assert query(lake, "select max(strlen(prompt)) from every_row").item() == len(text.encode())


def test_a_lake_of_a_newer_gradus(lake: Lake) -> None:
    manifest = table_file(lake).parents[1] / "manifest.json"
    newer = json.loads(manifest.read_text()) | {"later": {"any": "thing"}}
    manifest.write_text(
        json.dumps(newer)
    )  # more facts, and a table that this Gradus does not know: no matter
    lake.save_run(
        "r9", {"started": "9", "later": [1], "steps": [1, {"stage": "x", "later": 1}], "artifacts": 1}
    )
    lake.add_cost("r9", {"later": {"a": 1}})
    assert query(lake, "select count(*) from scores").item() == 4
    (lake.root / "lake.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match=r"format 99.*upgrade"):
        Lake(lake.root)


def test_files_of_other_columns_are_read_together(lake: Lake) -> None:
    with lake.draft("score", "tickets", "a" * 12, {}) as draft:
        draft.write_shard(
            "all",
            {"scores": rows(0).select(row_id="row_id", proxy="source", scorer="split", value=pl.lit(0.0))},
        )
        draft.publish()
    path = lake.root / "artifacts" / "score" / "tickets@aaaaaaaaaaaa"
    pl.DataFrame({"row_id": ["z"], "extra": [7]}).write_parquet(path / "scores" / "all.parquet")
    facts = json.loads((path / "manifest.json").read_text())
    facts["files"]["scores/all.parquet"]["bytes"] = (path / "scores" / "all.parquet").stat().st_size
    facts["schema"]["scores"] = {"row_id": "String", "extra": "Int64"}
    (path / "manifest.json").write_text(json.dumps(facts))
    shown = query(lake, "select row_id, value, extra from scores order by row_id")
    assert shown.rows()[-1] == ("z", None, 7) and shown.height == 5


def test_an_open_notebook_does_not_hold_an_old_lake(lake: Lake) -> None:
    with duckdb.connect(build_catalog(lake), read_only=True) as notebook:
        assert notebook.execute("select count(*) from runs").fetchall() == [(1,)]
        lake.save_run("r2", {"started": "2"})
        assert query(lake, "select count(*) from runs").item() == 2
        assert notebook.execute("select count(*) from runs").fetchall() == [(1,)]


def test_large_answers_spill_and_do_not_fail(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(catalog, "MEMORY", "110MB")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sql = "select count(*), max(t) from (select repeat(md5(i::varchar), 4) as t from range(1_000_000) r(i) order by t)"
    assert query(lake, sql)["count_star()"].item() == 1_000_000


@pytest.mark.parametrize(
    ("sql", "files"),
    [
        ("from scores where artifact = 'score/x@{0:012x}'", 1),
        ("from scores where artifact in ('score/x@{0:012x}', 'score/x@{1:012x}')", 2),
        ("from scores where artifact in artifacts_of('r2')", 2),
        ("from dataset_rows where dataset = 'tickets' and version = 1", 1),
        ("from curated_at('tickets', 1)", 1),
        ("from curated('tickets')", 1),
    ],
)
def test_a_filter_opens_only_its_files(lake: Lake, sql: str, files: int) -> None:
    refs = []
    for n in range(8):
        with lake.draft("score", "x", f"{n:012x}", {}) as draft:
            draft.write_shard(
                "all", {"scores": query(lake, "select * exclude (artifact) from scores limit 4")}
            )
            refs.append(str(draft.publish()))
    lake.save_run(
        "r2",
        {"started": "2", "artifacts": {"score": refs[1]}, "steps": [{"stage": "score", "artifact": refs[0]}]},
    )
    with duckdb.connect(build_catalog(lake), read_only=True) as plain:
        text = str(plain.execute(f"explain analyze {sql.format(0, 1)}").fetchall()[0][1])
    read = [line for line in text.splitlines() if "Total Files Read" in line]
    assert len(read) == 1 and f"Total Files Read: {files}" in read[0], text
