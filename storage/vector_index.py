"""A faiss index of an artifact's vectors: made from its Parquet, thrown away at any time, never the truth."""

from __future__ import annotations

import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl

from curation.errors import DataError
from storage import shards
from storage.artifacts import Lake
from storage.layout import Ref, pretty_json
from storage.vectors import cosines, floats, group_vectors, groups_of, pages_of, read_rows

lib: Any = faiss  # its type stubs know neither keywords nor inherited fields
EDITION = 2  # of the files below: an index of another edition is made again
CENTRE_ROWS = 16_384
RERANK = 20  # exact cosines for so many times k rows, at least `RERANK_ROWS`
RERANK_ROWS = 400
ARRAYS = ("codes", "centre", "ids", "owners", "pages")


@dataclass(frozen=True)
class VectorIndex:
    """One bit a dimension (RaBitQ) of every vector; the best by these are read from the Parquet files and compared."""

    paths: list[Path]
    codes: Any  # faiss.IndexRaBitQ
    ids: np.ndarray  # (n,) bytes
    owners: np.ndarray  # (n,) int16: position in `proxies`; -1: an item of a suite, nobody's neighbour
    pages: np.ndarray  # (pages, 4) int64: file, first number of all, where it begins in the file, how many
    proxies: list[str]

    def search(self, vector: np.ndarray, proxy: str, count: int) -> pl.DataFrame:
        """(row_id, cosine) of the `count` nearest rows of this proxy, nearest first; the cosines are exact."""
        mine = self.owners == self.proxies.index(proxy)
        bits = np.packbits(mine, bitorder="little")
        how = lib.RaBitQSearchParameters(qb=8, centered=False)
        how.sel = None if mine.all() else lib.IDSelectorBitmap(bits)
        wanted = min(int(mine.sum()), max(RERANK * count, RERANK_ROWS))
        at = np.sort(self.codes.search(_unit(vector[None]), wanted, params=how)[1][0])
        at = at[at >= 0]
        cosine = cosines(read_rows(self.paths, self.pages, at, len(vector)), vector)
        found = pl.DataFrame({"row_id": self.ids[at].astype(str), "cosine": cosine})
        return nearest_first(found, count)


def nearest_first(found: pl.DataFrame, count: int) -> pl.DataFrame:
    """The `count` lines (row_id, cosine) with the largest cosine; rows without direction have none."""
    known = found.filter(pl.col("cosine").is_finite())
    return known.sort("cosine", "row_id", descending=[True, False]).head(count)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=np.isfinite(norms) & (norms > 0))


def index_folder(lake: Lake, ref: Ref, table: str) -> Path:
    """Where the index of these vectors lies: lake/index/KIND/NAME@FINGERPRINT/TABLE."""
    return lake.root / "index" / ref.kind / f"{ref.name}@{ref.fingerprint}" / table


def open_index(lake: Lake, ref: Ref, table: str) -> VectorIndex | None:
    """The index of these vectors; None when there is none. `DataError`: it is damaged, or of other vectors."""
    folder = index_folder(lake, ref, table)
    if not folder.exists():
        return None
    try:
        about = shards.read_json(folder / "about.json")
        if about["made_of"] != _made_of(lake, ref, table):
            raise ValueError("it was made of other vectors, or by another Gradus")
        for name in ARRAYS:
            if _checksum(folder / f"{name}.npy") != about["checksums"][name]:
                raise ValueError(f"{name}.npy is damaged")
        codes, centre, ids, owners, pages = (
            np.load(folder / f"{name}.npy", "r", allow_pickle=False) for name in ARRAYS
        )
        index = _rabitq(centre, codes)
        if not len(codes) == len(ids) == len(owners) or pages[:, 3].sum() != len(ids) * len(centre):
            raise ValueError("its files do not belong together")
        return VectorIndex(lake.paths(ref, table), index, ids, owners, pages, about["proxies"])
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(f"the index {folder} cannot be used ({str(error).splitlines()[0]})") from error


def _checksum(path: Path) -> int:
    """CRC-32 of a file: read at each opening, so seven times the speed of a BLAKE2b counts, and nobody forges it."""
    return zlib.crc32(np.memmap(path, np.uint8, "r").data)


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("xb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())


def _rabitq(centre: np.ndarray, codes: np.ndarray) -> Any:
    """The faiss index of these codes; put together here, because faiss trusts every number in a file of its own."""
    index = lib.IndexRaBitQ(len(centre), faiss.METRIC_INNER_PRODUCT)
    if codes.dtype != np.uint8 or codes.shape[1:] != (index.code_size,):
        raise ValueError("its codes are of another size")
    faiss.copy_array_to_vector(np.ascontiguousarray(centre, dtype=np.float32), index.center)
    faiss.copy_array_to_vector(codes.reshape(-1), index.codes)
    index.ntotal, index.is_trained = len(codes), True
    return index


def build_index(lake: Lake, ref: Ref, table: str) -> Path:
    """The folder of a new index of all vectors of a table of an artifact; it takes the place of an older one.

    A tenth of the size of the table or less. Memory: the codes (d / 8 + 8 bytes a row), and a row group.
    """
    folder = index_folder(lake, ref, table)
    aside = folder.with_name(f".{table}.building")
    with (
        shards.disk_errors(f"no index of {ref} was made", "the artifact is untouched"),
        shards.locked(folder.with_name(f".{table}.lock")),
    ):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            _fill(lake, ref, table, aside)
            shards.fsync_folder(aside)
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def _made_of(lake: Lake, ref: Ref, table: str) -> dict[str, Any]:
    files = lake.manifest(ref)["files"]
    return {"edition": EDITION, "files": {n: files[n] for n in sorted(files) if n.startswith(f"{table}/")}}


def _fill(lake: Lake, ref: Ref, table: str, folder: Path) -> None:
    names, paths = lake.scan(ref, table).select("row_id", "proxy").collect(), lake.paths(ref, table)
    if names.is_empty():
        raise DataError(f"{ref} has no {table}: there is nothing to make an index of")
    owners = names["proxy"].rank("dense").cast(pl.Int16) - 1
    _save(folder / "owners.npy", owners.set(names["row_id"].is_in(suite_items(lake)), -1).to_numpy())
    _save(folder / "ids.npy", names["row_id"].to_numpy().astype("S"))
    _save(folder / "pages.npy", _all_pages(paths, ref))
    codes = _codes(paths)
    _save(folder / "centre.npy", faiss.vector_to_array(codes.center))
    _save(folder / "codes.npy", faiss.vector_to_array(codes.codes).reshape(-1, codes.code_size))
    about = {
        "made_of": _made_of(lake, ref, table),
        "proxies": sorted(names["proxy"].unique()),
        "checksums": {name: _checksum(folder / f"{name}.npy") for name in ARRAYS},
    }
    shards.write_bytes(folder / "about.json", pretty_json(about))


def suite_items(lake: Lake) -> list[str]:
    """Ids of everything that evaluates; embeddings have them beside rows."""
    found = [lake.read(ref, "suite_items", ["item_id"])["item_id"] for ref in lake.refs("ingest")]
    return pl.concat(found).to_list() if found else []


def _all_pages(paths: list[Path], ref: Ref) -> np.ndarray:
    parts = []
    for file, path in enumerate(paths):
        if (pages := pages_of(path)) is None:
            raise DataError(
                f"{ref} cannot have an index: {path.name} is compressed (an earlier Gradus wrote it); "
                "`gradus nearest ROW_ID --exact` needs none"
            )
        parts.append(np.column_stack([np.full(len(pages), file), np.zeros(len(pages), int), pages[:, 1:]]))
    table = np.concatenate(parts).astype(np.int64)
    table[1:, 1] = np.cumsum(table[:-1, 3])
    return table


def _codes(paths: list[Path]) -> Any:
    """The codes of all vectors in order; their centre is the mean of some rows of every part."""
    places = [(path, group) for path in paths for group in range(groups_of(path))]
    each = max(1, CENTRE_ROWS // len(places))
    some = places[:: max(1, len(places) // 64)]
    sample = np.concatenate(
        [group_vectors(*place)[:each].copy() for place in some]
    )  # a view would keep its group
    codes = lib.IndexRaBitQ(sample.shape[1], faiss.METRIC_INNER_PRODUCT)
    codes.train(_unit(floats(sample)))
    for place in places:
        vectors = group_vectors(*place)
        for start in range(0, len(vectors), 4096):
            codes.add(_unit(floats(vectors[start : start + 4096])))
    return codes
