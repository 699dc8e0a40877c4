"""What a run added and what it dropped: counts, and examples of rows beside their parents or twins."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import polars as pl

from flows.report.texts import line, show, spread, texts_of, two
from flows.status import steps_of
from storage.artifacts import Lake, Ref

EXAMPLES = 6
SOURCES = 12
UNJUDGED: dict[str, Any] = {"correct": None, "nll": None}
CONTROLS = ("untargeted", "random", "length_matched")
WHY = {
    "exact_copy": "the same record again",
    "duplicate_normalized": "the same as another row but for case, spaces and signs",
    "near_duplicate": "nearly the same text as a row that was kept",
    "contaminated_exact": "the text of a test item",
    "contaminated_ngram": "shares a run of words with a test item",
    "contaminated_near": "nearly the text of a test item",
    "unparsable": "the record could not be read",
    "missing_field": "a field that the recipe maps is not there",
    "wrong_type": "a field holds something other than text",
    "blank": "an empty line",
    "empty": "no text",
    "placeholder": "a placeholder such as N/A instead of text",
    "too_long": "longer than the recipe allows",
}


def additions(lake: Lake, record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the candidate took in each round (first replicate): synthetic rows beside parents, or chosen rows."""
    out = []
    for round in sorted({s["round"] for s in record["steps"] if s["stage"] == "select"}):
        sets = steps_of(record, "select", round, "confirm")
        if not sets:
            continue
        picked = lake.scan(sets[-1], "selections")
        first = picked.select(pl.col("replicate").min()).collect().item()
        picked = picked.filter(
            pl.col("replicate") == first, pl.col("arm").is_in(["candidate", *CONTROLS])
        ).select("arm", "row_id", "rank")
        parts = picked.collect().sort("rank").group_by("arm", maintain_order=True)
        arms = {str(arm): part["row_id"].to_list() for (arm,), part in parts}
        made = steps_of(record, "synthesize", round, "confirm")
        facts = _grown(lake, record, made[-1], arms) if made else _chosen(lake, record, round, arms)
        out.append({"round": round, **facts})
    return out


def _grown(lake: Lake, record: dict[str, Any], ref: Ref, arms: dict[str, list[str]]) -> dict[str, Any]:
    ids = arms.get("candidate", [])
    rows = lake.scan(ref, "rows").filter(pl.col("row_id").is_in(ids)).collect()
    made = {row["row_id"]: row for row in rows.rows(named=True)}
    order = [i for i in ids if i in made]
    examples, seen = spread(order, EXAMPLES), _features(lake, ref, order)
    parents = texts_of(lake, record, [p for i in examples for p in made[i]["parents"] or []])
    plans = Counter(_plan(made[i]["meta"]) for i in order)
    return {
        "kind": "grow", "added": len(order), "kept": len(ids) - len(order), "counts": _counts(lake, ref),
        "plans": dict(plans.most_common()), "wrong": sum(seen.get(i, {}).get("correct") is False for i in order),
        "examples": [
            {"after": two(made[i]), "plan": _plan(made[i]["meta"]), **seen.get(i, UNJUDGED),
             "before": [two(parents.get(p)) for p in made[i]["parents"] or []]} for i in examples
        ],
    }  # fmt: skip


def _chosen(lake: Lake, record: dict[str, Any], round: int, arms: dict[str, list[str]]) -> dict[str, Any]:
    ids, control = arms.get("candidate", []), next((c for c in CONTROLS if c in arms), None)
    others = set(arms.get(control or "", []))
    own = [i for i in ids if i not in others]
    examples, score = spread(own, EXAMPLES + 2), steps_of(record, "score", round)
    seen = _features(lake, score[-1], examples) if score else {}
    texts = texts_of(lake, record, examples)
    return {
        "kind": "choose", "added": len(ids), "control": control, "own": len(own),
        "examples": [
            {"after": line(texts.get(i)), "label": show(texts.get(i, {}).get("label"), 60), **seen.get(i, UNJUDGED)}
            for i in examples
        ],
    }  # fmt: skip


def _features(lake: Lake, ref: Ref, ids: list[str]) -> dict[str, dict[str, Any]]:
    mine = lake.scan(ref, "features").filter(pl.col("row_id").is_in(ids))
    return {row.pop("row_id"): row for row in mine.select("row_id", *UNJUDGED).collect().rows(named=True)}


def _plan(meta: str | None) -> str:
    try:
        return show(str(json.loads(meta or "{}").get("plan", "")), 40) or "unnamed"
    except (ValueError, AttributeError):
        return "unnamed"


def _counts(lake: Lake, ref: Ref) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name in lake.files(ref):
        if name.startswith("counts-"):
            facts = json.loads(lake.read_file(ref, name))
            drawn = {f"drawn: {k}".replace("_", " "): n for k, n in facts.pop("drawn", {}).items()}
            total.update({show(k, 60): int(n) for k, n in (drawn | facts).items()})
    return dict(total)


def dropped(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """Records by reason and source, two examples of each reason, and what the ledger only notes."""
    found = steps_of(record, "ingest")
    if not found:
        return None
    ledger = lake.scan(found[-1], "ledger")
    drops = ledger.filter(pl.col("decision") == "drop").unique("row_id", keep="first", maintain_order=True)
    later = drops.select("row_id", pl.col("reason").alias("later"), "value", "threshold", "twin")
    lines = lake.scan(found[-1], "records").join(later, on="row_id", how="left", maintain_order="left")
    lines = lines.with_columns(why=pl.coalesce("reason", "later"), is_row=pl.col("reason").is_null())
    counts = (
        lines.group_by("source", "why").agg(pl.len().alias("n")).collect(engine="streaming").sort("source")
    )
    gone = counts.filter(pl.col("why").is_not_null())
    reasons = gone.group_by("why").agg(pl.col("n").sum()).sort("n", "why", descending=[True, False])
    some = lines.filter(pl.col("why").is_not_null()).group_by("why", maintain_order=True).head(2).collect()
    ids = [i for r in some.rows(named=True) for i in (r["row_id"], r["twin"]) if i]
    texts, sealed = texts_of(lake, record, ids), _sealed(record, drops, ids)
    flags = ledger.filter(pl.col("decision") != "drop").group_by("decision", "reason").len().collect()
    return {
        "read": int(counts["n"].sum()), "dropped": int(gone["n"].sum()),
        "reasons": [
            {"reason": show(why, 60), "n": n, "means": _means(why),
             "examples": [_example(r, texts, sealed) for r in some.filter(pl.col("why") == why).rows(named=True)]}
            for why, n in reasons.iter_rows()
        ],
        "sources": [show(s, 60) for s in counts["source"].unique(maintain_order=True)],
        "by_source": _by_source(counts, reasons["why"].to_list()),
        "flags": [(show(d, 20), show(r, 60), n) for d, r, n in flags.sort("len", descending=True).iter_rows()],
    }  # fmt: skip


def _means(why: str) -> str:
    held = why.removeprefix("held_out:")
    return f"set aside for the suite {show(held, 60)}" if held != why else WHY.get(why, "")


def _by_source(counts: pl.DataFrame, reasons: list[str]) -> list[dict[str, Any]]:
    """A line a source: read, kept, and dropped for each reason; nothing when there are too many to read."""
    parts = counts.partition_by("source", maintain_order=True)
    if not 1 < len(parts) <= SOURCES:
        return []
    found = [(str(part["source"][0]), dict(part.select("why", "n").iter_rows())) for part in parts]
    return [
        {"source": show(name, 60), "read": sum(n.values()), "kept": n.get(None, 0),
         "counts": [n.get(w, 0) for w in reasons]} for name, n in found
    ]  # fmt: skip


def _sealed(record: dict[str, Any], drops: pl.LazyFrame, ids: list[str]) -> set[str]:
    """Those of the ids whose text would show what a sealed suite holds: no page prints them."""
    held = [f"held_out:{s['name']}" for s in record["recipe_spec"]["suite"] if "sealed" in s["use"]]
    hidden = pl.col("reason").is_in(held) | pl.col("twin").str.starts_with("sealed:").fill_null(False)
    return set(drops.filter(pl.col("row_id").is_in(ids), hidden).select("row_id").collect()["row_id"])


def _example(r: dict[str, Any], texts: dict[str, dict[str, Any]], sealed: set[str]) -> dict[str, Any]:
    text, twin = "(no row was made of this record)", ""
    if {r["row_id"], r["twin"]} & sealed:
        text = "(withheld: it would show what a sealed suite holds)"
    elif r["row_id"] in texts:
        text = line(texts[r["row_id"]])
        twin = (line(texts[r["twin"]]) if r["twin"] in texts else show(r["twin"], 120)) if r["is_row"] else ""
    measured = {k: r[k] if r["is_row"] else None for k in ("value", "threshold")}
    where = show(f"{r['source']}, {r['file']}, record {r['position']}", 120)
    return {"where": where, "text": text, "twin": twin, **measured}
