"""Shards of gradient features: which rows go together, what one shard holds, on which device it is made."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
import torch

from curation.logdet import unit_rows
from curation.proxies import encode
from curation.rows import features_schema
from curation.score.gradients import VERSION, RowGradients, Sketch, row_gradients
from curation.specs import Recipe
from flows.data import embeddings, kept_rows, model_from_bytes, reader_for
from storage.artifacts import Lake, Ref, fingerprint
from storage.layout import canonical_json
from storage.shards import read_shard_file, write_shard


def proxy_name(weights: bytes, sketch: Sketch, tokens: dict) -> str:
    """The name of a proxy's features: it changes with the weights, the tokens, the sketch and the engine alone."""
    digest = hashlib.blake2b(weights, digest_size=16).hexdigest()
    spec = {"weights": digest, "sketch": repr(sketch), "tokens": tokens}
    return "scorer-" + fingerprint("proxy", VERSION, spec, [])


def sketch_to_bytes(sketch: Sketch) -> bytes:
    """The sketch as JSON, to lie beside the scorer that it was made for."""
    return canonical_json(asdict(sketch)).encode()


def sketch_from_bytes(data: bytes) -> Sketch:
    """The sketch that `sketch_to_bytes` wrote."""
    found = json.loads(data)
    kinds = found["parameters"]
    found["parameters"] = kinds if isinstance(kinds, str) else tuple(kinds)
    return Sketch(**found | {"scales": tuple((name, factor) for name, factor in found["scales"])})


def rows_to_score(lake: Lake, recipe: Recipe, pool: Ref, base: Ref, unit: int) -> pl.DataFrame:
    """The rows that a round scores: the base of this world (work = grow), or the pool (choose), by row_id."""
    if recipe.decide.work == "grow":
        return lake.read(base, "rows").filter(pl.col("world") == unit).sort("row_id")
    return kept_rows(lake, pool, unit)


def cut_shards(
    lake: Lake, pool: Ref, rows: pl.DataFrame, shard_rows: int, unit: int, proxy: str
) -> dict[str, list[str]]:
    """Shard key -> row ids: rows of one source file stay together in the file's order, synthetic rows follow.

    The key names the content (proxy, row ids, text), so a new file moves no other file's shards, and a shard that an
    earlier run made for the same proxy and rows is taken over as it is.
    """
    records = (
        lake.scan(pool, "records")
        .filter(pl.col("reason").is_null())
        .select("row_id", "file", "position")
        .collect()
        .unique("row_id", keep="first", maintain_order=True)
    )
    text = pl.concat_str("prompt", "response", "label", separator="\x1f", ignore_nulls=True).fill_null("")
    placed = rows.select("row_id", "source", text=text).join(
        records, on="row_id", how="left", maintain_order="left"
    )
    shards: dict[str, list[str]] = {}
    for part in placed.sort("source", "file", "position", "row_id", nulls_last=True).partition_by(
        "source", "file", maintain_order=True
    ):
        ids = part["row_id"].to_list()
        for start in range(0, len(ids), shard_rows):
            chunk = ids[start : start + shard_rows]
            digest = hashlib.blake2b(digest_size=16)
            for each in part["text"][start : start + shard_rows]:
                digest.update(f"{len(each)}:{each}".encode("utf-8", "surrogatepass"))
            content = {"ids": chunk, "text": digest.hexdigest()}
            shards[f"rows-{unit:02d}-{fingerprint('rows', proxy, content, [])}"] = chunk
    return shards


def device_of_worker() -> torch.device:
    """The device this process scores on: the one that its pool gave it."""
    return torch.device(os.environ.get("GRADUS_DEVICE", "cpu"))


@lru_cache(maxsize=1)
def _scorer(work: str, unit: int, root: str, recipe_json: str, pool: str, emb: str | None) -> tuple:
    recipe, lake = Recipe.model_validate_json(recipe_json), Lake(root, create=False)
    vectors = embeddings(lake, Ref.parse(emb) if emb else None)
    reader = reader_for(lake, recipe, Ref.parse(pool), unit, vectors)
    data = read_shard_file(Path(work), f"scorer-{unit:02d}", f"scorer-{unit:02d}.safetensors")
    sketch = sketch_from_bytes(read_shard_file(Path(work), f"scorer-{unit:02d}", f"scorer-{unit:02d}.json"))
    return reader, vectors, model_from_bytes(recipe, reader, data).to(device_of_worker()), sketch


def feature_shard(
    work: Path,
    key: str,
    root: str,
    recipe: Recipe,
    unit: int,
    proxy: str,
    pool: str,
    base: str,
    emb: str | None,
    ids: list[str],
) -> None:
    """Worker: features, losses and norms of one shard's rows."""
    lake = Lake(root, create=False)
    reader, vectors, model, sketch = _scorer(str(work), unit, root, recipe.model_dump_json(), pool, emb)
    source = base if recipe.decide.work == "grow" else pool
    wanted = pl.DataFrame({"row_id": ids}, schema={"row_id": pl.String})
    found = lake.scan(Ref.parse(source), "rows").join(wanted.lazy(), on="row_id", how="semi").collect()
    rows = wanted.join(found, on="row_id", how="left", maintain_order="left")
    gradients = row_gradients(model, encode(reader, rows, vectors), sketch, say=print)
    write_shard(work, key, {"features": feature_frame(ids, proxy, gradients)})


def feature_frame(ids: list[str], proxy: str, found: RowGradients) -> pl.DataFrame:
    """The `features` table of these rows; features are float16 at rest, scaled to unit length.

    A row whose gradient is zero or not finite has a zero feature: it has no direction, and can poison nothing.
    """
    feature = unit_rows(found.feature)
    feature[~np.isfinite(feature).all(1)] = 0.0
    return pl.DataFrame(
        {
            "row_id": ids,
            "proxy": [proxy] * len(ids),
            "feature": feature.astype(np.float16),
            "norm": found.norm,
            "nll": found.nll,
            "el2n": found.el2n,
            "correct": found.correct > 0.5,
            "n_tokens": found.n_tokens.astype(np.int64),
        },
        schema=features_schema(found.feature.shape[1]),
    )
