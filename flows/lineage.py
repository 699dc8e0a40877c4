"""What `gradus lineage` shows: an artifact's parents down to the source files, or a printed number's way there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import polars as pl

from curation.decide.wording import interval
from curation.errors import GradusError, UserError
from flows.sets import evidence_of, named, parent_of
from flows.status import arm_summary, arms_of, comparison_lines, find_run, steps_of
from flows.table import print_block
from flows.terminal import inline, say
from storage.artifacts import Lake, Ref
from storage.catalog import literal, query

NUMBER = re.compile(r"([+−-]?)(\d+(?:\.\d+)?)")
LISTED = 20
PHASES = {"decide": "confirm", "screen": "screen", "sealed": "sealed"}


def way(lake: Lake, what: str, pick: int | None = None) -> dict[str, Any]:
    """`tree` of an artifact; or `found`, the claims that print as the number, and the `way` of the one that is meant."""
    if what.count(":") == 4:
        found = _of_path(lake, what)
    elif NUMBER.fullmatch(what) and ("." in what or what[0] in "+-−"):
        found = _of_number(lake, what)
    else:
        return {"tree": tree(lake, named(lake, what))}
    if not found:
        raise UserError(
            f"no comparison or mean of {lake.address} prints as {what}; give it as the report does (+16.4), or as "
            "RUN:ROUND:ARM:SUITE:METRIC, for instance :1:candidate:ood_mean:accuracy (no RUN: the newest)"
        )
    if pick is not None and not 1 <= pick <= len(found):
        raise UserError(
            f"--pick {pick}: {what} is found {len(found)} times; gradus lineage -- {what} lists them"
        )
    chosen = found[pick - 1] if pick else found[0] if len(found) == 1 else None
    return {"found": found, "way": _way_of(lake, chosen) if chosen else None}


def tree(lake: Lake, ref: Ref, seen: set[str] | None = None) -> dict[str, Any]:
    """{artifact, rows by table, parents or source files}; an artifact met before is only named."""
    seen = set() if seen is None else seen
    node: dict[str, Any] = {"artifact": str(ref)}
    if str(ref) in seen:
        return node | {"again": True}
    seen.add(str(ref))
    try:
        manifest = lake.manifest(ref)
    except GradusError as error:
        return node | {"missing": str(error)}
    parents = [Ref.parse(p) for p in manifest.get("parents") or []]
    evidence = evidence_of(lake, ref)
    node["rows"] = manifest["rows"]
    node["parents"] = [
        tree(lake, p, seen) for p in dict.fromkeys([*parents, *([evidence] if evidence else [])])
    ]
    if "records" in manifest["rows"]:
        node["sources"] = _files(lake, ref)
    return node


def _files(lake: Lake, ingest: Ref) -> list[dict[str, Any]]:
    kept = pl.col("reason").is_null().sum().alias("rows")
    records = lake.scan(ingest, "records").group_by("source", "file").agg(pl.len().alias("records"), kept)
    return records.sort("source", "file").collect().rows(named=True)


def _claims(lake: Lake, record: dict[str, Any], round: int | None = None) -> Iterator[dict[str, Any]]:
    """Every difference of a run, and every mean of its arms: what a report prints."""
    for step in record["steps"]:
        if step["stage"] not in PHASES or round not in (None, step["round"]):
            continue
        ref, phase = Ref.parse(step["artifact"]), PHASES[step["stage"]]
        where = {"run": record["run"], "round": step["round"], "phase": phase, "artifact": str(ref)}
        for c in comparison_lines(lake.read(ref, "comparisons")):
            keys = ("arm", "control", "suite", "metric", "low", "high", "p", "n")
            yield {**where, **{k: c[k] for k in keys}, "value": c["diff"]}
        summary = arm_summary(lake, record, step["round"], phase)
        for arm, figures in arms_of(summary).items():
            for name in ("ood", "id"):
                for metric, tail in (("accuracy", ""), ("p_correct", "_p_correct")):
                    mean = {
                        "control": None,
                        "suite": f"{name}_mean",
                        "metric": metric,
                        "low": None,
                        "high": None,
                    }
                    yield {
                        **where,
                        "arm": arm,
                        **mean,
                        "p": None,
                        "n": figures["n"],
                        "value": figures[name + tail],
                    }


def _of_number(lake: Lake, text: str) -> list[dict[str, Any]]:
    """Claims that print as the number, or else have it as a limit: means over suites first, newest run first."""
    sign, digits = NUMBER.fullmatch(text).groups()  # type: ignore[union-attr]
    wanted = f"-{digits}" if sign in ("-", "−") else digits
    places = len(digits.partition(".")[2])

    def prints(value: float | None) -> bool:
        return value is not None and f"{value:.{places}f}" == wanted

    claims: dict[tuple, dict[str, Any]] = {}
    for record in reversed(lake.runs()):
        for c in _claims(lake, record):
            claims.setdefault((c["artifact"], c["arm"], c["control"], c["suite"], c["metric"]), c)
    # means are printed without a sign
    found = [c for c in claims.values() if prints(c["value"]) and not (sign and c["control"] is None)]
    found = found or [c for c in claims.values() if prints(c["low"]) or prints(c["high"])]
    return sorted(found, key=lambda c: (not c["suite"].endswith("_mean"), not c["suite"].startswith("ood")))


def _of_path(lake: Lake, path: str) -> list[dict[str, Any]]:
    run, round, arm, suite, metric = path.split(":")
    record = find_run(lake, run or None)
    if not round.isdigit():
        raise UserError(f"{path!r}: the second part is the round, a number; got {round!r}")
    claims = list(_claims(lake, record, int(round)))
    found = [c for c in claims if (c["arm"], c["suite"], c["metric"]) == (arm, suite, metric)]
    if not found:
        have = {
            name: ", ".join(sorted({c[name] for c in claims})) or "none"
            for name in ("arm", "suite", "metric")
        }
        raise UserError(
            f"{record['run']} has no {path!r}; arms: {have['arm']}; suites: {have['suite']}; metrics: {have['metric']}"
        )
    return found


def _way_of(lake: Lake, claim: dict[str, Any]) -> dict[str, Any]:
    """The claim, and for its arm and its control: models, set, rows and sources."""
    record = find_run(lake, claim["run"])
    arms = [a for a in (claim["arm"], claim["control"]) if a]
    made = [_arm(lake, record, claim, arm) for arm in arms]
    return {"claim": claim, "arms": made, "every_row": _every_row(lake, claim)}


def _every_row(lake: Lake, claim: dict[str, Any]) -> str | None:
    """SQL that lists the rows of the claim's arm, one by one; None when the catalog finds none."""
    names = ", ".join(literal(claim[name]) for name in ("arm", "suite", "metric"))
    sql = f"from path_of({literal(claim['run'])}, {int(claim['round'])}, {names})"
    try:
        return None if query(lake, f"select 1 {sql} limit 1").is_empty() else sql
    except GradusError:
        return None


def _arm(lake: Lake, record: dict[str, Any], claim: dict[str, Any], arm: str) -> dict[str, Any]:
    round, phase = claim["round"], "confirm" if claim["phase"] == "sealed" else claim["phase"]
    trained = [*steps_of(record, "train", round, phase), *steps_of(record, "score", round)]
    models = pl.concat([lake.read(ref, "models") for ref in trained]).filter(pl.col("arm") == arm)
    compared = models.filter(pl.col("kind") == "compared")
    models = compared if len(compared) else models  # of the embedded corpus `previous` is the scorer
    refs = steps_of(record, "select", round, phase)
    sets = [lake.scan(ref, "selections").filter(pl.col("arm") == arm).collect() for ref in refs]
    chosen = pl.concat(sets) if sets else pl.DataFrame(schema={"row_id": pl.String, "replicate": pl.Int32})
    return {
        "arm": arm,
        "models": len(models),
        "steps": sorted(set(models["steps"].to_list())),
        "tokens": int(models["tokens"].sum()),
        "trained": [str(ref) for ref in trained if str(ref).startswith("train/") or not len(compared)],
        "selected": [str(ref) for ref in refs],
        "version": _version(lake, record, claim, arm),
        "rows": len(chosen),
        "distinct_rows": chosen["row_id"].n_unique(),
        "from": _sources(lake, record, chosen["row_id"].unique()),
    }


def _version(lake: Lake, record: dict[str, Any], claim: dict[str, Any], arm: str) -> str | None:
    """The version or candidate that the arm is: the one which the decision of the round made, or the one before it."""
    verdicts = {str(ref) for ref in steps_of(record, "decide", claim["round"])}
    made = [
        r
        for r in lake.refs()
        if (r.is_dataset or r.kind == "candidate") and str(evidence_of(lake, r)) in verdicts
    ]
    if arm not in ("candidate", "previous") or not made:
        return None
    return str(made[-1] if arm == "candidate" else parent_of(lake, made[-1]) or "") or None


def _sources(lake: Lake, record: dict[str, Any], ids: pl.Series) -> list[dict[str, Any]]:
    """Rows by origin, source and file; of synthetic rows how many parents they have among real ones."""
    wanted = pl.LazyFrame({"row_id": ids}, schema={"row_id": pl.String})
    stages = ("ingest", "base", "synthesize")
    refs = dict.fromkeys(ref for stage in stages for ref in steps_of(record, stage))
    scans = [lake.scan(ref, "rows").select("row_id", "source", "origin", "parents") for ref in refs]
    rows = pl.concat([s.join(wanted, on="row_id", how="semi").collect() for s in scans]).unique("row_id")
    records = [
        lake.scan(ref, "records").filter(pl.col("reason").is_null()).select("row_id", "file").collect()
        for ref in steps_of(record, "ingest")
    ]
    files = pl.concat(records).unique("row_id", keep="first") if records else None
    rows = rows.join(files, on="row_id", how="left") if files is not None else rows.with_columns(file=None)
    counted = rows.group_by("origin", "source", "file").agg(
        pl.len().alias("rows"), pl.col("parents").explode().n_unique().alias("parents")
    )
    return counted.sort(["rows", "source"], descending=[True, False]).rows(named=True)


def print_way(facts: dict[str, Any]) -> None:
    """The tree, the claims found, or the way of one, on a terminal."""
    if "tree" in facts:
        _print_node(facts["tree"], 0)
        return
    if facts["way"] is None:
        lines = [(i, *_claim_line(c)) for i, c in enumerate(facts["found"][:LISTED], 1)]
        print_block(f"found {len(facts['found'])} times; add --pick N for the way of one", lines)
        return
    claim = facts["way"]["claim"]
    say(inline("  ".join(_claim_line(claim))))
    say(f"  run {claim['run']}, {claim['artifact']}")
    for arm in facts["way"]["arms"]:
        _print_arm(arm)
    if sql := facts["way"]["every_row"]:
        say(f'\nevery row of it: gradus sql "{sql}"')


def _claim_line(c: dict[str, Any]) -> tuple[str, ...]:
    if c["control"] is None:
        value, what = f"{c['value']:.1f}", f"mean of {c['arm']}"
    else:
        value, what = f"{c['value']:+.1f} {interval(c['low'], c['high'])}", f"{c['arm']} minus {c['control']}"
    return value, what, f"{c['suite']} {c['metric']}, n={c['n']}, round {c['round']} {c['phase']}"


def _print_arm(arm: dict[str, Any]) -> None:
    steps = " or ".join(f"{n:,}" for n in arm["steps"])
    is_version = f" = {arm['version']}" if arm["version"] else ""
    say(f"\n{arm['arm']}{is_version}")
    say(f"  {arm['models']} models of {steps} steps, {arm['tokens']:,} tokens: {', '.join(arm['trained'])}")
    say(
        f"  {arm['rows']:,} rows in their sets, {arm['distinct_rows']:,} different: {', '.join(arm['selected'])}"
    )
    lines = [
        (
            e["rows"],
            e["origin"],
            e["source"],
            e["file"] or (f"made from {e['parents']:,} rows" if e["origin"] == "synthetic" else ""),
        )
        for e in arm["from"]
    ]
    if lines:
        print_block("  which came from", lines[:LISTED])


def _print_node(node: dict[str, Any], depth: int) -> None:
    rows = ", ".join(f"{n:,} {table}" for table, n in node.get("rows", {}).items() if n)
    tail = "(above)" if node.get("again") else f"({inline(node['missing'])})" if "missing" in node else rows
    say(f"{'  ' * depth}{node['artifact']}  {tail}")
    for source in node.get("sources", [])[:LISTED]:
        where = inline(" ".join(filter(None, (source["source"], source["file"]))))
        say(f"{'  ' * (depth + 1)}{where}: {source['records']:,} records, {source['rows']:,} became rows")
    for parent in node.get("parents", []):
        _print_node(parent, depth + 1)
