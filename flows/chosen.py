"""The rows that a person chose to take out: a version, a candidate or an arm; and how one is made the newest by hand."""

from __future__ import annotations

from typing import Any

import polars as pl

from curation.errors import UserError
from curation.rows import DECISIONS
from flows.status import find_run, steps_of
from storage.artifacts import Lake, Ref, fingerprint

PHASES = ("confirm", "full", "screen")  # an arm's rows: as compared, else as published, else as screened


def chosen_arm(
    lake: Lake,
    name: str | None,
    run: str | None,
    round: int | None,
    phase: str | None,
    arm: str,
    replicate: int,
) -> tuple[dict[str, Any], str, Ref]:
    """(run, phase, selections) of one replicate of an arm; default: the newest run of the name, its last round.

    `UserError` lists the arms and replicates that there are.
    """
    records = [r for r in lake.runs() if name in (None, r["recipe"])]
    if run is None and not records:
        known = ", ".join(sorted({r["recipe"] for r in lake.runs()})) or "none"
        raise UserError(f"no run of {name} in {lake.address}; there are runs of: {known}")
    record = find_run(lake, run) if run is not None else records[-1]
    if name not in (None, record["recipe"]):
        raise UserError(f"run {record['run']} is of {record['recipe']}, not of {name}; leave one of them out")
    if phase not in (None, *PHASES):
        raise UserError(f"there is no phase {phase!r}; --phase is one of: {', '.join(PHASES)}")
    rounds = sorted({s["round"] for s in record["steps"] if s["stage"] == "select"})
    round = round if round is not None else max(rounds, default=0)
    have = dict[str, set[int]]()
    for where in (phase,) if phase else PHASES:
        for sets in steps_of(record, "select", round, where):
            pairs = lake.scan(sets, "selections").select("arm", "replicate").unique().collect().rows()
            if (arm, replicate) in pairs:
                return record, where, sets
            for a, r in pairs:
                have.setdefault(a, set()).add(r)
    arms = ", ".join(f"{a} ({min(have[a])}–{max(have[a])})" for a in sorted(have))
    raise UserError(
        f"run {record['run']}, round {round}: no arm {arm!r} with replicate {replicate}; "
        f"rounds: {', '.join(map(str, rounds)) or 'none'}; arms (replicates): {arms or 'none'}"
    )


def ids_of(lake: Lake, sets: Ref, arm: str, replicate: int) -> tuple[list[Ref], pl.Series]:
    """(the artifacts that hold its rows, its row ids) of one replicate of an arm."""
    lines = lake.scan(sets, "selections").filter(pl.col("arm") == arm, pl.col("replicate") == replicate)
    parents = [Ref.parse(parent) for parent in lake.manifest(sets)["parents"]]
    holders = [ref for ref in parents if "rows" in lake.tables(ref)]
    return holders, lines.select("row_id").collect()["row_id"]


def publish_by_hand(lake: Lake, source: Ref, reason: str) -> tuple[int, int | None]:
    """(number under which the rows of `source` are the newest version now, the newest before): equal when they were.

    The decision is an artifact `by_hand/NAME@fingerprint` with one line of `decisions`, which the version names as
    its evidence. The version's content has a name of its own, so that a run, which finds versions again by their
    content, finds those that it decided itself.
    """
    lake.verify(source)
    facts, versions = lake.manifest(source), lake.dataset_versions(source.name)
    before = versions[-1]["version"] if versions else None
    if before and _content(lake, source) == _content(lake, Ref("dataset", source.name, f"v{before}")):
        return before, before
    manifest = {"spec": {"reason": reason, "after": before}, "parents": [str(source)]}
    fp = fingerprint("by_hand", "1", manifest["spec"], [str(source)])
    line = (source.name, 0, "by hand", reason, facts["strategy"], 0.0, None, None, str(source))
    with lake.draft("by_hand", source.name, fp, manifest) as draft:
        draft.write_shard("all", {"decisions": pl.DataFrame([line], schema=DECISIONS, orient="row")})
        decision = draft.publish()
    number = lake.publish_dataset(
        source.name,
        lake.read(source, "rows"),
        facts["strategy"],
        source.version if source.is_dataset else facts["parent"],
        "by hand",
        str(decision),
        facts["tokens"],
        f"by hand {decision.fingerprint}",
    )
    return number, before


def _content(lake: Lake, ref: Ref) -> str:
    """The name of the rows' content, under which a run published or kept them."""
    facts = lake.manifest(ref)
    evidence = Ref.parse(facts["evidence"])
    if evidence.kind == "by_hand":
        return _content(lake, Ref.parse(lake.manifest(evidence)["parents"][0]))
    return str(facts["content_fp"])
