"""One question, timed in a process of its own: python one.py MODULE FUNCTION ROOT, what is asked as JSON on stdin.

Prints JSON: the seconds of each asking, the peak of resident memory, and the answers in one form for all.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[3])]


def peak_mb() -> float:
    """Peak resident memory of this program alone (getrusage also counts what its parent had before exec)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def plain_answer(function: str, found: Any) -> Any:
    """The answer as JSON, the same for a polars, pandas or arrow table; of long ones a digest."""
    import polars as pl

    question = function.partition("_")[0]
    if question == "export":
        return exported(*found)
    if found is None or isinstance(found, (str, bool, float, dict, list)):
        return found
    frame = found if isinstance(found, pl.DataFrame) else pl.DataFrame(found)
    if question == "explain":
        if "n" not in frame.columns:
            frame = frame.group_by("what").agg(n=pl.len())
        kinds = ("record", "ledger", "score", "region", "selection", "dataset")
        return dict(
            frame.filter(pl.col("what").is_in(kinds), pl.col("n") > 0)
            .select("what", "n")
            .sort("what")
            .iter_rows()
        )
    if question == "nearest":
        return frame.select("row_id", "cosine").rows()
    if question == "changed":
        columns = sorted({*frame.columns} - {"parents", "__index_level_0__"})
        text = (
            frame.select(columns)
            .cast(pl.String)
            .select(pl.concat_str(pl.all(), separator="\x1f", ignore_nulls=True))
        )
        digest = hashlib.blake2b("\x1e".join(text.to_series().sort()).encode(), digest_size=8).hexdigest()
        return [len(frame), columns, digest]
    if question == "find":
        return sorted(set(frame["row_id"]))
    return sorted(map(list, frame.iter_rows()))


def exported(form: str, folder: str) -> list[int]:
    """How many rows of an export read back, and a checksum of their ids and texts; of tar the number of files."""
    import duckdb

    paths = sorted(
        str(p) for p in Path(folder).rglob("*") if p.suffix in (".parquet", ".jsonl", ".csv", ".tar")
    )
    if form == "webdataset":
        return [sum(len(tarfile.open(path).getnames()) for path in paths), 0]
    read = {"jsonl": "read_json", "csv": "read_csv"}.get(form, "read_parquet")
    found = duckdb.sql(
        "select count(*), bit_xor(hash(row_id || prompt || response)) >> 1 "
        f"from {read}({paths}{', all_varchar = true, nullstr = chr(0)' if form == 'csv' else ''})"
    )
    return list(found.fetchall()[0])


def main() -> None:
    module, function, root = sys.argv[1:4]
    work = getattr(importlib.import_module(f"inspecting.{module}"), function)
    seconds, results = [], []
    for asked in json.loads(sys.stdin.read()):
        if asked is None:
            results.clear()  # the same question again: only the last answer is kept, and memory is that of one
        begun = time.perf_counter()
        results.append(work(root, asked))
        seconds.append(time.perf_counter() - begun)
    peak = peak_mb()
    answers = [plain_answer(function, result) for result in results]
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "answers": answers}))


if __name__ == "__main__":
    main()
