"""What `gradus diff` shows: the rows that two sets do not share, and what is known of the effect."""

from __future__ import annotations

from typing import Any

import polars as pl

from curation.decide.wording import interval
from curation.errors import UserError
from flows.sets import evidence_of, named, parent_of, runs_of, step_before
from flows.status import comparison_lines, steps_of
from flows.table import print_block
from flows.terminal import say
from storage.artifacts import Lake, Ref

EXAMPLES = 5
GROUPS = 10
COLUMNS = ("row_id", "source", "label", "origin")


def changed_rows(lake: Lake, old: str, new: str) -> pl.DataFrame:
    """Every row that only one of two sets has: `change` (added, removed), then the row."""
    before, after = _two(lake, old, new)
    parts = [
        _only(lake, one, other).select(pl.lit(change).alias("change"), pl.all())
        for change, one, other in (("added", after, before), ("removed", before, after))
    ]
    return pl.concat(parts).sort("change", "row_id").collect()


def _two(lake: Lake, old: str, new: str) -> tuple[Ref, Ref]:
    refs = named(lake, old), named(lake, new)
    for ref in refs:
        if "rows" not in lake.tables(ref):
            raise UserError(
                f"{ref} has no rows to compare; it has: {', '.join(lake.tables(ref)) or 'no tables'}"
            )
    return refs


def _only(lake: Lake, one: Ref, other: Ref) -> pl.LazyFrame:
    return lake.scan(one, "rows").join(lake.scan(other, "rows").select("row_id"), on="row_id", how="anti")


def difference(lake: Lake, old: str, new: str) -> dict[str, Any]:
    """Counts of rows added and removed by source, label, origin and region; diversity and evaluation where known."""
    before, after = _two(lake, old, new)
    added = _only(lake, after, before).select(COLUMNS).collect()
    removed = _only(lake, before, after).select(COLUMNS).collect()
    regions = _regions(lake, before.name)
    changed = pl.concat(
        [added.with_columns(change=pl.lit("added")), removed.with_columns(change=pl.lit("removed"))]
    )
    if regions is not None:
        changed = changed.join(regions, on="row_id", how="left")
    groups = [c for c in ("source", "label", "origin", "region") if c in changed.columns]
    return {
        "old": {
            "artifact": str(before),
            "rows": _rows(lake, before),
            "tokens": lake.manifest(before).get("tokens"),
        },
        "new": {
            "artifact": str(after),
            "rows": _rows(lake, after),
            "tokens": lake.manifest(after).get("tokens"),
        },
        "added": len(added),
        "removed": len(removed),
        "kept": _rows(lake, after) - len(added),
        "by": {group: _counts(changed, group) for group in groups},
        "examples": {
            "added": _examples(lake, after, added["row_id"]),
            "removed": _examples(lake, before, removed["row_id"]),
        },
        **_effect(lake, before, after),
    }


def _rows(lake: Lake, ref: Ref) -> int:
    return int(lake.manifest(ref)["rows"].get("rows", 0))


def _counts(changed: pl.DataFrame, group: str) -> list[dict[str, Any]]:
    """Rows added and removed by each value of a column, the largest changes first."""
    counted = changed.group_by(group).agg(
        added=(pl.col("change") == "added").sum(), removed=(pl.col("change") == "removed").sum()
    )
    order = (pl.col("added") + pl.col("removed")).alias("all")
    return counted.sort([order, pl.col(group)], descending=[True, False], nulls_last=True).rows(named=True)


def _regions(lake: Lake, name: str) -> pl.DataFrame | None:
    """(row_id, region) as the newest score of the corpus names them: `number (terms)`."""
    for record in reversed([r for r in lake.runs() if r.get("recipe") == name]):
        if found := steps_of(record, "score"):
            coarse = pl.col("scale") == "coarse"
            rows = lake.scan(found[-1], "regions").filter(coarse, pl.col("region") >= 0)
            table = lake.scan(found[-1], "region_table").filter(coarse)
            terms = table.select("proxy", "region", "terms", pl.col("thin").fill_null(False))
            text = pl.format(
                "{} {}{}",
                "region",
                pl.col("terms").fill_null(""),
                pl.when("thin").then(pl.lit(" (thin)")).otherwise(pl.lit("")),
            )
            return (
                rows.join(terms, on=["proxy", "region"])
                .select("row_id", region=text)
                .collect()
                .unique("row_id")
            )
    return None


def _examples(lake: Lake, ref: Ref, ids: pl.Series) -> list[dict[str, Any]]:
    some = ids.sort().head(EXAMPLES)
    columns = ("row_id", "origin", "label", "prompt", "response")
    found = lake.scan(ref, "rows").filter(pl.col("row_id").is_in(some.implode())).select(columns)
    return found.collect().sort("row_id").rows(named=True)


def _effect(lake: Lake, before: Ref, after: Ref) -> dict[str, Any]:
    """Evaluation and diversity of the candidate beside the previous version, when that is what is compared."""
    unknown = {"evaluation": None, "diversity": None}
    decision = evidence_of(lake, after)
    if decision is None or decision.kind != "decide" or parent_of(lake, after) != before:
        return unknown
    lines = comparison_lines(lake.read(decision, "comparisons"))
    shown = [c for c in lines if c["arm"] == "candidate" and c["suite"].endswith("_mean")]
    found = next(runs_of(lake, decision), None)
    audit = step_before(found[0], "audit", found[1]) if found else None
    if audit is None:
        return unknown | {"evaluation": shown}
    seen = lake.read(audit, "diversity").filter(pl.col("subset").is_in(["previous", "candidate"]))
    means = (
        seen.group_by("metric", "subset")
        .agg(pl.col("value").mean())
        .pivot("subset", index="metric", values="value")
    )
    return {"evaluation": shown, "diversity": means.sort("metric").rows(named=True)}


def print_difference(facts: dict[str, Any]) -> None:
    """The difference on a terminal."""
    old, new = facts["old"], facts["new"]
    say(f"{old['artifact']} → {new['artifact']}")
    tokens = f", tokens {old['tokens']:,} → {new['tokens']:,}" if old["tokens"] and new["tokens"] else ""
    say(f"rows {old['rows']:,} → {new['rows']:,}{tokens}")
    say(f"added {facts['added']:,}, removed {facts['removed']:,}, in both {facts['kept']:,}\n")
    for group, lines in facts["by"].items():
        if len(lines) > 1 or group == "origin":
            shown = [
                (f"+{n['added']:,}", f"−{n['removed']:,}", str(n[group] or "(none)")) for n in lines[:GROUPS]
            ]
            more = f" (the {len(shown)} largest of {len(lines):,})" if len(lines) > GROUPS else ""
            _block(f"by {group}{more}", shown)
    for change, rows in facts["examples"].items():
        _block(
            f"{change}, for example",
            [(r["row_id"][:12], " → ".join(filter(None, (r["prompt"], r["response"])))) for r in rows],
        )
    _print_effect(facts)


def _block(title: str, lines: list[tuple[Any, ...]]) -> None:
    if lines:
        print_block(title, lines)
        say("")


def _print_effect(facts: dict[str, Any]) -> None:
    if facts["evaluation"] is None:
        say("evaluation: these two were never compared with each other; gradus inspect shows what was")
        return
    lines = [
        (
            f"{c['diff']:+.1f}",
            interval(c["low"], c["high"]),
            f"n={c['n']}",
            c["suite"],
            c["metric"],
            f"against {c['control']}",
        )
        for c in facts["evaluation"]
    ]
    _block("evaluation, points: the new one minus", lines)
    shown = ("g_vendi", "ceiling", "m_coherence", "regions_covered")
    lines = [
        (d["metric"], f"{d['previous']:.4g}", "→", f"{d['candidate']:.4g}")
        for d in facts["diversity"] or []
        if d["metric"] in shown and None not in (d.get("previous"), d.get("candidate"))
    ]
    _block("diversity, as the auditor saw it", lines)
