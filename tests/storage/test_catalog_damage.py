"""Damage is named, never counted around: what needs the damaged rows is refused, everything else answers."""

from __future__ import annotations

import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import polars as pl
import pytest
from catalog_lake import make_lake
from lakes import rows

from curation.errors import DataError, UserError
from storage import catalog
from storage.artifacts import Lake
from storage.catalog import build_catalog, catalog_path, query
from storage.find import explain_row

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


@pytest.mark.parametrize(
    ("folder", "sql"),
    [
        ("datasets/tickets@v2", "from curated('tickets')"),
        ("datasets/tickets@v2", "select count(*) from dataset_rows"),
        ("artifacts/score/tickets@333333333333", "from scores"),
    ],
)
def test_a_lost_manifest_is_damage_until_it_is_back(lake: Lake, folder: str, sql: str) -> None:
    before = query(lake, sql)
    manifest = lake.root / folder / "manifest.json"
    text = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(DataError, match=r"has no manifest.json; restore"):
        query(lake, sql)
    assert (
        query(lake, "select damage from artifacts where damage is not null").item()
        == "it has no manifest.json"
    )
    manifest.write_bytes(text)
    assert query(lake, "from artifacts where damage is not null").is_empty()
    assert query(lake, sql).equals(before)


def test_a_version_of_which_only_the_folder_is_left(lake: Lake) -> None:
    folder = lake.root / "datasets" / "tickets@v2"
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DataError, match=r"tickets@v2.*no manifest"):
        query(lake, "from curated('tickets')")


def test_a_strange_folder_blocks_nothing_and_is_listed(lake: Lake) -> None:
    strange = ["datasets/tickets@v1 (copy)", "artifacts/score/\udcff", "artifacts/dataset/tickets@v1"]
    for name in strange:
        shutil.copytree(lake.root / "datasets/tickets@v1", lake.root / name)
    (lake.root / "datasets" / "notes.txt").write_text("no folder")
    (lake.root / "datasets" / ".trash").mkdir()
    assert query(lake, "select count(*) from dataset_rows").item() == 10
    listed = query(lake, "select artifact from artifacts where damage like '%move it out%' order by 1")
    assert listed["artifact"].to_list() == sorted(s.replace("\udcff", "?") for s in strange)
    assert [v["version"] for v in lake.dataset_versions("tickets")] == [1, 2]
    assert len(lake.refs("dataset")) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"run": 1}'])
def test_a_damaged_record_is_left_out_and_listed(lake: Lake, text: str) -> None:
    lake.save_run("r2", {"started": "2"})
    files = sorted(
        path.relative_to(lake.root).as_posix()
        for pattern in ("runs/r2.json", "costs/*/*.json", "alpha/*/*.json", "openings/*/*.json")
        for path in lake.root.glob(pattern)
    )
    whole = {name: (lake.root / name).read_bytes() for name in files}
    assert len(files) == 4 and query(lake, "select count(*) from runs").item() == 2
    for name in files:
        (lake.root / name).write_text(text)
    assert (
        query(lake, "select artifact from artifacts where damage is not null order by 1")[
            "artifact"
        ].to_list()
        == files
    )
    assert query(lake, "select run from runs").item() == "r1" and query(lake, "from rows").height
    assert [query(lake, f"from {t}").height for t in ("costs", "alpha_spent", "openings")] == [0, 0, 0]
    assert [run["run"] for run in lake.runs()] == ["r1"]
    for name in files:
        (lake.root / name).write_bytes(whole[name])
    assert [query(lake, f"from {t}").height for t in ("runs", "costs", "alpha_spent", "openings")] == [
        2,
        1,
        1,
        1,
    ]


def test_the_loop_refuses_a_damaged_alpha(lake: Lake) -> None:
    for path in [*lake.root.glob("alpha/*/*.json"), *lake.root.glob("openings/*/*.json")]:
        cut(path)
    for read in (lake.alpha_spent, lake.openings):
        with pytest.raises(DataError, match="is not JSON"):
            read()


@pytest.mark.parametrize(
    "sql",
    [
        "select 'parquet'::int",
        "select error('zstd')",
        "from parquet_scores",
        "select 9::tinyint * 99::tinyint /* parquet */",
    ],
)
def test_a_wrong_statement_is_no_damage(lake: Lake, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build_catalog(lake)
    monkeypatch.setattr(catalog, "build_catalog", lambda *_: pytest.fail("the lake is doubted"))
    with pytest.raises(UserError):
        query(lake, sql)


def test_the_way_of_every_arm(lake: Lake) -> None:
    sql = "select distinct model, differences from path_of('r1', 1, ?, 'ood_mean', 'accuracy') order by 1"
    told = {arm: query(lake, sql, [arm]).rows() for arm in ("candidate", "previous", "untargeted")}
    both = "previous: +9 [6, 12], n=2; untargeted: +4.5 [1.25, 7.75], n=2"
    assert told["candidate"] == [("candidate/0", both), ("candidate/1", both)]
    assert [model for model, _ in told["previous"]] == ["previous/0", "previous/1"]  # and not the scorer
    assert told["untargeted"][0] == ("untargeted/0", "candidate: -4.5 [-7.75, -1.25], n=2")
    assert query(lake, sql.replace("ood_mean", "no_suite"), ["candidate"]).is_empty()


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
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sql = "select count(*), max(t) from (select repeat(md5(i::varchar), 4) as t from range(1_000_000) r(i) order by t)"
    with ThreadPoolExecutor(2) as pool:
        for answer in pool.map(lambda _: query(lake, sql), range(2)):
            assert answer["count_star()"].item() == 1_000_000
    assert not list(tmp_path.glob("gradus-*"))


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
