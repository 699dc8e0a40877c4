"""`gradus init`: a commented recipe from a look at the data, tried before it is written."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from pathlib import Path

import polars as pl

from curation.errors import DataError, UserError
from curation.ingest.parse import Parsed, map_record
from curation.specs import FieldMap, Recipe
from flows.ingest import parse_file, settle_pool
from storage.sources import read_batches


def init(file: Path, out: Path) -> list[str]:
    """Writes a commented recipe from a look at the data; lines that say what was seen and decided."""
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    if out.exists():
        raise UserError(f"{out} exists already and was not touched; give another: --out PATH")
    items = [item for batch in read_batches(file, 5000) for item in batch.items]
    parsed = [
        p for p in (map_record(r, FieldMap()) for _, r, _ in items if r is not None) if isinstance(p, Parsed)
    ]
    if len(parsed) < 100:
        keys = sorted({k for _, r, _ in items[:50] if r for k in r})
        raise DataError(
            f"{file}: {len(parsed)} of {len(items)} records have a known shape, at least 100 are needed; keys seen: {', '.join(keys) or 'none'}. "
            "Known: prompt/question/instruction/input/text, response/answer/output/completion/target, label, messages"
        )
    labels = {p.label for p in parsed if p.label is not None}
    labelled = sum(p.label is not None for p in parsed) > 0.9 * len(parsed)
    head = labelled and 2 <= len(labels) <= len(parsed) // 10
    out.parent.mkdir(parents=True, exist_ok=True)
    sealed, by = len(parsed) >= MIN_ROWS_FOR_SEALED, "clusters"
    while True:
        text = _recipe_text(file, out, len(parsed), head, parsed, sealed, by)
        kept, problem = _kept_by(text, out)
        if problem is None:
            break
        if not sealed and by == "rows":
            raise DataError(
                f"{file}: no part of it can be held out as a suite ({problem}); write a recipe with a suite file of your own"
            )
        sealed, by = False, "clusters" if sealed else "rows"
    text = text.replace("rows = BUDGET", f"rows = {max(2, kept // 2):<22}")
    out.write_text(text, encoding="utf-8")
    kind = f"classification, {len(labels)} labels" if head else "text to text"
    what = "text clusters" if by == "clusters" else "random rows (its labels are too small for clusters)"
    return [
        f"{len(items)} records, {len(parsed)} usable; {kind}",
        f"no suite was given, so the recipe holds parts of the pool out: {what} (20 %) as the out-of-distribution",
        f"suite{', 5 % sealed' if sealed else ''}, and random rows (10 %) as the in-distribution suite. Suites of your own are better evidence.",
        f"wrote {out}; next: gradus check {out}",
    ]


def _kept_by(text: str, out: Path) -> tuple[int, str | None]:
    """Rows that the recipe's suites and cleaning leave, or why it cannot be; nothing is written."""
    recipe = Recipe.model_validate(tomllib.loads(text.replace("rows = BUDGET", "rows = 1")))
    source = recipe.source[0]
    _, rows = parse_file(recipe, source, out.resolve().parent / str(source.path), set())
    try:
        ledger = settle_pool(recipe, {}, rows)["ledger"]
    except (DataError, UserError) as error:
        return 0, str(error)
    return len(rows) - len(ledger.filter(pl.col("decision") == "drop")), None


MIN_ROWS_FOR_SEALED = 1000
SEALED = """[[suite]]
name = "sealed"                 # opened once, after the last decision
holdout_clusters = 0.05
distribution = "ood"
use = "sealed"

"""


def _recipe_text(
    file: Path, out: Path, rows: int, head: bool, parsed: list[Parsed], with_sealed: bool, by: str
) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", file.name.split(".")[0]).strip("-") or "corpus"
    lengths = sorted(len(f"{p.prompt} {p.response}".split()) for p in parsed)
    long = min(128, max(24, 8 * math.ceil((lengths[int(0.95 * len(lengths))] * 1.3 + 2) / 8)))
    path = os.path.relpath(file.resolve(), out.resolve().parent)
    proxy = (
        'kind = "head"                  # a classifier on the packaged MiniLM encoder\nwidth = 128\nsteps = 400\nscorer_steps = 80\nlearning_rate = 3e-3'
        if head
        else f'kind = "decoder"               # a small causal model trained from scratch on this corpus\nwidth = 64\nlayers = 2\nmax_tokens = {long}               # 95 % of the rows fit\nsteps = 300\nlearning_rate = 5e-3'
    )
    space = (
        '["gradient_logdet", "errors_logdet", "gradient_clusters", "embedding_clusters"]'
        if head
        else '["gradient_logdet", "errors_logdet", "gradient_clusters"]'
    )
    endpoint = "accuracy" if head else "p_correct"
    sealed = SEALED if with_sealed else ""
    return f'''# Written by `gradus init` from {json.dumps(file.name)} ({rows} usable rows). `gradus fields` explains every field.
format = 1
name = {json.dumps(name)}
seed = 7

[[source]]
name = "main"                   # --source main=PATH puts another file in its place
path = {json.dumps(path)}

# No suite was given: parts of the pool are held out. Replace them by suites of your own when you can.
[[suite]]
name = "held_out_{by}"{" " * (13 - len(by))}# {"whole text clusters that the pool no longer has" if by == "clusters" else "random rows: no shift, but fresh items"}
holdout_{by} = 0.2
distribution = "ood"
use = "steer+judge"             # split by clusters: plans see one half, the decision the other

{sealed}[[suite]]
name = "in_distribution"
holdout_rows = 0.1
distribution = "id"
use = "steer+judge"

[proxy]
{proxy}

[budget]
rows = BUDGET# rows of the set: about half of the clean pool
rounds = 1

[select]
strategies = {space}

[decide]
work = "choose"                 # choose rows of the pool; nothing is generated
endpoint = "{endpoint}"
smallest_gain_points = 2.0
max_replicates = 8
'''
