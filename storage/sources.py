"""Source files as batches of records: every line or row that a file holds, with a reason where it is none.

The only module that opens a user's corpus. A file is never held whole: memory is bounded by the rows of one
batch and the longest record. CSV is read twice, once for its encoding.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import DataError, UserError

CHUNK_BYTES = 1 << 20
PACKED_CHUNK_BYTES = 1 << 16  # unpacks to 64 MB at most, so that no file can fill the memory
SNIFF_CHARS = 1 << 16
DELIMITERS = (",", ";", "\t")
HUB_FILES = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.csv", "*.csv.gz", "*.tsv", "*.tsv.gz")
PACKED = {b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
SNIFF_LINES = 200
PARQUET_ROWS = 2_000
_FIX = "Write the file again, or leave it out: --source NAME=PATH"
ESCAPED = re.compile("[\udc80-\udcff]")
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_GAP = re.compile(r"[\s,]*")
_AFTER_ELEMENT = re.compile(r"\s*[,\]]")

Item = tuple[int, dict[str, Any] | None, str | None]
Outcome = tuple[dict[str, Any] | None, str | None]


@dataclass(frozen=True)
class Batch:
    """Consecutive records of one file: `items` are (0-based position, record or None, reason or None)."""

    file: str
    first: int
    items: list[Item]


class _TruncatedError(Exception):
    """The compressed stream ended early; all that came before was delivered."""


def expand(path: str, relative_to: Path, source: str = "NAME") -> list[Path]:
    """The files that a recipe's path names, sorted: a file, a glob, or `hf://owner/name[@revision][/glob]`.

    `UserError` when nothing is there; `source` is the recipe's source, for the message.
    """
    if path.startswith("hf://"):
        return _from_hub(path, source)
    whole = Path(relative_to) / Path(path).expanduser()
    if whole.is_file():
        return [whole]
    hint = f"correct `path` in the recipe, or give another: --source {source}=PATH"
    if whole.is_dir():
        glob = f"{path.rstrip('/')}/*.jsonl"
        raise UserError(f"source {source!r}: {whole} is a folder; write a glob such as {glob}, or {hint}")
    found = sorted(p for p in _glob(whole) if p.is_file())
    if not found:
        what = "no file matches" if any(c in path for c in "*?[") else "there is no file"
        raise UserError(f"source {source!r}: {what} {whole}; {hint}")
    return found


def _glob(pattern: Path) -> Iterator[Path]:
    parts = pattern.parts
    magic = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), None)
    if magic is None:
        return iter(())
    return Path(*parts[:magic]).glob(str(Path(*parts[magic:])))


def _from_hub(path: str, source: str) -> list[Path]:
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?", path)
    if match is None:
        raise UserError(
            f"source {source!r}: {path!r} is no hub data set; write hf://owner/name or hf://owner/name/train*.parquet"
        )
    repository, revision, inside = match.groups()
    wanted = [inside] if inside else list(HUB_FILES)
    hint = f"give the files: --source {source}=PATH"
    try:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=wanted)
    except Exception as error:
        raise UserError(
            f"source {source!r}: {path} could not be fetched ({type(error).__name__}); "
            f"check the name and the network, or download it and {hint}"
        ) from error
    found = sorted({p for pattern in wanted for p in Path(folder).rglob(pattern) if p.is_file()})
    if not found:
        raise UserError(f"source {source!r}: {path} holds no {', '.join(wanted)}; {hint}")
    return found


def file_hash(path: Path) -> str:
    """128 bits in hex (blake2b) of the file's bytes as stored."""
    digest = hashlib.blake2b(digest_size=16)
    with _open(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def count_records(path: Path) -> int:
    """About how many records a file has, without parsing them: Parquet's own count, else lines."""
    if _format(path) == "parquet":
        return pq.ParquetFile(path).metadata.num_rows
    return max(1, sum(chunk.count(b"\n") for chunk in _chunks(path)))


def read_batches(path: Path, batch_rows: int, name: str | None = None) -> Iterator[Batch]:
    """Every record of a file in order, `batch_rows` at a time; `name` is what records call the file.

    Parquet, JSONL, JSON (an array), CSV, TSV or text (one row a line), gzip or not; content wins where the
    suffix lies. A record that is none has a reason: `unparsable`, `blank`, `not_an_object`, `bad_utf8`,
    `ragged`, or `truncated` (the last one of a file that ends early). `DataError` when the file has no
    records at all.
    """
    name = name or path.name
    records = iter(_READERS[_format(path)](path))
    first = 0
    while items := [(first + i, *outcome) for i, outcome in enumerate(islice(records, batch_rows))]:
        yield Batch(name, first, items)
        first += len(items)
    if first == 0:
        raise DataError(f"{path} has no records; nothing was kept of it. {_FIX}")


def _open(path: Path):
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give another file: --source NAME=PATH") from error


def _chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked where they are gzip; _TruncatedError at a broken end."""
    with _open(path) as file:
        chunk = file.read(PACKED_CHUNK_BYTES)
        if chunk[:2] != b"\x1f\x8b":
            while chunk:
                yield chunk
                chunk = file.read(CHUNK_BYTES)
            return
        unpack = zlib.decompressobj(wbits=31)
        while chunk:
            try:
                yield unpack.decompress(chunk)
            except zlib.error as error:
                raise _TruncatedError from error
            chunk = unpack.unused_data or file.read(PACKED_CHUNK_BYTES)
            if unpack.eof:
                if not chunk.strip(b"\0"):
                    return
                unpack = zlib.decompressobj(wbits=31)
        raise _TruncatedError


def _head(path: Path) -> bytes:
    try:
        return next(_chunks(path), b"")
    except _TruncatedError:
        return b""


def _bom(head: bytes) -> str:
    return "utf-16" if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _format(path: Path) -> str:
    head = _head(path)
    packed = next((kind for magic, kind in PACKED.items() if head.startswith(magic)), None)
    if packed:
        raise UserError(f"{path} is a {packed} file; unpack it, or pack it with gzip: --source NAME=PATH")
    suffix = next((s for s in reversed([s.lower() for s in path.suffixes]) if s not in (".gz", ".gzip")), "")
    if head[:4] == b"PAR1":
        return "parquet"
    if suffix == ".parquet" and head:
        raise DataError(f"{path} is not Parquet (it starts with {head[:4]!r}); nothing was kept. {_FIX}")
    if suffix in (".csv", ".tsv", ".tab"):
        return "csv"
    if suffix == ".txt":
        return "text"
    text = head.decode(_bom(head), "replace").lstrip()
    if suffix in (".jsonl", ".ndjson") or not text:
        return "jsonl"
    if text[0] == "[":
        return "json"
    if text[0] == "{":
        if text.count("\n") > 1 and all(_parse(line)[1] == "unparsable" for line in text.split("\n", 2)[:2]):
            raise DataError(f"{path} is one JSON object, not a list of records; nothing was kept. {_FIX}")
        return "jsonl"
    raise UserError(
        f"{path}: unknown format; name it .jsonl, .json, .csv, .tsv, .txt or .parquet (.gz allowed)"
    )


def _text(path: Path, encoding: str | None = None) -> Iterator[str]:
    """The file as text; bytes that are not UTF-8 come as lone surrogates (`bad_utf8`)."""
    encoding = encoding or _bom(_head(path))
    errors = "surrogateescape" if encoding == "utf-8-sig" else "replace"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for chunk in _chunks(path):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", True)


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    """Lines with their line feed; only LF ends one, so U+2028 and the like stay inside."""
    pieces: list[str] = []
    for chunk in chunks:
        *whole, rest = chunk.split("\n")
        for line in whole:
            pieces.append(line)
            yield "".join(pieces) + "\n"
            pieces = []
        if rest:
            pieces.append(rest)
    if pieces:
        yield "".join(pieces)


def _parse(line: str) -> Outcome:
    if not line.strip():
        return None, "blank"
    if not line.isascii() and ESCAPED.search(line):
        return None, "bad_utf8"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None, "unparsable"
    return (value, None) if isinstance(value, dict) else (None, "not_an_object")


def _jsonl(path: Path) -> Iterator[Outcome]:
    try:
        for line in _lines(_text(path)):
            yield _parse(line)
    except _TruncatedError:
        yield None, "truncated"


def _plain(path: Path) -> Iterator[Outcome]:
    try:
        for line in _lines(_text(path)):
            if not line.strip():
                yield None, "blank"
            elif not line.isascii() and ESCAPED.search(line):
                yield None, "bad_utf8"
            else:
                yield {"text": line.rstrip("\r\n")}, None
    except _TruncatedError:
        yield None, "truncated"


def _json_array(path: Path) -> Iterator[Outcome]:
    """The elements of one JSON array; what follows a broken one is lost: one `truncated` record."""
    chunks, decoder = _text(path), json.JSONDecoder()
    buffer, position, chunks_wanted, ended = "[", 1, 1, False
    try:
        buffer = next(chunks, "[")
        position = buffer.find("[") + 1
        while True:
            position = _GAP.match(buffer, position).end()  # type: ignore[union-attr]
            if buffer.startswith("]", position):
                return
            value, end = _element(decoder, buffer, position)
            if end and (ended or _AFTER_ELEMENT.match(buffer, end)):
                if ESCAPED.search(buffer, position, end):
                    yield None, "bad_utf8"
                else:
                    yield (value, None) if isinstance(value, dict) else (None, "not_an_object")
                position, chunks_wanted = end, 1
                continue
            if ended:
                yield None, "truncated"
                return
            grown = list(islice(chunks, chunks_wanted))
            buffer, position = buffer[position:] + "".join(grown), 0
            ended, chunks_wanted = not grown, 2 * chunks_wanted
    except _TruncatedError:
        yield None, "truncated"


def _element(decoder: json.JSONDecoder, buffer: str, position: int) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(buffer, position)
    except (ValueError, RecursionError):
        return None, 0


def _encoding(path: Path) -> str:
    """`cp1252` where more bytes are no UTF-8 than letters are (legacy exports), else what the start says."""
    encoding = _bom(_head(path))
    if encoding != "utf-8-sig":
        return encoding
    bad = good = 0
    try:
        for text in _text(path, encoding):
            if not text.isascii():
                odd = len(ESCAPED.findall(text))
                bad, good = bad + odd, good + len(NOT_ASCII.findall(text)) - odd
    except _TruncatedError:
        pass
    return "cp1252" if bad > good else encoding


def _delimiter(sample: list[str]) -> str:
    """The delimiter under which most of the sample's rows have as many fields as the first, more than one."""
    best, best_score = DELIMITERS[0], 0.0
    for delimiter in DELIMITERS:
        try:
            rows = [row for row in csv.reader(sample, delimiter=delimiter) if row]
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1:
            score = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
            if score > best_score:
                best, best_score = delimiter, score
    return best


def _csv(path: Path) -> Iterator[Outcome]:
    """Rows as records by the header's names; fields may hold line breaks, huge ones too."""
    csv.field_size_limit(sys.maxsize)
    lines = _lines(_text(path, _encoding(path)))
    sample: list[str] = []
    try:
        while sum(map(len, sample)) < SNIFF_CHARS and len(sample) < SNIFF_LINES and (line := next(lines, "")):
            sample.append(line)
    except _TruncatedError:
        lines = _cut()
    reader = csv.reader(chain(sample, lines), delimiter=_delimiter(sample))
    header: list[str] = []
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None, "unparsable"
            continue
        except _TruncatedError:
            yield None, "truncated"
            return
        if header:
            yield _csv_record(header, row)
        else:
            header = [cell.strip() for cell in row]


def _cut() -> Iterator[str]:
    raise _TruncatedError
    yield ""


def _csv_record(header: list[str], row: list[str]) -> Outcome:
    if not row:
        return None, "blank"
    if len(row) != len(header):
        return None, "ragged"
    if any(not cell.isascii() and ESCAPED.search(cell) for cell in row):
        return None, "bad_utf8"
    return dict(zip(header, row, strict=True)), None


def _parquet(path: Path) -> Iterator[Outcome]:
    kept = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for record in batch.to_pylist():
                    kept += 1
                    yield record, None
    except (pa.ArrowException, OSError, ValueError) as error:
        if kept == 0:
            raise DataError(f"{path} is not whole Parquet ({error}); nothing was kept. {_FIX}") from error
        yield None, "truncated"


_READERS: dict[str, Callable[[Path], Iterator[Outcome]]] = {
    "jsonl": _jsonl,
    "json": _json_array,
    "csv": _csv,
    "text": _plain,
    "parquet": _parquet,
}
