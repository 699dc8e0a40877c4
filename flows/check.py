"""What can be known before long work: `gradus check`, `gradus estimate`, `gradus init`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl

from curation.decide.rule import alpha_for
from curation.errors import DataError, UserError
from curation.ingest.parse import Parsed, map_record
from curation.rows import ROWS
from curation.specs import Recipe
from flows.base import refuse_budget
from flows.ingest import parse_file, settle_pool, source_files
from flows.recipe import confirming_bounds, judge_problems
from flows.run import Run
from storage.artifacts import Lake
from storage.sources import count_records, read_batches


def refuse_problems(recipe: Recipe, path: Path | None = None) -> None:
    """Raises one `UserError` that lists what is wrong with a recipe, before any file is opened."""
    problems = judge_problems(recipe)
    if problems:
        raise UserError(f"{path or recipe.name} cannot run:\n  " + "\n  ".join(problems))


def refuse_spent_alpha(lake: Lake, recipe: Recipe) -> None:
    """Raises when the dataset's streak is over: no test is left, so nothing could be published."""
    wins = sum(v["decision"] == "publish" for v in lake.dataset_versions(recipe.name))
    spent = [e for e in lake.alpha_spent(recipe.name) if e["streak"] == wins]
    if alpha_for(len(spent)) == 0:
        raise UserError(
            f"dataset {recipe.name!r} has spent its alpha: {len(spent)} tests since the last published version did not publish. "
            "Bring judge suites that were not looked at and another `name` for the dataset; everything so far is kept"
        )


def check(run: Run) -> list[str]:
    """Reads and settles the whole corpus without writing: lines for a person; raises what `run` would raise."""
    recipe = run.recipe
    refuse_problems(recipe)
    low, high = confirming_bounds(recipe)
    lines = [
        f"replicates {low if low == high else f'{low} to {high}'}, rounds up to {recipe.budget.rounds}, work {recipe.decide.work}"
    ]
    if recipe.worlds:
        return [*lines, f"embedded corpus of {recipe.worlds} worlds; nothing to read"]
    files = source_files(run)
    parts, known = [ROWS.to_frame()], set()
    for source in recipe.source:
        for path in files[f"source/{source.name}"]:
            records, rows = parse_file(recipe, source, path, known)
            known |= set(rows["row_id"])
            parts.append(rows)
            lines.append(f"source {source.name}, {path.name}: {len(records)} records, {len(rows)} rows")
    rows = pl.concat(parts)
    tables = settle_pool(recipe, files, rows)
    drops = tables["ledger"].filter(pl.col("decision") == "drop")
    lines.append(f"pool: {len(rows) - len(drops)} rows kept, {len(drops)} dropped")
    lines += [
        f"  dropped, {reason}: {n}" for reason, n in drops.group_by("reason").len().sort("reason").iter_rows()
    ]
    counts = tables["suite_items"].group_by("suite", "distribution", "use").len().sort("suite", "use")
    lines += [f"suite {s} ({d}, {u}): {n} items" for s, d, u, n in counts.iter_rows()]
    kept = rows.join(drops.select("row_id"), on="row_id", how="anti")
    refuse_budget(recipe, kept)
    if recipe.proxy.kind == "head" and kept["label"].drop_nulls().n_unique() < 2:
        raise UserError(
            '[proxy] kind = "head" needs labels, and the pool has fewer than two; map fields = {label = "…"}'
        )
    return lines


@dataclass(frozen=True)
class Estimate:
    stage: str
    work: str
    seconds: float
    memory_mb: float
    disk_mb: float


def estimate(run: Run) -> list[Estimate]:
    """Time, memory and disk of each stage, from file sizes and one short measurement of this machine."""
    recipe = run.recipe
    rows, tokens_a_row = _size(run)
    proxy, workers = recipe.proxy, max(1, run.workers)
    parameters = _parameters(recipe)
    flops = _flops_per_second() * 0.55  # small matrices reach about half of a large product's speed
    step_tokens = proxy.batch_rows * (1 if proxy.kind == "head" else tokens_a_row)
    step_seconds = 6 * parameters * step_tokens / flops + 0.0012
    low, high = confirming_bounds(recipe)
    replicates = round((low + high) / 2)
    arms = 3 if recipe.worlds else 4
    trainings = replicates * arms * recipe.budget.rounds
    if recipe.decide.fixed_strategy:
        trainings += replicates * len(recipe.select.strategies)
    else:
        trainings += (
            recipe.decide.screen_replicates * (1 + len(recipe.select.strategies)) * recipe.budget.rounds
        )
    scored = rows if recipe.decide.work == "choose" else rows + recipe.synthesize.candidates
    scored *= recipe.budget.rounds * max(1, recipe.worlds)
    row_seconds = 8 * parameters * (1 if proxy.kind == "head" else tokens_a_row) / flops + 0.0003
    feature_mb = scored * proxy.feature_dimensions * 2 / 1e6
    memory = 350 + 8 * parameters / 1e6 + feature_mb * 4 / max(1, recipe.worlds)
    out = [
        Estimate(
            "ingest",
            f"{rows * max(1, recipe.worlds)} rows",
            rows * max(1, recipe.worlds) / 2500,
            300 + rows * 2e-3,
            rows * 5e-4,
        )
    ]
    if proxy.kind == "head":
        out.append(
            Estimate(
                "embed",
                f"{rows} texts and the suites",
                rows * 1.5 * 0.006 / workers + 8,
                900,
                rows * 1.5 * 8e-4,
            )
        )
    out += [
        Estimate(
            "score",
            f"{scored} rows",
            (scored * row_seconds + max(1, recipe.worlds) * proxy.steps * step_seconds) / workers + 6,
            memory,
            feature_mb,
        ),
        Estimate("select", f"{trainings} sets", trainings * 0.6 / workers, memory, trainings * 0.05),
        Estimate(
            "train",
            f"{trainings} models x {proxy.steps} steps",
            trainings * proxy.steps * step_seconds / workers,
            500,
            trainings * parameters * 4e-6,
        ),
        Estimate(
            "evaluate, decide",
            "outcomes of every model",
            trainings * 0.25 / workers + 2,
            500,
            trainings * 0.03,
        ),
    ]
    return out


def _size(run: Run) -> tuple[int, float]:
    if run.recipe.worlds:
        return run.recipe.budget.rows or 500, 17.0
    rows, words, seen = 0, 0, 0
    files = source_files(run)
    for source in run.recipe.source:
        for path in files[f"source/{source.name}"]:
            head = [r for b in islice(read_batches(path, 500), 1) for _, r, _ in b.items if r is not None]
            sample = [p for p in (map_record(r, source.fields) for r in head) if isinstance(p, Parsed)]
            if not sample:
                raise DataError(
                    f"source {source.name!r}, {path.name}: none of the first records can be used; see gradus check"
                )
            rows += max(len(sample), count_records(path))
            words += sum(len(f"{p.prompt} {p.response}".split()) for p in sample)
            seen += len(sample)
    return rows, min(run.recipe.proxy.max_tokens, 1.15 * words / seen + 2)


def _parameters(recipe: Recipe) -> int:
    p = recipe.proxy
    return 384 * p.width + 20 * p.width if p.kind == "head" else p.layers * 12 * p.width**2 + 200 * p.width


def _flops_per_second() -> float:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.ones(1152, 64)
    b = torch.ones(64, 256)
    a @ b
    begun, n = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.15:
        a @ b
        n += 1
    seconds = time.perf_counter() - begun
    torch.set_num_threads(threads)
    return 2 * 1152 * 64 * 256 * n / seconds
