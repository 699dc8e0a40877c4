"""What a person sees of a run in the Prefect UI: artifacts of stages and rounds, progress, links to run again.

Prefect stores and renders artifacts raw: whatever comes from a corpus, a recipe or an error goes through
`safe_markdown` first, and nothing here ever fails a run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import quote
from uuid import UUID

import polars as pl

from flows.run import Run
from flows.status import comparison_lines
from flows.terminal import inline
from flows.window import SECTIONS
from storage.artifacts import Lake, Ref

SECONDS_BETWEEN = 2.0  # updates of a progress artifact
LONGEST_TEXT, LONGEST_PAGE, MOST_BARS, BAR = 500, 60_000, 12, 24
MARKUP = re.compile(r"[!-/:-@\[-`{-~]")  # ASCII punctuation: none of it may mean anything in markdown or HTML
ADDRESS = re.compile(r"(?i)(?<=http:)(?=/)|(?<=https:)(?=/)|(?<=www)(?=\.)|(?<=@)")
Lines = list[tuple[str, float | None]]


def safe_markdown(text: object, longest: int = LONGEST_TEXT) -> str:
    """Any text as one line that markdown and HTML show as it is: nothing in it renders, links or runs."""
    whole = str(text)
    cut = f" … (cut, {len(whole):,} characters)" if len(whole) > longest else ""
    shown = " ".join(inline(whole[:longest].encode("utf-8", "replace").decode()).split())
    return MARKUP.sub(r"\\\g<0>", unlinked(shown)) + cut


def unlinked(text: str) -> str:
    """The text with an invisible sign in its addresses: Prefect's pages make links of them, in logs and escaped too."""
    return ADDRESS.sub("\u2060", text)


@contextmanager
def harmless() -> Iterator[None]:
    """What fails while something is shown is logged, and the run goes on."""
    try:
        yield
    except Exception as error:
        logging.getLogger("gradus").warning("not shown: %s", inline(repr(error))[:LONGEST_TEXT])


def show(kind: str, data: str, key: str, description: str, flow_run_id: UUID | None = None) -> None:
    """Makes an artifact of a flow run, of the one in progress unless another is named."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate
    from prefect.context import FlowRunContext

    if flow_run_id is None:
        context = FlowRunContext.get()
        assert context is not None and context.flow_run is not None
        flow_run_id = context.flow_run.id
    made = ArtifactCreate(type=kind, data=data, key=key, description=description, flow_run_id=flow_run_id)
    with get_client(sync_client=True) as client:
        client.create_artifact(made)


def show_stage(
    run: Run,
    stage: str,
    round: int,
    made: Sequence[dict[str, Any]],
    seconds: float,
    flow_run_id: UUID | None = None,
) -> None:
    """Makes the artifacts of one stage's run: what it made, how fast, a chart, and where to run it again."""
    with harmless():
        about = f"{stage}{f', round {round}' if round else ''}, of {run.recipe.name}"
        page = stage_page(run, stage, round, made, seconds)
        show("markdown", page, key_of(run.recipe.name, stage), about, flow_run_id)
    if stage == "decide" and made:
        show_round(run, round, Ref.parse(made[-1]["artifact"]), flow_run_id)


def stage_page(run: Run, stage: str, round: int, made: Sequence[dict[str, Any]], seconds: float) -> str:
    """The markdown page of a stage."""
    where = f", round {round}" if round else ""
    lines = [f"### {stage}{where}: {safe_markdown(run.recipe.name)}", ""]
    fresh = [s for s in made if not s["reused"]]
    for step in made:
        ref = Ref.parse(step["artifact"])
        rows = run.lake.manifest(ref)["rows"]
        lines += [
            f"`{ref}` {'reused' if step['reused'] else 'computed now'}",
            "",
            "| table | rows |",
            "|---|--:|",
        ]
        lines += [f"| {table} | {n:,} |" for table, n in rows.items()] + [""]
        bars: Lines = []
        with harmless():
            bars = (
                [(str(name), value) for name, value in CHARTS[step["stage"]](run.lake, ref)]
                if step["stage"] in CHARTS
                else []
            )
        lines += [chart(bars), ""] if bars else []
    if not made:
        lines += ["nothing to do for this recipe", ""]
    if fresh:
        most = max(
            max(run.lake.manifest(Ref.parse(s["artifact"]))["rows"].values(), default=0) for s in fresh
        )
        peak = max((c.get("peak_memory_mb") or 0 for c in run.lake.costs(run.run_id)), default=0)
        lines += [f"{seconds:.1f} s, {most / max(seconds, 1e-3):,.0f} rows/s, peak memory {peak:,.0f} MB", ""]
    return "\n".join([*lines, *links(run, stage, round)])[:LONGEST_PAGE]


def chart(bars: Lines) -> str:
    """A bar for every number, as text in a table; missing numbers have none."""
    known = [abs(v) for _, v in bars if v is not None and v == v]
    most = max(known, default=0.0) or 1.0
    lines = ["| | | |", "|---|--:|---|"]
    for name, value in bars[:MOST_BARS]:
        missing = value is None or value != value
        figure = "–" if missing else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        lines.append(
            f"| {safe_markdown(name, 60)} | {figure} | {'' if missing else '█' * max(1, round(BAR * abs(value) / most)) if value else ''} |"
        )
    left = len(bars) - MOST_BARS
    return "\n".join(lines + ([f"| and {left} more | | |"] if left > 0 else []))


def _counts(lake: Lake, ref: Ref, table: str, *by: str) -> Lines:
    frame = lake.scan(ref, table).group_by(by).len().sort("len", by[0], descending=[True, False]).collect()
    return [(" ".join(map(str, line[:-1])), float(line[-1])) for line in frame.iter_rows()]


def _means(lake: Lake, ref: Ref, table: str, value: str, *by: str) -> Lines:
    frame = lake.scan(ref, table).group_by(by).agg(pl.col(value).cast(pl.Float64).mean()).sort(by).collect()
    return [(" ".join(map(str, line[:-1])), line[-1]) for line in frame.iter_rows()]


def _regions(lake: Lake, ref: Ref) -> Lines:
    frame = lake.read(ref, "region_table").filter(pl.col("scale") == "coarse")
    lines = (
        frame.sort("size", "region", descending=[True, False]).select("region", "terms", "size").iter_rows()
    )
    return [(f"region {region}: {terms}", float(size)) for region, terms, size in lines]


def _gains(lake: Lake, ref: Ref) -> Lines:
    frame = lake.read(ref, "comparisons").filter(pl.col("suite") == "ood_mean")
    lines = frame.select("arm", "control", "metric", "difference").iter_rows()
    return [(f"{arm} minus {control}, {metric}", gain) for arm, control, metric, gain in lines]


CHARTS: Mapping[str, Callable[[Lake, Ref], Lines]] = {
    "ingest": lambda lake, ref: _counts(lake, ref, "ledger", "decision", "reason"),
    "base": lambda lake, ref: _counts(lake, ref, "rows", "source"),
    "score": _regions,
    "synthesize": lambda lake, ref: _counts(lake, ref, "selections", "arm"),
    "select": lambda lake, ref: _counts(lake, ref, "selections", "arm"),
    "train": lambda lake, ref: _means(lake, ref, "models", "train_nll", "arm"),
    "evaluate": lambda lake, ref: _means(lake, ref, "outcomes", "correct", "suite"),
    "screen": _gains,
    "decide": _gains,
    "sealed": _gains,
    "audit": lambda lake, ref: _means(lake, ref, "diversity", "value", "metric", "subset"),
}


def show_round(run: Run, round: int, verdict: Ref, flow_run_id: UUID | None = None) -> None:
    """Makes the artifacts of a round: the candidate against every control, what was decided and why."""
    with harmless():
        decision = run.lake.read(verdict, "decisions").row(0, named=True)
        lines = comparison_lines(run.lake.read(verdict, "comparisons"))
        shown = ("arm", "control", "suite", "metric", "diff", "low", "high", "p", "n", "detectable")
        table = json.dumps(finite([{k: line[k] for k in shown} for line in lines]))
        name = f"round {round} of {run.recipe.name}"
        show("table", table, key_of(run.recipe.name, "comparisons"), f"comparisons, {name}", flow_run_id)
        page = [round_page(decision, lines, run.recipe.decide.endpoint), *links(run, "decide", round)]
        show("markdown", "\n".join(page), key_of(run.recipe.name, "round"), name, flow_run_id)


def round_page(decision: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], endpoint: str) -> str:
    """The markdown of a round's decision."""
    page = [
        f"### Round {decision['round']}: {safe_markdown(decision['decision']).upper()}",
        "",
        safe_markdown(decision["reason"], 2000),
        "",
        f"strategy {safe_markdown(decision['strategy'])}, level {decision['alpha']:.4g}, joint p {_figure(decision['p'], '.3g')}",
        "",
        "| candidate minus | suites | OOD points | 95 % interval | p | n |",
        "|---|---|--:|---|--:|--:|",
    ]
    for c in lines:
        if c["arm"] == "candidate" and c["suite"].endswith("_mean") and c["metric"] == endpoint:
            interval = f"{_figure(c['low'], '+.1f')} to {_figure(c['high'], '+.1f')}"
            page.append(
                f"| {safe_markdown(c['control'])} | {c['suite'][:-5]} | {_figure(c['diff'], '+.1f')} | {interval} "
                f"| {_figure(c['p'], '.2g')} | {c['n']} |"
            )
    return "\n".join([*page, ""])


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None or value != value else format(value, form)


def finite(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same lines with None in place of NaN and infinities, which JSON does not have."""
    bad = (float("nan"), float("inf"), float("-inf"))
    return [
        {k: None if isinstance(v, float) and (v != v or v in bad) else v for k, v in line.items()}
        for line in table
    ]


def key_of(*parts: str) -> str:
    """An artifact key: what Prefect groups artifacts by; lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def links(run: Run, stage: str, round: int) -> list[str]:
    """Where to run the stage again, and the report; nothing when there is no UI or no deployment."""
    from prefect.settings import PREFECT_UI_URL

    ui, out = PREFECT_UI_URL.value(), []
    if not ui:
        return out
    recipe = run.recipe.model_dump(mode="json")
    common = {"run_id": run.run_id} | ({"round": round} if round else {})
    sections = {section: recipe[section] for section in SECTIONS[stage]}
    for title, deployment, more in (
        ("Rerun only this", f"{stage}/{stage.replace('_', '-')}", {}),
        ("Rerun from here", "curate/curate", {"start_at": stage}),
    ):
        found = deployments(ui).get(deployment)
        if found:
            parameters = quote(json.dumps(common | more | sections, ensure_ascii=False), safe="")
            out += [f"[{title}]({ui}/deployments/deployment/{found}/run?parameters={parameters})", ""]
    return [*out, *report_link(run)]


def report_link(run: Run) -> list[str]:
    """Where the run's report is, when a server shows reports."""
    from flows.service.settings import serving

    found = serving(run.lake.root)
    url = found.pages_url if found else os.environ.get("GRADUS_PAGES_URL")
    return [f"[Report]({url.rstrip('/')}/{quote(run.run_id, safe='')}.html)", ""] if url else []


@cache
def deployments(ui: str) -> dict[str, str]:
    """Ids of Gradus' deployments on the server that this process talks to, by function and deployment name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    with get_client(sync_client=True) as client:
        ours = DeploymentFilter(tags=DeploymentFilterTags(all_=["gradus"]))
        found = client.read_deployments(deployment_filter=ours)
    return {f"{(d.entrypoint or '').rpartition('.')[2]}/{d.name}": str(d.id) for d in found}


def tracked(inner: Callable[..., Iterable] | None = None) -> Callable[..., Iterator]:
    """A way to track shards: a progress artifact with rate and time left, renewed every two seconds at most."""

    def track(things: Iterable, label: str, total: int) -> Iterator:
        begun = last = time.monotonic()
        artifact = None
        for done, thing in enumerate(inner(things, label, total) if inner else things, 1):
            now = time.monotonic()
            if now - last >= SECONDS_BETWEEN or (artifact and done == total):
                last, rate = now, done / (now - begun)
                left = f"{done} of {total} shards, {rate:.2g}/s, {(total - done) / rate:.0f} s left"
                with harmless():
                    artifact = _progress(artifact, 100 * done / total, f"{label}: {left}")
            yield thing

    return track


def _progress(artifact: Any, percent: float, text: str) -> Any:
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    if artifact is None:
        return create_progress_artifact(percent, key=None, description=text)
    return update_progress_artifact(artifact, percent, description=text)
