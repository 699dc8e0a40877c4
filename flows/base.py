"""Stages base and embed: what a careful person without Gradus would train on, and the texts' embeddings."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl

from curation.errors import UserError
from curation.rows import features_schema
from curation.select.compose import choose_rows, strata_of
from curation.specs import Recipe
from curation.strategies import Facts
from flows.data import kept_rows, units
from flows.pretrained import tokens_of, tokens_spec
from flows.run import NotCached, Run
from storage.artifacts import Draft, Lake, Ref
from storage.shards import write_shard
from storage.sources import file_hash

VERSION = "base_v2"
EMBED_VERSION = "embed_v1"
EMBED_SHARD_ROWS = 1024


def base(run: Run, pool: Ref) -> Ref:
    """The first base: the clean pool, cut to the budget by stratified random; published as dataset NAME@v1.

    Reads: rows, ledger. Writes: base rows of every world; a dataset version. Costs: seconds.
    Safe to rerun because the same base is found again by its content. When the name has versions already, a base
    of other content stays a candidate: an unproven set never becomes the newest version, and the run has none.
    """
    recipe = run.recipe
    for world in units(recipe):
        refuse_budget(recipe, kept_rows(run.lake, pool, world))
    spec = {
        "budget": budget_spec(recipe),
        "seed": recipe.seed,
        "worlds": recipe.worlds,
        **tokens_spec(recipe),
    }

    def compute(draft: Draft) -> None:
        parts = [cut_to_budget(recipe, kept_rows(run.lake, pool, w), w) for w in units(recipe)]
        draft.write_shard("all", {"rows": pl.concat(parts)})

    ref = run.stage("base", VERSION, spec, [pool], compute)
    versions = run.lake.dataset_versions(recipe.name)
    rows = published_rows(run, ref)
    if versions and content_of(rows) not in [v["content_fp"] for v in versions]:
        keep_candidate(run, rows, "base", None, str(pool))
        run.facts["version"] = None
    else:
        run.facts["version"] = publish(run, rows, "base", None, "base", str(pool))
    return ref


def refuse_budget(recipe: Recipe, kept: pl.DataFrame) -> None:
    """Raises when the budget is beyond the clean pool, or leaves nothing to choose from it."""
    tokens = int(tokens_of(recipe, kept).sum())
    spare = 0 if recipe.decide.work == "grow" else 1  # growing may start from the whole pool
    for name, asked, have in (
        ("rows", recipe.budget.rows, len(kept)),
        ("tokens", recipe.budget.tokens, tokens),
    ):
        if asked is not None and asked > have - spare:
            raise UserError(
                f"[budget] {name} = {asked} is too much for the pool, which has {have} {name} after cleaning; "
                f"lower it (half of the pool: {have // 2})"
            )


def published_rows(run: Run, ref: Ref) -> pl.DataFrame:
    """The rows that are published of a base: of the embedded corpus world 0's, declared beforehand."""
    return run.lake.read(ref, "rows").filter(pl.col("world") == 0)


def content_of(rows: pl.DataFrame) -> str:
    """A name for the rows' content; row ids are hashes of it."""
    digest = hashlib.blake2b("\n".join(sorted(rows["row_id"])).encode(), digest_size=16)
    return digest.hexdigest()


def budget_spec(recipe: Recipe) -> dict:
    """The part of the budget that shapes sets of rows."""
    return {"rows": recipe.budget.rows, "tokens": recipe.budget.tokens}


def budget_rows(recipe: Recipe, tokens: np.ndarray, share: float = 1.0) -> int:
    """Rows of a set: the recipe's rows, or as many average rows as its tokens buy; a share of it in a subsample."""
    n = len(tokens)
    if recipe.budget.rows is not None:
        n = round(recipe.budget.rows * share)
    if recipe.budget.tokens is not None:
        n = min(n, int(recipe.budget.tokens * share / tokens.mean()))
    return max(1, min(n, len(tokens)))


def cut_to_budget(recipe: Recipe, rows: pl.DataFrame, *purpose: object, share: float = 1.0) -> pl.DataFrame:
    """A stratified random draw of the budget from the rows; all of them when the budget is larger."""
    tokens = tokens_of(recipe, rows)
    n = budget_rows(recipe, tokens, share)
    if n >= len(rows):
        return rows
    strata = strata_of(rows["label"].to_list())
    facts = Facts(np.zeros(len(rows), dtype=bool), np.zeros((len(rows), 1), dtype=np.float32))
    at = choose_rows(
        "random", facts, strata, tokens, n, n * float(tokens.mean()), recipe.seed, "base", *purpose
    )
    return rows[np.sort(at).tolist()]


def publish(
    run: Run, rows: pl.DataFrame, strategy: str, parent: int | None, decision: str, evidence: str
) -> int:
    """The dataset version with these rows: found by content, or the next number."""
    content = content_of(rows)
    if run.reuse_only:
        known = [
            v["version"] for v in run.lake.dataset_versions(run.recipe.name) if v["content_fp"] == content
        ]
        if not known:
            raise NotCached("dataset")
        return int(known[0])
    tokens = int(tokens_of(run.recipe, rows).sum())
    return run.lake.publish_dataset(
        run.recipe.name, rows, strategy, parent, decision, evidence, tokens, content
    )


def keep_candidate(run: Run, rows: pl.DataFrame, strategy: str, parent: int | None, evidence: str) -> None:
    """Keeps rows that did not become a version, exportable as `candidate/NAME@fingerprint`."""
    content = content_of(rows)
    if run.reuse_only:
        kept = [
            run.lake.manifest(r).get("content_fp")
            for r in run.lake.refs("candidate")
            if r.name == run.recipe.name
        ]
        if content not in kept:
            raise NotCached("candidate")
        return
    tokens = int(tokens_of(run.recipe, rows).sum())
    run.lake.publish_candidate(run.recipe.name, rows, strategy, parent, evidence, tokens, content)


def embed(run: Run, pool: Ref) -> Ref | None:
    """Embeddings of all kept rows and suite items; None for a proxy without an encoder.

    Reads: rows, suite items. Writes: embeddings by row_id and item_id. Costs: about 5 ms a short text and core.
    Safe to rerun because finished shards of 1,024 texts are kept.
    """
    if run.recipe.proxy.kind != "head":
        return None
    spec = {"encoder": encoder_identity(run.recipe.proxy.encoder)}

    def compute(draft: Draft) -> None:
        texts = _texts(run.lake, pool)
        starts = range(0, len(texts), EMBED_SHARD_ROWS)
        jobs = {f"texts-{i:06d}": (run.lake.address, str(pool), run.recipe.proxy.encoder, i) for i in starts}
        run.map_shards(draft, jobs, embed_shard, "embed")

    return run.stage("embed", EMBED_VERSION, spec, [pool], compute)


def encoder_identity(name: str) -> str:
    """The encoder's name; for a folder the content of its weights, so that retrained ones are embedded anew."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    return "+".join(file_hash(p) for p in sorted(folder.rglob("*.safetensors")))


def _texts(lake: Lake, pool: Ref) -> pl.DataFrame:
    rows = kept_rows(lake, pool).select("row_id", pl.col("prompt"))
    items = lake.read(pool, "suite_items").select(pl.col("item_id").alias("row_id"), "prompt")
    return pl.concat([rows, items]).unique("row_id", keep="first").sort("row_id")


def embed_shard(work: Path, key: str, root: str, pool: str, encoder: str, start: int) -> None:
    """Worker: embeds one shard of texts."""
    from storage.encoders import embed as encode

    texts = _texts(Lake(root, create=False), Ref.parse(pool))[start : start + EMBED_SHARD_ROWS]
    vectors = encode(encoder, texts["prompt"].to_list())
    n = len(texts)
    frame = pl.DataFrame(
        {
            "row_id": texts["row_id"],
            "proxy": [encoder] * n,
            "feature": vectors.astype(np.float16),
            "norm": [1.0] * n,
            "nll": [None] * n,
            "el2n": [None] * n,
            "correct": [None] * n,
            "n_tokens": [None] * n,
        },
        schema=features_schema(vectors.shape[1]),
    )
    write_shard(work, key, {"embeddings": frame})
