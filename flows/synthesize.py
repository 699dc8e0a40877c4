"""Stage synthesize: verified, decontaminated candidate rows, with what the proxy says of each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from curation import world as worlds
from curation.errors import DataError
from curation.ingest.decontaminate import decontaminate
from curation.proxies import encode
from curation.randomness import key_of
from curation.rows import ROWS, SELECTIONS, row_id
from curation.score.gradients import row_gradients
from curation.specs import Recipe
from curation.synthesize.generate import embedded_candidates
from curation.synthesize.plan import parent_weights
from curation.synthesize.recombine import find_exchanges, generate
from flows.data import load_model, reader_for
from flows.features import feature_frame, sketch_from_bytes
from flows.pretrained import pinned
from flows.replicates import base_of, round_half, share_of, universe, world_of
from flows.run import Run
from storage.artifacts import Draft, Lake, Ref
from storage.shards import write_shard

VERSION = "synthesize_v2"
Made = list[tuple[str, str, list[str], str]]  # prompt, response, parents, plan


def synthesize(
    run: Run, round: int, phase: str, replicates: list[int], pool: Ref, base: Ref, scores: Ref, first: bool
) -> Ref | None:
    """Candidates of every replicate: half untargeted, half from parents in thin regions where steering fails.

    Reads: base rows, regions, the scorer. Writes: candidate rows, their features, ledger (contaminated ones).
    Costs: one backward a candidate. Safe to rerun by replicate. None when the recipe only chooses.
    Plan, exchanges and draws are made anew from what each replicate knows; the scorer is the base's.
    """
    recipe = run.recipe
    if recipe.decide.work != "grow":
        return None
    spec = {
        "seed": recipe.seed,
        "round": round,
        "phase": phase,
        "replicates": replicates,
        "first": first,
        "synthesize": recipe.synthesize.model_dump(mode="json"),
        "added_rows": recipe.budget.added_rows,
        "ngram": recipe.ingest.decontaminate_ngram_words,
        "jaccard": recipe.ingest.near_duplicate_jaccard,
        "subsample": recipe.decide.subsample,
    }

    def compute(draft: Draft) -> None:
        jobs = {
            f"replicate-{r:02d}": (
                run.lake.address,
                pinned(recipe),
                r,
                round,
                phase,
                str(pool),
                str(base),
                str(scores),
                first,
            )
            for r in replicates
        }
        run.map_shards(draft, jobs, synthesize_replicate, f"synthesize {phase}")

    return run.stage("synthesize", VERSION, spec, [pool, base, scores], compute, round, phase)


def synthesize_replicate(
    work: Path,
    key: str,
    root: str,
    recipe: Recipe,
    replicate: int,
    round: int,
    phase: str,
    pool: str,
    base: str,
    scores: str,
    first: bool,
) -> None:
    """Worker: candidates of one replicate."""
    lake, pool_ref, score_ref = Lake(root, create=False), Ref.parse(pool), Ref.parse(scores)
    world = world_of(recipe, replicate)
    base_rows = lake.read(Ref.parse(base), "rows").filter(pl.col("world") == world).sort("row_id")
    known = base_of(
        recipe,
        round,
        phase,
        replicate,
        universe(recipe, round, phase, replicate, base_rows),
        base_rows,
        first,
    )
    made, counts = _generate(recipe, replicate, world, round, phase, known, _plan(lake, score_ref, known))
    rows = candidate_frame(made, world, round)
    items = lake.read(pool_ref, "suite_items").filter(pl.col("world") == world)
    limits = (recipe.ingest.decontaminate_ngram_words, recipe.ingest.near_duplicate_jaccard)
    ledger = decontaminate(rows, items, *limits).with_columns(
        pl.lit("synthesize").alias("stage"), pl.lit(round, pl.Int32).alias("round")
    )
    clean = rows.join(ledger.select("row_id"), on="row_id", how="anti", maintain_order="left")
    plans = clean["meta"].str.json_path_match("$.plan")
    _refuse_few(recipe, round, phase, int((plans == "untargeted").sum()), counts, len(ledger))
    reader = reader_for(lake, recipe, pool_ref, world, None)
    model = load_model(lake, recipe, reader, score_ref, f"scorer-{world:02d}.safetensors")
    sketch = sketch_from_bytes(lake.read_file(score_ref, f"scorer-{world:02d}.json"))
    found = row_gradients(model, encode(reader, clean), sketch)
    proxy = lake.read(score_ref, "models").filter(pl.col("replicate") == world)["model"][0]
    ids = clean["row_id"].to_list()
    drawn = pl.DataFrame(
        {
            "row_id": ids,
            "round": [round] * len(ids),
            "phase": [f"{phase} candidates"] * len(ids),
            "arm": plans,
            "replicate": [replicate] * len(ids),
            "rank": list(range(len(ids))),
        },
        schema=SELECTIONS,
    )
    counted = {
        "drawn": counts,
        "candidates": len(rows),
        "contaminated": len(ledger),
        "wrong": int((found.correct < 0.5).sum()),
    }
    tables = {
        "rows": rows,
        "ledger": ledger,
        "features": feature_frame(ids, proxy, found),
        "selections": drawn,
    }
    write_shard(
        work, key, tables, {f"counts-{replicate:02d}.json": json.dumps(counted, sort_keys=True).encode()}
    )


def _plan(lake: Lake, scores: Ref, known: pl.DataFrame) -> np.ndarray:
    """Parent weights of the rows, from the regions of the scorer and what steering says of them."""
    regions = (
        lake.scan(scores, "regions")
        .filter(pl.col("scale") == "coarse")
        .join(known.lazy().select("row_id"), on="row_id", how="semi")
        .collect()
        .sort("row_id")
    )
    mine = (pl.col("proxy") == regions["proxy"][0]) & (pl.col("scale") == "coarse")
    table = lake.scan(scores, "region_table").filter(mine).collect()
    return parent_weights(regions, table)


def _refuse_few(
    recipe: Recipe, round: int, phase: str, untargeted: int, counts: dict[str, int], contaminated: int
) -> None:
    needed = round_half(recipe.budget.added_rows * share_of(recipe, phase))
    if untargeted < needed:
        raise DataError(
            f"round {round}: {untargeted} clean untargeted candidates, {needed} are needed (drawn: {counts}; {contaminated} "
            "shared text with a suite); lower [budget] added_rows, or raise [synthesize] candidates"
        )


def _generate(
    recipe: Recipe,
    replicate: int,
    world: int,
    round: int,
    phase: str,
    base_rows: pl.DataFrame,
    weights: np.ndarray,
) -> tuple[Made, dict[str, int]]:
    """Both halves: untargeted first, then targeted, none twice."""
    half = round_half(recipe.synthesize.candidates * share_of(recipe, phase) / 2)
    prompts, ids = base_rows["prompt"].to_list(), base_rows["row_id"].to_list()
    made: Made = []
    counts: dict[str, int] = {}
    search = find_exchanges(base_rows) if recipe.synthesize.generator == "recombine" else None
    for plan, law in (("untargeted", None), ("targeted", weights)):
        known = {row[0] for row in made}
        if search is None:
            drawn, why = embedded_candidates(
                worlds.make_world(recipe.seed, world),
                prompts,
                ids,
                law,
                half,
                recipe.seed,
                plan,
                round,
                world,
                known_prompts=known,
            )
            made += [(p, r, [parent], plan) for p, r, parent in drawn]
        else:
            result = generate(
                base_rows, key_of(recipe.seed, plan, round, phase, replicate), half, law, known, None, search
            )
            made += [(c.prompt, c.response, list(c.parents), plan) for c in result.candidates]
            why = result.counts
        for reason, n in why.items():
            counts[f"{plan}_{reason}"] = n
    return made, counts


def candidate_frame(made: Made, world: int, round: int) -> pl.DataFrame:
    """Candidates as rows: origin synthetic, with parents and the plan that drew them."""
    lines = [
        (
            row_id(f"synthetic-{world}-{round}", p, r, None),
            world,
            "synthetic",
            "train",
            p,
            r,
            None,
            "synthetic",
            parents,
            None,
            len(p) + len(r),
            json.dumps({"plan": plan, "round": round}),
        )
        for p, r, parents, plan in made
    ]
    return pl.DataFrame(lines, schema=ROWS, orient="row").unique("row_id", keep="first", maintain_order=True)
