"""The whole product on one screen: every name on the left is an artifact in the lake, never a frame.

Each line finds its artifact or makes it, so a run that was killed, or a recipe with one field changed, does
only what is missing.
"""

from __future__ import annotations

import json
import time

from curation.decide.rule import stop_reason
from curation.specs import Recipe
from flows.audit import audit
from flows.base import base as publish_base
from flows.base import embed
from flows.booking import book_sealed, spend, stop
from flows.decide import decide, next_base, screen, sealed, wrong_share
from flows.ingest import ingest
from flows.recipe import confirming_bounds
from flows.run import Run
from flows.score import score
from flows.select import select
from flows.synthesize import synthesize
from flows.train import evaluate, train
from storage.artifacts import Ref

SATURATED = 0.05  # share of the candidates still wrong, under which there is nothing left to ask for


def curate(run: Run) -> None:
    """Runs the loop of a recipe to its end; progress, decisions and artifacts are in the run's record."""
    recipe, call = run.recipe, run.call
    pool = call(ingest, run)
    base = first_base = call(publish_base, run, pool)
    vectors = call(embed, run, pool)
    decisions: list[str] = []
    maps: list[Ref] = []
    stopped, round = None, 0
    while not stopped:
        round += 1
        maps.append(call(score, run, round, pool, base, vectors, tuple(maps)))
        common = (pool, base, maps[-1], vectors, base == first_base)
        strategy, why, replicates = _choose_strategy(run, round, *common)
        gates, arms = _confirming_arms(recipe, round, strategy)
        new, sets = _sets(run, round, "confirm", arms, replicates, *common)
        trained = [a for a in arms if not (recipe.worlds and a == "previous")]
        models = call(train, run, round, "confirm", trained, replicates, pool, base, sets, new, vectors)
        alpha = spend(run, round, pool, models) if strategy else 0.0
        scores = common[2]
        facts = call(evaluate, run, round, "confirm", "judge", pool, models, scores, vectors)
        call(audit, run, round, pool, base, scores, sets, new, vectors, ["previous", "candidate", *gates])
        rivals = [a for a in arms if a not in ("candidate", "previous", *gates)]
        verdict = call(
            decide, run, round, pool, base, models, scores, facts, strategy, why, alpha, gates, rivals
        )
        if strategy and not recipe.worlds:  # what is published is made from the full pool
            new, sets = _sets(run, round, "full", {"candidate": strategy}, [0], *common)
        base = call(next_base, run, round, pool, base, sets, new, verdict)
        decisions.append(run.lake.read(verdict, "decisions")["decision"][0])
        reason = stop_reason(
            decisions, recipe.budget.rounds - round, _saturated(run, new), _minutes_left(run)
        )
        stopped = stop(run, round, verdict, reason)
    run.facts["stop_reason"] = stopped
    if any(suite.use == "sealed" for suite in recipe.suite) and book_sealed(run, round, pool, models):
        shown = ["previous", "candidate", *gates]
        seen = call(evaluate, run, round, "confirm", "sealed", pool, models, scores, vectors, shown)
        call(sealed, run, round, pool, models, scores, seen, shown)


def _sets(
    run: Run,
    round: int,
    phase: str,
    arms: dict[str, str],
    replicates: list[int],
    pool: Ref,
    base: Ref,
    scores: Ref,
    vectors: Ref | None,
    first: bool,
) -> tuple[Ref | None, Ref]:
    """(candidate rows or None, the rows of every arm) of a phase: curation run again in every replicate."""
    new = run.call(synthesize, run, round, phase, replicates, pool, base, scores, first)
    return new, run.call(select, run, round, phase, arms, replicates, pool, base, scores, new, vectors, first)


def _choose_strategy(
    run: Run, round: int, pool: Ref, base: Ref, scores: Ref, vectors: Ref | None, first: bool
) -> tuple[str | None, str, list[int]]:
    """The strategy to confirm, why, and its replicates: declared in the recipe, or the winner of a screen."""
    spec, call = run.recipe.decide, run.call
    if spec.fixed_strategy:
        return spec.fixed_strategy, "declared in the recipe", list(range(confirming_bounds(run.recipe)[0]))
    control = _control(run.recipe)
    arms = {control: "random", **{s: s for s in run.recipe.select.strategies}}
    replicates = list(range(spec.screen_replicates))
    new, sets = _sets(run, round, "screen", arms, replicates, pool, base, scores, vectors, first)
    models = call(train, run, round, "screen", list(arms), replicates, pool, base, sets, new, vectors)
    facts = call(evaluate, run, round, "screen", "steer", pool, models, scores, vectors)
    choice = json.loads(
        run.lake.read_file(call(screen, run, round, pool, models, scores, facts, control), "choice.json")
    )
    return choice["strategy"], choice["reason"], list(range(choice["replicates"]))


def _control(recipe: Recipe) -> str:
    """The gate control's name: rows drawn at random, or generated without a target."""
    return "untargeted" if recipe.decide.work == "grow" else "random"


def _confirming_arms(recipe: Recipe, round: int, strategy: str | None) -> tuple[list[str], dict[str, str]]:
    """(gate controls, arm -> strategy). Rivals of a declared strategy are trained in the first round, never gates.

    Rows of the embedded corpus have one length, so length-matched says nothing there that untargeted does not.
    """
    control = _control(recipe)
    gates = [control] if recipe.worlds else [control, "length_matched"]
    arms = {"previous": "previous", "candidate": strategy or "random", control: "random"}
    if not recipe.worlds:
        arms["length_matched"] = "length_matched"
    if round == 1 and recipe.decide.fixed_strategy:
        arms |= {s: s for s in recipe.select.strategies if s != strategy}
    return gates, arms


def _saturated(run: Run, new: Ref | None) -> bool:
    share = wrong_share(run, new)
    return share is not None and share < SATURATED


def _minutes_left(run: Run) -> float | None:
    limit = run.recipe.budget.minutes
    return None if limit is None or run.reuse_only else limit - (time.monotonic() - run.begun) / 60
