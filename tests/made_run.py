"""A run made by hand in a lake, part by part, for tests of what is shown of runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.rows import (
    COMPARISONS,
    DECISIONS,
    DIVERSITY,
    LEDGER,
    MODELS,
    OUTCOMES,
    RECORDS,
    REGION_TABLE,
    REGIONS,
    ROWS,
    SELECTIONS,
    SUITE_ITEMS,
    features_schema,
)
from storage.artifacts import Lake

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}&lt;\x1b[31m\u202e</title></svg>"
SECRET = "the sealed answer is forty-two"
D, REPLICATES = 16, 6


def table(schema: pl.Schema, rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def row(i: int, prompt: str, **more: Any) -> dict[str, Any]:
    return {"row_id": f"r{i:03d}", "world": 0, "source": "s0", "split": "train", "prompt": prompt, "response": f"answer {i}",
            "label": "", "origin": "real", "parents": [], "n_chars": 30 + i, "meta": "{}", **more}  # fmt: skip


def feature_rows(ids: list[str], proxy: str) -> pl.DataFrame:
    values = np.random.Generator(np.random.Philox(1)).standard_normal((len(ids), D)).astype(np.float16)
    return pl.DataFrame(
        {"row_id": ids, "proxy": [proxy] * len(ids), "feature": pl.Series(values, dtype=pl.Array(pl.Float16, D)),
         "norm": np.arange(1.0, len(ids) + 1), "nll": np.linspace(0.1, 2, len(ids)), "el2n": [0.5] * len(ids),
         "correct": [i % 2 == 0 for i in range(len(ids))], "n_tokens": [4] * len(ids)},
        schema=features_schema(D),
    )  # fmt: skip


class Maker:
    """A run made by hand: publishes artifacts and notes them as the loop does; `texts` are dealt to all free text."""

    def __init__(
        self,
        folder: Path,
        work: str = "grow",
        sealed: bool = True,
        n: int = 24,
        texts: Sequence[str] = (EVIL,),
    ) -> None:
        self.lake, self.steps, self.work, self.n = Lake(folder), [], work, n
        self.texts = cycle(texts)
        self.arms = ["previous", "candidate", "untargeted" if work == "grow" else "random"]
        self.arms += [] if work == "grow" else ["length_matched"]
        self.suites = [("id", "id", "judge"), ("rare", "ood", "judge")]
        self.suites += [("vault", "ood", "sealed")] if sealed else []
        self.ids = [f"r{i:03d}" for i in range(n)]

    def put(
        self, stage: str, tables: dict[str, pl.DataFrame], round: int = 0, phase: str = "", **files: Any
    ) -> str:
        fp = f"{len(self.steps):012x}"
        with self.lake.draft(stage, "tiny", fp, {"spec": {}, "code_version": "1", "parents": []}) as draft:
            draft.write_shard("all", tables, {k.replace("_json", ".json"): v for k, v in files.items()})
            ref = str(draft.publish())
        self.steps.append({"stage": stage, "round": round, "phase": phase, "artifact": ref, "reused": False})
        self.lake.add_cost("run1", {"stage": stage, "round": round, "phase": phase, "artifact": ref, "reused": False,
                                    "seconds": 1.5, "peak_memory_mb": 100.0})  # fmt: skip
        return ref

    def record(self, **more: Any) -> dict[str, Any]:
        suites = [{"name": name, "use": use} for name, _, use in self.suites]
        decide = {
            "endpoint": "accuracy",
            "fixed_strategy": None,
            "work": self.work,
            "smallest_gain_points": 2.0,
        }
        spec = {"worlds": None, "suite": suites, "decide": decide}
        return {"run": "run1", "recipe": "tiny", "state": "completed", "started": "2026-01-02T03:04:05+00:00",
                "seconds": 61.0, "steps": self.steps, "recipe_spec": spec, **more}  # fmt: skip

    def row(self, i: int, **more: Any) -> dict[str, Any]:
        texts = {
            "prompt": f"{i} {next(self.texts)}",
            "response": f"{i} {next(self.texts)}",
            "label": next(self.texts),
        }
        return row(i, **texts, source=f"s{i % 2}{EVIL}", **more)

    def ingest(self) -> None:
        rows = [self.row(i) for i in range(self.n)] + [row(990, SECRET), row(991, SECRET + "!")]
        records = [
            {"source": r["source"], "file": next(self.texts), "position": i, "row_id": r["row_id"]}
            for i, r in enumerate(rows)
        ]
        records += [{**records[0], "reason": "exact_copy"}, {**records[-2], "reason": "exact_copy"}]
        records += [{"source": next(self.texts), "file": "f", "position": 9, "reason": "unparsable"}]
        drops = [("r990", "held_out:vault", None), ("r991", "contaminated_near", "sealed:abc")]
        drops += [(i, next(self.texts), "r002") for i in self.ids[1 : self.n // 2]]
        ledger = [{"row_id": i, "stage": "ingest", "round": 0, "decision": "drop", "reason": why, "twin": twin}
                  for i, why, twin in drops]  # fmt: skip
        ledger += [
            {"row_id": "r002", "stage": "score", "round": 1, "decision": "flag", "reason": next(self.texts)}
        ]
        items = [{"suite": s, "suite_hash": s, "distribution": d, "use": u, "world": 0, "round": 0, "item_id": f"{s}{k}",
                  "prompt": "hidden item", "response": "x"} for s, d, u in self.suites for k in range(4)]  # fmt: skip
        self.put("ingest", {"records": table(RECORDS, records), "rows": table(ROWS, rows),
                            "ledger": table(LEDGER, ledger), "suite_items": table(SUITE_ITEMS, items)})  # fmt: skip
        base = table(ROWS, rows[: self.n])
        ref = self.put("base", {"rows": base})
        self.lake.publish_dataset("tiny", base, next(self.texts), None, "base", ref, 9, "base/tiny@0")

    def score(
        self, round: int = 1, numbers: Sequence[int] = (0, 1, 2), carried: Sequence[float | None] = ()
    ) -> None:
        regions = [{"row_id": i, "proxy": "p", "scale": scale, "region": numbers[k % len(numbers)], "distance": 0.1}
                   for scale in ("coarse", "fine") for k, i in enumerate(self.ids)]  # fmt: skip
        named = [{"proxy": "p", "scale": "coarse", "region": r, "carried": dict(enumerate(carried)).get(k), "size": 8,
                  "share": 0.3, "density": 0.5, "steer_error": None if k else 0.5, "mean_nll": 1.0, "x": 0.1 * k, "y": 0.0,
                  "thin": k < 2 or k % 2 == 0, "terms": next(self.texts), "exemplars": [self.ids[1], "gone"]}
                 for k, r in enumerate(numbers)]  # fmt: skip
        model = {"model": "p", "kind": "scorer", "round": round, "arm": "previous", "replicate": 0}
        self.put("score", {"features": feature_rows(self.ids, "p"), "regions": table(REGIONS, regions),
                           "region_table": table(REGION_TABLE, named), "models": table(MODELS, [model])}, round)  # fmt: skip

    def compose(self, round: int = 1) -> None:
        made = [
            self.row(
                800 + k,
                origin="synthetic",
                parents=[self.ids[k]],
                meta=json.dumps({"plan": next(self.texts)}),
            )
            for k in range(5)
        ]
        own = self.ids[:10]
        if self.work == "grow":
            counts = {
                "candidates": 5,
                "drawn": {"targeted_exists": 3, **{next(self.texts): 1 for _ in range(20)}},
            }
            features = feature_rows([m["row_id"] for m in made], "p")
            tables = {"rows": table(ROWS, made), "features": features}
            self.put("synthesize", tables, round, "confirm", counts_json=json.dumps(counts).encode())
            # what a corpus without worlds publishes is made once more, from the full pool
            full = [{**m, "row_id": m["row_id"] + "full"} for m in made[:1]]
            self.put(
                "synthesize",
                {"rows": table(ROWS, full), "features": features},
                round,
                "full",
                counts_json=b"{}",
            )
            own = [m["row_id"] for m in made]
        sets = [{"row_id": i, "round": round, "phase": "confirm", "arm": arm, "replicate": r, "rank": k}
                for r in range(2) for arm in self.arms
                for k, i in enumerate((own if arm == "candidate" else []) + self.ids[:5])]  # fmt: skip
        self.put("select", {"selections": table(SELECTIONS, sets)}, round, "confirm")

    def confirm(
        self, decision: str = "publish", round: int = 1, screened: bool = False, tested: bool = True
    ) -> None:
        models = [{"model": f"{round}/{a}/{r}", "kind": "compared", "round": round, "phase": "confirm", "arm": a,
                   "replicate": r} for a in self.arms for r in range(REPLICATES)]  # fmt: skip
        self.trained = self.put("train", {"models": table(MODELS, models)}, round, "confirm")
        for use, phase in (("judge", "confirm"), ("sealed", "sealed")):
            seen = [{"model": m["model"], "suite": s, "item_id": f"{s}{k}", "p_correct": 0.5, "nll": 1.0,
                     "correct": (k + m["replicate"] + (m["arm"] == "candidate")) % 3 > 0}
                    for m in models for s, _, u in self.suites if u == use for k in range(4)]  # fmt: skip
            if seen:
                self.put("evaluate", {"outcomes": table(OUTCOMES, seen)}, round, phase)
        compared = [
            self.comparison(a, s)
            for a in self.arms
            if a != "candidate"
            for s in ("rare", "ood_mean", "id_mean")
        ]
        free = {k: next(self.texts) for k in ("suite", "control", "metric", "arm")}
        compared += [self.comparison("previous", "rare") | free]
        if screened:
            lines = [
                {**self.comparison("random", "ood_mean"), "phase": "screen", "arm": next(self.texts)}
                for _ in range(9)
            ]
            self.put("screen", {"comparisons": table(COMPARISONS, lines)}, round, "screen")
        diversity = [{"round": round, "subset": a, "metric": m, "value": 3.0, "n": 9} for a in self.arms
                     for m in ("g_vendi", "ceiling", "g_vendi_q2", "m_coherence", "regions_covered")]  # fmt: skip
        self.put("audit", {"diversity": table(DIVERSITY, diversity)}, round)
        told = {"dataset": "tiny", "round": round, "decision": decision, "reason": f"WHY; {next(self.texts)}; {next(self.texts)}", "strategy": next(self.texts),
                "alpha": 2 / 64 if tested else 0.0, "p": 0.01 if tested else None, "evidence": "{}"}  # fmt: skip
        self.put(
            "decide",
            {"comparisons": table(COMPARISONS, compared), "decisions": table(DECISIONS, [told])},
            round,
            "confirm",
        )

    def comparison(self, control: str, suite: str) -> dict[str, Any]:
        gain = 2.5 + 0.37 * len(control) - 0.11 * len(suite)
        return {"round": 1, "phase": "confirm", "arm": "candidate", "control": control, "suite": suite, "n": REPLICATES,
                "metric": "accuracy", "difference": gain, "low": gain - 2, "high": gain + 2.4, "p": 0.01, "detectable": 3.0}  # fmt: skip

    def sealed(self, round: int = 1) -> None:
        lines = [self.comparison(a, "ood_mean") for a in self.arms if a != "candidate"]
        self.put("sealed", {"comparisons": table(COMPARISONS, lines)}, round, "sealed")
        self.lake.open_sealed("tiny", "vault", self.trained)

    def whole(self) -> Maker:
        """All stages of one round."""
        self.ingest()
        self.score()
        self.compose()
        self.confirm(screened=self.work == "choose")
        return self
