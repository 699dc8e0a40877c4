"""Features at rest: formats beside each other, and which of DuckDB, polars and faiss reads each without help.

`python tests/benchmarks/feature_store.py [--quick]`; the last line is JSON. 100,000 x 1024 float16 unit rows (quick:
20,000) with ids, clusters of Zipf sizes with a decaying spectrum; one thread, files in the page cache, CPU seconds,
the median of rounds in which the formats take turns. `write` is from numpy arrays to a closed file, `read` from the
file to a (n, d) numpy array by polars, `arrow` by pyarrow, `rows` the features of 500 random rows by their number,
`cosine` the largest cosine of one row with all, in DuckDB. MB are of the float16 values, so `size` 1.00 means that
nothing was saved. faiss takes numpy arrays of float32 alone, and makes them of any of these block by block.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")} | {"POLARS_MAX_THREADS": "1"}
if __name__ == "__main__" and any(os.environ.get(k) != v for k, v in THREADS.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | THREADS)

import duckdb  # noqa: E402
import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.feather as feather  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2]))
from curation.logdet import unit_rows  # noqa: E402
from curation.randomness import generator  # noqa: E402
from storage.shards import read_parquet, write_parquet  # noqa: E402

D, SOME = 1024, 500
GROUP = 65_536


@dataclass(frozen=True)
class Format:
    """A way to keep ids and features: `write(path, ids, x)`, `read(path)` -> x, `rows(path, at)` -> x[at]."""

    name: str
    write: Callable[[Path, list[str], np.ndarray], None]
    read: Callable[[Path], np.ndarray]
    rows: Callable[[Path, np.ndarray], np.ndarray]
    sql: str | None = "read_parquet('{path}')"
    polars: bool = True


def features(n: int) -> np.ndarray:
    """(n, D) float16 unit rows."""
    scale = np.arange(1, D + 1, dtype=np.float32) ** -0.5
    rng = generator(7, "feature store", n)
    turn = np.linalg.qr(rng.standard_normal((D, D), dtype=np.float32))[0]
    centres = rng.standard_normal((500, D), dtype=np.float32) * scale
    share = 1 / np.arange(1, 501)
    out = np.empty((n, D), np.float16)
    for start in range(0, n, 8192):
        part = out[start : start + 8192]
        own = rng.standard_normal(part.shape, dtype=np.float32) * (0.5 * scale)
        part[:] = unit_rows((centres[rng.choice(500, len(part), p=share / share.sum())] + own) @ turn)
    return out


def frame_of(ids: list[str], x: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(
        {"row_id": ids, "feature": x},
        schema={"row_id": pl.String, "feature": pl.Array(pl.Float16, x.shape[1])},
    )


def table_of(ids: list[str], x: np.ndarray, required: bool = False) -> pa.Table:
    values = pa.array(x.reshape(-1))
    item = pa.field("item", pa.float16(), nullable=not required)
    kind = pa.list_(item, x.shape[1])
    schema = pa.schema([("row_id", pa.string()), pa.field("feature", kind, nullable=not required)])
    return pa.table([pa.array(ids), pa.FixedSizeListArray.from_arrays(values, type=kind)], schema=schema)


def parquet(name: str, required: bool = False, **settings: object) -> Format:
    """Parquet of a fixed-size list of float16, read by polars."""

    def write(path: Path, ids: list[str], x: np.ndarray) -> None:
        more = {"version": "2.6", "row_group_size": GROUP, "use_dictionary": ["row_id"]} | settings
        pq.write_table(table_of(ids, x, required), path, write_statistics=["row_id"], **more)

    return Format(name, write, polars_read, polars_rows)


def polars_read(path: Path) -> np.ndarray:
    return read_parquet([path], ["feature"])["feature"].to_numpy()


def polars_rows(path: Path, at: np.ndarray) -> np.ndarray:
    wanted = pl.DataFrame({"at": at.astype(np.uint32)}).lazy()
    rows = pl.scan_parquet(path).with_row_index("at").select("at", "feature")
    return wanted.join(rows, on="at", maintain_order="left").collect()["feature"].to_numpy()


def arrow_read(path: Path) -> np.ndarray:
    column = pq.read_table(path, columns=["feature"], use_threads=False)["feature"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=True).reshape(-1, D)


def write_bytes(path: Path, ids: list[str], x: np.ndarray) -> None:
    wide = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * D), len(x), [None, pa.py_buffer(x)])
    pq.write_table(
        pa.table([pa.array(ids), wide], ["row_id", "feature"]),
        path,
        compression="none",
        row_group_size=GROUP,
        use_dictionary=["row_id"],
        write_statistics=["row_id"],
    )


def read_bytes(path: Path) -> np.ndarray:
    column = pq.read_table(path, columns=["feature"])["feature"].combine_chunks()
    return np.frombuffer(column.buffers()[1], np.float16).reshape(-1, D)


def write_arrow(path: Path, ids: list[str], x: np.ndarray) -> None:
    feather.write_feather(table_of(ids, x), str(path), compression="uncompressed", chunksize=len(x))


def read_arrow(path: Path) -> np.ndarray:
    with pa.memory_map(str(path)) as source:
        column = pa.ipc.open_file(source).read_all()["feature"].chunk(0)
    return column.flatten().to_numpy(zero_copy_only=True).reshape(-1, D)


def write_npy(path: Path, ids: list[str], x: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), x)
    pq.write_table(pa.table({"row_id": ids}), path)


def read_npy(path: Path) -> np.ndarray:
    return np.load(path.with_suffix(".npy"), mmap_mode="r")


FORMATS = (
    Format(
        "as write_parquet stores",
        lambda p, ids, x: write_parquet(p, frame_of(ids, x)),
        polars_read,
        polars_rows,
    ),
    parquet("parquet zstd 3", compression="zstd", compression_level=3),
    parquet("parquet zstd 1", compression="zstd", compression_level=1),
    parquet("parquet lz4", compression="lz4"),
    parquet("parquet none", compression="none"),
    parquet("parquet none, groups of 8,192", compression="none", row_group_size=8192),
    parquet("parquet none, required", True, compression="none"),
    parquet(
        "parquet byte-stream-split zstd 1",
        compression="zstd",
        compression_level=1,
        use_byte_stream_split=["feature.list.element"],
    ),
    parquet(
        "parquet byte-stream-split none", compression="none", use_byte_stream_split=["feature.list.element"]
    ),
    Format("parquet 2048 bytes a row", write_bytes, read_bytes, lambda p, at: read_bytes(p)[at]),
    Format("arrow ipc, mapped", write_arrow, read_arrow, lambda p, at: read_arrow(p)[at], None),
    Format("npy, mapped", write_npy, read_npy, lambda p, at: read_npy(p)[at], None, polars=False),
)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def one_round(
    form: Format, path: Path, ids: list[str], x: np.ndarray, at: np.ndarray
) -> dict[str, float | None]:
    """One format written, read whole, read in part, and searched in DuckDB."""
    for old in (path, path.with_suffix(".npy")):
        old.unlink(missing_ok=True)
    taken: dict[str, float | None] = {"write": seconds(lambda: form.write(path, ids, x))}
    files = [p for p in (path, path.with_suffix(".npy")) if p.exists()]
    taken["bytes"] = sum(p.stat().st_size for p in files)
    # A mapped file costs nothing until it is touched: every value is touched, for every format.
    taken["read"] = seconds(lambda: form.read(path).view(np.uint16).max())
    taken["arrow"] = (
        seconds(lambda: arrow_read(path).view(np.uint16).max()) if form.read is polars_read else None
    )
    taken["rows"] = seconds(lambda: form.rows(path, at).sum())
    if not np.array_equal(form.read(path), x) or not np.array_equal(form.rows(path, at), x[at]):
        raise SystemExit(f"{form.name} did not give back what was written")
    taken["cosine"] = None
    if form.sql:
        query = (
            f"select max(array_cosine_similarity(feature::FLOAT[{D}], $1::FLOAT[{D}])) from "
            + form.sql.format(path=path)
        )
        with duckdb.connect(config={"threads": 1}) as base:
            try:
                taken["cosine"] = seconds(
                    lambda: base.execute(query, [x[0].astype(np.float32).tolist()]).fetchall()
                )
            except duckdb.Error:
                taken["cosine"] = None
    return taken


def readers(form: Format, path: Path) -> dict[str, str]:
    """The type that DuckDB and polars see; `no` when they cannot open the file."""
    with duckdb.connect() as base:
        try:
            source = form.sql.format(path=path) if form.sql else f"'{path}'"
            kind = str(base.execute(f"select typeof(feature) from {source} limit 1").fetchall()[0][0])
        except duckdb.Error:
            kind = "no"
    if form.polars:
        scan = pl.scan_ipc if form.sql is None else pl.scan_parquet
        seen = str(scan(path).collect_schema()["feature"])
    else:
        seen = "no"
    return {"duckdb": kind, "polars": seen.replace("shape=", "")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20,000 rows, 3 rounds")
    args = parser.parse_args()
    n, rounds = (20_000, 3) if args.quick else (100_000, 5)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    x = features(n)
    ids = [f"{i * 2654435761 % 2**32:032x}" for i in range(n)]
    at = np.sort(generator(7, "some rows").choice(n, SOME, replace=False))
    mb, found, table = x.nbytes / 1e6, {f.name: [] for f in FORMATS}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.bin"
        for _ in range(rounds):
            for form in FORMATS:
                found[form.name].append(one_round(form, path, ids, x, at))
        print(f"{n:,} x {D} float16, {mb:.0f} MB; MB/s of one core, seconds for rows and cosine")
        print(
            f"{'format':<34}{'size':>6}{'write':>8}{'read':>8}{'arrow':>8}{'rows':>8}{'cosine':>8}   DuckDB and polars see"
        )
        for form in FORMATS:
            one_round(form, path, ids, x, at)
            table[form.name] = summary(found[form.name], mb) | readers(form, path)
            print(line(form.name, table[form.name]))
    print(json.dumps({"rows": n, "dimensions": D, "formats": table}))


def summary(taken: list[dict], mb: float) -> dict[str, float | None]:
    """Medians of the rounds, as rates where a rate says more."""
    middle = {
        k: None if taken[0][k] is None else statistics.median(t[k] for t in taken)
        for k in ("write", "read", "arrow", "rows", "cosine", "bytes")
    }
    return {
        "size": round(middle["bytes"] / mb / 1e6, 3),
        "write_mb_s": round(mb / middle["write"]),
        "read_mb_s": round(mb / middle["read"]),
        "arrow_mb_s": None if middle["arrow"] is None else round(mb / middle["arrow"]),
        "rows_s": round(middle["rows"], 4),
        "cosine_s": None if middle["cosine"] is None else round(middle["cosine"], 3),
    }


def line(name: str, f: dict) -> str:
    arrow = "–" if f["arrow_mb_s"] is None else f["arrow_mb_s"]
    cosine = "–" if f["cosine_s"] is None else f"{f['cosine_s']:.2f}"
    return (
        f"{name:<34}{f['size']:>6.3f}{f['write_mb_s']:>8}{f['read_mb_s']:>8}{arrow:>8}{f['rows_s']:>8.3f}{cosine:>8}"
        f"   {f['duckdb']}, {f['polars']}"
    )


if __name__ == "__main__":
    main()
