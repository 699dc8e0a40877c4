"""Stages train and evaluate: one model an arm and replicate at equal steps, and its outcome on every item."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from curation.errors import DataError
from curation.proxies import encode, predict, weights_of
from curation.rows import MODELS, OUTCOMES
from curation.specs import Recipe
from curation.train.fit import fit
from flows.data import embeddings, encode_items, items_of, load_model, reader_for
from flows.pretrained import pinned, proxy_spec
from flows.run import Run
from flows.score import rows_of, training_seed
from storage.artifacts import Draft, Lake, Ref
from storage.models import tensors_to_bytes
from storage.shards import write_shard

VERSION = "train_v1"
EVALUATE_VERSION = "evaluate_v1"


def train(
    run: Run,
    round: int,
    phase: str,
    arms: list[str],
    replicates: list[int],
    pool: Ref,
    base: Ref,
    sets: Ref,
    new: Ref | None,
    vectors: Ref | None,
) -> Ref:
    """Trains every arm of every replicate: same steps, same initialisation and order within a replicate.

    Reads: selections, rows. Writes: models (weights as safetensors). Costs: steps x arms x replicates.
    Safe to rerun by model. On the embedded corpus `previous` is the scorer and is not trained again.
    """
    recipe = run.recipe
    spec = {
        "seed": recipe.seed,
        "round": round,
        "phase": phase,
        "proxy": proxy_spec(recipe),
        "arms": arms,
    }
    inputs = [r for r in (pool, base, sets, new, vectors) if r is not None]
    rows = [str(r) for r in ((pool,) if recipe.decide.work == "choose" else (base, new)) if r is not None]

    def compute(draft: Draft) -> None:
        emb = str(vectors) if vectors else None
        jobs = {
            f"{arm}-{r:02d}": (
                run.lake.address,
                pinned(recipe),
                str(pool),
                str(base),
                str(sets),
                rows,
                emb,
                round,
                phase,
                arm,
                r,
                draft.ref.fingerprint,
            )
            for r in replicates
            for arm in arms
        }
        run.map_shards(draft, jobs, train_one, f"train {phase}")

    return run.stage("train", VERSION, spec, inputs, compute, round, phase)


def train_one(
    work: Path,
    key: str,
    root: str,
    recipe: Recipe,
    pool: str,
    base: str,
    sets: str,
    row_refs: list[str],
    emb: str | None,
    round: int,
    phase: str,
    arm: str,
    replicate: int,
    fp: str,
) -> None:
    """Worker: one model."""
    lake = Lake(root, create=False)
    chosen = lake.scan(Ref.parse(sets), "selections").filter(
        pl.col("arm") == arm, pl.col("replicate") == replicate
    )
    ids = chosen.collect().sort("rank")["row_id"].to_list()
    refs = row_refs if arm != "previous" else [*row_refs, base]
    rows = rows_of(lake, refs, ids)
    vectors = embeddings(lake, Ref.parse(emb) if emb else None)
    world = replicate if recipe.worlds else 0
    reader = reader_for(lake, recipe, Ref.parse(pool), world, vectors)
    seed = training_seed(recipe, round, phase, replicate)
    fitted = fit(recipe.proxy, reader, encode(reader, rows, vectors), seed)
    line = (
        f"{fp}/{arm}/{replicate}",
        "compared",
        round,
        phase,
        arm,
        replicate,
        base,
        len(rows),
        fitted.steps,
        fitted.tokens,
        seed,
        fitted.train_nll,
    )
    models = pl.DataFrame([line], schema=MODELS, orient="row")
    write_shard(
        work, key, {"models": models}, {f"{key}.safetensors": tensors_to_bytes(weights_of(fitted.model))}
    )


def compared_models(run: Run, models: Ref, scores: Ref) -> pl.DataFrame:
    """The models of a comparison: those trained for it, and on the embedded corpus the scorers as `previous`."""
    frame = run.lake.read(models, "models")
    return pl.concat([frame, run.lake.read(scores, "models")]) if run.recipe.worlds else frame


def evaluate(
    run: Run,
    round: int,
    phase: str,
    use: str,
    pool: Ref,
    models: Ref,
    scores: Ref,
    vectors: Ref | None,
    arms: list[str] | None = None,
) -> Ref:
    """Per-item outcomes of the models on the suites of one use (steer, judge or sealed), ID and OOD apart.

    Reads: models, suite items. Writes: outcomes. Costs: one forward an item. Safe to rerun by replicate.
    """
    recipe = run.recipe
    spec = {"round": round, "phase": phase, "use": use, "arms": arms}
    inputs = [r for r in (pool, models, scores, vectors) if r is not None]

    def compute(draft: Draft) -> None:
        frame = compared_models(run, models, scores)
        if arms is not None:
            frame = frame.filter(pl.col("arm").is_in(arms))
        emb = str(vectors) if vectors else None
        jobs = {
            f"replicate-{r:02d}": (
                run.lake.address,
                pinned(recipe),
                str(pool),
                str(models),
                str(scores),
                emb,
                round,
                use,
                frame.filter(pl.col("replicate") == r).rows(named=True),
            )
            for r in sorted(frame["replicate"].unique())
        }
        run.map_shards(draft, jobs, evaluate_replicate, f"evaluate {use}")

    return run.stage(
        "evaluate", EVALUATE_VERSION, spec, inputs, compute, round, "sealed" if use == "sealed" else phase
    )


def evaluate_replicate(
    work: Path,
    key: str,
    root: str,
    recipe: Recipe,
    pool: str,
    models: str,
    scores: str,
    emb: str | None,
    round: int,
    use: str,
    lines: list[dict],
) -> None:
    """Worker: all arms of one replicate on the suites of its world."""
    lake, pool_ref = Lake(root, create=False), Ref.parse(pool)
    vectors = embeddings(lake, Ref.parse(emb) if emb else None)
    world = lines[0]["replicate"] if recipe.worlds else 0
    reader = reader_for(lake, recipe, pool_ref, world, vectors)
    items = items_of(lake, pool_ref, use, round, world)
    if not len(items):
        raise DataError(f"no suite item with use {use!r} in round {round}")
    encoded = encode_items(reader, items, vectors)
    parts = []
    for line in lines:
        scorer = line["kind"] == "scorer"
        name = f"scorer-{line['replicate']:02d}" if scorer else f"{line['arm']}-{line['replicate']:02d}"
        model = load_model(
            lake, recipe, reader, Ref.parse(scores if scorer else models), f"{name}.safetensors"
        )
        found = predict(model, encoded)
        parts.append(
            pl.DataFrame(
                {
                    "model": [line["model"]] * len(items),
                    "suite": items["suite"],
                    "item_id": items["item_id"],
                    "correct": found["correct"],
                    "p_correct": found["p_correct"],
                    "nll": found["nll"],
                },
                schema=OUTCOMES,
            )
        )
    write_shard(work, key, {"outcomes": pl.concat(parts)})
