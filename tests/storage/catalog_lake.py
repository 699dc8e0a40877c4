"""A small lake as a run leaves it: two versions of `tickets`, made by the run `r1` in one round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from lakes import features, frame, ingested, rows

from curation.rows import (
    COMPARISONS,
    DECISIONS,
    DIVERSITY,
    MODELS,
    OUTCOMES,
    REGION_TABLE,
    REGIONS,
    ROWS,
    SCORES,
    SELECTIONS,
    SUITE_ITEMS,
)
from storage.artifacts import Lake

IDS = rows(4)["row_id"].to_list()
MADE = ["synthetic-00000", "synthetic-00001"]


def base_rows() -> pl.DataFrame:
    return rows(4).with_columns(world=pl.lit(0, pl.Int32), parents=pl.lit([], pl.List(pl.String)))


def made_rows() -> pl.DataFrame:
    more = {
        "world": 0,
        "source": "synthetic",
        "origin": "synthetic",
        "split": "train",
        "prompt": "q",
        "n_chars": 2,
    }
    lines = [{**more, "row_id": i, "response": f"a{n}", "parents": [IDS[n]]} for n, i in enumerate(MADE)]
    return frame(ROWS, lines)


def publish(lake: Lake, kind: str, fp: str, tables: dict[str, pl.DataFrame]) -> str:
    with lake.draft(kind, "tickets", fp * 12, {"stage": kind, "spec": {"n": 1}}) as draft:
        draft.write_shard("all", tables)
        return str(draft.publish())


def score_tables(proxy: str = "scorer/0") -> dict[str, pl.DataFrame]:
    near = [
        {"row_id": i, "proxy": proxy, "scale": "coarse", "region": n % 2, "distance": 0.1}
        for n, i in enumerate(IDS)
    ]
    regions = [
        {"proxy": proxy, "scale": "coarse", "region": r, "size": 2, "share": 0.5, "density": 0.3 + r / 10,
         "thin": r == 0, "terms": "pay refund", "exemplars": IDS[:1]}
        for r in (0, 1)
    ]  # fmt: skip
    scores = [{"row_id": i, "proxy": proxy, "scorer": "nll_v1", "value": 0.5} for i in IDS]
    return {
        "features": features(4), "embeddings": features(4), "scores": frame(SCORES, scores),
        "regions": frame(REGIONS, near), "region_table": frame(REGION_TABLE, regions),
        "diversity": frame(DIVERSITY, [{"round": 1, "world": 0, "proxy": proxy, "role": "scorer", "subset": "base",
                                        "metric": "g_vendi", "value": 3.2, "n": 4}]),
    }  # fmt: skip


def trained_tables(base: str) -> dict[str, dict[str, pl.DataFrame]]:
    places = [("confirm", arm, r) for arm in ("previous", "candidate", "untargeted") for r in (0, 1)]
    ids = {"previous": IDS, "candidate": IDS + MADE, "untargeted": IDS + MADE[::-1]}
    chosen = [
        {"row_id": i, "round": 1, "phase": phase, "arm": arm, "replicate": r, "rank": n}
        for phase, arm, r in places
        for n, i in enumerate(ids[arm])
    ]
    models = [
        {"model": f"{arm}/{r}", "kind": "compared", "round": 1, "phase": phase, "arm": arm, "replicate": r,
         "base": base, "rows": len(ids[arm]), "steps": 9, "tokens": 99, "seed": r}
        for phase, arm, r in places
    ]  # fmt: skip
    models.append({**models[0], "model": "scorer/0", "kind": "scorer"})
    outcomes = [
        {
            "model": m["model"],
            "suite": "new",
            "item_id": f"i{n}",
            "correct": n < 2,
            "p_correct": 0.5,
            "nll": 0.7,
        }
        for m in models
        for n in range(3)
    ]
    line: dict[str, Any] = {"round": 1, "phase": "confirm", "suite": "ood_mean", "metric": "accuracy", "n": 2}
    compared = [
        {**line, "arm": "candidate", "control": "untargeted", "difference": 4.5, "low": 1.25, "high": 7.75},
        {**line, "arm": "candidate", "control": "previous", "difference": 9.0, "low": 6.0, "high": 12.0},
    ]
    decided = {
        "dataset": "tickets",
        "round": 1,
        "decision": "publish",
        "reason": "+4.5",
        "strategy": "logdet",
    }
    return {
        "select": {"selections": frame(SELECTIONS, chosen)},
        "train": {"models": frame(MODELS, models)},
        "evaluate": {"outcomes": frame(OUTCOMES, outcomes)},
        "decide": {"comparisons": frame(COMPARISONS, compared), "decisions": frame(DECISIONS, [decided])},
    }


def make_lake(root: Path) -> Lake:
    """The lake; the ingest tables are those of `lakes.ingested`, under the name of the run `r1`."""
    lake, steps = Lake(root), []

    def step(stage: str, round: int, fp: str, tables: dict[str, pl.DataFrame]) -> str:
        ref = publish(lake, stage, fp, tables)
        steps.append({"stage": stage, "round": round, "phase": "confirm", "artifact": ref, "reused": False})
        return ref

    item = {
        "suite": "new",
        "suite_hash": "h",
        "distribution": "ood",
        "use": "judge",
        "item_id": "i0",
        "prompt": "?",
    }
    pool = step("ingest", 0, "1", {**ingested(), "suite_items": frame(SUITE_ITEMS, [item])})
    base = step("base", 0, "2", {"rows": base_rows()})
    lake.publish_dataset("tickets", base_rows(), "base", None, "base", pool, 40, "one")
    step("score", 1, "3", score_tables())
    step("synthesize", 1, "4", {"rows": made_rows()})
    trained = {
        kind: step(kind, 1, fp, tables)
        for fp, (kind, tables) in zip("5678", trained_tables(base).items(), strict=True)
    }
    won = pl.concat([base_rows(), made_rows()])
    step("base", 1, "9", {"rows": won})
    lake.publish_dataset("tickets", won, "logdet", 1, "publish", trained["decide"], 50, "two")
    lake.spend_alpha("tickets", "new", 0, 1, 0.05, "k")
    lake.open_sealed("tickets", "h", "k")
    lake.add_cost("r1", {"stage": "score", "round": 1, "seconds": 2.5})
    last = {s["stage"]: s["artifact"] for s in steps}
    lake.save_run(
        "r1", {"recipe": "tickets", "started": "1", "state": "completed", "artifacts": last, "steps": steps}
    )
    return lake
