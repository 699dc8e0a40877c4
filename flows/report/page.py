"""One HTML page that shows what a run found: self-contained, opened from disk, with every figure's n and interval."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from polars.exceptions import PolarsError

from curation.decide.wording import fraction
from curation.errors import DataError, UserError
from flows import status
from flows.report import charts
from flows.report.region_map import difficulty_part, map_part, scored
from flows.report.rounds import ROLES, gain_words, glance, kind_of, round_part, sealed_part, when
from flows.report.rows import additions, dropped
from flows.report.texts import show, word_changes
from storage.artifacts import Lake

STOPS = {
    "streak": "two rounds in a row did not publish",
    "saturation": "the proxy got almost every new candidate right, so nothing was left to ask for",
    "budget": "the budget of rounds or minutes was used up",
}


def write_report(lake: Lake, record: dict[str, Any]) -> Path:
    """Path of the run's page `reports/RUN.html` in the lake; parts that the run lacks are sentences there."""
    page = render(lake, record)
    return lake.save_report(f"{record['run']}.html", page.encode("utf-8", "replace"))


def render(lake: Lake, record: dict[str, Any]) -> str:
    """The page as text."""
    return page("report.html", page_facts(lake, record))


def page(template: str, facts: dict[str, Any]) -> str:
    """A template of this folder with these facts; every text in them is escaped."""
    return _environment().get_template(template).render(facts)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("flows.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "signed": charts.signed, "plain": charts.plain, "p": charts.probability, "limits": charts.limits,
        "small": charts.small, "gain": gain_words, "level": fraction, "show": show, "changes": word_changes,
        "count": "{:,}".format, "percent": lambda share: f"{100 * share:.0f} %",
    }  # fmt: skip
    return environment


def page_facts(lake: Lake, record: dict[str, Any]) -> dict[str, Any]:
    """Everything that the page shows; a part whose artifacts are gone is None and named in `missing`."""
    missing: list[str] = []

    def part(look_up: Any) -> Any:
        try:
            return look_up()
        except (DataError, UserError, PolarsError, OSError) as error:
            missing.append(show(str(error)))
            return None

    decided = sorted({s["round"] for s in record["steps"] if s["stage"] == "decide"})
    begun = sorted({s["round"] for s in record["steps"] if s["round"]})
    rounds = [r for r in (part(partial(round_part, lake, record, n)) for n in decided) if r]
    found, sealed = part(lambda: scored(lake, record)), part(lambda: sealed_part(lake, record))
    costs = part(lambda: cost_lines(lake, record)) or []
    view = part(lambda: map_part(lake, record, found)) if found else None
    facts = {
        "run": run_part(record), "rounds": rounds, "undecided": [r for r in begun if r not in decided],
        "lead": lead(rounds), "version": part(lambda: version_part(lake, record)), "sealed": sealed,
        "accounting": part(lambda: status.accounting(lake, record)), "glance": glance(rounds, sealed),
        "map": view, "difficulty": part(lambda: difficulty_part(found)) if found else None,
        "coverage": part(lambda: coverage(lake, record)) or [],
        "additions": part(lambda: additions(lake, record)) or [], "dropped": part(lambda: dropped(lake, record)),
        "costs": costs, "peak_mb": max((c["peak_mb"] for c in costs), default=0), "max_replicates": 20,
    }  # fmt: skip
    return facts | {"missing": missing}


def run_part(record: dict[str, Any]) -> dict[str, Any]:
    """The run in words: when, state, why it stopped."""
    stop = record.get("stop_reason")
    return {
        "id": show(record["run"], 80), "recipe": show(record["recipe"], 80).strip() or "(no name)", "state": show(status.state_of(record), 40),
        "started": when(record["started"]), "took": duration(record.get("seconds")),
        "error": show(record.get("error"), 600), "stop": show(stop, 80) or None, "why": STOPS.get(stop or "", ""),
        "sealed_note": show(record.get("sealed_note"), 400), "spec": record["recipe_spec"],
    }  # fmt: skip


def duration(seconds: Any) -> str:
    """Seconds for a person."""
    whole = round(float(seconds or 0))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def lead(rounds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The round that the page opens with: the last that published, else the last."""
    won = [r for r in rounds if r["decision"] == "publish"]
    return (won or rounds or [None])[-1]


def version_part(lake: Lake, record: dict[str, Any]) -> dict[str, Any] | None:
    """The version that the run ended with: its rows, strategy and decision."""
    version = record.get("version")
    known = [v for v in lake.dataset_versions(record["recipe"]) if v["version"] == version]
    if not known:
        return None
    named = {"number": version, "name": f"{show(record['recipe'], 60)} v{version}"}
    kept = {k: known[0][k] for k in ("rows", "decision")}
    return {**named, **kept, "strategy": show(known[0]["strategy"], 60)}


def coverage(lake: Lake, record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the auditor saw in each round: arm -> n and its figures; `regions` is the number of all regions."""
    rounds = []
    seen = status.diversity(lake, record).sort("round").group_by("round", maintain_order=True)
    for (number,), lines in seen:
        arms: dict[str, dict[str, Any]] = {}
        for line in lines.rows(named=True):
            arm = arms.setdefault(line["subset"], {"n": line["n"]})
            arm[line["metric"]] = line["value"]
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


def cost_lines(lake: Lake, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds, peak memory, and how often it was computed or found again, by stage, in order of first use."""
    stages: dict[str, dict[str, Any]] = {}
    for cost in lake.costs(record["run"]):
        line = stages.setdefault(cost["stage"], {"seconds": 0.0, "peak_mb": 0.0, "computed": 0, "reused": 0})
        line["seconds"] += 0.0 if cost["reused"] else float(cost["seconds"])
        line["peak_mb"] = max(line["peak_mb"], float(cost.get("peak_memory_mb") or 0))
        line["reused" if cost["reused"] else "computed"] += 1
    return [{"stage": show(stage, 40), **line} for stage, line in stages.items()]
