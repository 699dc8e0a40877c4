"""Stage select: the rows of every arm, in every replicate, at equal budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from curation.decoder import words_of
from curation.logdet import unit_rows
from curation.rows import SELECTIONS
from curation.select.compose import choose_rows, length_matched, strata_of
from curation.specs import Recipe
from curation.strategies import Facts, surface_features
from flows.base import budget_rows, budget_spec
from flows.data import embeddings, feature_matrix, kept_rows
from flows.pretrained import pinned, tokens_of
from flows.replicates import base_of, round_half, share_of, universe, world_of
from flows.run import Run
from storage.artifacts import Draft, Lake, Ref
from storage.shards import write_shard

VERSION = "select_v3"
CONTROLS = ("random", "untargeted", "length_matched")


def select(
    run: Run,
    round: int,
    phase: str,
    arms: dict[str, str],
    replicates: list[int],
    pool: Ref,
    base: Ref,
    scores: Ref,
    new: Ref | None,
    vectors: Ref | None,
    first: bool,
) -> Ref:
    """Composes `arms` (name -> strategy) for some replicates of a phase: screen, confirm or full.

    Reads: features, candidates, base rows. Writes: selections. Costs: greedy log-det, O(n d) a pick.
    Safe to rerun by replicate.
    """
    recipe = run.recipe
    spec = {
        "seed": recipe.seed,
        "round": round,
        "phase": phase,
        "arms": arms,
        "replicates": replicates,
        "first": first,
        "budget": budget_spec(recipe),
        "added_rows": recipe.budget.added_rows,
        "work": recipe.decide.work,
        "max_tokens": recipe.proxy.max_tokens,
        "subsample": recipe.decide.subsample,
        "worlds": recipe.worlds,
    }
    refs = (
        {"pool": pool, "base": base, "scores": scores}
        | ({"new": new} if new else {})
        | ({"vectors": vectors} if vectors else {})
    )
    named = {k: str(v) for k, v in refs.items()}

    def compute(draft: Draft) -> None:
        jobs = {
            f"replicate-{r:02d}": (run.lake.address, pinned(recipe), named, round, phase, r, arms, first)
            for r in replicates
        }
        run.map_shards(draft, jobs, select_replicate, f"select {phase}")

    return run.stage("select", VERSION, spec, list(refs.values()), compute, round, phase)


def select_replicate(
    work: Path,
    key: str,
    root: str,
    recipe: Recipe,
    refs: dict[str, str],
    round: int,
    phase: str,
    replicate: int,
    arms: dict[str, str],
    first: bool,
) -> None:
    """Worker: all arms of one replicate."""
    lake = Lake(root, create=False)
    compose = _grow if recipe.decide.work == "grow" else _choose
    sets = compose(
        lake, recipe, {k: Ref.parse(v) for k, v in refs.items()}, round, phase, replicate, arms, first
    )
    parts = [
        pl.DataFrame(
            {
                "row_id": ids,
                "round": [round] * len(ids),
                "phase": [phase] * len(ids),
                "arm": [arm] * len(ids),
                "replicate": [replicate] * len(ids),
                "rank": list(range(len(ids))),
            },
            schema=SELECTIONS,
        )
        for arm, ids in sets.items()
    ]
    write_shard(work, key, {"selections": pl.concat(parts)})


def _facts_of(lake: Lake, ref: Ref, rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(wrong, unit gradient features) of these rows, in their order."""
    features = (
        lake.scan(ref, "features").join(rows.lazy().select("row_id"), on="row_id", how="semi").collect()
    )
    ordered = rows.select("row_id").join(features, on="row_id", how="left", maintain_order="left")
    return ~ordered["correct"].to_numpy().astype(bool), unit_rows(feature_matrix(ordered))


def _surface(recipe: Recipe, rows: pl.DataFrame) -> np.ndarray:
    texts = [words_of(f"{p} {r}") for p, r in rows.select("prompt", "response").iter_rows()]
    return surface_features(texts, recipe.proxy.feature_dimensions, recipe.seed)


def _choose(
    lake: Lake,
    recipe: Recipe,
    refs: dict[str, Ref],
    round: int,
    phase: str,
    replicate: int,
    arms: dict[str, str],
    first: bool,
) -> dict[str, list[str]]:
    known = universe(recipe, round, phase, replicate, kept_rows(lake, refs["pool"], 0))
    wrong, gradient = _facts_of(lake, refs["scores"], known)
    vectors = embeddings(lake, refs.get("vectors"))
    embedding = np.stack([vectors[i] for i in known["row_id"]]) if vectors else None
    surface = _surface(recipe, known) if "surface_logdet" in arms.values() else None
    facts = Facts(wrong, gradient, surface, embedding)
    tokens = tokens_of(recipe, known)
    strata = strata_of(known["label"].to_list())
    n = budget_rows(recipe, tokens, share_of(recipe, phase))
    everything = np.arange(len(known))
    sets = _compose(recipe, arms, facts, strata, tokens, n, everything, everything, (round, phase, replicate))
    out = {arm: known["row_id"].gather(at).to_list() for arm, at in sets.items()}
    if "previous" in arms and first:  # the first base's rule is stratified random: one draw serves both
        out["previous"] = out["random"]
    elif "previous" in arms:
        base = lake.read(refs["base"], "rows").sort("row_id")
        out["previous"] = base_of(recipe, round, phase, replicate, known, base, first)["row_id"].to_list()
    return out


def _grow(
    lake: Lake,
    recipe: Recipe,
    refs: dict[str, Ref],
    round: int,
    phase: str,
    replicate: int,
    arms: dict[str, str],
    first: bool,
) -> dict[str, list[str]]:
    base = (
        lake.read(refs["base"], "rows").filter(pl.col("world") == world_of(recipe, replicate)).sort("row_id")
    )
    kept = base_of(
        recipe, round, phase, replicate, universe(recipe, round, phase, replicate, base), base, first
    )
    drawn = lake.read(refs["new"], "selections").filter(pl.col("replicate") == replicate).sort("rank")
    found = (
        lake.scan(refs["new"], "rows").join(drawn.lazy().select("row_id"), on="row_id", how="semi").collect()
    )
    candidates = drawn.select("row_id").join(
        found.unique("row_id", keep="first"), on="row_id", how="left", maintain_order="left"
    )
    wrong, gradient = _facts_of(lake, refs["new"], candidates)
    _, given = _facts_of(lake, refs["scores"], kept)
    both = (
        [_surface(recipe, rows) for rows in (candidates, kept)]
        if "surface_logdet" in arms.values()
        else [None, None]
    )
    facts = Facts(wrong, gradient, both[0], None, given, both[1])
    tokens = tokens_of(recipe, candidates)
    untargeted = np.flatnonzero((drawn["arm"] == "untargeted").to_numpy())
    n = round_half(recipe.budget.added_rows * share_of(recipe, phase))
    strata = strata_of(candidates["label"].to_list())
    sets = _compose(
        recipe,
        arms,
        facts,
        strata,
        tokens,
        n,
        np.arange(len(candidates)),
        untargeted,
        (round, phase, replicate),
    )
    before = kept["row_id"].to_list()
    out = {"previous": before} if "previous" in arms else {}
    return out | {arm: before + candidates["row_id"].gather(at).to_list() for arm, at in sets.items()}


def _compose(
    recipe: Recipe,
    arms: dict[str, str],
    facts: Facts,
    strata: np.ndarray,
    tokens: np.ndarray,
    n: int,
    everything: np.ndarray,
    plain: np.ndarray,
    purpose: tuple,
) -> dict[str, np.ndarray]:
    """Row numbers of every arm but `previous`: strategies draw from everything, controls from the plain rows.

    All arms have n rows and the tokens of n average plain rows.
    """
    target = n * float(tokens[plain].mean())
    out: dict[str, np.ndarray] = {}
    for arm, strategy in arms.items():
        if arm == "previous":
            continue
        open_to = plain if arm in CONTROLS else everything
        if strategy == "length_matched":
            out[arm] = length_matched(out["candidate"], open_to, strata, tokens, recipe.seed, *purpose)
        else:
            at = choose_rows(
                strategy,
                facts.take(open_to),
                strata[open_to],
                tokens[open_to],
                n,
                target,
                recipe.seed,
                arm,
                *purpose,
            )
            out[arm] = open_to[at]
    return out
