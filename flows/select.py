"""Stage select: the rows of every arm, in every replicate, at equal budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from curation.decoder import words_of
from curation.logdet import unit_rows
from curation.proxies import token_counts
from curation.rows import SELECTIONS
from curation.select.compose import choose_rows, length_matched, strata_of
from curation.specs import Recipe
from curation.strategies import Facts, surface_features
from flows.base import budget_rows, budget_spec, cut_to_budget
from flows.data import embeddings, feature_matrix, kept_rows, subsample
from flows.run import Run
from storage.artifacts import Draft, Lake, Ref
from storage.shards import write_shard

VERSION = "select_v1"
CONTROLS = ("random", "untargeted", "length_matched")


def select(run: Run, round: int, phase: str, arms: dict[str, str], replicates: list[int], pool: Ref, base: Ref, scores: Ref, new: Ref | None, vectors: Ref | None, first: bool) -> Ref:
    """Composes `arms` (name -> strategy) for some replicates of a phase: screen, confirm or full.

    Reads: features, candidates, base rows. Writes: selections. Costs: greedy log-det, O(n d) a pick.
    Safe to rerun by replicate.
    """
    recipe = run.recipe
    spec = {
        "seed": recipe.seed, "round": round, "phase": phase, "arms": arms, "replicates": replicates, "first": first,
        "budget": budget_spec(recipe), "added_rows": recipe.budget.added_rows, "work": recipe.decide.work,
        "subsample": recipe.decide.subsample, "worlds": recipe.worlds,
    }
    refs = {"pool": pool, "base": base, "scores": scores} | ({"new": new} if new else {}) | ({"vectors": vectors} if vectors else {})
    named = {k: str(v) for k, v in refs.items()}

    def compute(draft: Draft) -> None:
        jobs = {f"replicate-{r:02d}": (str(run.lake.root), recipe, named, round, phase, r, arms, first) for r in replicates}
        run.map_shards(draft, jobs, select_replicate, f"select {phase}")

    return run.stage("select", VERSION, spec, list(refs.values()), compute, round, phase)


def select_replicate(work: Path, key: str, root: str, recipe: Recipe, refs: dict[str, str], round: int, phase: str, replicate: int, arms: dict[str, str], first: bool) -> None:
    """Worker: all arms of one replicate."""
    lake = Lake(root, create=False)
    compose = _grow if recipe.decide.work == "grow" else _choose
    sets = compose(lake, recipe, {k: Ref.parse(v) for k, v in refs.items()}, round, phase, replicate, arms, first)
    parts = [
        pl.DataFrame(
            {"row_id": ids, "round": [round] * len(ids), "phase": [phase] * len(ids), "arm": [arm] * len(ids),
             "replicate": [replicate] * len(ids), "rank": list(range(len(ids)))}, schema=SELECTIONS)
        for arm, ids in sets.items()
    ]
    write_shard(work, key, {"selections": pl.concat(parts)})


def _universe(recipe: Recipe, phase: str, replicate: int, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that this replicate may know: all in a world or in the full phase, else a subsample."""
    if recipe.worlds or phase == "full":
        return rows
    return rows[subsample(recipe, phase, replicate, rows["row_id"].to_list()).tolist()]


def _share(recipe: Recipe, phase: str) -> float:
    return 1.0 if recipe.worlds or phase == "full" else recipe.decide.subsample


def _previous(recipe: Recipe, phase: str, replicate: int, universe: pl.DataFrame, base: pl.DataFrame, first: bool) -> pl.DataFrame:
    """The base of a replicate: the first base's rule redrawn on the subsample, later bases cut by it."""
    if recipe.worlds or phase == "full":
        return base
    if first:
        return cut_to_budget(recipe, universe, phase, replicate, share=recipe.decide.subsample)
    return base.join(universe.select("row_id"), on="row_id", how="semi", maintain_order="left")


def _facts_of(lake: Lake, ref: Ref, rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(wrong, unit gradient features) of these rows, in their order."""
    features = lake.scan(ref, "features").join(rows.lazy().select("row_id"), on="row_id", how="semi").collect()
    ordered = rows.select("row_id").join(features, on="row_id", how="left", maintain_order="left")
    return ~ordered["correct"].to_numpy().astype(bool), unit_rows(feature_matrix(ordered))


def _surface(recipe: Recipe, rows: pl.DataFrame) -> np.ndarray:
    texts = [words_of(f"{p} {r}") for p, r in rows.select("prompt", "response").iter_rows()]
    return surface_features(texts, recipe.proxy.feature_dimensions, recipe.seed)


def _choose(lake: Lake, recipe: Recipe, refs: dict[str, Ref], round: int, phase: str, replicate: int, arms: dict[str, str], first: bool) -> dict[str, list[str]]:
    pool = kept_rows(lake, refs["pool"], 0)
    universe = _universe(recipe, phase, replicate, pool)
    wrong, gradient = _facts_of(lake, refs["scores"], universe)
    vectors = embeddings(lake, refs.get("vectors"))
    embedding = np.stack([vectors[i] for i in universe["row_id"]]) if vectors else None
    surface = _surface(recipe, universe) if "surface_logdet" in arms.values() else None
    facts = Facts(wrong, gradient, surface, embedding)
    tokens = token_counts(recipe.proxy, universe)
    strata = strata_of(universe["label"].to_list())
    share = _share(recipe, phase)
    n = budget_rows(recipe, tokens, share)
    target = n * float(tokens.mean())
    chosen: dict[str, np.ndarray] = {}
    out: dict[str, list[str]] = {}
    for arm, strategy in arms.items():
        if arm == "previous":
            base = lake.read(refs["base"], "rows").sort("row_id")
            out[arm] = _previous(recipe, phase, replicate, universe, base, first)["row_id"].to_list()
            continue
        if strategy == "length_matched":
            chosen[arm] = length_matched(chosen["candidate"], np.arange(len(universe)), strata, tokens, recipe.seed, round, phase, replicate)
        else:
            chosen[arm] = choose_rows(strategy, facts, strata, tokens, n, target, recipe.seed, arm, round, phase, replicate)
        out[arm] = universe["row_id"].gather(chosen[arm]).to_list()
    return out


def _grow(lake: Lake, recipe: Recipe, refs: dict[str, Ref], round: int, phase: str, replicate: int, arms: dict[str, str], first: bool) -> dict[str, list[str]]:
    world = replicate if recipe.worlds else 0
    base = lake.read(refs["base"], "rows").filter(pl.col("world") == world).sort("row_id")
    universe = _universe(recipe, phase, replicate, base)
    kept = _previous(recipe, phase, replicate, universe, base, first)
    candidates = lake.read(refs["new"], "rows").filter(pl.col("world") == world)
    dropped = lake.read(refs["new"], "ledger").select("row_id")
    candidates = candidates.join(dropped, on="row_id", how="anti", maintain_order="left")
    candidates = _descendants(candidates, universe)
    wrong, gradient = _facts_of(lake, refs["new"], candidates)
    _, given = _facts_of(lake, refs["scores"], kept)
    need_surface = "surface_logdet" in arms.values()
    facts = Facts(
        wrong, gradient, _surface(recipe, candidates) if need_surface else None, None,
        given, _surface(recipe, kept) if need_surface else None,
    )
    tokens = token_counts(recipe.proxy, candidates)
    strata = strata_of(candidates["label"].to_list())
    plain = candidates["meta"].str.json_path_match("$.plan").eq("untargeted").to_numpy()
    n = min(round_half(recipe.budget.added_rows * _share(recipe, phase)), int(plain.sum()))
    target = n * float(tokens[plain].mean())
    out: dict[str, list[str]] = {}
    chosen: dict[str, np.ndarray] = {}
    for arm, strategy in arms.items():
        if arm == "previous":
            out[arm] = kept["row_id"].to_list()
            continue
        open_to = np.flatnonzero(plain) if arm in CONTROLS else np.arange(len(candidates))
        if strategy == "length_matched":
            chosen[arm] = length_matched(chosen["candidate"], open_to, strata, tokens, recipe.seed, round, phase, replicate)
        else:
            at = choose_rows(strategy, facts.take(open_to), strata[open_to], tokens[open_to], n, target, recipe.seed, arm, round, phase, replicate)
            chosen[arm] = open_to[at]
        out[arm] = kept["row_id"].to_list() + candidates["row_id"].gather(chosen[arm]).to_list()
    return out


def _descendants(candidates: pl.DataFrame, universe: pl.DataFrame) -> pl.DataFrame:
    """Candidates whose parents the replicate knows."""
    known = set(universe["row_id"])
    keep = [known.issuperset(parents) for parents in candidates["parents"].to_list()]
    return candidates.filter(pl.Series(keep, dtype=pl.Boolean))


def round_half(value: float) -> int:
    """The nearest whole number of rows, at least 1."""
    return max(1, int(value + 0.5))
