"""Stage score: a proxy trained on the base, and what its gradients say of every row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from torch import nn

from curation.proxies import Reader, encode, predict, weights_of
from curation.randomness import key_of
from curation.rows import MODELS, text_of
from curation.score.difficulty import holdout_folds, ifd, out_of_fold, rho
from curation.score.diversity import diversity, diversity_of, moments_of
from curation.score.gradients import row_gradients, sketch_of
from curation.score.regions import map_regions
from curation.score.scales import module_scales
from curation.specs import Recipe
from curation.train.fit import fit
from flows.data import (
    embeddings,
    encode_items,
    encoding_notes,
    feature_matrix,
    model_from_bytes,
    reader_for,
    steer_items,
    units,
)
from flows.engines import scoring_devices
from flows.features import (
    cut_shards,
    feature_shard,
    proxy_name,
    rows_to_score,
    sketch_from_bytes,
    sketch_to_bytes,
)
from flows.pretrained import pinned, proxy_spec, tokens_spec
from flows.run import Run
from flows.scorers import (
    diversity_frame,
    flag_frame,
    gradient_scores,
    gradients_in_blocks,
    group_frame,
    influence_scores,
    length_frame,
    note_frame,
    score_frame,
)
from storage.artifacts import Draft, Lake, Ref
from storage.models import tensors_to_bytes
from storage.shards import read_shard, read_shard_file, write_shard

VERSION = "score_v3"
PART_ROWS = 10_000  # encoded at a time, where a pass goes over all rows


def score(
    run: Run, round: int, pool: Ref, base: Ref, vectors: Ref | None, earlier: tuple[Ref, ...] = ()
) -> Ref:
    """Trains the scorer of every world and scores its rows: features, norms, NLL, EL2N, regions, G-Vendi.

    Reads: base rows (grow) or the pool (choose), steer items, regions of earlier rounds. Writes: features, scores,
    regions, models, diversity, ledger (flags). Costs: one training, one forward and backward a row. Safe to rerun:
    scorers by world, features by shard of rows, also of other runs; the rest from these.
    """
    recipe = run.recipe
    spec = {
        "seed": recipe.seed,
        "round": round,
        "proxy": proxy_spec(recipe),
        "work": recipe.decide.work,
        "regions": recipe.select.regions,
        "worlds": recipe.worlds,
        "score": recipe.score.model_dump(mode="json", exclude={"shard_rows"}),
    }
    inputs = [pool, base, *([vectors] if vectors else []), *earlier]
    emb = str(vectors) if vectors else None
    common = (run.lake.address, pinned(recipe))

    def compute(draft: Draft) -> None:
        scorers = {f"scorer-{u:02d}": (*common, u, round, str(pool), str(base), emb) for u in units(recipe)}
        run.map_shards(draft, scorers, scorer_unit, "scorer")
        features, keys = {}, {}
        for u in units(recipe):
            proxy = draft.read_shard(f"scorer-{u:02d}", "models")["model"][0]
            rows = rows_to_score(run.lake, recipe, pool, base, u)
            cut = cut_shards(run.lake, pool, rows, recipe.score.shard_rows, u, proxy)
            keys[u] = list(cut)
            features |= {key: (*common, u, proxy, str(pool), str(base), emb, ids) for key, ids in cut.items()}
        draft.adopt(features, "features")
        run.map_shards(draft, features, feature_shard, "features", scoring_devices(), reads=scorers)
        units_left = {
            f"unit-{u:02d}": (
                *common,
                u,
                round,
                str(pool),
                str(base),
                emb,
                [str(e) for e in earlier],
                keys[u],
            )
            for u in units(recipe)
        }
        run.map_shards(draft, units_left, score_unit, "score", reads=[*scorers, *features])
        draft.keep({*scorers, *features, *units_left})

    return run.stage("score", VERSION, spec, inputs, compute, round)


def training_seed(recipe: Recipe, round: int, phase: str, replicate: int) -> int:
    """The seed that all arms of one replicate share: initialisation and data order."""
    return key_of(recipe.seed, "train", round, phase, replicate)


def scorer_unit(
    work: Path,
    key: str,
    root: str,
    recipe: Recipe,
    unit: int,
    round: int,
    pool: str,
    base: str,
    emb: str | None,
) -> None:
    """Worker: the proxy of one world, trained on its base; how often it forgot each row on the way."""
    lake, pool_ref = Lake(root, create=False), Ref.parse(pool)
    vectors = embeddings(lake, Ref.parse(emb) if emb else None)
    reader = reader_for(lake, recipe, pool_ref, unit, vectors)
    rows = lake.read(Ref.parse(base), "rows").filter(pl.col("world") == unit).sort("row_id")
    steps = recipe.proxy.steps if recipe.proxy.scorer_steps is None else recipe.proxy.scorer_steps
    seed = training_seed(recipe, round, "confirm", unit)
    encoded = encode(reader, rows, vectors)
    fitted = fit(recipe.proxy, reader, encoded, seed, steps)
    data = tensors_to_bytes(weights_of(fitted.model))
    sketch = sketch_of(recipe.proxy, recipe.seed)
    if recipe.proxy.scaling == "module":  # row ids are hashes, so the first rows are any rows
        scales = module_scales(
            fitted.model.requires_grad_(False), encoded.take(np.arange(min(256, len(rows)))), sketch
        )
        sketch = sketch_of(recipe.proxy, recipe.seed, scales)
    name = proxy_name(
        data,
        sketch,
        {**tokens_spec(recipe), "embedding_scale": recipe.proxy.embedding_scale, "names": reader.names},
    )
    line = (
        name,
        "scorer",
        round,
        "confirm",
        "previous",
        unit,
        base,
        len(rows),
        fitted.steps,
        fitted.tokens,
        seed,
        fitted.train_nll,
    )
    columns = {"forgetting_v1": fitted.forgetting}
    if "rho" in recipe.score.extra:
        columns["rho_holdout_nll_v1"] = _holdout_nll(recipe, reader, rows, vectors, seed, steps)
    tables = {
        "models": pl.DataFrame([line], schema=MODELS, orient="row"),
        "scores": score_frame(rows["row_id"].to_list(), name, columns),
    }
    files = {f"{key}.safetensors": data, f"{key}.json": sketch_to_bytes(sketch)}
    write_shard(work, key, tables, files)


def _holdout_nll(
    recipe: Recipe,
    reader: Reader,
    rows: pl.DataFrame,
    vectors: dict[str, np.ndarray] | None,
    seed: int,
    steps: int,
) -> np.ndarray:
    """(n,) NLL of each row under a proxy of the half that it is not in: what no training on it can learn away."""
    of_parents = zip(
        rows["row_id"], rows["parents"].to_list(), strict=True
    )  # a paraphrase would tell its half
    folds = holdout_folds([parents[0] if parents else own for own, parents in of_parents], recipe.seed)
    encoded = encode(reader, rows, vectors)
    halves = [np.flatnonzero(folds == half) for half in (0, 1)]
    if min(map(len, halves)) == 0:
        return np.full(len(rows), np.nan)
    models = [fit(recipe.proxy, reader, encoded.take(at), seed, steps).model for at in halves]
    return out_of_fold(folds, np.stack([predict(model, encoded)["nll"] for model in models]))


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
    earlier: list[str],
    shards: list[str],
) -> None:
    """Worker: scores, regions and diversity of one world (or of the one real corpus) from its features."""
    lake, pool_ref = Lake(root, create=False), Ref.parse(pool)
    vectors = embeddings(lake, Ref.parse(emb) if emb else None)
    reader = reader_for(lake, recipe, pool_ref, unit, vectors)
    rows = rows_to_score(lake, recipe, pool_ref, Ref.parse(base), unit)
    ids = rows["row_id"].to_list()
    frame = rows.select("row_id").join(
        pl.concat([read_shard(work, k, "features") for k in shards]),
        on="row_id",
        how="left",
        maintain_order="left",
    )
    z = feature_matrix(frame)
    scorer = read_shard(work, f"scorer-{unit:02d}", "models")["model"][0]
    trained = read_shard(work, f"scorer-{unit:02d}", "scores")
    data = read_shard_file(work, f"scorer-{unit:02d}", f"scorer-{unit:02d}.safetensors")
    model = model_from_bytes(recipe, reader, data)
    items = steer_items(lake, pool_ref, round, unit).frame
    sketch = sketch_from_bytes(read_shard_file(work, f"scorer-{unit:02d}", f"scorer-{unit:02d}.json"))
    steer = row_gradients(model, encode_items(reader, items, vectors), sketch)
    texts = [text_of(p, r) for p, r in rows.select("prompt", "response").iter_rows()]
    before = [
        lake.scan(Ref.parse(e), "regions")
        .join(
            lake.scan(Ref.parse(e), "models").filter(pl.col("replicate") == unit).select(proxy="model"),
            on="proxy",
            how="semi",
        )
        .collect()
        for e in earlier
    ]
    found = map_regions(
        scorer,
        ids,
        texts,
        z,
        frame["nll"].to_numpy(),
        steer.feature,
        steer.correct < 0.5,
        recipe.select.regions,
        key_of(recipe.seed, "regions", round, unit),
        before,
    )
    state = moments_of(gradients_in_blocks(z, frame["norm"].to_numpy()))
    columns = gradient_scores(frame, z, state) | {"knn_density_v1": found.density}
    columns |= influence_scores(
        frame, z, steer, items["suite"].to_list(), "less_whitened" in recipe.score.extra
    )
    if "ifd" in recipe.score.extra:
        columns["ifd_v1"] = _ifd(model, reader, rows, vectors, frame)
    held = dict(
        trained.filter(pl.col("scorer") == "rho_holdout_nll_v1").select("row_id", "value").iter_rows()
    )
    if held:
        columns["rho_v1"] = rho(frame["nll"].to_numpy(), np.array([held.get(i, np.nan) for i in ids]))
    sets = {"scored": diversity_of(state)}
    if vectors is not None:
        sets["embeddings of the scored"] = diversity(np.stack([vectors[i] for i in ids]))
    coarse = found.rows.filter(pl.col("scale") == "coarse")
    region = rows.select("row_id").join(coarse, on="row_id", how="left", maintain_order="left")["region"]
    groups = {
        "source": rows["source"].to_list(),
        "label": rows["label"].to_list(),
        "region": region.to_list(),
    }
    notes = [encoding_notes(reader, part) for part in rows.iter_slices(PART_ROWS)]
    tables = {
        "scores": score_frame(ids, scorer, columns),
        "regions": found.rows,
        "region_table": found.table,
        "ledger": pl.concat([flag_frame(frame, round), *(note_frame(part, round) for part in notes)]),
        "diversity": pl.concat(
            [
                diversity_frame(round, unit, scorer, "scorer", sets),
                group_frame(round, unit, scorer, z, groups),
                length_frame(round, unit, scorer, columns, frame["n_tokens"].to_numpy()),
            ]
        ),
    }
    write_shard(work, key, tables)


def _ifd(
    model: nn.Module,
    reader: Reader,
    rows: pl.DataFrame,
    vectors: dict[str, np.ndarray] | None,
    frame: pl.DataFrame,
) -> np.ndarray:
    """(n,) instruction-following difficulty: one more forward pass, of the answers alone; NaN where unreliable."""
    parts = rows.with_columns(prompt=pl.lit("")).iter_slices(PART_ROWS)
    alone = [predict(model, encode(reader, part, vectors))["nll"] for part in parts]
    value, reliable = ifd(
        frame["nll"].to_numpy(), np.concatenate([np.zeros(0), *alone]), frame["n_tokens"].to_numpy()
    )
    return np.where(reliable, value, np.nan)


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
