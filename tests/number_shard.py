"""Work for engines that workers of any kind can import: it succeeds, fails, or dies, as its number says."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import polars as pl

from curation.errors import DataError, TransientError
from storage.shards import write_shard


def number_shard(work: Path, key: str, number: int) -> None:
    """Work for engines: one row that holds the number, and counts how often it was tried."""
    with (work / "tried").open("a") as file:
        file.write(f"{key}\n")
    if number == -1:
        raise DataError("row 7 of shard bad")
    if number == -2 and (work / "tried").read_text().split().count(key) < 3:
        raise TransientError("no answer")
    if number == -3 and (work / "tried").read_text().split().count(key) < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    frame = pl.DataFrame(
        {
            "row_id": [key],
            "proxy": ["p"],
            "scorer": ["n_v1"],
            "value": [float(number)],
        }
    )
    write_shard(work, key, {"scores": frame})
