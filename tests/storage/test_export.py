"""Exports: read back identically by duckdb and datasets, whole or not at all, equal bytes, nothing of others deleted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import datasets
import duckdb
import polars as pl
import pytest
from lakes import frame, rows
from polars.testing import assert_frame_equal

from curation.errors import DataError, DriftError, UserError
from curation.rows import ROWS, text_of
from storage import cards, formats
from storage import export as exporting
from storage.artifacts import Lake, Ref
from storage.export import export, row_counts, rows_by_id, rows_of_artifact
from storage.formats import COLUMNS, Shape

TEXTS = [
    "=cmd()", "+1", "-1", "@x", "\ttab", "\rcr", "\nlf", "'quoted", "''", "'=1", "＝1", "a\x00b", "\x00", "a\r\nb", "a\rb",
    'say "hi"', '"', "a,b;c|d", "NULL", "null", "\\N", "\\", "true", "2024-01-01", "001", "1e5", "\ufeffbom", "  space  ",
    "é\u202eevil\u2069 😀", "\x1b[31mred", "<script>alert(1)</script>", "[a](http://x)", "| a | b |", "{}", "[]", "#", "%s",
]  # fmt: skip
BIG = 'x"\\\n=,;é' * 1_100_000  # over 10 MB


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


def hostile(big: bool = True) -> pl.DataFrame:
    texts = TEXTS + ([BIG] if big else [])
    return frame(
        ROWS,
        [
            {
                "row_id": f"{i:032x}",
                "world": 0,
                "source": "tickets" if i % 2 else "=forum",
                "split": "train",
                "prompt": text,
                "response": "" if i % 3 == 0 else text,
                "label": None if i % 3 else text[:50],
                "origin": "synthetic" if i > 8 else "real",
                "parents": [f"{j:032x}" for j in range(max(0, i - 8))],
                "licence": None if i % 4 else "Apache-2.0",
                "n_chars": 2 * len(text),
                "meta": json.dumps({"text": text[:50]}),
            }
            for i, text in enumerate(texts)
        ],
    )


def lake_of(tmp_path: Path, *frames: pl.DataFrame) -> tuple[Lake, list[Ref]]:
    lake, refs = Lake(tmp_path / "lake"), []
    for number, some in enumerate(frames):
        with lake.draft("base", "tickets", f"{number:012x}", {"parents": []}) as draft:
            draft.write_shard("all", {"rows": some})
            refs.append(draft.publish())
    return lake, refs


def exported(lake: Lake, ref: Ref, to: Path, format: str, layout: str = "rows", **more: object) -> dict:
    parts = rows_of_artifact(lake, ref)
    shape = Shape(format, layout, bool(more.pop("gzip", False)))
    counts = row_counts(parts, more.pop("split", None))  # type: ignore[arg-type]
    return export(
        lake, parts, counts, to, shape, {"ref": str(ref)}, lambda found: front(found, counts), **more
    )  # type: ignore[arg-type]


def front(found: dict, counts: pl.DataFrame) -> str:
    return f"---\n{cards.front_matter({**found, 'title': 'x', 'counts': counts.to_dicts()})}\n---\n"


def by_duckdb(folder: Path, made: dict) -> pl.DataFrame:
    """What the statement that the card gives reads, run in the folder."""
    with contextlib.chdir(folder):
        return pl.DataFrame(duckdb.sql(cards.reading(made)).to_arrow_table())


def by_datasets(folder: Path) -> pl.DataFrame:
    return pl.DataFrame(datasets.load_dataset(str(folder))["train"].data.table)


@pytest.mark.parametrize(
    ("format", "gzip"), [("parquet", False), ("jsonl", False), ("jsonl", True), ("csv", False), ("csv", True)]
)
def test_duckdb_reads_hostile_rows_back_identically(tmp_path: Path, format: str, gzip: bool) -> None:
    lake, (ref,) = lake_of(tmp_path, hostile())
    made = exported(lake, ref, tmp_path / "out", format, gzip=gzip)
    assert_frame_equal(by_duckdb(tmp_path / "out", made), hostile().select(COLUMNS))


@pytest.mark.parametrize("format", ["parquet", "hf", "jsonl"])
def test_datasets_reads_hostile_rows_back_identically(tmp_path: Path, format: str) -> None:
    lake, (ref,) = lake_of(tmp_path, hostile())
    exported(lake, ref, tmp_path / "out", format)
    assert_frame_equal(by_datasets(tmp_path / "out"), hostile().select(COLUMNS))


def test_datasets_and_tarfile_read_webdataset_back_identically(tmp_path: Path) -> None:
    lake, (ref,) = lake_of(tmp_path, hostile())
    exported(lake, ref, tmp_path / "out", "webdataset")
    want = hostile().select(COLUMNS)
    found = by_datasets(tmp_path / "out")
    assert_frame_equal(found["json"].struct.unnest().select(COLUMNS), want)
    with tarfile.open(tmp_path / "out" / "data" / "train-00000-of-00001.tar") as tar:
        members = tar.getmembers()
        lines = [json.loads(tar.extractfile(m).read()) for m in members]  # type: ignore[union-attr]
    assert [m.name for m in members] == [f"{i:09d}.json" for i in range(len(want))]
    assert {(m.uid, m.gid, m.mtime, m.mode) for m in members} == {(0, 0, 0, 0o644)}
    assert_frame_equal(pl.DataFrame(lines, schema=want.schema), want)


def test_member_headers_are_those_of_tarfile() -> None:
    for number, size in ((0, 0), (41, 513), (999_999_999, 8**11 - 1)):
        info = tarfile.TarInfo(f"{number:09d}.json")
        info.size = size
        assert formats._member_header(number, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_no_cell_of_a_csv_begins_as_a_formula(tmp_path: Path) -> None:
    lake, (ref,) = lake_of(tmp_path, hostile(big=False))
    exported(lake, ref, tmp_path / "out", "csv")
    cells = duckdb.read_csv(
        tmp_path / "out" / "train.csv", all_varchar=True, header=True, allow_quoted_nulls=False
    )  # type: ignore[call-arg]
    values = [value for row in cells.fetchall() for value in row if value]
    assert len(values) > 200 and not [v for v in values if v[0] in "=+-@\t\r\n＝＋－＠"]


@pytest.mark.parametrize("layout", ["chat", "alpaca", "text"])
@pytest.mark.parametrize("format", ["parquet", "jsonl", "hf"])
def test_layouts_keep_the_text_and_what_a_row_is(tmp_path: Path, format: str, layout: str) -> None:
    plain = rows(1).with_columns(prompt=pl.lit(""), row_id=pl.lit("plain"))
    lake, (ref,) = lake_of(tmp_path, pl.concat([hostile(big=False), plain]))
    made = exported(lake, ref, tmp_path / "out", format, layout)
    found = by_datasets(tmp_path / "out") if format == "hf" else by_duckdb(tmp_path / "out", made)
    kept = ["row_id", "source", "split", "label", "origin", "parents", "licence", "meta"]
    want = pl.concat([hostile(big=False), plain])
    assert_frame_equal(found.select(kept), want.select(kept))
    for got, row in zip(found.rows(named=True), want.rows(named=True), strict=True):
        answer = row["response"] or row["label"] or ""
        if layout == "text":
            assert got["text"] == text_of(row["prompt"], row["response"])
        elif layout == "alpaca":
            assert (got["instruction"], got["input"], got["output"]) == (row["prompt"], "", answer)
        else:
            asked = [{"role": "user", "content": row["prompt"]}] if row["prompt"] else []
            assert got["messages"] == [*asked, {"role": "assistant", "content": answer}]


def test_large_sets_are_cut_into_numbered_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(formats, "GROUP_BYTES", 5_000)
    monkeypatch.setattr(formats, "BATCH_BYTES", 3_000)
    lake, (ref,) = lake_of(tmp_path, rows(1000))
    for format, ending in (("hf", "parquet"), ("webdataset", "tar")):
        made = exported(lake, ref, tmp_path / format, format)
        n = len(made["files"])
        assert n > 3
        assert list(made["files"]) == [f"data/train-{i:05d}-of-{n:05d}.{ending}" for i in range(n)]
        found = by_datasets(tmp_path / format)
        found = found if format == "hf" else found["json"].struct.unnest().select(COLUMNS)
        assert_frame_equal(found, rows(1000).select(COLUMNS))


def test_splits_are_files_of_their_own_and_can_be_asked_for(tmp_path: Path) -> None:
    both = rows(100).with_columns(split=pl.Series(["train", "test"] * 50))
    lake, (ref,) = lake_of(tmp_path, both)
    made = exported(lake, ref, tmp_path / "all", "hf")
    assert made["splits"] == {"test": 50, "train": 50}
    found = datasets.load_dataset(str(tmp_path / "all"))
    assert {name: part.num_rows for name, part in found.items()} == {"train": 50, "test": 50}
    made = exported(lake, ref, tmp_path / "one", "jsonl", split="test")
    assert list(made["files"]) == ["test.jsonl"] and made["rows"] == 50
    with pytest.raises(UserError, match="splits: test, train"):
        exported(lake, ref, tmp_path / "none", "jsonl", split="dev")


def test_checksums_are_those_of_sha256sum_and_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    lake, (ref,) = lake_of(tmp_path, hostile(big=False))
    for format in formats.FORMATS:
        for name in ("one", "two"):
            exported(lake, ref, tmp_path / name / format, format)
        one, two = tmp_path / "one" / format, tmp_path / "two" / format
        files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
        assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
        assert (
            subprocess.run(["sha256sum", "--check", "--strict", "checksums.sha256"], cwd=one).returncode == 0
        )
        listed = [line[66:] for line in (one / "checksums.sha256").read_text().splitlines()]
        assert sorted([*listed, "checksums.sha256"]) == sorted(map(str, files))
        told = json.loads((one / "export.json").read_text())
        assert told["ref"] == str(ref) and told["rows"] == len(TEXTS) and str(tmp_path) not in str(told)


def test_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    lake, (ref,) = lake_of(tmp_path, rows(70_000))
    code = (
        "import sys; from pathlib import Path; from storage.artifacts import Lake, Ref; from storage.export import *; from storage.formats import *\n"
        "lake, ref = Lake(sys.argv[1]), Ref.parse(sys.argv[2]); parts = rows_of_artifact(lake, ref)\n"
        "for f in ('parquet', 'jsonl', 'csv'):\n"
        "  m = export(lake, parts, row_counts(parts), Path(sys.argv[3]) / f, Shape(f, gzip=f == 'csv'), {}, lambda _: '')\n"
        "  print(m['files'])"
    )
    out = [
        subprocess.run(
            [sys.executable, "-c", code, str(lake.root), str(ref), str(tmp_path / threads)],
            env={**os.environ, "POLARS_MAX_THREADS": threads}, capture_output=True, check=True,
        ).stdout
        for threads in ("1", "3")
    ]  # fmt: skip
    assert out[0] == out[1] and len(out[0].splitlines()) == 3


@pytest.mark.parametrize("format", list(formats.FORMATS))
def test_checksums_hold_when_files_are_read_while_they_grow(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.export.PAUSE_SECONDS", 0.001)
    lake, (ref,) = lake_of(tmp_path, rows(70_000))
    made = exported(lake, ref, tmp_path / "out", format)
    for name, told in made["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert told == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_counts_are_of_the_rows_that_are_meant(tmp_path: Path) -> None:
    mixed = rows(40_000).with_columns(
        split=pl.Series(["train", "test", "it's"] * 13_333 + ["train"]),
        licence=pl.Series([None, "CC0", "x" * 2000, ""] * 10_000),
    )
    lake, (ref,) = lake_of(tmp_path, mixed)
    (part,) = rows_of_artifact(lake, ref)
    keys = ["split", "source", "licence", "origin"]
    kept = pl.Series([True, False, False, True, True] * 8_000)
    for mask, meant in ((None, mixed), (kept, mixed.filter(kept)), (kept & False, mixed.clear())):
        found = row_counts([replace(part, kept=mask)])
        assert_frame_equal(found, meant.group_by(keys).len("rows").sort(keys))


def test_rows_by_id_come_once_in_the_order_of_their_artifacts(tmp_path: Path) -> None:
    lake, refs = lake_of(tmp_path, rows(50), pl.concat([rows(60, start=30), rows(5, start=80)]))
    wanted = pl.Series([f"tickets-{i:05d}" for i in (84, 3, 40, 31, 3, 70)])
    parts = rows_by_id(lake, refs, wanted)
    export(lake, parts, row_counts(parts), tmp_path / "out", Shape("parquet"), {}, lambda _: "")
    found = pl.read_parquet(tmp_path / "out" / "train.parquet")
    assert found["row_id"].to_list() == [f"tickets-{i:05d}" for i in (3, 31, 40, 70, 84)]
    with pytest.raises(DataError, match=r"1 of 2 rows are in none of .*nowhere"):
        rows_by_id(lake, refs, pl.Series(["tickets-00001", "nowhere"]))


@pytest.mark.parametrize("format", list(formats.FORMATS))
def test_an_empty_set_is_an_export_too(tmp_path: Path, format: str) -> None:
    lake, (ref,) = lake_of(tmp_path, rows(0))
    made = exported(lake, ref, tmp_path / "out", format)
    assert made["rows"] == 0 and made["splits"] == {"train": 0} and len(made["files"]) == 1
    if format in ("parquet", "jsonl", "csv"):
        assert by_duckdb(tmp_path / "out", made).equals(rows(0).select(COLUMNS))
    if format in ("parquet", "hf"):  # `datasets` loads no empty split, and streams one
        streamed = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
        assert list(streamed.features) == COLUMNS and list(streamed) == []


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
def test_the_card_reads_all_files_and_no_split_takes_those_of_another(tmp_path: Path, format: str) -> None:
    three = rows(90).with_columns(split=pl.Series(["train", "train-hard", "it's"] * 30))
    lake, (ref,) = lake_of(tmp_path, three)
    made = exported(lake, ref, tmp_path / "out", format)
    found = by_duckdb(tmp_path / "out", made).sort("row_id")
    assert_frame_equal(found, three.select(COLUMNS))
    front = (tmp_path / "out" / "README.md").read_text()
    assert ("data_files" in front) == ("features" in front) == (format != "csv")
    assert cards._files(made, "train") == [f"train.{format}"]


def test_rows_that_share_a_long_text_are_read_in_small_parts(tmp_path: Path) -> None:
    for n_chars, most in ((50_000, 350), (20, formats.STEP_ROWS)):  # the second is a lie
        long = rows(4000).with_columns(response=pl.lit("x" * 50_000), n_chars=pl.lit(n_chars, pl.Int64))
        lake, (ref,) = lake_of(tmp_path / str(n_chars), long)
        frames = list(formats.batches(rows_of_artifact(lake, ref), COLUMNS))
        assert sum(map(len, frames)) == 4000 and max(map(len, frames)) <= most


def test_what_is_there_stays_unless_an_export_wrote_it(tmp_path: Path) -> None:
    lake, (ref,) = lake_of(tmp_path, rows(10))
    out = tmp_path / "out"
    exported(lake, ref, out, "jsonl")
    with pytest.raises(UserError, match="--overwrite"):
        exported(lake, ref, out, "csv")
    exported(lake, ref, out, "csv", overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "checksums.sha256",
        "export.json",
        "train.csv",
    ]
    (out / "mine.txt").write_text("dear")
    with pytest.raises(UserError, match=r"mine\.txt"):
        exported(lake, ref, out, "jsonl", overwrite=True)
    assert (out / "mine.txt").read_text() == "dear" and (out / "train.csv").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("dear")
    with pytest.raises(UserError, match="no earlier export"):
        exported(lake, ref, tmp_path / "other", "jsonl", overwrite=True)
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "mine").write_text("dear")
    (tmp_path / "sums" / "checksums.sha256").write_text(f"{0:064x}  mine\n")
    with pytest.raises(UserError, match="no earlier export"):
        exported(lake, ref, tmp_path / "sums", "jsonl", overwrite=True)
    assert (tmp_path / "sums" / "mine").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    exported(lake, ref, tmp_path / "empty", "jsonl")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_file_that_came_while_an_export_was_written_stays(tmp_path: Path) -> None:
    lake, (ref,) = lake_of(tmp_path, rows(10))
    out, parts = tmp_path / "out", rows_of_artifact(lake, ref)
    exported(lake, ref, out, "jsonl")

    def card(_: object) -> str:
        (out / "mine.txt").write_text("dear")
        return ""

    with pytest.raises(UserError, match=r"mine\.txt"):
        export(lake, parts, row_counts(parts), out, Shape("csv"), {}, card, overwrite=True)
    assert (out / "mine.txt").exists() and (out / "train.jsonl").exists()


def test_an_overwrite_that_fails_at_the_end_keeps_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, (ref,) = lake_of(tmp_path, rows(10))
    exported(lake, ref, tmp_path / "out", "jsonl")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if self.name.endswith("-new"):
            raise OSError(5, "disk failed")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="the disk failed"):
        exported(lake, ref, tmp_path / "out", "csv", overwrite=True)
    assert (tmp_path / "out" / "train.jsonl").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lake", "out"]


@pytest.mark.parametrize("where", ["file", "file/out", "x" * 250, "x" * 300])
def test_a_target_that_cannot_be_a_folder_is_told(tmp_path: Path, where: str) -> None:
    lake, (ref,) = lake_of(tmp_path, rows(10))
    (tmp_path / "file").write_text("dear")
    with pytest.raises(UserError, match="give another --to"):
        exported(lake, ref, tmp_path / where, "jsonl", overwrite=True)
    assert (tmp_path / "file").read_text() == "dear"


@pytest.mark.parametrize("where", ["lake", "lake/export", "link"])
def test_a_target_in_the_lake_is_refused(tmp_path: Path, where: str) -> None:
    lake, (ref,) = lake_of(tmp_path, rows(10))
    (tmp_path / "link").symlink_to(lake.root / "artifacts")
    with pytest.raises(UserError, match="inside the lake"):
        exported(lake, ref, tmp_path / where, "jsonl", overwrite=True)


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "webdataset"])
def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, (ref,) = lake_of(tmp_path, rows(10))
    write = exporting.write_split

    def onto_a_full_disk(aside: Path, *rest: object) -> None:
        ending = formats.FORMATS[format]
        (aside / "data").mkdir()
        for name in (f"train.{ending}", f"data/train-00000-of-00001.{ending}"):
            (aside / name).symlink_to("/dev/full")
        write(aside, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "write_split", onto_a_full_disk)
    with pytest.raises(UserError, match=r"the disk is full.*lake is untouched"):
        exported(lake, ref, tmp_path / "out", format)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lake"]


def test_a_killed_export_leaves_no_folder_and_the_next_one_sweeps(tmp_path: Path) -> None:
    lake, (ref,) = lake_of(tmp_path, rows(10))
    code = (
        "import os, signal, sys; from pathlib import Path; from storage.artifacts import Lake, Ref; from storage.export import *; from storage.formats import *\n"
        "lake, ref = Lake(sys.argv[1]), Ref.parse(sys.argv[2]); parts = rows_of_artifact(lake, ref)\n"
        "export(lake, parts, row_counts(parts), Path(sys.argv[3]), Shape('jsonl'), {}, lambda _: os.kill(os.getpid(), 9))"
    )
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", code, str(lake.root), str(ref), str(out)])
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    exported(lake, ref, out, "jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lake", "out"]
    out.rename(tmp_path / ".out.gradus-old")  # as if killed between the two renames of an overwrite
    with pytest.raises(UserError, match="not empty"):
        exported(lake, ref, out, "jsonl")
    assert (out / "train.jsonl").exists()


def test_broken_artifacts_are_named(tmp_path: Path) -> None:
    lake, refs = lake_of(tmp_path, rows(10), rows(20))
    path = lake.paths(refs[0], "rows")[0]
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:100] + b"x" + data[101:])
    with pytest.raises(DriftError, match=r"rows/all\.parquet was changed"):
        exported(lake, refs[0], tmp_path / "out", "jsonl")
    lake.paths(refs[1], "rows")[0].unlink()
    with pytest.raises(DataError, match="half deleted"):
        exported(lake, refs[1], tmp_path / "out", "jsonl")
    assert not (tmp_path / "out").exists()


def test_wrong_shapes_say_what_there_is() -> None:
    for wrong, said in (
        (("xlsx",), "parquet, jsonl, csv, hf, webdataset"),
        (("csv", "sharegpt"), "rows, chat, alpaca, text"),
        (("hf", "rows", True), "--gzip is for"),
        (("csv", "chat"), "--format jsonl"),
    ):
        with pytest.raises(UserError, match=said):
            Shape(*wrong)
