"""What a frame looks like on a terminal, as JSON and as CSV, with the worst that a corpus can hold."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal

import polars as pl
import pytest
from rich.cells import cell_len

from flows.table import csv_text, json_text, print_block, print_frame

UNSEEN = "\u061c\u2028\u2029\u2060\u2064\ufeff\U000e0001\U000e007f"
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\u202egnp.exe\x9b2J\u200b\r\n=cmd()|' /C calc'!A0" + UNSEEN
FORBIDDEN = "\x1b\x07\x9b\u202e\u200b\r" + UNSEEN


@pytest.fixture(params=[40, 80, 200])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_table_fits_and_obeys_nothing(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.DataFrame(
        {"n": [1_234_567_890, None], "text": [HOSTILE, "漢字" * 99], HOSTILE: [HOSTILE, "[bold]x[/]"]}
    )
    print_frame(frame)
    out = lines(capsys)
    assert all(cell_len(line) <= width for line in out[:-1]) and "cut short" in out[-1]
    text = "\n".join(out)
    assert not set(FORBIDDEN) & set(text) and "1234567890" in text and "[bold]x[/]" in text


def test_many_columns_are_shown_row_by_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_frame(pl.DataFrame({f"column_{i}": ["some text " * 3] for i in range(12)}))
    out = lines(capsys)
    assert len(out) == 13 and "column_11  some text some text" in out[-1]


def test_a_cell_of_ten_megabytes_is_cut_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.DataFrame({"text": ["y" * 10_000_000, "z"]})
    print_frame(frame)
    out = capsys.readouterr().out
    assert len(out) < 2000 and "cells cut short (…): 1; --json or --csv gives all" in out
    print_frame(frame, as_json=True)
    assert json.loads(capsys.readouterr().out) == frame.to_dicts()


def test_many_rows_say_how_many_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_frame(pl.DataFrame({"n": range(1500)}))
    out = lines(capsys)
    assert out[-1] == "the first 1,000 rows shown; --json or --csv gives all" and len(out) == 1005
    print_frame(pl.DataFrame({"n": []}))
    print_frame(pl.DataFrame({"n": range(1500)}), as_json=True)
    assert len(json.loads("[" + capsys.readouterr().out.split("[", 1)[1])) == 1500


def test_json_is_exact_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.DataFrame(
        {"text": [HOSTILE], "list": [[HOSTILE, None]], "nan": [float("nan")], "big": pl.Series([2**100], dtype=pl.Int128),
         "money": [Decimal("1.50")], "struct": [{"x": "\u202e"}], "né": ["漢"]}
    )  # fmt: skip
    print_frame(frame, as_json=True)
    out = capsys.readouterr().out
    assert not set(FORBIDDEN) & set(out) and "漢" in out
    found = json.loads(out)[0]
    assert (
        found["text"] == HOSTILE and found["list"] == [HOSTILE, None] and found["struct"] == {"x": "\u202e"}
    )
    assert found["nan"] is None and found["big"] == 2**100 and found["money"] == "1.50"
    assert json.loads(json_text({HOSTILE: [1.5, float("inf")]})) == {HOSTILE: [1.5, None]}


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "＠x", HOSTILE, 'a"b,c\nd', "it's"],
)
def test_csv_computes_nothing_and_loses_nothing(text: str) -> None:
    frame = pl.DataFrame({"=name": [text], "n": [-1], "list": [[text, None]]})
    header, row = csv.reader(io.StringIO(csv_text(frame)))
    assert header == ["'=name", "n", "list"] and row[1] == "-1" and json.loads(row[2]) == [text, None]
    assert row[0][0] not in "=+-@\t\r\n＝＋－＠" and row[0] in (text, "'" + text)


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["=1+1"])])
def test_csv_computes_nothing_of_a_dictionary_column(dtype: pl.DataType) -> None:
    frame = pl.DataFrame({"c": pl.Series(["=1+1", None], dtype=dtype), "n": [1, 2]})
    assert csv_text(frame) == "c,n\n'=1+1,1\n,2\n"


def test_csv_on_a_terminal_obeys_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pl.DataFrame({"text": [HOSTILE]})
    print_frame(frame, as_csv=True)
    assert "\x1b" in capsys.readouterr().out  # a file gets the text as it is
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_frame(frame, as_csv=True)
    assert not set(FORBIDDEN) & set(capsys.readouterr().out)


def test_a_block_fits(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_block(HOSTILE[:20], [("a", 1_000, HOSTILE), ("bb", 2, "x" * 500), ("c", None, None)])
    out = lines(capsys)
    assert all(cell_len(line) <= width for line in out) and any("1,000" in line for line in out)
    assert not set(FORBIDDEN) & set("".join(out))
