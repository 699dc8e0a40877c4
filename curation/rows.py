"""The data contracts: one polars schema a table, checked at every publish."""

from __future__ import annotations

import hashlib

import polars as pl

from curation.errors import DataError

RECORDS = pl.Schema(
    {"source": pl.String, "file": pl.String, "position": pl.Int64, "row_id": pl.String, "reason": pl.String}
)
ROWS = pl.Schema(
    {
        "row_id": pl.String,
        "world": pl.Int32,
        "source": pl.String,
        "split": pl.String,
        "prompt": pl.String,
        "response": pl.String,
        "label": pl.String,
        "origin": pl.String,
        "parents": pl.List(pl.String),
        "licence": pl.String,
        "n_chars": pl.Int64,
        "meta": pl.String,
    }
)
LEDGER = pl.Schema(
    {
        "row_id": pl.String,
        "stage": pl.String,
        "round": pl.Int32,
        "decision": pl.String,
        "reason": pl.String,
        "value": pl.Float64,
        "threshold": pl.Float64,
        "twin": pl.String,
    }
)
SUITE_ITEMS = pl.Schema(
    {
        "suite": pl.String,
        "suite_hash": pl.String,
        "distribution": pl.String,
        "use": pl.String,
        "world": pl.Int32,
        "round": pl.Int32,
        "item_id": pl.String,
        "cluster": pl.String,
        "prompt": pl.String,
        "response": pl.String,
        "label": pl.String,
    }
)
SCORES = pl.Schema({"row_id": pl.String, "proxy": pl.String, "scorer": pl.String, "value": pl.Float64})
# A line a row and scale (coarse, fine). Region −1 without a distance: the row's feature is zero or not finite. Regions
# keep their numbers from round to round, so numbers have gaps.
REGIONS = pl.Schema(
    {
        "row_id": pl.String,
        "proxy": pl.String,
        "scale": pl.String,
        "region": pl.Int32,
        "distance": pl.Float64,
    }
)
REGION_TABLE = pl.Schema(
    {
        "proxy": pl.String,
        "scale": pl.String,
        "region": pl.Int32,
        "carried": pl.Float64,
        "size": pl.Int64,
        "share": pl.Float64,
        "density": pl.Float64,
        "knn_density": pl.Float64,
        "steer_error": pl.Float64,
        "mean_nll": pl.Float64,
        "thin": pl.Boolean,
        "terms": pl.String,
        "exemplars": pl.List(pl.String),
        "x": pl.Float64,
        "y": pl.Float64,
    }
)
SELECTIONS = pl.Schema(
    {
        "row_id": pl.String,
        "round": pl.Int32,
        "phase": pl.String,
        "arm": pl.String,
        "replicate": pl.Int32,
        "rank": pl.Int32,
    }
)
MODELS = pl.Schema(
    {
        "model": pl.String,
        "kind": pl.String,
        "round": pl.Int32,
        "phase": pl.String,
        "arm": pl.String,
        "replicate": pl.Int32,
        "base": pl.String,
        "rows": pl.Int64,
        "steps": pl.Int64,
        "tokens": pl.Int64,
        "seed": pl.Int64,
        "train_nll": pl.Float64,
    }
)
OUTCOMES = pl.Schema(
    {
        "model": pl.String,
        "suite": pl.String,
        "item_id": pl.String,
        "correct": pl.Boolean,
        "p_correct": pl.Float64,
        "nll": pl.Float64,
    }
)
COMPARISONS = pl.Schema(
    {
        "round": pl.Int32,
        "phase": pl.String,
        "arm": pl.String,
        "control": pl.String,
        "suite": pl.String,
        "metric": pl.String,
        "difference": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "p": pl.Float64,
        "n": pl.Int32,
        "detectable": pl.Float64,
    }
)
DECISIONS = pl.Schema(
    {
        "dataset": pl.String,
        "round": pl.Int32,
        "decision": pl.String,
        "reason": pl.String,
        "strategy": pl.String,
        "alpha": pl.Float64,
        "p": pl.Float64,
        "stop_reason": pl.String,
        "evidence": pl.String,
    }
)
DIVERSITY = pl.Schema(
    {
        "round": pl.Int32,
        "world": pl.Int32,
        "proxy": pl.String,
        "role": pl.String,
        "subset": pl.String,
        "metric": pl.String,
        "value": pl.Float64,
        "n": pl.Int64,
    }
)


def features_schema(d: int) -> pl.Schema:
    """Schema of `features` and `embeddings`: one unit-free vector of `d` float16 a row, with its side scores."""
    return pl.Schema(
        {
            "row_id": pl.String,
            "proxy": pl.String,
            "feature": pl.Array(pl.Float16, d),
            "norm": pl.Float64,
            "nll": pl.Float64,
            "el2n": pl.Float64,
            "correct": pl.Boolean,
            "n_tokens": pl.Int64,
        }
    )


TABLES: dict[str, pl.Schema] = {
    "records": RECORDS,
    "rows": ROWS,
    "ledger": LEDGER,
    "suite_items": SUITE_ITEMS,
    "scores": SCORES,
    "regions": REGIONS,
    "region_table": REGION_TABLE,
    "selections": SELECTIONS,
    "models": MODELS,
    "outcomes": OUTCOMES,
    "comparisons": COMPARISONS,
    "decisions": DECISIONS,
    "diversity": DIVERSITY,
}


def check(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame itself when it has exactly the columns and types of its table; `DataError` otherwise.

    `features` and `embeddings` may have any dimension; empty frames are legal.
    """
    if table in ("features", "embeddings"):
        expected = features_schema(frame.schema["feature"].size if "feature" in frame.columns else 0)  # type: ignore[union-attr]
    else:
        expected = TABLES[table]
    if frame.schema != expected:
        got, want = dict(frame.schema), dict(expected)
        wrong = {k: (got.get(k), want.get(k)) for k in {*got, *want} if got.get(k) != want.get(k)}
        raise DataError(
            f"table {table!r} does not fit its contract; column: (got, expected) = {wrong or 'order of columns'}"
        )
    return frame


def row_id(source: str, prompt: str, response: str, label: str | None) -> str:
    """The row's name for ever: 128 bits in hex of its source and its raw mapped fields, label included."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (source, prompt, response, label):
        raw = b"" if part is None else part.encode("utf-8", "surrogatepass")
        digest.update(b"\x00" if part is None else b"\x01")
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.hexdigest()


def text_of(prompt: str, response: str) -> str:
    """The row as one text, for length and near-duplicate measures."""
    return f"{prompt}\n{response}" if prompt and response else prompt or response
