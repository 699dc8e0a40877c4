"""The page that a lake opens with: every run with what it decided, and every version of every dataset."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from polars.exceptions import PolarsError

from curation.errors import DataError, UserError
from flows.report import charts
from flows.report.page import duration, page
from flows.report.rounds import FOUND, strictest_of, when
from flows.report.texts import show
from flows.status import comparison_lines, state_of
from storage.artifacts import Lake, Ref

INDEX = "index.html"


def write_index(lake: Lake) -> Path:
    """Path of the page `reports/index.html` in the lake: runs newest first, then dataset versions."""
    return lake.save_report(INDEX, page("index.html", index_facts(lake)).encode("utf-8", "replace"))


def index_facts(lake: Lake) -> dict[str, Any]:
    """Runs and versions as plain data; what cannot be read any more is named in place, never left out."""
    verdict = cache(lambda ref, metric: _verdict(lake, ref, metric))
    records = lake.runs()[::-1]
    written = lake.reports()
    links = {r["run"]: quote(f"{r['run']}.html", safe="") for r in records if f"{r['run']}.html" in written}
    runs = [_run_line(record, verdict, links) for record in records]
    gains = [v for r in runs for d in r["rounds"] if d["best"] for v in (d["best"]["low"], d["best"]["high"])]
    limits = charts.domain(gains, (0.0,))
    for best in (d["best"] for r in runs for d in r["rounds"] if d["best"]):
        best["chart"] = charts.interval_mark(best["diff"], best["low"], best["high"], limits)
    return {"lake": show(lake.root.name, 60), "runs": runs, "datasets": _datasets(lake, records, links)}


def _run_line(record: dict[str, Any], verdict: Any, links: dict[str, str]) -> dict[str, Any]:
    metric = record["recipe_spec"]["decide"]["endpoint"]
    decided = [
        verdict(Ref.parse(step["artifact"]), metric) | {"round": step["round"]}
        for step in record["steps"]
        if step["stage"] == "decide"
    ]
    version = record.get("version")
    return {
        "id": show(record["run"], 80), "recipe": show(record["recipe"], 80).strip() or "(no name)", "state": show(state_of(record), 40),
        "when": when(record["started"]), "took": duration(record.get("seconds")), "href": links.get(record["run"]),
        "error": show(record.get("error"), 200), "rounds": decided, "version": version and f"v{version}",
    }  # fmt: skip


def _verdict(lake: Lake, ref: Ref, metric: str) -> dict[str, Any]:
    try:
        decision = lake.read(ref, "decisions").row(0, named=True)
        best = strictest_of(comparison_lines(lake.read(ref, "comparisons")), metric)
    except (DataError, UserError, PolarsError, OSError):
        return {"decision": "", "found": "is not in the lake any more", "strategy": "", "best": None}
    tested = best is not None and decision["p"] is not None and best["diff"] is not None
    told = {"decision": decision["decision"], "strategy": show(decision["strategy"], 40)}
    found = FOUND.get(decision["decision"], show(decision["decision"], 40))
    return {**told, "found": found, "best": best if tested else None}


def _datasets(lake: Lake, records: list[dict[str, Any]], links: dict[str, str]) -> list[dict[str, Any]]:
    """Every dataset with its versions, newest first, and the run whose evidence or base each was."""
    made: dict[str, str] = {}
    for record in records:  # newest first, so that the oldest run that made it stays
        made |= {step["artifact"]: record["run"] for step in record["steps"]}
    out: dict[str, list[dict[str, Any]]] = {}
    for name, number in lake.dataset_folders()[::-1]:
        out.setdefault(name, []).append(_version_line(lake, name, number, made, links))
    return [{"name": show(name, 80), "versions": out[name]} for name in sorted(out)]


def _version_line(
    lake: Lake, name: str, number: int, made: dict[str, str], links: dict[str, str]
) -> dict[str, Any]:
    try:
        v = lake.manifest(Ref("dataset", name, f"v{number}"))
        return {
            "number": number, "rows": v["rows"]["rows"], "decision": show(v["decision"], 40), "parent": v["parent"],
            "strategy": show(v["strategy"], 60), "tokens": v["tokens"], "damage": "",
            "run": show(made.get(v["evidence"]), 80), "href": links.get(made.get(v["evidence"], "")),
        }  # fmt: skip
    except (DataError, UserError, OSError, KeyError, TypeError) as error:
        return {"number": number, "damage": show(str(error), 300)}
