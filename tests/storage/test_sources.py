"""Every record of every kind of file, with a reason where it is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import DataError, UserError
from storage.sources import expand, file_hash, read_batches


def records(path: Path, batch_rows: int = 3):
    batches = list(read_batches(path, batch_rows))
    assert all(len(b.items) <= batch_rows for b in batches)
    items = [item for b in batches for item in b.items]
    assert [position for position, _, _ in items] == list(range(len(items)))
    assert [b.first for b in batches] == [b.items[0][0] for b in batches]
    return [reason or record for _, record, reason in items]


MESSY_LINES = (
    b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b\xff"}\n{"text": \n[1, 2]\n3\n'
    b'{"text": "l\xc3\xa4st\xe2\x80\xa8one"}'
)
MESSY_RECORDS = [
    {"text": "a"},
    "blank",
    "bad_utf8",
    "unparsable",
    "not_an_object",
    "not_an_object",
    {"text": "läst\u2028one"},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_jsonl_whatever_the_suffix_says(tmp_path, name, packed):
    path = tmp_path / name
    path.write_bytes(gzip.compress(MESSY_LINES, mtime=0) if packed else MESSY_LINES)
    assert records(path) == MESSY_RECORDS


def test_jsonl_deep_nesting_huge_numbers_and_huge_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "[" * 100_000 + "\n" + '{"n": ' + "1" * 5000 + "}\n" + json.dumps({"text": "x" * 3_000_000})
    )
    assert [r if isinstance(r, str) else len(r["text"]) for r in records(path)] == ["unparsable"] * 2 + [
        3_000_000
    ]


def test_utf16_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nwörld,pos\n".encode("utf-16"))
    assert records(path) == [{"text": "wörld", "label": "pos"}]


def test_json_array(tmp_path):
    path = tmp_path / "a.json"
    rows = [{"text": "é" * 300_000}, 3, {"text": "b, ]"}, [1], 12]
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    assert records(path) == [rows[0], "not_an_object", rows[2], "not_an_object", "not_an_object"]
    path.write_text('[{"text": "a"}, {"text": "b"')
    assert records(path) == [{"text": "a"}, "truncated"]
    path.write_text('[{"text": "a"}, oops, {"text": "b"}]')
    assert records(path) == [{"text": "a"}, "truncated"]
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert records(path) == [{"text": "a"}, {"text": "b"}]
    path.write_text('{\n "text": "a",\n "more": 1\n}\n')
    with pytest.raises(DataError, match="one JSON object"):
        records(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiters_quoted_newlines_ragged(tmp_path, delimiter):
    path = tmp_path / "a.csv.gz"
    text = 'text,label\n"one, two\nthree",x\r\n\na,b,c\n"say ""hi""",y\n=1+1,z\n'.replace(",", delimiter)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    assert records(path) == [
        {"text": f"one{delimiter} two\nthree", "label": "x"},
        "blank",
        "ragged",
        {"text": 'say "hi"', "label": "y"},
        {"text": "=1+1", "label": "z"},
    ]


def test_csv_legacy_encoding_and_stray_bytes(tmp_path):
    legacy, stray = tmp_path / "a.csv", tmp_path / "b.csv"
    legacy.write_bytes("text,label\ncafé “so”,x\n".encode("cp1252"))
    assert records(legacy) == [{"text": "café “so”", "label": "x"}]
    stray.write_bytes("text,label\nä ö ü é,x\n".encode() + b"bad\xff,y\n")
    assert records(stray) == [{"text": "ä ö ü é", "label": "x"}, "bad_utf8"]


def test_text_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n\ntw\xe9\nthree")
    assert records(path) == [{"text": "one"}, "blank", "bad_utf8", {"text": "three"}]


def test_truncated_gzip_keeps_what_was_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps({"text": str(i) * 50}) + "\n" for i in range(2000))
    path.write_bytes(gzip.compress(lines.encode(), mtime=0)[:-3000])
    found = records(path, 100)
    assert 100 < len(found) < 2000 and found[-1] == "truncated"
    assert all(r == {"text": str(i) * 50} for i, r in enumerate(found[:-1]))
    whole = (
        gzip.compress(b'{"text": "a"}\n', mtime=0) + gzip.compress(b'{"text": "b"}\n', mtime=0) + b"\0" * 9
    )
    path.write_bytes(whole)
    assert records(path) == [{"text": "a"}, {"text": "b"}]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [str(i) for i in range(50)], "n": [None, *range(49)]})
    pq.write_table(table, path, row_group_size=7)
    assert records(path) == table.to_pylist()
    renamed = tmp_path / "a.jsonl"
    renamed.write_bytes(path.read_bytes())
    assert records(renamed) == table.to_pylist()


@pytest.mark.parametrize("content", [b"PAR1 no parquet PAR1", b"plain text"])
def test_no_parquet_says_what_was_kept_and_what_to_type(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet.*nothing was kept.*--source"):
        records(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("a.csv", b"text,label\n"),
        ("a.json", b"[]"),
        ("a.parquet", b""),
    ],
)
def test_empty_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="no records"):
        records(tmp_path / name)


def test_unknown_formats(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 rest")
    (tmp_path / "a.bin").write_bytes(b"hello")
    with pytest.raises(UserError, match="zip file; unpack it"):
        records(tmp_path / "a.zip")
    with pytest.raises(UserError, match="unknown format"):
        records(tmp_path / "a.bin")


def test_expand(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "odd[1].jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert expand("a.jsonl", tmp_path) == [tmp_path / "a.jsonl"]
    assert expand("odd[1].jsonl", tmp_path) == [tmp_path / "odd[1].jsonl"]
    assert expand("?.jsonl", tmp_path) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert tmp_path / "sub/c.jsonl" in expand(str(tmp_path / "**/*.jsonl"), Path("/nowhere"))
    for wrong in ("none.jsonl", "no*.jsonl", "sub"):
        with pytest.raises(UserError, match=r"'tickets'.*--source tickets=PATH"):
            expand(wrong, tmp_path, source="tickets")
    with pytest.raises(UserError, match="--source"):
        list(read_batches(tmp_path / "none.jsonl", 5))


def test_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-0.parquet").write_bytes(b"x")
    (tmp_path / "README.md").write_text("x")
    asked = {}

    def fetch(repository, **rest):
        asked.update(rest, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert expand("hf://some-one/set.1@main", tmp_path) == [tmp_path / "data/train-0.parquet"]
    assert (asked["repository"], asked["revision"], asked["repo_type"]) == (
        "some-one/set.1",
        "main",
        "dataset",
    )

    def offline(repository, **rest):
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"could not be fetched.*--source s=PATH"):
        expand("hf://some-one/set", tmp_path, source="s")
    with pytest.raises(UserError, match="no hub data set"):
        expand("hf://just-a-name", tmp_path)


def test_file_hash_is_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == file_hash(tmp_path / "b") == "cf4ab791c62b8d2b2109c90275287816"
