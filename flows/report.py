"""One HTML page that shows what a run found: self-contained, opened from disk, with every figure's n and interval."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from curation.decide.statistics import t_interval
from curation.decide.wording import fraction
from curation.errors import DataError, UserError
from curation.evaluate.summarise import paired
from flows import charts, status
from flows import report_facts as facts
from flows.report_facts import CONTROLS, show
from flows.status import steps_of
from storage.artifacts import Lake

BADGES = 12
STOPS = {
    "streak": "two rounds in a row did not publish",
    "saturation": "the proxy got almost every new candidate right, so nothing was left to ask for",
    "budget": "the budget of rounds or minutes was used up",
}
FOUND = {
    "publish": "published a new version", "keep": "kept the previous version", "futile": "found no useful gain",
    "inconclusive": "was inconclusive and kept the previous version", "by hand": "was decided by hand",
}  # fmt: skip
ROLES = {"previous": "previous version", "candidate": "candidate"} | dict.fromkeys(CONTROLS, "gate control")


def write_report(lake: Lake, record: dict[str, Any]) -> Path:
    """Path of the run's page `reports/RUN.html` in the lake; parts that the run lacks are sentences there."""
    page = render(lake, record)
    return lake.save_report(f"{record['run']}.html", page.encode("utf-8", "replace"))


def render(lake: Lake, record: dict[str, Any]) -> str:
    """The page as text."""
    numbers = {"signed": charts.signed, "plain": charts.plain, "p": charts.probability, "limits": charts.limits,
               "small": charts.small, "gain": gain_words, "level": fraction}  # fmt: skip
    shown = {"show": show, "changes": charts.word_changes}
    environment = Environment(
        loader=PackageLoader("flows", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= numbers | shown
    return environment.get_template("report.html").render(page_facts(lake, record))


def page_facts(lake: Lake, record: dict[str, Any]) -> dict[str, Any]:
    """Everything that the page shows; a part whose artifacts are gone is None and named in `missing`."""
    missing: list[str] = []

    def part(look_up: Any) -> Any:
        try:
            return look_up()
        except (DataError, UserError) as error:
            missing.append(show(str(error)))
            return None

    decided = sorted({s["round"] for s in record["steps"] if s["stage"] == "decide"})
    begun = sorted({s["round"] for s in record["steps"] if s["round"]})
    rounds = [r for r in (part(partial(round_part, lake, record, n)) for n in decided) if r]
    found = part(lambda: facts.scored(lake, record))
    return {
        "run": run_part(record), "rounds": rounds, "undecided": [r for r in begun if r not in decided],
        "version": part(lambda: version_part(lake, record)),
        "accounting": part(lambda: status.accounting(lake, record)),
        "sealed": part(lambda: sealed_part(lake, record)),
        "map": part(lambda: map_part(found)) if found else None,
        "difficulty": part(lambda: difficulty_part(found)) if found else None,
        "coverage": part(lambda: coverage(lake, record)) or [],
        "additions": part(lambda: facts.additions(lake, record)) or [],
        "dropped": part(lambda: facts.dropped(lake, record)),
        "costs": part(lambda: costs(lake, record)) or [], "missing": missing, "max_replicates": 20,
    }  # fmt: skip


def run_part(record: dict[str, Any]) -> dict[str, Any]:
    """The run in words: when, state, why it stopped."""
    stop, seconds = record.get("stop_reason"), float(record.get("seconds") or 0)
    minutes = f"{int(seconds // 60)} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"
    return {
        "id": show(record["run"], 60), "recipe": show(record["recipe"], 80), "state": show(record["state"], 40),
        "started": _when(record["started"]), "took": minutes, "error": show(record.get("error"), 600), "stop": show(stop, 80) or None,
        "why": STOPS.get(stop or "", ""), "spec": record["recipe_spec"],
    }  # fmt: skip


def _when(moment: str) -> str:
    when = datetime.fromisoformat(moment)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def version_part(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """The version that the run ended with: its rows, strategy and decision."""
    version = record.get("version")
    known = [v for v in lake.dataset_versions(record["recipe"]) if v["version"] == version]
    if not known:
        return None
    named = {"name": f"{show(record['recipe'], 60)} v{version}", "strategy": show(known[0]["strategy"], 60)}
    return {**named, "rows": known[0]["rows"], "decision": known[0]["decision"]}


def kind_of(arm: str) -> str:
    """The CSS class of an arm: candidate, control, previous or rival."""
    return "control" if arm in CONTROLS else arm if arm in ROLES else "rival"


def arm_lines(summary: pl.DataFrame, suite: str, metric: str, labels: dict[str, str]) -> list[dict[str, Any]]:
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
        lines.append(
            {
                "arm": arm,
                "kind": kind_of(arm),
                "role": ROLES.get(arm, "rival strategy"),
                "label": labels.get(arm, show(arm, 30)),
                "n": len(own),
                "mean": mean,
                "low": low,
                "high": high,
                "values": list(own.select("replicate", metric).iter_rows()),
                "pairs": pairs,
            }
        )
    return lines


def pair_of_charts(
    lines: list[dict[str, Any]], comparisons: list[dict[str, Any]], name: str
) -> dict[str, Markup]:
    """Arms with their replicates, and beside each arm the candidate's paired difference from it."""
    against = {c["control"]: c for c in comparisons}
    arms, gains = [], []
    for line in lines:
        c = against.get(line["arm"])
        gain_of = dict(line["pairs"])
        dots = [(r, v, _dot_title(line["label"], r, v, gain_of.get(r))) for r, v in line["values"]]
        arms.append(
            {**line, "figure": f"{line['mean']:.1f} {charts.limits(line['low'], line['high'])}", "dots": dots}
        )
        told = "" if c is None else f"{gain_words(c)}  p {charts.probability(c['p'])}"
        gains.append(
            {
                "label": "candidate: the reference" if line["arm"] == "candidate" else f"− {line['label']}",
                "kind": line["kind"],
                "figure": told,
                **{k: c and c[k] for k in ("low", "high")},
                "mean": c and c["diff"],
                "dots": [(r, v, _dot_title(f"candidate − {line['label']}", r, v)) for r, v in line["pairs"]]
                if c
                else [],
            }
        )
    seen = "; figures in the table below"
    return {
        "arms": charts.interval_rows(arms, f"{name}: mean, 95 % interval and replicates of every arm{seen}"),
        "gains": charts.interval_rows(gains, f"{name}: candidate minus every other arm, paired{seen}", True),
    }


def gain_words(c: dict[str, Any]) -> str:
    """A difference with its interval."""
    return f"{charts.signed(c['diff'])} {charts.limits(c['low'], c['high'])}"


def _dot_title(label: str, replicate: int, value: float, gain: float | None = None) -> str:
    more = "" if gain is None else f"; the candidate is {charts.signed(gain)} from it"
    return f"{label}, replicate {replicate}: {charts.plain(value)}{more}"


def _views(
    summary: pl.DataFrame, comparisons: list[dict[str, Any]], metric: str, labels: dict[str, str]
) -> list[dict[str, Any]]:
    views = []
    for name, suite in (("Out of distribution", "ood_mean"), ("In distribution", "id_mean")):
        lines = arm_lines(summary, suite, metric, labels)
        mine = [
            c
            for c in comparisons
            if c["suite"] == suite and c["metric"] == metric and c["arm"] == "candidate"
        ]
        if lines:
            suites = summary.filter(
                pl.col("distribution") == suite[:-5], ~pl.col("suite").str.ends_with("_mean")
            )
            names = [show(s, 40) for s in suites["suite"].unique().sort()]
            views.append(
                {
                    "name": name,
                    "suites": names,
                    "lines": lines,
                    "by_control": {c["control"]: c for c in mine},
                    "charts": pair_of_charts(lines, mine, name),
                }
            )
    return views


def round_part(lake: Lake, record: dict[str, Any], number: int) -> dict[str, Any]:
    """One decided round: charts of OOD and ID, the decision in words, the screen, every comparison."""
    line, metric = status.round_facts(lake, record, number), record["recipe_spec"]["decide"]["endpoint"]
    ours = [c for c in line["comparisons"] if c["arm"] == "candidate" or c["phase"] == "screen"]
    main = [c for c in ours if c["suite"] == "ood_mean" and c["metric"] == metric]
    confirm = [c for c in line["comparisons"] if c["phase"] == "confirm"]
    gates = [c for c in main if c["phase"] == "confirm" and c["control"] in CONTROLS]
    untested = line["p"] is None and not line["alpha"]
    labels = {"candidate": "candidate: random" if untested else f"candidate: {show(line['strategy'], 24)}"}
    return {
        **line, "metric": metric, "found": FOUND.get(line["decision"], show(line["decision"], 40)),
        "strictest": max(gates, key=lambda c: (c["p"], -(c["diff"] or 0)), default=None),
        "reason_parts": [show(w, 900) for w in ([line["reason"]] if untested else line["reason"].split("; "))],
        "strategy": show(line["strategy"], 60), "confirm": confirm, "untested": untested,
        "views": _views(status.arm_summary(lake, record, number), confirm, metric, labels),
        "screen": [c for c in main if c["phase"] == "screen"], "screened": bool(steps_of(record, "screen", number)),
    }  # fmt: skip


def sealed_part(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """The sealed suites, opened once: charts and comparisons; None when none was opened."""
    found, metric = status.sealed_facts(lake, record), record["recipe_spec"]["decide"]["endpoint"]
    if found is None:
        return None
    summary = status.arm_summary(lake, record, found["round"], "sealed")
    key = str(steps_of(record, "sealed")[-1])
    opened = [_when(o["opened"]) for o in lake.openings() if o.get("key") == key and o.get("opened")]
    return {
        **found,
        "views": _views(summary, found["comparisons"], metric, {}),
        "opened": opened,
        "metric": metric,
    }


def map_part(found: dict[str, Any]) -> dict[str, Any]:
    """The map with badges on the first thin regions."""
    view = facts.region_map(found)
    badges = [
        {"x": r["x"], "y": r["y"], "number": r["number"], "name": show(" ".join(r["terms"].split()[:2]), 22),
         "title": f"region {r['number']}: {r['terms']}; {r['size']} rows"} for r in view["thin"][:BADGES]
    ]  # fmt: skip
    label = f"{len(view['dots'])} rows on the two main axes of gradient space, thin regions numbered; see the table"
    return {**view, "badges": len(badges), "chart": charts.scatter(view["dots"], badges, label)}


def difficulty_part(found: dict[str, Any]) -> dict[str, Any]:
    """The three histograms."""
    view = facts.difficulty(found)
    for s in view["scores"]:
        s["chart"] = charts.histogram(
            s["counts"], s["edges"], f"Histogram of {s['name']} over {s['n']} rows", s["log"]
        )
    return view


def coverage(lake: Lake, record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the auditor saw in each round: arm -> n and its figures; `regions` is the number of all regions."""
    rounds = []
    for (number,), lines in (
        status.diversity(lake, record).sort("round").group_by("round", maintain_order=True)
    ):
        arms: dict[str, dict[str, Any]] = {}
        for line in lines.rows(named=True):
            arms.setdefault(line["subset"], {})[line["metric"]] = line["value"]
            arms[line["subset"]]["n"] = line["n"]
        total = arms.pop("all", {}).get("regions_covered")
        arms = dict(sorted(arms.items(), key=lambda kv: list(ROLES).index(kv[0]) if kv[0] in ROLES else 9))
        drawn = [
            _bars("G-Vendi", "g_vendi", "ceiling", arms, 1),
            _bars("Regions covered", "regions_covered", total, arms, 0),
        ]
        rounds.append({"round": number, "arms": arms, "regions": total, "charts": drawn})
    return rounds


def _bars(
    title: str, metric: str, ceiling: Any, arms: dict[str, dict[str, Any]], digits: int
) -> tuple[str, Markup]:
    rows = [
        {"label": show(arm, 30), "kind": kind_of(arm), "value": v[metric], "figure": f"{v[metric]:,.{digits}f}",
         "ceiling": v.get(ceiling) if isinstance(ceiling, str) else ceiling}
        for arm, v in arms.items() if metric in v
    ]  # fmt: skip
    return title, charts.lollipops(rows, f"{title} of every set; figures in the table below")


def costs(lake: Lake, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds, peak memory, and how often it was computed or found again, by stage, in order of first use."""
    stages: dict[str, dict[str, Any]] = {}
    for cost in lake.costs(record["run"]):
        line = stages.setdefault(cost["stage"], {"seconds": 0.0, "peak_mb": 0.0, "computed": 0, "reused": 0})
        line["seconds"] += 0.0 if cost["reused"] else float(cost["seconds"])
        line["peak_mb"] = max(line["peak_mb"], float(cost.get("peak_memory_mb") or 0))
        line["reused" if cost["reused"] else "computed"] += 1
    return [{"stage": show(stage, 40), **line} for stage, line in stages.items()]
