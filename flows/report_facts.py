"""What the report shows of rows and stages, looked up in the lake; texts come out short and harmless."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import rankdata

from flows.status import steps_of
from storage.artifacts import Lake, Ref

CLIP = 300
DOTS = 1500
LISTED_REGIONS = 64
EXAMPLES = 6
SOURCES = 12
BIDI = frozenset("\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
UNJUDGED: dict[str, Any] = {"correct": None, "nll": None}
CONTROLS = ("untargeted", "random", "length_matched")


def show(text: str | None, limit: int = CLIP) -> str:
    """The text for a page: clipped, with control and direction characters made visible."""
    if text is None:
        return ""
    return "".join(map(_visible, text[:limit])) + ("…" if len(text) > limit else "")


def _visible(c: str) -> str:
    if c in "\n\t":
        return " ⏎ " if c == "\n" else " "
    if ord(c) < 32:
        return chr(0x2400 + ord(c))
    hidden = c in BIDI or unicodedata.category(c) in ("Cc", "Cs", "Co", "Zl", "Zp")
    return f"⟨{ord(c):04X}⟩" if hidden else c


def texts_of(
    lake: Lake,
    record: dict[str, Any],
    ids: Iterable[str],
    columns: Sequence[str] = ("prompt", "response", "label", "origin"),
) -> dict[str, dict[str, Any]]:
    """row_id -> these columns of the row, from any artifact of the run that has rows."""
    wanted = pl.LazyFrame({"row_id": sorted(set(ids))}, schema={"row_id": pl.String})
    refs = {r: None for stage in ("ingest", "base", "synthesize") for r in steps_of(record, stage)}
    scans = [lake.scan(r, "rows").select("row_id", *columns) for r in refs]
    if not scans:
        return {}
    found = pl.concat([scan.join(wanted, on="row_id", how="semi").collect() for scan in scans])
    return {row["row_id"]: row for row in found.unique("row_id", keep="first").rows(named=True)}


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, in order."""
    at = (
        np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)) if items else []
    )
    return [items[i] for i in at]


def scored(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """The rows of the last scored base (world 0 of the embedded corpus) with features, scores and regions."""
    found = steps_of(record, "score")
    if not found:
        return None
    ref, models = found[-1], lake.read(found[-1], "models")
    if models.is_empty():
        return None
    first = models.filter(pl.col("replicate") == models["replicate"].min())
    mine = pl.col("proxy") == first["model"][0]
    rows = lake.scan(ref, "features").filter(mine).collect().sort("row_id")
    coarse = mine & (pl.col("scale") == "coarse")
    regions = lake.scan(ref, "regions").filter(coarse).select("row_id", "region").collect()
    rows = rows.join(regions, on="row_id", how="left", maintain_order="left")
    table = lake.scan(ref, "region_table").filter(coarse).collect()
    shown = [rows["row_id"][i] for i in spread(range(len(rows)), DOTS)]
    exemplars = [e for some in table["exemplars"].to_list() for e in some or []]
    return {
        "round": int(first["round"][0]),
        "rows": rows,
        "regions": table,
        "texts": texts_of(lake, record, shown + exemplars),
        "sizes": texts_of(lake, record, rows["row_id"], ("n_chars", "origin")),
    }


def main_axes(features: np.ndarray) -> tuple[np.ndarray, float]:
    """((n, 2) rows on their two main axes, share of the variance there); signs as in the table of regions."""
    z = features - features.mean(0)
    z = np.nan_to_num(z.astype(np.float64))
    values, vectors = np.linalg.eigh(z.T @ z)  # the right singular vectors of z, also for many rows
    axes = vectors[:, ::-1].T[:2]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    xy = np.zeros((len(z), 2))
    xy[:, : len(axes)] = z @ axes.T
    return xy, float(values[::-1][:2].sum() / max(values.sum(), 1e-300))


def region_map(found: dict[str, Any]) -> dict[str, Any]:
    """Dots, regions (thin and failing first) and the share of variance of the map of gradient space."""
    rows, table, texts = found["rows"], found["regions"], found["texts"]
    xy, share = main_axes(rows["feature"].to_numpy().astype(np.float32))
    order = table.sort(["thin", "steer_error", "mean_nll"], descending=True, nulls_last=True)
    regions = [
        {
            **r,
            "number": i + 1,
            "terms": show(r["terms"], 80) or "(no distinctive words)",
            "exemplars": [line(texts.get(e)) for e in (r["exemplars"] or [])],
        }
        for i, r in enumerate(order.rows(named=True))
    ]
    named = {r["region"]: r for r in regions}
    dots = []
    for i in spread(range(len(rows)), DOTS):
        region, text = named.get(rows["region"][i]), texts.get(rows["row_id"][i], {})
        kinds = ["thin"] if region and region["thin"] else []
        kinds += ["synthetic"] if text.get("origin") == "synthetic" else []
        about = f"region {region['number']} ({region['terms']}): " if region else ""
        kind, title = " ".join(kinds) or "plain", about + line(text, 120)
        dots.append({"x": float(xy[i, 0]), "y": float(xy[i, 1]), "kind": kind, "title": title})
    dots.sort(key=lambda d: "thin" in d["kind"])
    return {
        "round": found["round"],
        "n": len(rows),
        "share": share,
        "dots": dots,
        "regions": regions[:LISTED_REGIONS],
        "all_regions": len(regions),
        "thin": [r for r in regions if r["thin"]],
        "synthetic": sum(t["origin"] == "synthetic" for t in found["sizes"].values()),
    }


def line(row: dict[str, Any] | None, limit: int = CLIP) -> str:
    if not row:
        return "(text not in the lake any more)"
    return show(" → ".join(filter(None, (row["prompt"], row["response"]))), limit)


def two(row: dict[str, Any] | None) -> tuple[str, str]:
    """Prompt and response apart, together about as long as one clipped text."""
    return (show(row["prompt"], 200), show(row["response"], 100)) if row else (line(None), "")


def difficulty(found: dict[str, Any]) -> dict[str, Any]:
    """Histograms of NLL, EL2N and gradient norm, and the rank correlation of each with the rows' length."""
    rows, sizes = found["rows"], found["sizes"]
    chars = np.array([sizes.get(i, {}).get("n_chars") or 0 for i in rows["row_id"]], dtype=float)
    lengths = {
        "tokens of the answer": rows["n_tokens"].cast(pl.Float64).to_numpy(),
        "characters of the row": chars,
    }
    names = {"nll": "NLL of the answer", "el2n": "EL2N", "norm": "Gradient norm"}
    scores = []
    for column, name in names.items():
        values = rows[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        known = values[np.isfinite(values)]
        if not len(known):
            continue
        quartiles = [float(q) for q in np.quantile(known, [0.1, 0.5, 0.9])]
        scores.append(
            {
                "name": name,
                "n": len(known),
                "quartiles": quartiles,
                **_bins(known),
                "lengths": [{"of": of, **rank_correlation(values, length)} for of, length in lengths.items()],
            }
        )
    return {"round": found["round"], "n": len(rows), "scores": scores}


def _bins(values: np.ndarray, count: int = 30) -> dict[str, Any]:
    positive = values[values > 0]
    log = len(positive) == len(values) and np.quantile(values, 0.99) > 30 * np.quantile(values, 0.01)
    counts, edges = np.histogram(np.log10(values) if log else values, bins=count)
    return {"counts": counts.tolist(), "edges": edges.tolist(), "log": bool(log)}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Spearman's rho with its 95 % interval (Fisher's z) and n; rho None when one side is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    a, b, n = a[both], b[both], int(both.sum())
    if n < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return {"rho": None, "low": None, "high": None, "n": n}
    rho = float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
    z, half = math.atanh(max(-0.999999, min(0.999999, rho))), 1.96 / math.sqrt(n - 3)
    return {"rho": rho, "low": math.tanh(z - half), "high": math.tanh(z + half), "n": n}


def additions(lake: Lake, record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the candidate took in each round (first replicate): synthetic rows beside parents, or chosen rows."""
    out = []
    for round in sorted({s["round"] for s in record["steps"] if s["stage"] == "select"}):
        sets = steps_of(record, "select", round, "confirm")
        if not sets:
            continue
        picked = lake.read(sets[-1], "selections").sort("rank")
        picked = picked.filter(pl.col("replicate") == picked["replicate"].min())
        arms = {
            str(arm): part["row_id"].to_list() for (arm,), part in picked.group_by("arm", maintain_order=True)
        }
        made = steps_of(record, "synthesize", round)
        facts = _grown(lake, record, made[-1], arms) if made else _chosen(lake, record, round, arms)
        out.append({"round": round, **facts})
    return out


def _grown(lake: Lake, record: dict[str, Any], ref: Ref, arms: dict[str, list[str]]) -> dict[str, Any]:
    ids = arms.get("candidate", [])
    rows = lake.scan(ref, "rows").filter(pl.col("row_id").is_in(ids)).collect()
    seen = _features(lake, ref, ids)
    made = {row["row_id"]: row for row in rows.rows(named=True)}
    order = [i for i in ids if i in made]
    examples = spread(order, EXAMPLES)
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
    found = (
        lake.scan(ref, "features").filter(pl.col("row_id").is_in(ids)).select("row_id", *UNJUDGED).collect()
    )
    return {row.pop("row_id"): row for row in found.rows(named=True)}


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
            total.update(
                {show(f"drawn: {k}".replace("_", " "), 60): int(v) for k, v in facts.pop("drawn", {}).items()}
            )
            total.update({show(k, 60): int(v) for k, v in facts.items()})
    return dict(total)


def dropped(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """Accounting by source and reason, two examples of each reason, and what the ledger only notes."""
    found = steps_of(record, "ingest")
    if not found:
        return None
    records, ledger = lake.read(found[-1], "records"), lake.read(found[-1], "ledger")
    drops = ledger.filter(pl.col("decision") == "drop").unique("row_id", keep="first", maintain_order=True)
    later = drops.select("row_id", pl.col("reason").alias("later"), "value", "threshold", "twin")
    lines = records.join(later, on="row_id", how="left", maintain_order="left").with_columns(
        pl.coalesce("reason", "later").alias("why"), pl.col("reason").is_null().alias("is_row")
    )
    reasons = [w for w, _ in Counter(lines["why"].drop_nulls().to_list()).most_common()]
    sources = lines.partition_by("source", maintain_order=True)
    groups = [(part["source"][0], part) for part in sources]
    if len(sources) > SOURCES:
        groups = [(f"all {len(sources)} sources", lines)]
    picked = [row for w in reasons for row in lines.filter(pl.col("why") == w).head(2).rows(named=True)]
    texts = texts_of(lake, record, [i for r in picked for i in (r["row_id"], r["twin"]) if i])
    sealed = sealed_rows(record, drops)
    flags = ledger.filter(pl.col("decision") != "drop").group_by("decision", "reason").len().sort("len")
    return {
        "table": [_source_line(name, part, reasons) for name, part in groups],
        "total": _source_line("all", lines, reasons), "reasons": [show(w, 60) for w in reasons],
        "examples": [_example(r, texts, sealed) for r in picked],
        "flags": [(show(d, 20), show(r, 60), n) for d, r, n in flags.reverse().iter_rows()],
    }  # fmt: skip


def _source_line(name: str, part: pl.DataFrame, reasons: list[str]) -> dict[str, Any]:
    n = Counter(part["why"].to_list())
    return {"source": show(name, 60), "read": len(part), "kept": n[None], "counts": [n[w] for w in reasons]}


def sealed_rows(record: dict[str, Any], drops: pl.DataFrame) -> set[str]:
    """Rows whose text would show what a sealed suite holds: no page prints them."""
    held = [f"held_out:{s['name']}" for s in record["recipe_spec"]["suite"] if "sealed" in s["use"]]
    hidden = pl.col("reason").is_in(held) | pl.col("twin").str.starts_with("sealed:").fill_null(False)
    return set(drops.filter(hidden)["row_id"])


def _example(r: dict[str, Any], texts: dict[str, dict[str, Any]], sealed: set[str]) -> dict[str, Any]:
    text, twin = "(no row was made of this record)", ""
    if r["row_id"] in sealed:
        text = "(withheld: it would show what a sealed suite holds)"
    elif r["row_id"] in texts:
        text = line(texts[r["row_id"]])
        twin = (line(texts[r["twin"]]) if r["twin"] in texts else show(r["twin"], 120)) if r["is_row"] else ""
    measured = {k: r[k] if r["is_row"] else None for k in ("value", "threshold")}
    where = show(f"{r['source']}, {r['file']}, record {r['position']}", 120)
    return {"reason": show(r["why"], 60), "where": where, "text": text, "twin": twin, **measured}
