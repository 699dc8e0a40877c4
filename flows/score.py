"""Stage score: a proxy trained on the base, and what its gradients say of every row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from curation.logdet import unit_rows
from curation.proxies import encode
from curation.randomness import key_of
from curation.rows import DIVERSITY, LEDGER, MODELS, SCORES, features_schema, text_of
from curation.score.diversity import ceiling, m_coherence, moments, row_alignment, vendi
from curation.score.gradients import RowGradients, row_gradients, sketch_of
from curation.score.regions import map_regions
from curation.specs import Recipe
from curation.train.fit import fit
from flows.data import embeddings, encode_items, kept_rows, reader_for, steer_items, units
from flows.run import Run
from storage.artifacts import Draft, Lake, Ref
from storage.models import tensors_to_bytes
from storage.shards import write_shard

VERSION = "score_v1"


def score(run: Run, round: int, pool: Ref, base: Ref, vectors: Ref | None) -> Ref:
    """Trains the scorer of every world and scores its rows: features, norms, NLL, EL2N, regions, G-Vendi.

    Reads: base rows (grow) or the pool (choose), steer items. Writes: features, scores, regions, models,
    diversity, ledger (flags). Costs: one training and one backward a row. Safe to rerun by world.
    """
    recipe = run.recipe
    spec = {
        "seed": recipe.seed,
        "round": round,
        "proxy": recipe.proxy.model_dump(mode="json"),
        "work": recipe.decide.work,
        "regions": recipe.select.regions,
        "worlds": recipe.worlds,
    }
    inputs = [pool, base] + ([vectors] if vectors else [])

    def compute(draft: Draft) -> None:
        emb = str(vectors) if vectors else None
        jobs = {
            f"unit-{u:02d}": (
                str(run.lake.root),
                recipe,
                u,
                round,
                str(pool),
                str(base),
                emb,
                draft.ref.fingerprint,
            )
            for u in units(recipe)
        }
        run.map_shards(draft, jobs, score_unit, "score")

    return run.stage("score", VERSION, spec, inputs, compute, round)


def training_seed(recipe: Recipe, round: int, phase: str, replicate: int) -> int:
    """The seed that all arms of one replicate share: initialisation and data order."""
    return key_of(recipe.seed, "train", round, phase, replicate)


def score_unit(
    work: Path,
    key: str,
    root: str,
    recipe: Recipe,
    unit: int,
    round: int,
    pool: str,
    base: str,
    emb: str | None,
    fp: str,
) -> None:
    """Worker: scorer, features, regions and diversity of one world (or of the one real corpus)."""
    lake, pool_ref = Lake(root, create=False), Ref.parse(pool)
    vectors = embeddings(lake, Ref.parse(emb) if emb else None)
    reader = reader_for(lake, recipe, pool_ref, unit, vectors)
    base_rows = lake.read(Ref.parse(base), "rows").filter(pl.col("world") == unit).sort("row_id")
    rows = base_rows if recipe.decide.work == "grow" else kept_rows(lake, pool_ref, unit)
    steps = recipe.proxy.scorer_steps or recipe.proxy.steps
    seed = training_seed(recipe, round, "confirm", unit)
    fitted = fit(recipe.proxy, reader, encode(reader, base_rows, vectors), seed, steps)
    model = fitted.model.requires_grad_(False)
    proxy = f"{fp}/scorer/{unit}"
    sketch = sketch_of(recipe.proxy, recipe.seed)
    found = row_gradients(model, encode(reader, rows, vectors), sketch)
    steer = steer_items(lake, pool_ref, round, unit).frame
    at_steer = row_gradients(model, encode_items(reader, steer, vectors), sketch)
    ids = rows["row_id"].to_list()
    texts = [text_of(p, r) for p, r in rows.select("prompt", "response").iter_rows()]
    z = unit_rows(found.feature)
    regions, table, *_ = map_regions(
        proxy,
        ids,
        texts,
        z,
        found.nll,
        unit_rows(at_steer.feature),
        at_steer.correct < 0.5,
        recipe.select.regions,
        key_of(recipe.seed, "regions", round, unit),
    )
    tables = {
        "features": feature_frame(ids, proxy, found),
        "scores": score_frame(ids, proxy, found),
        "regions": regions,
        "region_table": table,
        "ledger": flag_frame(ids, found, round),
        "diversity": diversity_frame(round, unit, proxy, "scorer", {"scored": found.feature}),
        "models": pl.DataFrame(
            [
                (
                    proxy,
                    "scorer",
                    round,
                    "confirm",
                    "previous",
                    unit,
                    base,
                    len(base_rows),
                    fitted.steps,
                    fitted.tokens,
                    seed,
                    fitted.train_nll,
                )
            ],
            schema=MODELS,
            orient="row",
        ),
    }
    write_shard(work, key, tables, {f"scorer-{unit:02d}.safetensors": tensors_to_bytes(model.state_dict())})


def feature_frame(ids: list[str], proxy: str, found: RowGradients) -> pl.DataFrame:
    """The `features` table of these rows; features are float16 at rest, scaled to unit length."""
    return pl.DataFrame(
        {
            "row_id": ids,
            "proxy": [proxy] * len(ids),
            "feature": unit_rows(found.feature).astype(np.float16),
            "norm": found.norm,
            "nll": found.nll,
            "el2n": found.el2n,
            "correct": found.correct > 0.5,
            "n_tokens": found.n_tokens.astype(np.int64),
        },
        schema=features_schema(found.feature.shape[1]),
    )


def score_frame(ids: list[str], proxy: str, found: RowGradients) -> pl.DataFrame:
    """The `scores` table: one line a row and scorer."""
    columns = {
        "nll_v1": found.nll,
        "el2n_v1": found.el2n,
        "grad_norm_v1": found.norm,
        "alignment_v1": row_alignment(found.feature),
    }
    return pl.concat(
        [
            pl.DataFrame(
                {"row_id": ids, "proxy": [proxy] * len(ids), "scorer": [name] * len(ids), "value": value},
                schema=SCORES,
            )
            for name, value in columns.items()
        ]
    )


def flag_frame(ids: list[str], found: RowGradients, round: int) -> pl.DataFrame:
    """Ledger flags of rows whose gradient is zero or not finite, or nearly zero beside the median."""
    norm = found.norm
    floor = 1e-6 * float(np.median(norm))
    bad = np.flatnonzero(~np.isfinite(norm) | (norm <= floor))
    return pl.DataFrame(
        [(ids[i], "score", round, "flag", "no_gradient", float(norm[i]), floor, None) for i in bad],
        schema=LEDGER,
        orient="row",
    )


def diversity_frame(
    round: int, world: int, proxy: str, role: str, sets: dict[str, np.ndarray]
) -> pl.DataFrame:
    """The `diversity` table: G-Vendi of orders 1, 2 and infinity, its ceiling, m-coherence, of named sets of rows."""
    lines = []
    for name, features in sets.items():
        state = moments(features)
        values = {
            "g_vendi": vendi(state),
            "g_vendi_q2": vendi(state, 2),
            "g_vendi_inf": vendi(state, np.inf),
            "ceiling": ceiling(state.n, features.shape[1]),
            "m_coherence": m_coherence(state),
        }
        lines += [
            (round, world, proxy, role, name, metric, value, state.n) for metric, value in values.items()
        ]
    return pl.DataFrame(lines, schema=DIVERSITY, orient="row")


def rows_of(lake: Lake, refs: list[str], ids: list[str]) -> pl.DataFrame:
    """These rows, in this order, from the `rows` tables of some artifacts."""
    wanted = pl.DataFrame({"row_id": ids}, schema={"row_id": pl.String})
    found = (
        pl.concat([lake.scan(Ref.parse(r), "rows") for r in refs])
        .join(wanted.lazy(), on="row_id", how="semi")
        .collect()
    )
    return wanted.join(
        found.unique("row_id", keep="first"), on="row_id", how="left", maintain_order="left"
    ).select(found.columns)
