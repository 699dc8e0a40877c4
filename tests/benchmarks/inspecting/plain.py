"""The same questions over plain pyarrow and pandas: what a careful person types who has Parquet files and no Gradus.

Functions of pyarrow bear the question's name; those of pandas end in `_pandas`, where pandas is not pyarrow underneath.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

NAME = "bench"


def files(root: str, table: str) -> list[str]:
    """Parquet files of a table, in all artifacts."""
    return [str(path) for path in sorted(Path(root).glob(f"artifacts/*/*/{table}/*.parquet"))]


def version(root: str, number: int) -> str:
    return str(Path(root) / "datasets" / f"{NAME}@v{number}" / "rows" / "all.parquet")


def counts(root: str, asked: None) -> pl.DataFrame:
    found: Counter[str] = Counter()
    for batch in ds.dataset(files(root, "ledger")).to_batches(columns=["reason"]):
        for entry in pc.value_counts(batch["reason"]).to_pylist():
            found[entry["values"]] += entry["counts"]
    return pl.DataFrame({"reason": list(found), "n": list(found.values())})


def counts_pandas(root: str, asked: None) -> pd.DataFrame:
    found = pd.concat([pd.read_parquet(path, columns=["reason"]) for path in files(root, "ledger")])
    return found.value_counts("reason").rename("n").reset_index()


def explain(root: str, asked: str) -> pl.DataFrame:
    """All lines of a row in every table; each once."""
    found = {}
    for what, table in (
        ("record", "records"),
        ("row", "rows"),
        ("ledger", "ledger"),
        ("score", "scores"),
        ("region", "regions"),
        ("selection", "selections"),
    ):
        lines = ds.dataset(files(root, table)).to_table(filter=pc.field("row_id") == asked)
        found[what] = pl.DataFrame(lines).unique()
    versions = [
        number
        for number in (1, 2, 3)
        if ds.dataset(version(root, number)).count_rows(filter=pc.field("row_id") == asked)
    ]
    found["dataset"] = pl.DataFrame({"version": versions})
    return pl.DataFrame({"what": list(found), "n": [len(lines) for lines in found.values()]})


def changed(root: str, asked: None) -> pa.Table:
    old, new = pq.read_table(version(root, 1)), pq.read_table(version(root, 2))
    added = new.filter(pc.invert(pc.is_in(new["row_id"], value_set=old["row_id"].combine_chunks())))
    removed = old.filter(pc.invert(pc.is_in(old["row_id"], value_set=new["row_id"].combine_chunks())))
    sides = [
        part.append_column("change", pa.array([change] * len(part)))
        for change, part in (("added", added), ("removed", removed))
    ]
    return pa.concat_tables(sides)


def changed_pandas(root: str, asked: None) -> pd.DataFrame:
    old, new = pd.read_parquet(version(root, 1)), pd.read_parquet(version(root, 2))
    added = new[~new["row_id"].isin(old["row_id"])].assign(change="added")
    removed = old[~old["row_id"].isin(new["row_id"])].assign(change="removed")
    return pd.concat([added, removed])


def nearest(root: str, asked: str) -> pl.DataFrame:
    """Cosines of all features with the row's, a batch at a time."""
    source = ds.dataset(files(root, "features"))
    own = source.to_table(columns=["feature"], filter=pc.field("row_id") == asked)
    wanted = _matrix(own["feature"].combine_chunks())[0]
    wanted /= np.linalg.norm(wanted)
    best: list[tuple[float, str]] = []
    for batch in source.to_batches(columns=["row_id", "feature"], batch_size=16_384):
        x = _matrix(batch["feature"])
        cosine = x @ wanted / np.linalg.norm(x, axis=1)
        top = np.argsort(-cosine)[:11]
        best += [(float(cosine[i]), batch["row_id"][int(i)].as_py()) for i in top]
    best = [pair for pair in sorted(best, reverse=True) if pair[1] != asked][:10]
    return pl.DataFrame({"row_id": [row_id for _, row_id in best], "cosine": [cosine for cosine, _ in best]})


def _matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    return column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)


def find(root: str, asked: str) -> pa.Table:
    """Rows that have every word in prompt or response, whatever the case."""
    paths = [*files(root, "rows"), *(version(root, number) for number in (1, 2, 3))]
    found = []
    for batch in ds.dataset(paths).to_batches(columns=["row_id", "prompt", "response"]):
        keep = None
        for word in asked.split():
            here = pc.or_(
                pc.match_substring(batch["prompt"], word, ignore_case=True),
                pc.match_substring(batch["response"], word, ignore_case=True),
            )
            keep = here if keep is None else pc.and_(keep, here)
        found.append(batch.filter(keep).select(["row_id"]))
    return pa.Table.from_batches(found)


def find_pandas(root: str, asked: str) -> pd.DataFrame:
    paths = [*files(root, "rows"), *(version(root, number) for number in (1, 2, 3))]
    found = []
    for path in paths:
        frame = pd.read_parquet(path, columns=["row_id", "prompt", "response"])
        for word in asked.split():
            has = [frame[c].str.contains(word, case=False, regex=False) for c in ("prompt", "response")]
            frame = frame[has[0] | has[1]]
        found.append(frame[["row_id"]])
    return pd.concat(found)


def export_parquet(root: str, asked: list[str]) -> list[str]:
    source = pq.ParquetFile(version(root, 3))
    with pq.ParquetWriter(
        Path(asked[1]) / "plain.parquet", source.schema_arrow, compression="zstd"
    ) as target:
        for batch in source.iter_batches():
            target.write_batch(batch)
    return asked


def export_jsonl_pandas(root: str, asked: list[str]) -> list[str]:
    with (Path(asked[1]) / "plain.jsonl").open("w") as target:
        for batch in pq.ParquetFile(version(root, 3)).iter_batches():
            batch.to_pandas().to_json(target, orient="records", lines=True)
    return asked


def export_csv_pandas(root: str, asked: list[str]) -> list[str]:
    with (Path(asked[1]) / "plain.csv").open("w") as target:
        for i, batch in enumerate(pq.ParquetFile(version(root, 3)).iter_batches()):
            batch.to_pandas().to_csv(target, index=False, header=i == 0)
    return asked


def truth(root: str, asked: list[str]) -> list[list[str]]:
    """The ten nearest of each of these rows, exactly, all in one pass."""
    source = ds.dataset(files(root, "features"))
    own = source.to_table(columns=["row_id", "feature"], filter=pc.field("row_id").isin(asked))
    place = {row_id: i for i, row_id in enumerate(own["row_id"].to_pylist())}
    wanted = _matrix(own["feature"].combine_chunks())[[place[row_id] for row_id in asked]]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    best: list[list[tuple[float, str]]] = [[] for _ in asked]
    for batch in source.to_batches(columns=["row_id", "feature"], batch_size=16_384):
        x = _matrix(batch["feature"])
        cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ wanted.T
        for i, cosine in enumerate(cosines.T):
            found = [(float(cosine[j]), batch["row_id"][int(j)].as_py()) for j in np.argsort(-cosine)[:11]]
            best[i] = sorted(best[i] + found, reverse=True)[:11]
    return [
        [row_id for _, row_id in found if row_id != own_id][:10]
        for own_id, found in zip(asked, best, strict=True)
    ]
