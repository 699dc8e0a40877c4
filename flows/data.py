"""What stages read from the lake: rows, suite items by use, embeddings, models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import torch

from curation.encoded import Encoded
from curation.proxies import Reader, build_model, encode, frozen_copy, make_reader, notes_of
from curation.specs import Proxy, Recipe
from flows.pretrained import pretrained_of
from storage.artifacts import Lake, Ref
from storage.models import bytes_to_tensors


@dataclass(frozen=True)
class SteerItems:
    """Suite items that plans and selection may look at; nothing else can be made into one."""

    frame: pl.DataFrame

    def __post_init__(self) -> None:
        if not self.frame["use"].is_in(["steer"]).all():
            raise ValueError("only steer items may steer")


def units(recipe: Recipe) -> list[int]:
    """The worlds of the embedded corpus; [0] for a real one."""
    return list(range(recipe.worlds)) if recipe.worlds else [0]


def kept_rows(lake: Lake, ingest: Ref, world: int | None = None) -> pl.DataFrame:
    """The pool: rows without a drop line, of one world when given, by row_id."""
    drops = lake.read(ingest, "ledger", ["row_id", "decision"]).filter(pl.col("decision") == "drop")
    rows = lake.scan(ingest, "rows")
    if world is not None:
        rows = rows.filter(pl.col("world") == world)
    return rows.collect().join(drops, on="row_id", how="anti").sort("row_id")


def items_of(lake: Lake, ingest: Ref, use: str, round: int, world: int | None = None) -> pl.DataFrame:
    """Suite items of one use that are valid in this round (round 0: in every round)."""
    items = lake.read(ingest, "suite_items").filter(pl.col("use") == use, pl.col("round").is_in([0, round]))
    if world is not None:
        items = items.filter(pl.col("world") == world)
    return items.sort("suite", "item_id")


def steer_items(lake: Lake, ingest: Ref, round: int, world: int | None = None) -> SteerItems:
    """What plans and selection may see of the suites."""
    return SteerItems(items_of(lake, ingest, "steer", round, world))


@lru_cache(maxsize=4)
def _vectors(root: str, ref: str) -> dict[str, np.ndarray]:
    frame = Lake(root, create=False).read(Ref.parse(ref), "embeddings", ["row_id", "feature"])
    return dict(zip(frame["row_id"].to_list(), feature_matrix(frame), strict=True))


def embeddings(lake: Lake, ref: Ref | None) -> dict[str, np.ndarray] | None:
    """row_id or item_id -> unit embedding; None when the proxy has no encoder."""
    return None if ref is None else _vectors(lake.address, str(ref))


def feature_matrix(frame: pl.DataFrame) -> np.ndarray:
    """The `feature` column as (n, d) float32."""
    d = frame.schema["feature"].size  # type: ignore[union-attr]
    flat = frame["feature"].explode().to_numpy() if len(frame) else np.zeros(0)
    return flat.astype(np.float32).reshape(-1, d)


def reader_for(
    lake: Lake, recipe: Recipe, ingest: Ref, world: int, vectors: dict[str, np.ndarray] | None
) -> Reader:
    """How this pool's rows become tensors: one reader for all rounds and arms, made once a process."""
    width = len(next(iter(vectors.values()))) if vectors else 0
    return _reader(lake.address, recipe.proxy.model_dump_json(), str(ingest), world, width)


@lru_cache(maxsize=32)
def _reader(root: str, proxy: str, ingest: str, world: int, width: int) -> Reader:
    spec = Proxy.model_validate_json(proxy)
    pool = kept_rows(Lake(root, create=False), Ref.parse(ingest), world)
    return make_reader(spec, pool, width, pretrained_of(spec))


def load_model(lake: Lake, recipe: Recipe, reader: Reader, ref: Ref, file: str) -> torch.nn.Module:
    """A trained model from an artifact, frozen."""
    return model_from_bytes(recipe, reader, lake.read_file(ref, file))


def model_from_bytes(recipe: Recipe, reader: Reader, data: bytes) -> torch.nn.Module:
    """A trained model from the bytes of its weights (all, or what `weights_of` gives), frozen."""
    return frozen_copy(build_model(recipe.proxy, reader, 0), bytes_to_tensors(data))


def encode_items(reader: Reader, items: pl.DataFrame, vectors: dict[str, np.ndarray] | None) -> Encoded:
    """Suite items as tensors."""
    return encode(reader, items, vectors, key="item_id")


NOTES = {
    "prompt_cut": "prompt_cut",
    "response_cut": "response_cut",
    "refused": "too_long",
    "empty": "no_response",
}


def encoding_notes(reader: Reader, frame: pl.DataFrame) -> pl.DataFrame:
    """What encoding does to rows (row_id, reason, value): cut, refused, nothing to predict; `value`: their tokens."""
    notes = notes_of(reader, frame)
    ids = frame.select("row_id", value=pl.Series(notes.full_tokens).cast(pl.Float64))
    parts = [
        ids.filter(pl.Series(getattr(notes, flag))).select("row_id", pl.lit(reason).alias("reason"), "value")
        for flag, reason in NOTES.items()
    ]
    return pl.concat(parts)
