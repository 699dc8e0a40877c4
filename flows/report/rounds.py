"""The decided rounds of a run, and its sealed suites: charts, comparisons and the decision in words."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl
from markupsafe import Markup

from curation.decide.statistics import t_interval
from curation.evaluate.summarise import paired
from flows import status
from flows.report import charts
from flows.report.rows import CONTROLS
from flows.report.texts import show
from flows.status import steps_of
from storage.artifacts import Lake

FOUND = {
    "publish": "published a new version", "keep": "kept the previous version", "futile": "found no useful gain",
    "inconclusive": "was inconclusive and kept the previous version", "by hand": "was decided by hand",
}  # fmt: skip
ROLES = {"previous": "previous version", "candidate": "candidate"} | dict.fromkeys(CONTROLS, "gate control")
MEANS = (("Out of distribution", "ood_mean"), ("In distribution", "id_mean"))


def when(moment: str) -> str:
    """A moment for a person; what is no moment is shown as it is."""
    try:
        at = datetime.fromisoformat(moment)
    except (TypeError, ValueError):
        return show(str(moment), 40)
    return f"{at.day} {at:%B %Y, %H:%M} UTC"


def kind_of(arm: str) -> str:
    """The CSS class of an arm: candidate, control, previous or rival."""
    return "control" if arm in CONTROLS else arm if arm in ROLES else "rival"


def gain_words(c: dict[str, Any]) -> str:
    """A difference with its interval."""
    return f"{charts.signed(c['diff'])} {charts.limits(c['low'], c['high'])}"


def main_lines(
    comparisons: list[dict[str, Any]], metric: str, phase: str = "confirm"
) -> list[dict[str, Any]]:
    """The comparisons that decide: the candidate against every arm, on the OOD mean of the endpoint."""
    asked = {"suite": "ood_mean", "metric": metric, "phase": phase}
    ours = [c for c in comparisons if c["arm"] == "candidate" or phase == "screen"]
    return [c for c in ours if all(c[k] == v for k, v in asked.items())]


def strictest_of(comparisons: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The gate control that is hardest to beat: the highest p, then the smallest difference."""
    gates = [c for c in main_lines(comparisons, metric) if c["control"] in CONTROLS]
    return max(gates, key=lambda c: (-1 if c["p"] is None else c["p"], -(c["diff"] or 0)), default=None)


def round_part(lake: Lake, record: dict[str, Any], number: int) -> dict[str, Any]:
    """One decided round: charts of OOD and ID, the decision in words, the screen, every comparison."""
    line, metric = status.round_facts(lake, record, number), record["recipe_spec"]["decide"]["endpoint"]
    confirm = [c for c in line["comparisons"] if c["phase"] == "confirm"]
    untested = line["p"] is None and not line["alpha"]
    labels = {"candidate": "candidate: random" if untested else f"candidate: {show(line['strategy'], 24)}"}
    summary = status.arm_summary(lake, record, number)
    return {
        **line, "metric": metric, "found": FOUND.get(line["decision"], show(line["decision"], 40)),
        "strictest": strictest_of(line["comparisons"], metric),
        "gates": [c for c in main_lines(confirm, metric) if c["control"] in CONTROLS],
        "reason_parts": [show(w, 900) for w in ([line["reason"]] if untested else line["reason"].split("; "))],
        "strategy": show(line["strategy"], 60), "confirm": confirm, "untested": untested,
        "views": _views(summary, confirm, metric, labels), "screened": bool(steps_of(record, "screen", number)),
        "screen": main_lines(line["comparisons"], metric, "screen"),
    }  # fmt: skip


def sealed_part(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """The sealed suites, opened once: charts and comparisons; None when none was opened."""
    found, metric = status.sealed_facts(lake, record), record["recipe_spec"]["decide"]["endpoint"]
    if found is None:
        return None
    summary = status.arm_summary(lake, record, found["round"], "sealed")
    keys = {str(models) for models in steps_of(record, "train", found["round"])}
    opened = [when(o["opened"]) for o in lake.openings() if o.get("key") in keys and o.get("opened")]
    main = main_lines([{**c, "phase": "confirm"} for c in found["comparisons"]], metric)
    return {
        **found, "views": _views(summary, found["comparisons"], metric, {}), "opened": opened, "metric": metric,
        "gates": [c for c in main if c["control"] in CONTROLS],
    }  # fmt: skip


def glance(rounds: list[dict[str, Any]], sealed: dict[str, Any] | None) -> Markup | None:
    """One chart of the whole run: the candidate's OOD gain over each gate control, round by round, then sealed."""
    shown = [(f"round {r['round']}", r["gates"]) for r in rounds if not r["untested"]]
    shown += [("sealed", sealed["gates"])] if sealed else []
    rows = [
        {"label": f"{name} − {c['control']}", "kind": "candidate", "figure": f"{gain_words(c)}  n {c['n']}",
         "mean": c["diff"], "low": c["low"], "high": c["high"], "dots": []} for name, gates in shown for c in gates
    ]  # fmt: skip
    told = "; ".join(f"{r['label']}: {r['figure']}" for r in rows)
    return (
        charts.interval_rows(rows, f"OOD gain in points over every gate control. {told}", True)
        if rows
        else None
    )


def _views(
    summary: pl.DataFrame, comparisons: list[dict[str, Any]], metric: str, labels: dict[str, str]
) -> list[dict[str, Any]]:
    views = []
    for name, suite in MEANS:
        lines = _arm_lines(summary, suite, metric, labels)
        asked = {"suite": suite, "metric": metric, "arm": "candidate"}
        mine = [c for c in comparisons if all(c[k] == v for k, v in asked.items())]
        if lines:
            own = pl.col("distribution") == suite[:-5], ~pl.col("suite").str.ends_with("_mean")
            names = [show(s, 40) for s in summary.filter(*own)["suite"].unique().sort()]
            drawn = {
                "charts": _pair_of_charts(lines, mine, name),
                "by_control": {c["control"]: c for c in mine},
            }
            views.append({"name": name, "suites": names, "lines": lines, **drawn})
    return views


def _arm_lines(
    summary: pl.DataFrame, suite: str, metric: str, labels: dict[str, str]
) -> list[dict[str, Any]]:
    """Every arm on one mean: values by replicate, mean and t interval, and the candidate's paired differences."""
    lines = []
    for arm in status.arms_of(summary):
        own = summary.filter(pl.col("arm") == arm, pl.col("suite") == suite).sort("replicate")
        if not len(own):
            continue
        mean, low, high = t_interval(own[metric].to_numpy())
        pairs = []
        if arm != "candidate":
            both = set(own["replicate"]) & set(summary.filter(pl.col("arm") == "candidate")["replicate"])
            values = paired(summary, "candidate", arm, suite, metric)
            pairs = list(zip(sorted(both), values.tolist(), strict=False))
        lines.append({
            "arm": arm, "kind": kind_of(arm), "role": ROLES.get(arm, "rival strategy"), "n": len(own), "pairs": pairs,
            "label": labels.get(arm, show(arm, 30)), "mean": mean, "low": low, "high": high,
            "values": list(own.select("replicate", metric).iter_rows()),
        })  # fmt: skip
    return lines


def _pair_of_charts(
    lines: list[dict[str, Any]], comparisons: list[dict[str, Any]], name: str
) -> dict[str, Markup]:
    """Arms with their replicates, and beside each arm the candidate's paired difference from it."""
    against = {c["control"]: c for c in comparisons}
    arms, gains = [], []
    for line in lines:
        c, label, gain_of = against.get(line["arm"]), line["label"], dict(line["pairs"])
        dots = [(r, v, _dot_title(label, r, v, gain_of.get(r))) for r, v in line["values"]]
        figure = f"{charts.plain(line['mean'])} {charts.limits(line['low'], line['high'])}"
        arms.append({**line, "figure": figure, "dots": dots})
        if c is None:
            name_of = "candidate: the reference" if line["arm"] == "candidate" else f"− {label}: not compared"
            empty = {"figure": "", "mean": None, "low": None, "high": None, "dots": []}
            gains.append({"label": name_of, "kind": line["kind"], **empty})
            continue
        told = [(r, v, _dot_title(f"candidate − {label}", r, v)) for r, v in line["pairs"]]
        figure = f"{gain_words(c)}  p {charts.probability(c['p'])}"
        limits = {"mean": c["diff"], "low": c["low"], "high": c["high"]}
        gains.append({"label": f"− {label}", "kind": line["kind"], "figure": figure, **limits, "dots": told})
    seen = "; figures in the table below"
    return {
        "arms": charts.interval_rows(arms, f"{name}: mean, 95 % interval and replicates of every arm{seen}"),
        "gains": charts.interval_rows(gains, f"{name}: candidate minus every other arm, paired{seen}", True),
    }


def _dot_title(label: str, replicate: int, value: float, gain: float | None = None) -> str:
    more = "" if gain is None else f"; the candidate is {charts.signed(gain)} from it"
    return f"{label}, replicate {replicate}: {charts.plain(value)}{more}"
