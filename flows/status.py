"""What a run found, as plain data: the same facts for `gradus status --json`, the terminal and the report."""

from __future__ import annotations

import os
import platform
from typing import Any

import polars as pl

from curation.errors import UserError
from curation.evaluate.summarise import by_model, with_means
from curation.rows import DIVERSITY
from storage.artifacts import Lake, Ref


def find_run(lake: Lake, run_id: str | None = None) -> dict[str, Any]:
    """The record of a run: the named one (a beginning is enough), or the newest."""
    runs = lake.runs()
    if not runs:
        raise UserError(f"no run in {lake.address} yet; start one: gradus demo, or gradus run RECIPE")
    if run_id is None:
        return runs[-1]
    found = [r for r in runs if r["run"].startswith(run_id)]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} runs begin with {run_id!r}; runs: {', '.join(r['run'] for r in runs[-8:])}"
        )
    return found[0]


def steps_of(
    record: dict[str, Any], stage: str, round: int | None = None, phase: str | None = None
) -> list[Ref]:
    """The artifacts that a stage made or found in this run, in order."""
    return [
        Ref.parse(s["artifact"])
        for s in record["steps"]
        if s["stage"] == stage and round in (None, s["round"]) and phase in (None, s["phase"])
    ]


def status(lake: Lake, record: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run: accounting, rounds (arms, comparisons, decision), sealed, published, seconds."""
    rounds = sorted({s["round"] for s in record["steps"] if s["stage"] == "decide"})
    return {
        "run": {
            "id": record["run"],
            "recipe": record["recipe"],
            "state": state_of(record),
            "started": record["started"],
            "seconds": record["seconds"],
            "endpoint": record["recipe_spec"]["decide"]["endpoint"],
            "error": record.get("error"),
            "stop_reason": record.get("stop_reason"),
        },
        "accounting": accounting(lake, record),
        "rounds": [round_facts(lake, record, r) for r in rounds],
        "sealed": sealed_facts(lake, record),
        "sealed_note": record.get("sealed_note"),
        "published": published(lake, record),
        "seconds": seconds(lake, record),
    }


def state_of(record: dict[str, Any]) -> str:
    """The run's state; `killed` when it says running and its process, of this machine, is gone."""
    if record["state"] == "running" and record.get("host") == platform.node():
        try:
            os.kill(record["pid"], 0)
        except ProcessLookupError:
            return "killed"
        except PermissionError:
            pass  # it is there, another user's
    return record["state"]


def accounting(lake: Lake, record: dict[str, Any]) -> dict[str, int] | None:
    """Records read, rows kept, and all that was dropped (copies and unparsable records included)."""
    found = steps_of(record, "ingest")
    if not found:
        return None
    records = lake.read(found[-1], "records", ["row_id", "reason"])
    drops = lake.read(found[-1], "ledger").filter(pl.col("decision") == "drop", pl.col("stage") == "ingest")
    rows = records.filter(pl.col("reason").is_null())
    kept = len(rows.join(drops, on="row_id", how="anti"))
    return {"rows_read": len(records), "rows_kept": kept, "rows_dropped": len(records) - kept}


def _models(lake: Lake, record: dict[str, Any], round: int, phase: str) -> pl.DataFrame:
    parts = [lake.read(r, "models") for r in steps_of(record, "train", round, phase)]
    if record["recipe_spec"]["worlds"]:
        parts += [lake.read(r, "models") for r in steps_of(record, "score", round)]
    return pl.concat(parts)


def arm_summary(lake: Lake, record: dict[str, Any], round: int, phase: str = "confirm") -> pl.DataFrame:
    """Accuracy in points by arm, replicate and suite, with `ood_mean` and `id_mean`; phase confirm, screen or sealed."""
    outcomes = pl.concat([lake.read(r, "outcomes") for r in steps_of(record, "evaluate", round, phase)])
    items = lake.read(steps_of(record, "ingest")[-1], "suite_items")
    use = {"confirm": "judge", "screen": "steer", "sealed": "sealed"}[phase]
    models = _models(lake, record, round, "confirm" if phase == "sealed" else phase)
    return with_means(by_model(outcomes, models, items.filter(pl.col("use") == use)))


def arms_of(summary: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """arm -> mean ID and OOD accuracy (and probability of the right answer) in points over its n replicates."""
    out: dict[str, dict[str, Any]] = {}
    for arm in summary["arm"].unique(maintain_order=True).sort():
        lines = summary.filter(pl.col("arm") == arm)
        figures: dict[str, Any] = {}
        for name, suite in (("id", "id_mean"), ("ood", "ood_mean")):
            values = lines.filter(pl.col("suite") == suite)["accuracy"]
            figures[name] = _points(values.mean()) if len(values) else None
            sure = lines.filter(pl.col("suite") == suite)["p_correct"]
            figures[f"{name}_p_correct"] = _points(sure.mean()) if len(sure) else None
        out[arm] = figures | {"n": lines["replicate"].n_unique()}
    order = ["previous", "candidate", "untargeted", "random", "length_matched"]
    return dict(
        sorted(out.items(), key=lambda kv: (order.index(kv[0]) if kv[0] in order else len(order), kv[0]))
    )


def _points(value: Any) -> float | None:
    return None if value is None or value != value else float(f"{value:.3f}")


def comparison_lines(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The `comparisons` table as plain lines; differences and limits in points."""
    return [
        {
            "phase": c["phase"],
            "arm": c["arm"],
            "control": c["control"],
            "suite": c["suite"],
            "metric": c["metric"],
            "diff": _points(c["difference"]),
            "low": _points(c["low"]),
            "high": _points(c["high"]),
            "p": c["p"],
            "n": c["n"],
            "detectable": _points(c["detectable"]),
        }
        for c in frame.rows(named=True)
    ]


def round_facts(lake: Lake, record: dict[str, Any], round: int) -> dict[str, Any]:
    """One round: arms, comparisons (screen and confirm), decision, reason and the alpha it spent."""
    verdict = steps_of(record, "decide", round)[-1]
    decision = lake.read(verdict, "decisions").row(0, named=True)
    frames = [lake.read(r, "comparisons") for r in (*steps_of(record, "screen", round), verdict)]
    return {
        "round": round,
        "arms": arms_of(arm_summary(lake, record, round)),
        "comparisons": [line for frame in frames for line in comparison_lines(frame)],
        "strategy": decision["strategy"],
        "decision": decision["decision"],
        "reason": decision["reason"],
        "alpha": decision["alpha"],
        "p": decision["p"],
    }


def sealed_facts(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """The sealed suites with the last round's models: arms and comparisons; None when none was opened."""
    found = steps_of(record, "sealed")
    if not found:
        return None
    last = max(s["round"] for s in record["steps"] if s["stage"] == "sealed")
    return {
        "arms": arms_of(arm_summary(lake, record, last, "sealed")),
        "round": last,
        "comparisons": comparison_lines(lake.read(found[-1], "comparisons")),
    }


def published(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """The dataset version that this run ended with."""
    version = record.get("version")
    return None if version is None else {"name": record["recipe"], "version": version}


def seconds(lake: Lake, record: dict[str, Any]) -> dict[str, float]:
    """Seconds of each stage in this run; a stage that was only found again costs none."""
    out: dict[str, float] = {}
    for cost in lake.costs(record["run"]):
        out[cost["stage"]] = float(
            f"{out.get(cost['stage'], 0.0) + (0 if cost['reused'] else cost['seconds']):.2f}"
        )
    return out


def diversity(lake: Lake, record: dict[str, Any]) -> pl.DataFrame:
    """What the auditors saw: diversity and coverage of the arms' sets, by round."""
    parts = [lake.read(r, "diversity") for r in steps_of(record, "audit")]
    return pl.concat(parts) if parts else DIVERSITY.to_frame()
