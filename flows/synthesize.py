"""Stage synthesize: verified, decontaminated candidate rows, with what the proxy says of each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from curation import world as worlds
from curation.errors import DataError
from curation.ingest.decontaminate import decontaminate
from curation.proxies import encode, layers_of
from curation.randomness import key_of
from curation.rows import ROWS, row_id
from curation.score.gradients import row_gradients
from curation.specs import Recipe
from curation.synthesize.generate import embedded_candidates
from curation.synthesize.plan import parent_weights
from curation.synthesize.recombine import find_exchanges, generate
from flows.data import load_model, reader_for, units
from flows.run import Run
from flows.score import feature_frame
from storage.artifacts import Draft, Lake, Ref
from storage.shards import write_shard

VERSION = "synthesize_v1"
Made = list[tuple[str, str, list[str], str]]  # prompt, response, parents, plan


def synthesize(run: Run, round: int, pool: Ref, base: Ref, scores: Ref) -> Ref | None:
    """Candidates of every world: half untargeted, half from parents in thin regions where steering fails.

    Reads: base rows, regions, the scorer. Writes: candidate rows, their features, ledger (contaminated ones).
    Costs: one backward a candidate. Safe to rerun by world. None when the recipe only chooses.
    """
    recipe = run.recipe
    if recipe.decide.work != "grow":
        return None
    spec = {
        "seed": recipe.seed, "round": round, "synthesize": recipe.synthesize.model_dump(mode="json"),
        "added_rows": recipe.budget.added_rows, "ngram": recipe.ingest.decontaminate_ngram_words,
    }

    def compute(draft: Draft) -> None:
        jobs = {
            f"unit-{u:02d}": (str(run.lake.root), recipe, u, round, str(pool), str(base), str(scores))
            for u in units(recipe)
        }
        run.map_shards(draft, jobs, synthesize_unit, "synthesize")

    return run.stage("synthesize", VERSION, spec, [pool, base, scores], compute, round)


def synthesize_unit(work: Path, key: str, root: str, recipe: Recipe, unit: int, round: int, pool: str, base: str, scores: str) -> None:
    """Worker: candidates of one world."""
    lake, pool_ref, score_ref = Lake(root, create=False), Ref.parse(pool), Ref.parse(scores)
    base_rows = lake.read(Ref.parse(base), "rows").filter(pl.col("world") == unit).sort("row_id")
    regions = lake.scan(score_ref, "regions").join(base_rows.lazy().select("row_id"), on="row_id", how="semi").collect().sort("row_id")
    proxy = regions["proxy"][0]
    table = lake.scan(score_ref, "region_table").filter(pl.col("proxy") == proxy).collect()
    made, counts = _generate(recipe, unit, round, base_rows, parent_weights(regions, table))
    rows = candidate_frame(made, unit, round)
    items = lake.read(pool_ref, "suite_items").filter(pl.col("world") == unit)
    ledger = decontaminate(rows, items, recipe.ingest.decontaminate_ngram_words).with_columns(
        pl.lit("synthesize").alias("stage"), pl.lit(round, pl.Int32).alias("round")
    )
    clean = rows.join(ledger.select("row_id"), on="row_id", how="anti", maintain_order="left")
    if len(clean) < recipe.budget.added_rows:
        raise DataError(
            f"round {round}: only {len(clean)} verified candidates ({counts}, {len(ledger)} contaminated), fewer than "
            f"[budget] added_rows = {recipe.budget.added_rows}; lower added_rows, or raise [synthesize] candidates"
        )
    reader = reader_for(lake, recipe, pool_ref, unit, None)
    model = load_model(lake, recipe, reader, score_ref, f"scorer-{unit:02d}.safetensors")
    found = row_gradients(
        model, layers_of(model, recipe.proxy.parameters), encode(reader, clean),
        recipe.proxy.feature_dimensions, recipe.proxy.fold_width, recipe.seed,
    )
    features = feature_frame(clean["row_id"].to_list(), proxy, found)
    counted = {"drawn": counts, "candidates": len(rows), "contaminated": len(ledger), "wrong": int((found.correct < 0.5).sum())}
    write_shard(work, key, {"rows": rows, "ledger": ledger, "features": features}, {f"counts-{unit:02d}.json": json.dumps(counted, sort_keys=True).encode()})


def _generate(recipe: Recipe, unit: int, round: int, base_rows: pl.DataFrame, weights: np.ndarray) -> tuple[Made, dict[str, int]]:
    """Both halves: untargeted first, then targeted, none twice."""
    half = recipe.synthesize.candidates // 2
    prompts, ids = base_rows["prompt"].to_list(), base_rows["row_id"].to_list()
    made: Made = []
    counts: dict[str, int] = {}
    search = find_exchanges(base_rows) if recipe.synthesize.generator == "recombine" else None
    for plan, law in (("untargeted", None), ("targeted", weights)):
        known = {row[0] for row in made}
        if search is None:
            law_of_world = worlds.make_world(recipe.seed, unit)
            drawn, why = embedded_candidates(law_of_world, [*prompts, *known], ids + [""] * len(known), _padded(law, len(known), len(prompts)), half, recipe.seed, plan, round, unit)
            made += [(p, r, [parent], plan) for p, r, parent in drawn]
        else:
            result = generate(base_rows, key_of(recipe.seed, plan, round, unit), half, law, known, None, search)
            made += [(c.prompt, c.response, list(c.parents), plan) for c in result.candidates]
            why = result.counts
        for reason, n in why.items():
            counts[f"{plan}_{reason}"] = n
    return made, counts


def _padded(weights: np.ndarray | None, known: int, n: int) -> np.ndarray:
    """Parents are the base rows only; what is merely known has weight 0."""
    law = np.full(n, 1.0 / n) if weights is None else weights
    return np.concatenate([law, np.zeros(known)])


def candidate_frame(made: Made, world: int, round: int) -> pl.DataFrame:
    """Candidates as rows: origin synthetic, with parents and the plan that drew them."""
    lines = [
        (row_id(f"synthetic-{world}-{round}", p, r, None), world, "synthetic", "train", p, r, None, "synthetic", parents, None,
         len(p) + len(r), json.dumps({"plan": plan, "round": round}))
        for p, r, parents, plan in made
    ]
    return pl.DataFrame(lines, schema=ROWS, orient="row").unique("row_id", keep="first", maintain_order=True)
