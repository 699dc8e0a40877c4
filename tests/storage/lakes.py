"""Small tables for lake tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from curation.rows import LEDGER, RECORDS, ROWS, SCORES, features_schema


def frame(schema: pl.Schema, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """A frame of this schema; columns that a row leaves out are null."""
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def rows(n: int, start: int = 0, source: str = "tickets") -> pl.DataFrame:
    return frame(
        ROWS,
        [
            {
                "row_id": f"{source}-{i:05d}",
                "source": source,
                "split": "train",
                "prompt": f'question {i} it\'s "quoted" ünï\n',
                "response": f"answer {i % 7}",
                "label": None if i % 5 == 0 else f"l{i % 3}",
                "origin": "real",
                "parents": [] if i % 2 else [f"{source}-{i - 1:05d}"],
                "n_chars": 20 + i,
                "meta": "{}",
            }
            for i in range(start, start + n)
        ],
    )


def features(n: int, d: int = 8, start: int = 0) -> pl.DataFrame:
    values = np.random.Generator(np.random.Philox(start)).standard_normal((n, d)).astype(np.float16)
    return pl.DataFrame(
        {
            "row_id": [f"tickets-{i:05d}" for i in range(start, start + n)],
            "proxy": ["p"] * n,
            "feature": pl.Series(values, dtype=pl.Array(pl.Float16, d)),
            "norm": np.ones(n),
            "nll": np.ones(n),
            "el2n": [None] * n,
            "correct": [None] * n,
            "n_tokens": [4] * n,
        },
        schema=features_schema(d),
    )


def scores(n: int) -> pl.DataFrame:
    return frame(
        SCORES,
        [{"row_id": f"tickets-{i:05d}", "proxy": "p", "scorer": "nll_v1", "value": i / 7} for i in range(n)],
    )


def ingested() -> dict[str, pl.DataFrame]:
    """Ten records of `tickets` (1 unparsable, 2 copies, 3 rows dropped), two of `clean` (none dropped)."""
    records = [
        {"source": "tickets", "file": "a.jsonl", "position": i, "row_id": f"tickets-{i:05d}", "reason": None}
        for i in range(7)
    ]
    records += [
        {"source": "tickets", "file": "a.jsonl", "position": 7, "reason": "unparsable"},
        {
            "source": "tickets",
            "file": "b.jsonl",
            "position": 0,
            "row_id": "tickets-00000",
            "reason": "exact_copy",
        },
        {
            "source": "tickets",
            "file": "b.jsonl",
            "position": 1,
            "row_id": "tickets-00001",
            "reason": "exact_copy",
        },
        {"source": "clean", "file": "c.csv", "position": 0, "row_id": "clean-00000"},
        {"source": "clean", "file": "c.csv", "position": 1, "row_id": "clean-00001"},
    ]
    drop = {"stage": "ingest", "decision": "drop", "round": 0}
    ledger = [
        {
            **drop,
            "row_id": "tickets-00004",
            "reason": "near_copy",
            "value": 0.9,
            "threshold": 0.8,
            "twin": "tickets-00003",
        },
        {
            **drop,
            "row_id": "tickets-00005",
            "reason": "near_copy",
            "value": 0.95,
            "threshold": 0.8,
            "twin": "tickets-00003",
        },
        {**drop, "row_id": "tickets-00006", "reason": "contaminated", "twin": "suite new-topics"},
        {**drop, "row_id": "tickets-00006", "reason": "too_long", "value": 9.0, "threshold": 8.0},
        {**drop, "row_id": "tickets-00001", "decision": "flag", "reason": "odd"},
        {**drop, "row_id": "tickets-00002", "stage": "synthesize", "reason": "elsewhere"},
    ]
    return {
        "records": frame(RECORDS, records),
        "rows": pl.concat([rows(4), rows(2, source="clean")]),
        "ledger": frame(LEDGER, ledger),
    }
