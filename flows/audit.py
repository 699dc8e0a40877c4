"""Stage audit: diversity and coverage of the arms' sets, seen by a proxy that did not pick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from curation.clusters import spherical_kmeans
from curation.logdet import unit_rows
from curation.proxies import encode
from curation.randomness import key_of
from curation.rows import DIVERSITY
from curation.score.diversity import diversity
from curation.score.gradients import row_gradients, sketch_of
from curation.specs import Recipe
from curation.train.fit import fit
from flows.data import embeddings, reader_for
from flows.pretrained import pinned, proxy_spec
from flows.run import Run
from flows.score import rows_of
from flows.scorers import diversity_frame
from storage.artifacts import Draft, Lake, Ref
from storage.shards import write_shard

VERSION = "audit_v1"


def audit(
    run: Run,
    round: int,
    pool: Ref,
    base: Ref,
    scores: Ref,
    sets: Ref,
    new: Ref | None,
    vectors: Ref | None,
    arms: list[str],
) -> Ref:
    """Diversity and coverage of the arms' sets, seen by a proxy that did not pick (first replicate).

    Reads: selections, rows. Writes: diversity. Costs: one training, one backward a row. Safe to rerun.
    The auditor is trained on the base with seeds of its own, so its gradients are not those that chose.
    """
    recipe = run.recipe
    spec = {"seed": recipe.seed, "round": round, "proxy": proxy_spec(recipe), "arms": arms}
    inputs = [r for r in (pool, base, sets, new, vectors) if r is not None]

    def compute(draft: Draft) -> None:
        refs = [str(r) for r in (pool, base, new) if r is not None]
        emb = str(vectors) if vectors else None
        job = (run.lake.address, pinned(recipe), round, refs, str(base), str(sets), emb, arms)
        run.map_shards(draft, {"all": job}, audit_sets, "audit")

    return run.stage("audit", VERSION, spec, inputs, compute, round)


def audit_sets(
    work: Path,
    key: str,
    root: str,
    recipe: Recipe,
    round: int,
    refs: list[str],
    base: str,
    sets: str,
    emb: str | None,
    arms: list[str],
) -> None:
    """Worker: the `diversity` of the arms' sets by an auditor."""
    lake = Lake(root, create=False)
    vectors = embeddings(lake, Ref.parse(emb) if emb else None)
    reader = reader_for(lake, recipe, Ref.parse(refs[0]), 0, vectors)
    base_rows = lake.read(Ref.parse(base), "rows").filter(pl.col("world") == 0).sort("row_id")
    seed = key_of(recipe.seed, "auditor", round)
    steps = recipe.proxy.scorer_steps or -(
        -recipe.proxy.steps // 2
    )  # a brief proxy measures as well as a long one
    model = fit(recipe.proxy, reader, encode(reader, base_rows, vectors), seed, steps).model.requires_grad_(
        False
    )
    chosen = lake.read(Ref.parse(sets), "selections")
    chosen = chosen.filter(pl.col("arm").is_in(arms), pl.col("replicate") == chosen["replicate"].min())
    ids = chosen["row_id"].unique().sort().to_list()
    rows = rows_of(lake, refs, ids)
    found = row_gradients(model, encode(reader, rows, vectors), sketch_of(recipe.proxy, seed))
    at = {row: i for i, row in enumerate(ids)}
    members = {arm: [at[i] for i in chosen.filter(pl.col("arm") == arm)["row_id"]] for arm in arms}
    frame = diversity_frame(
        round, 0, "auditor", "auditor", {arm: diversity(found.feature[m]) for arm, m in members.items()}
    )
    _, cluster, _ = spherical_kmeans(unit_rows(found.feature), max(8, len(ids) // 20), seed)
    covered = [
        (round, 0, "auditor", "auditor", arm, "regions_covered", float(len(np.unique(cluster[m]))), len(m))
        for arm, m in members.items()
    ]
    total = [
        (round, 0, "auditor", "auditor", "all", "regions_covered", float(len(np.unique(cluster))), len(ids))
    ]
    lines = pl.DataFrame(covered + total, schema=DIVERSITY, orient="row")
    write_shard(work, key, {"diversity": pl.concat([frame, lines])})
