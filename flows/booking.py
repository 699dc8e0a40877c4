"""What is booked before it is looked at: the level of a test, the opening of a sealed suite, why the loop stops."""

from __future__ import annotations

import json

import polars as pl

from curation.decide.rule import alpha_for
from flows.data import items_of
from flows.run import NotCached, Run
from storage.artifacts import Draft, Ref

VERSION = "stop_v1"


def spend(run: Run, round: int, pool: Ref, models: Ref) -> float:
    """The level of this round's test, booked for ever before any judge item is looked at.

    It depends on the streak of the dataset on these suites, across runs; booked under the models compared, so
    that a killed run, or a changed wording, books nothing twice.
    """
    own = [e["alpha"] for e in run.lake.alpha_spent(run.recipe.name) if e["key"].startswith(str(models))]
    if own:
        return float(own[0])
    run.window.refuse_missing("evaluate", round, "confirm")
    if run.reuse_only:
        raise NotCached("alpha")
    suites = judge_suites(run, pool, round)
    streak, alpha = next_level(run, suites)
    for suite in suites:
        run.lake.spend_alpha(run.recipe.name, suite, streak, round, alpha, f"{models}/{suite}")
    return alpha


def next_level(run: Run, suites: list[str]) -> tuple[int, float]:
    """(streak, alpha) of the dataset's next test: a streak begins anew after each version that won."""
    streak = sum(v["decision"] == "publish" for v in run.lake.dataset_versions(run.recipe.name))
    booked = [e["suite"] for e in run.lake.alpha_spent(run.recipe.name) if e["streak"] == streak]
    return streak, alpha_for(max((booked.count(s) for s in suites), default=0))


def judge_suites(run: Run, pool: Ref, round: int) -> list[str]:
    """The OOD suites that judge, under whose names alpha is booked."""
    items = items_of(run.lake, pool, "judge", round)
    return sorted(items.filter(pl.col("distribution") == "ood")["suite"].unique())


def stop(run: Run, round: int, verdict: Ref, reason: str | None) -> str | None:
    """Why the loop stops after this round, or None; kept, because time does not come back in a later run.

    Reads: nothing. Writes: stop.json. Costs: nothing. Safe to rerun: the first answer stays.
    """
    budget = run.recipe.budget
    spec = {"round": round, "rounds": budget.rounds, "minutes": budget.minutes}

    def compute(draft: Draft) -> None:
        draft.write_shard("all", {}, {"stop.json": json.dumps({"reason": reason}).encode()})

    return json.loads(
        run.lake.read_file(run.stage("stop", VERSION, spec, [verdict], compute, round), "stop.json")
    )["reason"]


def book_sealed(run: Run, round: int, pool: Ref, models: Ref) -> bool:
    """Whether these models may see the sealed suites: booked before anything is opened, once for each suite.

    False when another comparison of this dataset has opened one: it then stays closed, and the run says so.
    """
    hashes = sorted(items_of(run.lake, pool, "sealed", round)["suite_hash"].unique())
    opened = {e["suite_hash"]: e for e in run.lake.openings() if e["dataset"] == run.recipe.name}
    others = [opened[h] for h in hashes if h in opened and opened[h]["key"] != str(models)]
    if others:
        run.facts["sealed_note"] = (
            f"the sealed suite was opened on {others[0]['opened']} for this dataset by {others[0]['key']}; it stays closed now. "
            "A fresh suite can be sealed in the recipe"
        )
        return False
    if run.reuse_only and not all(h in opened for h in hashes):
        raise NotCached("opening")
    for suite_hash in hashes:
        if suite_hash not in opened:
            run.lake.open_sealed(run.recipe.name, suite_hash, str(models))
    return True
