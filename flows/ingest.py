"""Stage ingest: from files (or the embedded worlds) to records, rows, ledger and suite items."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from curation import world as worlds
from curation.errors import DataError, UserError
from curation.ingest.holdout import hold_out
from curation.ingest.ledger import drops
from curation.ingest.parse import Parsed
from curation.ingest.pool import merge_copies, parse_batch, settle
from curation.ingest.suites import build_suite_items, from_rows, overlap, parse_suite
from curation.rows import LEDGER, RECORDS, ROWS, SUITE_ITEMS
from curation.specs import Recipe, Source, Suite
from flows.run import Run
from storage.artifacts import Draft, Ref
from storage.sources import expand, file_hash, read_batches

VERSION = "ingest_v2"
EMBEDDED_ITEMS = 300
MAX_OVERLAP = 0.10
MIN_ITEMS = 10


def ingest(run: Run) -> Ref:
    """Reads the sources; writes records, rows, ledger, suite_items.

    Reads: files of the recipe. Writes: one ingest artifact. Costs: seconds per 100,000 rows.
    Safe to rerun because the fingerprint holds the content of every file.
    """
    files = source_files(run) if run.known_files is None else {}
    spec = ingest_spec(run.recipe, files)
    if run.known_files is not None:  # the run begins later: the pool is of the files as they were read then
        spec["files"] = run.known_files
    return run.stage("ingest", VERSION, spec, [], lambda draft: _compute(run, draft, files))


def source_files(run: Run) -> dict[str, list]:
    """`source/NAME` and `suite/NAME` -> its files, found now; a missing one is a `UserError`."""
    found = {f"source/{s.name}": expand(s.path, run.folder, s.name) for s in run.recipe.source if s.path}
    for suite in run.recipe.suite:
        if suite.path:
            try:
                found[f"suite/{suite.name}"] = expand(suite.path, run.folder, suite.name)
            except UserError as error:
                raise UserError(
                    str(error).replace("source", "suite", 1).replace("--source", "--suite")
                ) from error
    return found


def ingest_spec(recipe: Recipe, files: dict[str, list]) -> dict:
    """What the artifact depends on: settings, and names and content of the files, never where they are."""
    hashes = {key: [[p.name, file_hash(p)] for p in paths] for key, paths in files.items()}
    return {
        "seed": recipe.seed,
        "worlds": recipe.worlds,
        "files": hashes,
        "rounds": recipe.budget.rounds if recipe.worlds else 0,
        "rows": recipe.budget.rows if recipe.worlds else 0,
        "source": [s.model_dump(mode="json", exclude={"path", "url"}) for s in recipe.source],
        "suite": [s.model_dump(mode="json", exclude={"path", "url"}) for s in recipe.suite],
        "ingest": recipe.ingest.model_dump(mode="json", exclude={"batch_rows", "max_unparsable_share"}),
        "labelled": recipe.proxy.classifies,
    }


def _compute(run: Run, draft: Draft, files: dict[str, list]) -> None:
    if run.recipe.worlds:
        for index in range(run.recipe.worlds):
            if (key := f"world-{index:02d}") not in draft.done():
                draft.write_shard(key, _embedded_world(run.recipe, index))
        return
    rows = _parse_sources(run, draft, files)
    draft.write_shard("settled", settle_pool(run.recipe, files, rows))


def settle_pool(recipe: Recipe, files: dict[str, list], rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """`ledger` and `suite_items` of parsed rows; refuses an empty pool, a budget beyond it, overlapping suites."""
    if not len(rows):
        raise DataError(
            "the corpus is empty: no record of the sources became a row; check [[source]] path and fields"
        )
    suite_items, held = _suites(recipe, files, rows)
    left = rows.join(held.select("row_id"), on="row_id", how="anti", maintain_order="left")
    _refuse_overlap(left, suite_items)
    _refuse_thin_suites(recipe, suite_items)
    unlabelled = left.filter(pl.col("label").is_null()) if recipe.proxy.classifies else left.head(0)
    no_label = drops((i, "no_label", None, None, None) for i in unlabelled["row_id"])
    left = left.join(unlabelled.select("row_id"), on="row_id", how="anti", maintain_order="left")
    ledger = pl.concat([held, no_label, settle(left, suite_items, recipe.ingest)])
    kept = len(rows) - len(ledger.filter(pl.col("decision") == "drop"))
    if not kept:
        raise DataError(f"nothing is left of {len(rows)} rows after cleaning: {_reasons(ledger)}")
    return {"ledger": ledger, "suite_items": suite_items}


def _reasons(ledger: pl.DataFrame) -> str:
    counts = ledger.group_by("reason").len().sort("len", descending=True)
    return ", ".join(f"{reason} {n}" for reason, n in counts.iter_rows())


def _embedded_world(recipe: Recipe, index: int) -> dict[str, pl.DataFrame]:
    law = worlds.make_world(recipe.seed, index)
    name = f"world-{index}"
    rows_wanted = round((recipe.budget.rows or 500) * 1.04) + 5
    lines = [line.encode() for line in worlds.pool_records(law, rows_wanted)]
    items = [_json_item(k, line) for k, line in enumerate(lines)]
    records, rows = parse_batch(
        items, name, "embedded", "Apache-2.0", "train", recipe.source[0].fields, index
    )
    records, rows = merge_copies(records, rows, set())
    suite_items = pl.concat([_embedded_suite(recipe, law, suite) for suite in recipe.suite])
    return {
        "records": records,
        "rows": rows,
        "ledger": settle(rows, suite_items, recipe.ingest),
        "suite_items": suite_items,
    }


def _json_item(position: int, line: bytes) -> tuple:
    import json

    try:
        return position, json.loads(line), None
    except ValueError:
        return position, None, "unparsable"


def _embedded_suite(recipe: Recipe, law: worlds.World, suite: Suite) -> pl.DataFrame:
    if suite.name not in worlds.SUITES:
        raise UserError(
            f"[[suite]] {suite.name}: the embedded corpus has the suites {', '.join(worlds.SUITES)}"
        )
    parts = []
    for use in suite.use.split("+"):
        rounds = range(1, recipe.budget.rounds + 1) if use == "judge" else [0]
        for number in rounds:  # fresh judge items every round
            drawn = worlds.suite_rows(law, suite.name, use, number, EMBEDDED_ITEMS)
            parsed = [Parsed(p, r, None, cluster, "{}") for p, r, cluster in drawn]
            parts.append(
                build_suite_items(suite.name, parsed, suite.distribution, use, recipe.seed, law.index, number)
            )
    return pl.concat(parts)


def _parse_sources(run: Run, draft: Draft, files: dict[str, list]) -> pl.DataFrame:
    """All rows, in source, file and position order; a finished file is a finished shard."""
    parts, known = [ROWS.to_frame()], set()
    for number, source in enumerate(run.recipe.source):
        for file_number, path in enumerate(files[f"source/{source.name}"]):
            key = f"file-{number:03d}-{file_number:05d}"
            if key not in draft.done():
                records, rows = parse_file(run.recipe, source, path, known)
                draft.write_shard(key, {"records": records, "rows": rows})
            parts.append(draft.read_shard(key, "rows"))
            known |= set(parts[-1]["row_id"])
    return pl.concat(parts)


def parse_file(
    recipe: Recipe, source: Source, path: Path, known: set[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(records, rows) of one file; ids in `known` are copies of earlier files' rows. Refuses a file of junk."""
    records, rows, here = [RECORDS.to_frame()], [ROWS.to_frame()], set(known)
    for batch in read_batches(path, recipe.ingest.batch_rows):
        parsed = parse_batch(batch.items, source.name, batch.file, source.licence, "train", source.fields)
        more_records, more_rows = merge_copies(*parsed, here)
        here |= set(more_rows["row_id"])
        records.append(more_records)
        rows.append(more_rows)
    _refuse_unparsable(recipe, source.name, path.name, pl.concat(records))
    return pl.concat(records), pl.concat(rows)


def _refuse_unparsable(recipe: Recipe, source: str, file: str, records: pl.DataFrame) -> None:
    bad = records.filter(pl.col("reason").is_not_null() & ~pl.col("reason").is_in(["exact_copy", "blank"]))
    if len(records) and len(bad) / len(records) > recipe.ingest.max_unparsable_share:
        counts = ", ".join(f"{r} {n}" for r, n in bad.group_by("reason").len().sort("reason").iter_rows())
        raise DataError(
            f"source {source!r}, {file}: {len(bad)} of {len(records)} records cannot be used ({counts}), more than "
            f"max_unparsable_share = {recipe.ingest.max_unparsable_share}; map the fields with "
            f'[[source]] fields = {{prompt = "…", response = "…", label = "…"}}, or raise the limit under [ingest]'
        )


def _suites(recipe: Recipe, files: dict[str, list], rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All suite items, and drop lines for the rows of the pool that were held out as suites."""
    parts, held = [SUITE_ITEMS.to_frame()], [LEDGER.to_frame()]
    for suite in recipe.suite:
        if suite.path:
            items = [
                i for p in files[f"suite/{suite.name}"] for b in read_batches(p, 20_000) for i in b.items
            ]
            parsed, refused = parse_suite(items, suite.fields)
            if len(parsed) < MIN_ITEMS:
                raise DataError(
                    f"suite {suite.name!r}: only {len(parsed)} usable items (refused: {refused or 'none'}); a suite needs at least {MIN_ITEMS}; map its fields with [[suite]] fields"
                )
        else:
            left = rows.join(pl.concat(held).select("row_id"), on="row_id", how="anti").sort("row_id")
            by, share = (
                ("clusters", suite.holdout_clusters)
                if suite.holdout_clusters
                else ("rows", suite.holdout_rows)
            )
            assert share is not None
            taken = left.filter(pl.Series(hold_out(left, share, by, recipe.seed)))  # type: ignore[arg-type]
            parsed = from_rows(taken)
            held.append(drops((i, f"held_out:{suite.name}", None, None, None) for i in taken["row_id"]))
            if len(parsed) < MIN_ITEMS:
                raise DataError(
                    f"suite {suite.name!r}: holding out {share:.0%} of {len(left)} rows gives {len(parsed)} items, at least {MIN_ITEMS} are needed; raise the share or give the suite a file"
                )
        parts.append(build_suite_items(suite.name, parsed, suite.distribution, suite.use, recipe.seed))
    return pl.concat(parts), pl.concat(held)


def _refuse_thin_suites(recipe: Recipe, items: pl.DataFrame) -> None:
    for suite in recipe.suite:
        for use in suite.use.split("+"):
            part = items.filter(pl.col("suite") == suite.name, pl.col("use") == use)
            if len(part) < MIN_ITEMS // 2 or part["cluster"].n_unique() < 2:
                raise DataError(
                    f"suite {suite.name!r}: its {use} part has {len(part)} items in {part['cluster'].n_unique()} clusters, at least "
                    f"{MIN_ITEMS // 2} items in 2 clusters are needed; give it more items, or other clusters (fields = {{cluster = …}})"
                )


def _refuse_overlap(rows: pl.DataFrame, suite_items: pl.DataFrame) -> None:
    for suite, share in sorted(overlap(suite_items, rows).items()):
        if share > MAX_OVERLAP:
            raise UserError(
                f"suite {suite!r} overlaps the training pool: {share:.0%} of its items are rows of the pool (limit {MAX_OVERLAP:.0%}); "
                f"give it other items: [[suite]] path, or --suite {suite}=PATH"
            )
