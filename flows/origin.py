"""Where a set of rows comes from: the run, round and decision that made a version, a candidate or an arm."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from curation.errors import GradusError
from flows.base import content_of
from flows.sets import evidence_of, runs_of
from flows.status import steps_of
from storage.artifacts import Lake, Ref

# What a damaged lake, or one of another Gradus, raises: the card then says what it cannot tell.
UNREADABLE = (GradusError, PolarsError, OSError, LookupError)


@dataclass(frozen=True)
class Origin:
    """Where a set comes from: its arm in a round of a run (None: unknown), the decision on it, its pool."""

    arm: str
    strategy: str | None
    pool: Ref | None
    run: dict[str, Any] | None = None
    round: int | None = None
    verdict: Ref | None = None
    by_hand: dict[str, Any] | None = None
    phase: str | None = None  # of one replicate of an arm; None: a version or candidate


def origin_of(lake: Lake, ref: Ref) -> Origin:
    """The origin of a dataset version or candidate, through the evidence that its manifest names."""
    manifest = lake.manifest(ref)
    evidence = Ref.parse(manifest["evidence"])
    if evidence.kind == "by_hand":
        source = Ref.parse(lake.manifest(evidence)["parents"][0])
        found, line = origin_of(lake, source), lake.read(evidence, "decisions").row(0, named=True)
        hand = {"of": str(source), "reason": line["reason"]}
        return replace(found, by_hand=hand)
    strategy = manifest["strategy"]
    if evidence.kind == "decide":
        run, round = next(runs_of(lake, evidence), (None, None))
        pool = steps_of(run, "ingest")[-1] if run else None
        return Origin("candidate", strategy, pool, run, round, evidence)
    found = (run for run, _ in runs_of(lake, evidence) if _has_base(lake, run, manifest["content_fp"]))
    run = max(found, key=lambda run: bool(steps_of(run, "decide")), default=None)
    rounds = [s["round"] for s in run["steps"] if s["stage"] == "decide"] if run else []
    return Origin("previous", strategy, evidence, run, min(rounds, default=None))


def _has_base(lake: Lake, run: dict[str, Any], content_fp: str) -> bool:
    """Whether this content is the base that the run began with: runs of other budgets begin with the same pool."""
    for ref in steps_of(run, "base", 0):
        try:
            rows = lake.read(ref, "rows", ["row_id", "world"])
        except UNREADABLE:
            continue
        if content_of(rows.filter(pl.col("world") == 0)) == content_fp:
            return True
    return False


def by_hand_as(lake: Lake, ref: Ref) -> list[str]:
    """The versions that these rows became by hand."""
    versions = []
    for version in lake.refs("dataset"):
        decision = evidence_of(lake, version)
        with suppress(GradusError):  # the decision is not in the lake any more
            if decision and decision.kind == "by_hand" and lake.manifest(decision)["parents"] == [str(ref)]:
                versions.append(f"{version.name}@{version.fingerprint}")
    return versions
