"""Stages screen and decide: which strategy to confirm, what changed, and whether it is published."""

from __future__ import annotations

import json

import numpy as np
import polars as pl

from curation.decide.facts import ControlFacts, Verdict
from curation.decide.rule import alpha_for, choose_strategy, judge
from curation.decide.statistics import confirming_replicates, detectable, sign_flip_p, t_interval
from curation.evaluate.summarise import by_model, crossed_cells, paired, with_means
from curation.rows import COMPARISONS, DECISIONS
from flows.base import keep_candidate, publish, published_rows
from flows.booking import judge_suites, next_level
from flows.data import items_of
from flows.run import Run
from flows.score import rows_of
from flows.train import compared_models
from storage.artifacts import Draft, Ref

VERSION = "decide_v4"
SCREEN_VERSION = "screen_v1"


def summary_of(
    run: Run, pool: Ref, models: pl.DataFrame, outcomes: Ref, use: str, round: int
) -> pl.DataFrame:
    """Accuracy of every arm, replicate and suite, with the OOD and ID means."""
    items = items_of(run.lake, pool, use, round)
    return with_means(by_model(run.lake.read(outcomes, "outcomes"), models, items))


def compare_arms(
    summary: pl.DataFrame, arm: str, controls: list[str], round: int, phase: str, alpha: float, endpoint: str
) -> pl.DataFrame:
    """The `comparisons` of one arm with each control on every suite and mean; OOD and ID means in both metrics."""
    lines = []
    for control in controls:
        for suite in summary["suite"].unique().sort():
            metrics = {"accuracy", endpoint} if suite.endswith("_mean") else {"accuracy"}
            for metric in sorted(metrics):
                d = paired(summary, arm, control, suite, metric)
                if not len(d):
                    continue
                mean, low, high = t_interval(d)
                sd = float(np.std(d, ddof=1)) if len(d) > 1 else float("nan")
                found = detectable(sd, len(d), alpha) if alpha > 0 else float("nan")
                lines.append(
                    (
                        round,
                        phase,
                        arm,
                        control,
                        suite,
                        metric,
                        mean,
                        low,
                        high,
                        sign_flip_p(d),
                        len(d),
                        found,
                    )
                )
    return pl.DataFrame(lines, schema=COMPARISONS, orient="row")


def screen(run: Run, round: int, pool: Ref, models: Ref, scores: Ref, outcomes: Ref, control: str) -> Ref:
    """Chooses one strategy (or none: random) from gains on steer suites, and how many replicates confirm it.

    Reads: outcomes on steer suites. Writes: comparisons, choice.json. Costs: nothing. Safe to rerun: pure.
    """
    recipe = run.recipe
    d = recipe.decide
    spec = {
        "endpoint": d.endpoint,
        "smallest_gain_points": d.smallest_gain_points,
        "replicates": d.replicates,
        "max_replicates": d.max_replicates,
        "control": control,
        "strategies": list(recipe.select.strategies),
        "round": round,
    }

    def compute(draft: Draft) -> None:
        endpoint = recipe.decide.endpoint
        summary = summary_of(run, pool, compared_models(run, models, scores), outcomes, "steer", round)
        gains = {s: paired(summary, s, control, "ood_mean", endpoint) for s in recipe.select.strategies}
        strategy, why = choose_strategy(gains)
        sd = float(np.std(gains[strategy], ddof=1)) if strategy else 0.0
        alpha = next_level(run, judge_suites(run, pool, round))[1] or alpha_for(0)
        n = confirming_replicates(sd, recipe.decide.smallest_gain_points, alpha, recipe.decide.max_replicates)
        tables = [
            compare_arms(summary, s, [control], round, "screen", alpha_for(0), endpoint)
            for s in recipe.select.strategies
        ]
        n = (
            n if strategy else recipe.decide.max_replicates
        )  # no test then, only an estimate: as sharp as allowed
        choice = {"strategy": strategy, "reason": why, "replicates": recipe.decide.replicates or n}
        draft.write_shard(
            "all",
            {"comparisons": pl.concat(tables)},
            {"choice.json": json.dumps(choice, sort_keys=True).encode()},
        )

    return run.stage(
        "screen", SCREEN_VERSION, spec, [pool, models, scores, outcomes], compute, round, "screen"
    )


def decide(
    run: Run,
    round: int,
    pool: Ref,
    base: Ref,
    models: Ref,
    scores: Ref,
    outcomes: Ref,
    strategy: str | None,
    why: str,
    alpha: float,
    gates: list[str],
    rivals: list[str],
) -> Ref:
    """The judgement of the round (DECIDE: joint exact test, guards, crossed items), with every comparison.

    Reads: outcomes on judge suites. Writes: comparisons, decisions. Costs: nothing. Safe to rerun: pure.
    """
    recipe = run.recipe
    d = recipe.decide
    spec = {
        "endpoint": d.endpoint,
        "smallest_gain_points": d.smallest_gain_points,
        "guard_points": d.guard_points,
        "round": round,
        "strategy": strategy,
        "alpha": alpha,
        "gates": gates,
        "rivals": rivals,
        "why": why,
    }

    def compute(draft: Draft) -> None:
        endpoint = recipe.decide.endpoint
        items = items_of(run.lake, pool, "judge", round)
        frame = compared_models(run, models, scores)
        summary = summary_of(run, pool, frame, outcomes, "judge", round)
        everyone = [*gates, "previous", *rivals]
        level = alpha or alpha_for(0)
        comparisons = pl.concat(
            [
                compare_arms(summary, "candidate", everyone, round, "confirm", level, endpoint),
                compare_arms(
                    summary, "previous", gates, round, "confirm", level, endpoint
                ),  # what stays if it stays
            ]
        )
        verdict = _judge(run, summary, outcomes, frame, items, gates, alpha) if strategy else None
        gain = _line(comparisons, gates[0], endpoint)
        decision = verdict.decision if verdict else "keep"
        first = recipe.decide.work == "choose" and round == 1
        itself = ", which is stratified random itself" if first else ""
        reason = (
            verdict.reason
            if verdict
            else f"{why}; the base is kept{itself}. Stratified random drawn anew in the candidate's place: {gain}"
        )
        evidence = {
            "outcomes": str(outcomes),
            "models": str(models),
            "guard_difference": _finite(verdict.guard_difference) if verdict else None,
            "crossed": [
                [c.control, _finite(c.crossed_low), _finite(c.crossed_high), c.clusters]
                for c in verdict.comparisons
            ]
            if verdict
            else [],
        }
        line = (
            recipe.name,
            round,
            decision,
            reason,
            strategy or "random",
            alpha,
            verdict.p if verdict else None,
            None,
            json.dumps(evidence, sort_keys=True),
        )
        draft.write_shard(
            "all",
            {"comparisons": comparisons, "decisions": pl.DataFrame([line], schema=DECISIONS, orient="row")},
        )

    return run.stage(
        "decide", VERSION, spec, [pool, base, models, scores, outcomes], compute, round, "confirm"
    )


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _line(comparisons: pl.DataFrame, control: str, endpoint: str) -> str:
    row = comparisons.filter(
        pl.col("arm") == "candidate",
        pl.col("control") == control,
        pl.col("suite") == "ood_mean",
        pl.col("metric") == endpoint,
    ).row(0, named=True)
    return (
        f"OOD {row['difference']:+.1f} [{row['low']:.1f}, {row['high']:.1f}] against {control}, n={row['n']}"
    )


def _judge(
    run: Run,
    summary: pl.DataFrame,
    outcomes: Ref,
    models: pl.DataFrame,
    items: pl.DataFrame,
    gates: list[str],
    alpha: float,
) -> Verdict:
    spec, real = run.recipe.decide, not run.recipe.worlds
    frame = run.lake.read(outcomes, "outcomes")
    controls = []
    for gate in gates:
        cells, weights = (
            crossed_cells(frame, models, items, "candidate", gate, spec.endpoint) if real else (None, None)
        )
        controls.append(
            ControlFacts(
                gate,
                paired(summary, "candidate", gate, "ood_mean", spec.endpoint),
                paired(summary, "candidate", gate, "ood_mean", "accuracy"),
                cells,
                weights,
            )
        )
    has_id = "id_mean" in summary["suite"].unique()
    guard = paired(summary, "candidate", "previous", "id_mean", "accuracy") if has_id else None
    return judge(
        controls,
        guard,
        alpha,
        spec.smallest_gain_points,
        spec.guard_points,
        real,
        spec.endpoint == "accuracy",
    )


def next_base(run: Run, round: int, pool: Ref, base: Ref, sets: Ref, new: Ref | None, verdict: Ref) -> Ref:
    """The base of the next round: the candidate's rows when the round published, else the base as it is.

    Reads: selections, the decision. Writes: base rows; a dataset version, or a candidate that did not win.
    Costs: seconds. Safe to rerun: versions are found again by content.
    """
    decision = run.lake.read(verdict, "decisions").row(0, named=True)
    if decision["strategy"] == "random":
        return base

    def compute(draft: Draft) -> None:
        chosen = (
            run.lake.read(sets, "selections").filter(pl.col("arm") == "candidate").sort("replicate", "rank")
        )
        sources = [str(r) for r in (pool, base, new) if r is not None]
        parts = [
            rows_of(run.lake, sources, part["row_id"].to_list())
            for part in chosen.partition_by("replicate", maintain_order=True)
        ]
        draft.write_shard("all", {"rows": pl.concat(parts)})

    won = decision["decision"] == "publish"
    inputs = [r for r in (pool, base, sets, new) if r is not None]
    ref = run.stage(
        "base" if won else "unpublished", VERSION, {"round": round, "won": won}, inputs, compute, round
    )
    rows, before = published_rows(run, ref), run.facts.get("version")
    if won:
        run.facts["version"] = publish(run, rows, decision["strategy"], before, "publish", str(verdict))
    else:
        keep_candidate(run, rows, decision["strategy"], before, str(verdict))
    return ref if won else base


def sealed(run: Run, round: int, pool: Ref, models: Ref, scores: Ref, outcomes: Ref, arms: list[str]) -> Ref:
    """What the sealed suites say of the last round's models.

    Reads: outcomes on sealed suites. Writes: comparisons of the candidate. Costs: nothing. Safe to rerun: pure.
    """

    def compute(draft: Draft) -> None:
        summary = summary_of(run, pool, compared_models(run, models, scores), outcomes, "sealed", round)
        others = [a for a in arms if a != "candidate"]
        draft.write_shard(
            "all",
            {
                "comparisons": compare_arms(
                    summary, "candidate", others, round, "sealed", alpha_for(0), run.recipe.decide.endpoint
                )
            },
        )

    return run.stage(
        "sealed",
        VERSION,
        {"arms": arms, "round": round, "endpoint": run.recipe.decide.endpoint},
        [pool, models, scores, outcomes],
        compute,
        round,
        "sealed",
    )


def wrong_share(run: Run, new: Ref | None) -> float | None:
    """Share of the round's candidates that the proxy got wrong; None when the recipe only chooses."""
    if new is None:
        return None
    correct = run.lake.read(new, "features", ["correct"])["correct"]
    return 1 - float(correct.mean())  # type: ignore[arg-type]
