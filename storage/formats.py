"""Rows as bytes that other tools read: layouts of a row, and files of Parquet, JSONL, CSV and tar, streamed."""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from curation.errors import UserError
from curation.rows import ROWS
from storage import shards

FORMATS = {"parquet": "parquet", "jsonl": "jsonl", "csv": "csv", "hf": "parquet", "webdataset": "tar"}
SHARDED = ("hf", "webdataset")  # data/train-00000-of-00002.parquet; the others are one file a split
SHARD_BYTES, GROUP_BYTES, BATCH_BYTES = (
    500 << 20,
    64 << 20,
    16 << 20,
)  # of rows as Parquet holds them unpacked
STEP_ROWS = 1024  # read at once: rows that share a long text are short in Parquet and long in memory
BLANK = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
BLANK_SUM = (
    sum(BLANK) - sum(BLANK[124:135]) - sum(BLANK[148:156]) + 8 * ord(" ")
)  # without the size, checksum blank
COLUMNS = [name for name in ROWS if name != "world"]
ABOUT = ["row_id", "source", "split", "label", "origin", "parents", "licence", "meta"]  # kept by every layout
# What a spreadsheet may take for a formula, its full-width twins, and the mark itself, so that it can be undone.
FORMULA = "^[=+\\-@\t\r\n'\uff1d\uff0b\uff0d\uff20]"


def _turn(role: str, content: pl.Expr) -> pl.Expr:
    return pl.struct(pl.lit(role).alias("role"), content.alias("content"))


PROMPT, RESPONSE = pl.col("prompt"), pl.col("response")
ANSWER = pl.when(RESPONSE == "").then(pl.col("label").fill_null("")).otherwise(RESPONSE)
BOTH = (PROMPT != "") & (RESPONSE != "")
LAYOUTS: dict[str, list[pl.Expr]] = {
    "rows": [pl.col(name) for name in COLUMNS],
    "chat": [
        pl.when(PROMPT == "")
        .then(pl.concat_list(_turn("assistant", ANSWER)))
        .otherwise(pl.concat_list(_turn("user", PROMPT), _turn("assistant", ANSWER)))
        .alias("messages"),
        *(pl.col(name) for name in ABOUT),
    ],
    "alpaca": [
        PROMPT.alias("instruction"),
        pl.lit("").alias("input"),
        ANSWER.alias("output"),
        *(pl.col(name) for name in ABOUT),
    ],
    "text": [
        pl.when(BOTH).then(PROMPT + "\n" + RESPONSE).otherwise(PROMPT + RESPONSE).alias("text"),
        *(pl.col(name) for name in ABOUT),
    ],
}


@dataclass(frozen=True)
class Part:
    """A Parquet file of rows, and which of them are meant: a mask by position, None for all."""

    path: Path
    kept: pl.Series | None = None


@dataclass(frozen=True)
class Shape:
    """How rows are written: a name of FORMATS, a name of LAYOUTS, and whether JSONL or CSV is packed."""

    format: str
    layout: str = "rows"
    gzip: bool = False

    def __post_init__(self) -> None:
        for what, name, known in (("format", self.format, FORMATS), ("layout", self.layout, LAYOUTS)):
            if name not in known:
                raise UserError(f"there is no {what} {name!r}; --{what} is one of: {', '.join(known)}")
        if self.gzip and self.format not in ("jsonl", "csv"):
            raise UserError(f"--gzip is for jsonl and csv; {self.format} is packed or read as it is")
        if (self.format, self.layout) == ("csv", "chat"):
            raise UserError("a CSV has no nested columns, so it cannot hold messages; use --format jsonl")


def batches(
    parts: Sequence[Part], columns: Sequence[str], split: str | None = None
) -> Generator[pl.DataFrame]:
    """The rows in order, about 16 MB in memory at a time, or what 1,024 rows need; of one split when given."""
    read = list(dict.fromkeys([*columns, "split"]))
    for part in parts:
        start = 0
        for table in _gathered(part.path, read):
            frame = cast(pl.DataFrame, pl.from_arrow(table, rechunk=False))
            if part.kept is not None:
                frame = frame.filter(part.kept.slice(start, len(frame)))
            start += table.num_rows
            if split is not None:
                frame = frame.filter(pl.col("split") == split)
            yield frame.select(columns)


def _gathered(path: Path, columns: Sequence[str]) -> Generator[Any]:
    file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    held, size = list[pa.RecordBatch](), 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        text = int(pl.Series(file.read_row_group(number, ["n_chars"])["n_chars"]).sum())
        step = max(1, group.num_rows * BATCH_BYTES // max(group.total_byte_size, text, BATCH_BYTES))
        for batch in file.iter_batches(min(step, STEP_ROWS), [number], columns):
            held.append(batch)
            size += batch.nbytes
            if size >= BATCH_BYTES:
                yield pa.Table.from_batches(held)
                held, size = [], 0
    if held:
        yield pa.Table.from_batches(held)


def write_split(folder: Path, parts: Sequence[Part], split: str, rows: int, shape: Shape) -> None:
    """Writes the rows of one split, of which there are `rows`, into the folder: one file, or numbered ones."""
    ending = FORMATS[shape.format] + (".gz" if shape.gzip else "")
    paths, rows_a_file = [folder / f"{split}.{ending}"], max(1, rows)
    if shape.format in SHARDED:
        (folder / "data").mkdir(exist_ok=True)
        rows_a_file = _rows_in(parts, SHARD_BYTES)
        n = max(1, -(-rows // rows_a_file))
        paths = [folder / "data" / f"{split}-{i:05d}-of-{n:05d}.{ending}" for i in range(n)]
    write = {"parquet": _parquet, "jsonl": _jsonl, "csv": _csv, "hf": _parquet, "webdataset": _tar}
    write[shape.format](parts, split, shape, paths, rows_a_file)


def _rows_in(parts: Sequence[Part], size: int) -> int:
    """How many average rows have so many bytes, as Parquet unpacks them or as text, which rows may share in Parquet."""
    groups = [
        m.row_group(i) for m in (pq.read_metadata(p.path) for p in parts) for i in range(m.num_row_groups)
    ]
    text = sum(int(pl.read_parquet(p.path, columns=["n_chars"], glob=False)["n_chars"].sum()) for p in parts)
    encoded = sum(g.total_byte_size for g in groups)
    return max(1, size * sum(g.num_rows for g in groups) // max(1, encoded, text))


def schema_of(shape: Shape) -> list[dict[str, Any]]:
    """The columns as a dataset card's `dataset_info` names them; a CSV has text in place of lists."""
    return [
        {"name": name}
        | ({"dtype": "string"} if shape.format == "csv" and kind.is_nested() else _feature(kind))
        for name, kind in _layout([], None, shape.layout).collect_schema().items()
    ]


def _layout(parts: Sequence[Part], split: str | None, layout: str) -> pl.LazyFrame:
    schema = pl.Schema({name: ROWS[name] for name in COLUMNS})

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        return batches(parts, with_columns or COLUMNS, split)  # asked for whole: no predicate, no n_rows

    return register_io_source(source, schema=schema).select(LAYOUTS[layout])


def _parquet(parts: Sequence[Part], split: str, shape: Shape, paths: list[Path], rows_a_file: int) -> None:
    where = pl.PartitionBy(
        paths[0].parent,
        file_path_provider=lambda file: paths[file.index_in_partition].name,
        max_rows_per_file=rows_a_file,
        approximate_bytes_per_file=None,
    )
    _layout(parts, split, shape.layout).sink_parquet(
        where if len(paths) > 1 else paths[0],
        compression="zstd",
        compression_level=1,
        row_group_size=min(shards.ROWS_A_GROUP, _rows_in(parts, GROUP_BYTES)),
    )


def _jsonl(parts: Sequence[Part], split: str, shape: Shape, paths: list[Path], rows_a_file: int) -> None:
    packed = "gzip" if shape.gzip else "uncompressed"
    _layout(parts, split, shape.layout).sink_ndjson(paths[0], compression=packed)


def _csv(parts: Sequence[Part], split: str, shape: Shape, paths: list[Path], rows_a_file: int) -> None:
    frame = _layout(parts, split, shape.layout).with_columns(pl.col("parents").list.join(" "))
    text = pl.col(pl.String)
    marked = pl.when(text.str.contains(FORMULA)).then(pl.lit("'") + text).otherwise(text).name.keep()
    packed = "gzip" if shape.gzip else "uncompressed"
    frame.with_columns(marked).sink_csv(paths[0], quote_style="non_numeric", compression=packed)


def _tar(parts: Sequence[Part], split: str, shape: Shape, paths: list[Path], rows_a_file: int) -> None:
    """One member a row: 000000041.json, of owner 0 and time 0."""
    members = enumerate(_json_lines(parts, split, shape.layout))
    for path in paths:
        with path.open("wb", buffering=1 << 20) as file:
            for number, line in islice(members, rows_a_file):
                file.write(_member_header(number, len(line)) + line + bytes(-len(line) % tarfile.BLOCKSIZE))
            file.write(bytes(2 * tarfile.BLOCKSIZE))


def _member_header(number: int, size: int) -> bytes:
    """What `TarInfo.tobuf` gives, in a tenth of its time: name, size and checksum put into a blank header."""
    name, length = b"%09d.json" % number, b"%011o" % size
    checksum = b"%06o" % (BLANK_SUM + sum(name) + sum(length))
    return b"".join((name, BLANK[14:124], length, BLANK[135:148], checksum, BLANK[154:]))


def _json_lines(parts: Sequence[Part], split: str, layout: str) -> Iterator[bytes]:
    for frame in batches(parts, COLUMNS, split):
        buffer = BytesIO()
        frame.select(LAYOUTS[layout]).write_ndjson(buffer)
        yield from buffer.getvalue().split(b"\n")[:-1]  # a line break inside a text is written as \n


def _feature(kind: pl.DataType) -> dict[str, Any]:
    if isinstance(kind, pl.List):
        inner = _feature(cast(pl.DataType, kind.inner))
        return {"list": inner.get("dtype") or inner["struct"]}
    if isinstance(kind, pl.Struct):
        fields = [{"name": f.name} | _feature(cast(pl.DataType, f.dtype)) for f in kind.fields]
        return {"struct": fields}
    return {"dtype": str(kind).lower()}
