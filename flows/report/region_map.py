"""The scored rows of a run as a map of gradient space with its regions, and how hard the rows are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
from scipy.linalg import eigh
from scipy.stats import rankdata

from flows.report.charts import histogram
from flows.report.scatter import scatter
from flows.report.texts import line, rows_of, show, spread, texts_of
from flows.status import steps_of
from storage.artifacts import Lake, Ref

SAMPLE = 20_000  # rows that are looked at; more change no figure that a page can show
DOTS = 1500
LISTED_REGIONS = 64
BADGES = 12
SCORES = {"nll": "NLL of the answer", "el2n": "EL2N", "norm": "Gradient norm"}


def scored(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """The last scored set (world 0 of the embedded corpus): its regions, and features of at most SAMPLE rows.

    A row id is a hash, so the rows with the smallest ids are a fair sample. Rows that stand for a region
    (`exemplars`) are there too, with `sampled` false, so that every region has a place on the map.
    """
    found = steps_of(record, "score")
    first = [m for m in (_scorer(lake, ref) for ref in found) if m]
    if not first:
        return None
    ref, model, before = found[-1], first[-1], first[-2] if len(first) > 1 else None
    features = lake.scan(ref, "features").filter(pl.col("proxy") == model["model"])
    table, places = _coarse(lake, ref, model, "region_table").collect(), _coarse(lake, ref, model, "regions")
    ids = features.select("row_id").bottom_k(SAMPLE, by="row_id").collect(engine="streaming")["row_id"]
    exemplars = [e for some in table["exemplars"].to_list() for e in some or []]
    wanted = pl.col("row_id").is_in(sorted({*ids, *exemplars}))
    rows = features.filter(wanted).collect(engine="streaming").sort("row_id")
    sizes = rows_of(lake, record, rows["row_id"], ("n_chars", "origin"))
    for side in (places.filter(wanted).select("row_id", "region").collect(engine="streaming"), sizes):
        rows = rows.join(side, on="row_id", how="left", maintain_order="left")
    return {
        "round": int(model["round"]), "n": features.select(pl.len()).collect().item(),
        "rows": rows.with_columns(sampled=pl.col("row_id").is_in(ids.to_list())),
        "regions": table, "before": before and _earlier(lake, found[-2], before), "places": places,
    }  # fmt: skip


def _scorer(lake: Lake, ref: Ref) -> dict[str, Any] | None:
    return next(iter(lake.read(ref, "models").sort("replicate").head(1).rows(named=True)), None)


def _coarse(lake: Lake, ref: Ref, model: dict[str, Any], table: str) -> pl.LazyFrame:
    return lake.scan(ref, table).filter(pl.col("proxy") == model["model"], pl.col("scale") == "coarse")


def _earlier(lake: Lake, ref: Ref, model: dict[str, Any]) -> dict[str, Any]:
    table = _coarse(lake, ref, model, "region_table").select("region").collect()
    return {"round": int(model["round"]), "regions": set(table["region"])}


def taken(lake: Lake, record: dict[str, Any], found: dict[str, Any]) -> dict[tuple[str, int], int]:
    """(arm, region) -> rows of the previous set and of the candidate there (first replicate); a synthetic row
    counts where its first parent lies."""
    sets = steps_of(record, "select", found["round"], "confirm")
    if not sets:
        return {}
    picked = lake.scan(sets[-1], "selections")
    first = picked.select(pl.col("replicate").min()).collect().item()
    picked = picked.filter(pl.col("replicate") == first, pl.col("arm").is_in(["previous", "candidate"]))
    made = steps_of(record, "synthesize", found["round"], "confirm")
    if made:
        parents = lake.scan(made[-1], "rows").select("row_id", parent=pl.col("parents").list.first())
        picked = picked.join(parents.unique("row_id"), on="row_id", how="left")
        picked = picked.with_columns(row_id=pl.coalesce("parent", "row_id"))
    counts = (
        picked.join(found["places"], on="row_id").group_by("arm", "region").len().collect(engine="streaming")
    )
    return {(arm, region): n for arm, region, n in counts.iter_rows()}


def map_part(lake: Lake, record: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Dots, regions (thin and failing first, under the numbers they keep) and badges on the first thin ones."""
    rows, before = found["rows"], found["before"]
    xy, share = main_axes(rows["feature"].to_numpy().astype(np.float32), rows["sampled"].to_numpy())
    regions = _regions(lake, record, found)
    dots = _dots(lake, record, rows, xy, regions)
    thin = [r for r in regions if r["thin"]]
    places = rows["region"].fill_null(-1).to_numpy()
    spots = {r["region"]: xy[places == r["region"]].mean(0) for r in thin[:BADGES] if r["region"] in places}
    badges = [
        {"x": float(spots[r["region"]][0]), "y": float(spots[r["region"]][1]), "number": r["region"],
         "name": show(" ".join(r["terms"].split()[:2]), 22), "title": f"{_name(r)}; {r['size']:,} rows"}
        for r in thin[:BADGES] if r["region"] in spots
    ]  # fmt: skip
    label = f"{len(dots)} rows on the two main axes of gradient space, thin regions numbered; see the table"
    return {
        "round": found["round"], "n": found["n"], "share": share, "drawn": len(dots),
        "sampled": int(rows["sampled"].sum()), "regions": regions[:LISTED_REGIONS], "all_regions": len(regions),
        "thin": thin, "badges": BADGES, "chart": scatter(dots, badges, label),
        "synthetic": any("synthetic" in d["kind"] for d in dots),
        "compared": any(r["before"] is not None for r in regions), "before": before and before["round"],
        "new": sum(r["carried"] is None for r in regions), "gone": sorted(before["regions"] - {r["region"] for r in regions}) if before else [],
    }  # fmt: skip


def _name(region: dict[str, Any]) -> str:
    return f"region {region['region']} ({region['terms']}{'; ' + region['since'] if region['since'] else ''})"


def _regions(lake: Lake, record: dict[str, Any], found: dict[str, Any]) -> list[dict[str, Any]]:
    order = found["regions"].sort(["thin", "steer_error", "mean_nll"], descending=True, nulls_last=True)
    lines = order.rows(named=True)
    texts = texts_of(lake, record, [e for r in lines[:LISTED_REGIONS] for e in r["exemplars"] or []])
    counts, round = taken(lake, record, found), found["before"] and found["before"]["round"]
    for r in lines:
        r["terms"] = show(r["terms"], 80) or "(no distinctive words)"
        r["exemplars"] = [line(texts.get(e)) for e in r["exemplars"] or []]
        for key, arm in (("before", "previous"), ("after", "candidate")):
            r[key] = counts.get((arm, r["region"]), 0) if counts else None
        overlap = r["carried"]
        kept = f"carried from round {round}, {overlap or 0:.0%} the same rows".replace("%", " %")
        r["since"] = "" if round is None else "new" if overlap is None else kept
    return lines


def _dots(
    lake: Lake, record: dict[str, Any], rows: pl.DataFrame, xy: np.ndarray, regions: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    named = {r["region"]: r for r in regions}
    at = spread(np.flatnonzero(rows["sampled"]).tolist(), DOTS)
    shown = rows.select("row_id", "region", "origin")[at].rows()
    texts, dots = texts_of(lake, record, [r[0] for r in shown]), []
    for i, (row_id, number, origin) in zip(at, shown, strict=True):
        region = named.get(number)
        kinds = ["thin"] * bool(region and region["thin"]) + ["synthetic"] * (origin == "synthetic")
        title = (f"{_name(region)}: " if region else "no region: ") + line(texts.get(row_id), 120)
        kind = " ".join(kinds) or "plain"
        dots.append({"x": float(xy[i, 0]), "y": float(xy[i, 1]), "kind": kind, "title": title})
    return sorted(dots, key=lambda d: "thin" in d["kind"])


def main_axes(features: np.ndarray, use: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """((n, 2) rows on the two main axes of those in `use`, share of the variance there); signs as in the table of regions."""
    mine = features if use is None else features[use]
    mean = np.nan_to_num(mine).mean(0) if len(mine) else 0.0
    z = np.nan_to_num(mine - mean)
    moments, d = (z.T @ z).astype(np.float64), z.shape[1]
    values, vectors = eigh(moments, subset_by_index=(max(0, d - 2), d - 1))
    axes = vectors[:, ::-1].T
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    xy = np.zeros((len(features), 2))
    xy[:, : len(axes)] = np.nan_to_num(features - mean) @ axes.T
    return xy, float(values.sum() / max(np.trace(moments), 1e-300))


def difficulty_part(found: dict[str, Any]) -> dict[str, Any]:
    """Histograms of NLL, EL2N and gradient norm, and the rank correlation of each with the rows' length."""
    rows = found["rows"].filter("sampled")
    lengths = {
        "tokens of the answer": _numbers(rows["n_tokens"]),
        "characters of the row": _numbers(rows["n_chars"]),
    }
    scores = []
    for column, name in SCORES.items():
        values = _numbers(rows[column])
        known = values[np.isfinite(values)]
        if not len(known):
            continue
        counts, edges, log = _bins(known)
        scores.append(
            {
                "name": name, "n": len(known), "log": log,
                "quantiles": [float(q) for q in np.quantile(known, [0.1, 0.5, 0.9])],
                "chart": histogram(counts, edges, f"Histogram of {name} over {len(known)} rows", log),
                "lengths": [{"of": of, **rank_correlation(values, length)} for of, length in lengths.items()],
            }
        )  # fmt: skip
    return {"round": found["round"], "n": len(rows), "all": found["n"], "scores": scores}


def _numbers(column: pl.Series) -> np.ndarray:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _bins(values: np.ndarray, count: int = 30) -> tuple[list[int], list[float], bool]:
    log = values.min() > 0 and np.quantile(values, 0.99) > 30 * np.quantile(values, 0.01)
    counts, edges = np.histogram(np.log10(values) if log else values, bins=count)
    return counts.tolist(), edges.tolist(), bool(log)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Spearman's rho with its 95 % interval (Fisher's z) and n; rho None when one side is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    a, b, n = a[both], b[both], int(both.sum())
    if n < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return {"rho": None, "low": None, "high": None, "n": n}
    rho = float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
    z, half = math.atanh(max(-0.999999, min(0.999999, rho))), 1.96 / math.sqrt(n - 3)
    return {"rho": rho, "low": math.tanh(z - half), "high": math.tanh(z + half), "n": n}
