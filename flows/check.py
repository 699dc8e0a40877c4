"""What is wrong with a recipe, known before long work: `gradus check`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl

from curation.decide.rule import alpha_for
from curation.errors import UserError
from curation.proxies import make_reader
from curation.rows import ROWS
from curation.specs import Recipe
from flows.base import refuse_budget
from flows.ingest import parse_file, settle_pool, source_files
from flows.pretrained import pretrained_of
from flows.recipe import confirming_bounds, judge_problems
from flows.run import Run
from storage.artifacts import Lake


def refuse_problems(recipe: Recipe, path: Path | None = None) -> None:
    """Raises one `UserError` that lists what is wrong with a recipe or its pretrained model, before data is opened."""
    problems = judge_problems(recipe)
    if problems:
        raise UserError(f"{path or recipe.name} cannot run:\n  " + "\n  ".join(problems))
    pretrained_of(recipe.proxy)


def refuse_spent_alpha(lake: Lake, recipe: Recipe) -> None:
    """Raises when the dataset's streak is over: no test is left, so nothing could be published."""
    wins = sum(v["decision"] == "publish" for v in lake.dataset_versions(recipe.name))
    spent = Counter(e["suite"] for e in lake.alpha_spent(recipe.name) if e["streak"] == wins)
    tests = max(spent.values(), default=0)
    if alpha_for(tests) == 0:
        raise UserError(
            f"dataset {recipe.name!r} has spent its alpha: {tests} tests since the last published version did not publish. "
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
    make_reader(recipe.proxy, kept, 0, pretrained_of(recipe.proxy))  # refuses a pool without labels
    return lines
