"""Vectors straight from the pages of a Parquet file: a tenth of the time that reading them as lists takes.

A list column of Parquet keeps levels for every number, and every reader decodes them one by one. Vectors that this
package writes are not compressed, not dictionary-encoded and never null, so their pages hold the plain numbers one
after another; all that is read of the levels is how long they are. Files of another layout are read by pyarrow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DECODED_ROWS = 512  # at a time, so that they stay in the processor's cache


def pages_of(path: Path, group: int | None = None) -> np.ndarray | None:
    """(pages, 3) int64 of the `feature` column: row group, where its numbers begin in the file, how many there are.

    Of one row group when given. None when the file has another layout than plain numbers, or is damaged: reading it by
    pyarrow says what is wrong.
    """
    meta = pq.read_metadata(path)
    data = np.memmap(path, np.uint8, "r")
    if meta.schema.to_arrow_schema().field("feature").type.value_type != pa.float16():
        return None
    groups = range(meta.num_row_groups) if group is None else [group]
    try:
        pages = [page for one in groups for page in _pages(data, meta, one)]
        return np.array(pages, dtype=np.int64).reshape(-1, 3)
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError):  # what odd bytes can lead to
        return None


def _pages(data: np.ndarray, meta: Any, group: int) -> Iterator[tuple[int, int, int]]:
    chunk = _feature_chunk(meta, group)
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
        raise ValueError("not plain numbers")
    at, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    left = chunk.num_values
    while at < end:
        header, at = _struct(data, at)
        page = header[5]  # of a data page: 1 = how many numbers and nulls, 2 = encoding (0 = plain)
        begin = at + _levels(data, at)
        left -= page[1]
        plain = header[1] == page[2] == 0 and begin + 2 * page[1] == at + header[3] <= end
        if not plain or page[1] < 0 or (at + header[3] == end) != (left == 0):
            raise ValueError("not plain numbers")
        yield group, begin, page[1]
        at += header[3]


def _levels(data: np.ndarray, at: int) -> int:
    """Bytes of the repetition and definition levels at the beginning of a page."""
    repetition = 4 + int.from_bytes(data[at : at + 4], "little")
    return repetition + 4 + int.from_bytes(data[at + repetition : at + repetition + 4], "little")


def _feature_chunk(meta: Any, group: int) -> Any:
    columns = (meta.row_group(group).column(i) for i in range(meta.num_columns))
    return next(c for c in columns if c.path_in_schema.startswith("feature."))


def _varint(data: np.ndarray, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = int(data[at])
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number in a page header has no end")


def _struct(data: np.ndarray, at: int) -> tuple[dict[int, Any], int]:
    """(field number -> value, position after it) of a structure in Thrift's compact protocol, as page headers are."""
    found: dict[int, Any] = {}
    number = 0
    while kind := int(data[at]):
        number, at, kind = number + (kind >> 4), at + 1, kind & 15
        if kind in (1, 2):
            found[number] = kind == 1
        elif kind in (5, 6):
            value, at = _varint(data, at)
            found[number] = (value >> 1) ^ -(value & 1)
        elif kind == 8:
            length, at = _varint(data, at)
            at += length
        elif kind == 12:
            found[number], at = _struct(data, at)
        else:
            raise ValueError(f"a page header has a field of kind {kind}")
    return found, at + 1


def group_vectors(path: Path, group: int) -> np.ndarray:
    """(rows, d) float16: the vectors of a row group."""
    pages = pages_of(path, group)
    width = pq.read_schema(path).field("feature").type.list_size
    if pages is None:
        column = pq.ParquetFile(path).read_row_group(group, columns=["feature"], use_threads=False)["feature"]
        numbers = column.combine_chunks().flatten().to_numpy().astype(np.float16, copy=False)
        return numbers.reshape(-1, width)
    data = np.memmap(path, np.uint8, "r")
    parts = [data[begin : begin + 2 * count] for _, begin, count in pages]
    return np.concatenate(parts).view(np.float16).reshape(-1, width)


@cache
def _decoder(width: int) -> Any:
    return faiss.ScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16)


def floats(vectors: np.ndarray) -> np.ndarray:
    """(n, d) float32 of (n, d) float16, several times as fast as numpy's own."""
    return _decoder(vectors.shape[1]).decode(np.ascontiguousarray(vectors).view(np.uint8))


def cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """(n,) float32: cosine of each of (n, d) float16 with the query; NaN where a vector has no direction."""
    query = query / np.linalg.norm(query)
    out = np.empty(len(vectors), dtype=np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, len(vectors), DECODED_ROWS):
            x = floats(vectors[start : start + DECODED_ROWS])
            # einsum, not @: BLAS threads of several callers wait for each other
            norms = np.sqrt(np.einsum("ij,ij->i", x, x))
            out[start : start + len(x)] = np.einsum("ij,j->i", x, query) / norms
    return out


def groups_of(path: Path) -> int:
    """How many row groups a file has."""
    return pq.read_metadata(path).num_row_groups


def all_cosines(paths: list[Path], query: np.ndarray) -> np.ndarray:
    """(n,) float32: cosine of every vector of these files with the query, on all cores."""

    def one(place: tuple[Path, int]) -> np.ndarray:
        faiss.omp_set_num_threads(1)
        return cosines(group_vectors(*place), query)

    places = [(path, group) for path in paths for group in range(groups_of(path))]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = list(pool.map(one, places))
    return np.concatenate([np.zeros(0, dtype=np.float32), *parts])


def read_rows(paths: list[Path], pages: np.ndarray, at: np.ndarray, width: int) -> np.ndarray:
    """(len(at), width) float16: these rows, read alone; `pages` as in `VectorIndex`."""
    files: dict[int, np.ndarray] = {}
    out = np.empty((len(at), width), dtype=np.float16)
    for line, row in enumerate(at):
        done = 0
        while done < width:  # a row may go on in the next page
            number = int(row) * width + done
            file, first, begin, count = pages[np.searchsorted(pages[:, 1], number, side="right") - 1]
            if file not in files:
                files[file] = np.memmap(paths[file], np.uint8, "r")
            skip = number - first
            take = min(width - done, count - skip)
            start = begin + 2 * skip
            out[line, done : done + take] = files[file][start : start + 2 * take].view(np.float16)
            done += take
    return out
