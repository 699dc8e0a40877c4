"""What `gradus inspect` shows: versions, candidates, drops, regions, decisions, runs and disk of a lake, on one screen."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from curation.decide.wording import interval
from curation.errors import GradusError, UserError
from flows.status import comparison_lines, find_run, state_of, steps_of
from flows.table import print_block
from flows.terminal import say
from storage.artifacts import Lake, Ref
from storage.catalog import query

LISTED = 6  # of anything, the newest; --json lists all
BESIDE = ("work", "index", "reports", "prefect")


def overview(lake: Lake, name: str | None = None) -> dict[str, Any]:
    """The facts of a lake: all of it, or what concerns one dataset, or one run, by name or its beginning."""
    runs = lake.runs()
    datasets = query(lake, "from datasets").rows(named=True)
    names = sorted(
        {d["name"] for d in datasets} | {r["recipe"] for r in runs if isinstance(r.get("recipe"), str)}
    )
    record = _record(lake, runs, name, names)
    wanted = record["recipe"] if record and name else name
    versions = [_version(lake, d) for d in datasets if wanted in (None, d["name"])]
    shown = [r for r in runs if wanted in (None, r.get("recipe"))]
    damaged = query(lake, "select artifact, damage from artifacts where damage is not null order by 1")
    facts: dict[str, Any] = {
        "lake": lake.address,
        "versions": versions,
        "run": record["run"] if record else None,
        "runs": [_run(r) for r in shown],
        "disk": _disk(lake),
        "problems": [f"{artifact}: {damage}" for artifact, damage in damaged.iter_rows()],
    }
    decided = [record] if record and name not in (None, *names) else shown
    parts: dict[str, tuple[Callable[..., Any], Any]] = {
        "candidates": (_candidates, wanted),
        "accounting": (_accounting, record),
        "ledger": (_ledger, record),
        "regions": (_regions, record),
        "decisions": (_decisions, decided),
    }
    for part, (make, about) in parts.items():
        try:
            facts[part] = make(lake, about)
        except GradusError as error:  # a damaged artifact: the rest of the lake is shown
            facts[part] = None
            facts["problems"].append(f"{part} cannot be shown: {error}")
    return facts


def _record(
    lake: Lake, runs: list[dict[str, Any]], name: str | None, names: list[str]
) -> dict[str, Any] | None:
    """The run whose rows are shown: the named one, else the newest of the dataset, else the newest."""
    if name is None or name in names:
        return next((r for r in reversed(runs) if name in (None, r.get("recipe"))), None)
    try:
        return find_run(lake, name)
    except UserError as error:
        raise UserError(
            f"{name!r} is neither a dataset ({', '.join(names) or 'there is none yet'}) nor the beginning of one run: {error}"
        ) from error


def gain(lake: Lake, evidence: str | None) -> dict[str, Any] | None:
    """The candidate's OOD gain against its strictest gate control, from the decision that is the evidence."""
    try:
        ref = Ref.parse(evidence or "")
        if ref.kind != "decide":
            return None
        spec, frame = lake.manifest(ref)["spec"], lake.read(ref, "comparisons")
    except GradusError:
        return None  # published by hand, or the decision is not in the lake any more
    tested = frame.filter(
        pl.col("arm") == "candidate",
        pl.col("suite") == "ood_mean",
        pl.col("metric") == spec.get("endpoint", "accuracy"),
        pl.col("control").is_in(spec.get("gates", [])),
    )
    return comparison_lines(tested.sort("difference").head(1))[0] if len(tested) else None


def gain_text(found: Mapping[str, Any] | None) -> str:
    """A gain in words, with its interval and n."""
    if found is None:
        return ""
    limits = interval(found["low"], found["high"])
    return f"OOD {found['diff']:+.1f} {limits} against {found['control']}, n={found['n']}"


def _version(lake: Lake, facts: dict[str, Any]) -> dict[str, Any]:
    kept = ("artifact", "name", "version", "parent", "strategy", "rows", "tokens", "decision", "evidence")
    return {name: facts[name] for name in kept} | {"gain": gain(lake, facts["evidence"])}


def _candidates(lake: Lake, name: str | None) -> list[dict[str, Any]]:
    out = []
    for ref in lake.refs("candidate"):
        if name in (None, ref.name):
            facts = lake.manifest(ref)
            evidence = facts.get("evidence")
            out.append(
                {
                    "artifact": str(ref),
                    "strategy": facts.get("strategy"),
                    "rows": facts["rows"].get("rows", 0),
                }
                | {"tokens": facts.get("tokens"), "parent": facts.get("parent"), "evidence": evidence}
                | {"decision": _decision_of(lake, evidence), "gain": gain(lake, evidence)}
            )
    return out


def _decision_of(lake: Lake, evidence: str | None) -> str | None:
    try:
        return lake.read(Ref.parse(evidence or ""), "decisions", ["decision"])["decision"][0]
    except (GradusError, IndexError):
        return None


def _accounting(lake: Lake, record: dict[str, Any] | None) -> dict[str, Any] | None:
    found = steps_of(record, "ingest") if record else []
    if not found:
        return None
    lines = query(lake, "from accounting_all where artifact = ?", [str(found[-1])])
    each = lines.unique("source")
    reasons = lines.filter(pl.col("dropped") > 0).group_by("reason").agg(pl.col("dropped").sum())
    return {
        "read": int(each["read"].sum()),
        "kept": int(each["kept"].sum()),
        "dropped": dict(reasons.sort(["dropped", "reason"], descending=[True, False]).iter_rows()),
        "sources": len(each),
    }


def _ledger(lake: Lake, record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Decisions on rows that dropped nothing at ingest: flags, masks, additions, drops of later stages."""
    sql = """select stage, "round", decision, reason, count(*) as "rows" from ledger
    where artifact in (select unnest(?::varchar[])) and (stage <> 'ingest' or decision <> 'drop')
    group by all order by "rows" desc, stage, decision, reason"""
    refs = sorted({s["artifact"] for s in record["steps"]}) if record else []
    return query(lake, sql, [refs]).rows(named=True)


def _regions(lake: Lake, record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Regions of the newest scored rows; of the embedded corpus those of world 0, as in the report."""
    found = steps_of(record, "score") if record else []
    if not found:
        return None
    models = lake.read(found[-1], "models").sort("replicate")
    table = lake.read(found[-1], "region_table")
    if models.is_empty() or table.is_empty():
        return None
    coarse = table.filter(pl.col("proxy") == models["model"][0], pl.col("scale") == "coarse")
    columns = ("region", "size", "share", "steer_error", "mean_nll", "terms", "carried")
    thin = coarse.filter("thin").sort("steer_error", "region", descending=[True, False], nulls_last=True)
    return {
        "artifact": str(found[-1]),
        "round": int(models["round"][0]),
        "worlds": models["replicate"].n_unique(),
        "regions": len(coarse),
        "thin": thin.select(columns).rows(named=True),
    }


def _decisions(lake: Lake, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for record in records:
        for ref in steps_of(record, "decide"):
            columns = ["dataset", "round", "decision", "strategy", "reason"]
            lines = lake.read(ref, "decisions", columns).rows(named=True)
            out += [
                {"run": record["run"], "artifact": str(ref), **line, "gain": gain(lake, str(ref))}
                for line in lines
            ]
    return out


def _run(record: dict[str, Any]) -> dict[str, Any]:
    names = ("run", "recipe", "started", "seconds", "version", "stop_reason", "error")
    return {name: record.get(name) for name in names} | {"state": state_of(record)}


def _disk(lake: Lake) -> dict[str, int]:
    """Bytes by kind of artifact, and of the folders beside them."""
    sql = "select kind, sum(bytes)::bigint as n from artifacts group by kind"
    out = {str(kind): int(n or 0) for kind, n in query(lake, sql).iter_rows()}
    for folder in BESIDE:
        out[f"({folder})"] = _size(lake.root / folder)
    return dict(sorted(out.items(), key=lambda entry: -entry[1]))


def _size(folder: Path) -> int:
    total = 0
    for at, _, names in os.walk(folder):  # it passes over folders that a run removes meanwhile
        for name in names:
            with suppress(OSError):
                total += Path(at, name).lstat().st_size
    return total


def megabytes(n: int) -> str:
    """Bytes in a unit that a person reads."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"


def print_overview(facts: dict[str, Any]) -> None:
    """The facts on a terminal, newest last in every list."""
    say(f"lake {facts['lake']}, {megabytes(sum(facts['disk'].values()))}\n")
    for problem in facts["problems"]:
        say(f"PROBLEM  {problem}\n")
    _print_sets(facts)
    _print_rows(facts)
    lines = [
        (f"round {d['round']}", d["decision"], d["strategy"], gain_text(d["gain"]) or d["reason"])
        for d in (facts["decisions"] or [])[-LISTED:]
    ]
    _block("last decisions", lines)
    lines = [
        (r["run"], r["state"], f"{r['seconds'] or 0:.0f} s", r["error"] or r["stop_reason"] or "")
        for r in facts["runs"][-LISTED:]
    ]
    _block("runs", lines, len(facts["runs"]))
    print_block("disk", [(kind, megabytes(n)) for kind, n in facts["disk"].items() if n][:LISTED])


def _block(title: str, lines: list[tuple[Any, ...]], total: int = 0) -> None:
    if lines:
        more = f" (the newest {len(lines)} of {total:,})" if total > len(lines) else ""
        print_block(title + more, lines)
        say("")


def _print_sets(facts: dict[str, Any]) -> None:
    versions, candidates = facts["versions"][-LISTED:], (facts["candidates"] or [])[-LISTED:]
    lines = [
        (f"{v['name']}@v{v['version']}", v["rows"], "rows", v["tokens"], "tokens", v["decision"], _made(v))
        for v in versions
    ]
    _block("dataset versions", lines, len(facts["versions"]))
    lines = [(c["artifact"], c["rows"], "rows", c["decision"], _made(c)) for c in candidates]
    _block("candidates that did not win", lines, len(facts["candidates"] or []))


def _made(facts: dict[str, Any]) -> str:
    strategy = None if facts["strategy"] == facts["decision"] else facts["strategy"]
    return ": ".join(filter(None, (strategy, gain_text(facts["gain"]))))


def _print_rows(facts: dict[str, Any]) -> None:
    if found := facts["accounting"]:
        dropped = sum(found["dropped"].values())
        title = f"records: read {found['read']:,} = kept {found['kept']:,} + dropped {dropped:,}"
        _block(f"{title} (run {facts['run']})", [(reason, n) for reason, n in found["dropped"].items()])
    lines = [
        (f"{e['stage']} round {e['round']}", e["decision"], e["rows"], e["reason"])
        for e in facts["ledger"] or []
    ]
    _block("other lines of the ledger", lines[:LISTED])
    if found := facts["regions"]:
        of = f", world 0 of {found['worlds']}" if found["worlds"] > 1 else ""
        title = f"regions of gradient space, round {found['round']}{of}: {found['regions']}, {len(found['thin'])} thin"
        lines = [
            (
                r["region"],
                r["size"],
                "rows",
                "" if r["steer_error"] is None else f"{r['steer_error']:.0%} wrong",
                r["terms"],
            )
            for r in found["thin"][:LISTED]
        ]
        _block(title, lines)
