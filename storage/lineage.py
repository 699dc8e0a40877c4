"""What an artifact is made of: its manifest, its parents, does a recomputation agree; a row's way in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from curation.errors import DataError, DriftError, UserError
from storage import shards
from storage.layout import FILES, MANIFEST, Ref, artifact_folder


def describe(ref: Ref, manifest: Mapping[str, Any], counts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The manifest of the files in `folder`: what the stage says, and schemas, rows, bytes, checksums."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    tables = sorted({path.parent.name for path in files} - {FILES})
    schema: dict[str, dict[str, str]] = {}
    rows: dict[str, int] = {}
    for table in tables:
        parts = [path for path in files if path.parent.name == table]
        schemas = [_schema_text(path) for path in parts]
        odd = next((i for i, other in enumerate(schemas) if other != schemas[0]), None)
        if odd is not None:
            raise DataError(
                f"table {table!r}: shard {parts[odd].stem} has another schema than {parts[0].stem}"
            )
        schema[table], rows[table] = schemas[0], sum(_height(path) for path in parts)
    return {
        "parents": [],
        **manifest,
        "kind": ref.kind,
        "name": ref.name,
        "fingerprint": ref.fingerprint,
        "schema": schema,
        "rows": rows,
        "counts": counts,
        "files": {f"{path.parent.name}/{path.name}": shards.digest_of(path) for path in files},
    }


def _schema_text(path: Path) -> dict[str, str]:
    schema = pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema()
    return {column: str(dtype) for column, dtype in schema.items()}


def _height(path: Path) -> int:
    return pq.read_metadata(path).num_rows


def compare(root: Path, ref: Ref, aside: Path) -> None:
    """Nothing when what lies in `aside` has the published bytes; `DriftError` names the table and row."""
    old, new = read_manifest(root, ref)["files"], shards.read_json(aside / MANIFEST)["files"]
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            where = _first_difference(artifact_folder(root, ref) / name, aside / name)
            raise DriftError(
                f"{ref}: computed again, {name} has other bytes ({where}); the published one stays, "
                f"the new one is in {aside}"
            )


def _first_difference(old: Path, new: Path) -> str:
    if not (old.exists() and new.exists()):
        return "it is new" if new.exists() else "it is gone"
    if old.suffix != ".parquet":
        return "a file"
    before, after = shards.read_parquet([old]), shards.read_parquet([new])
    pairs = enumerate(zip(before.iter_rows(), after.iter_rows(), strict=False))
    row = next((i for i, (a, b) in pairs if repr(a) != repr(b)), min(before.height, after.height))
    return f"table {old.parent.name}, row {row}; {before.height} rows before, {after.height} now"


def read_manifest(root: Path, ref: Ref) -> dict[str, Any]:
    """The manifest of a published artifact; errors say what to type."""
    folder = artifact_folder(root, ref)
    try:
        return shards.read_json(folder / MANIFEST)
    except FileNotFoundError as error:
        if folder.exists():
            raise DataError(half_deleted(ref, folder, "it has no manifest.json")) from error
        raise UserError(f"{ref} is not in the lake {root}; `gradus inspect` lists what is") from error


def half_deleted(ref: Ref, folder: Path, what: str) -> str:
    """What to tell a person whose artifact lost a part, and what to type."""
    remedy = (
        "restore the folder from a backup"
        if ref.is_dataset
        else f"restore the folder, or remove the rest of it with `rm -r '{folder}'` and run again"
    )
    return f"{ref} was half deleted: {what}; {remedy}"


def ancestors(root: Path, ref: Ref) -> list[tuple[Ref, Ref]]:
    """Pairs (artifact, parent) from `ref` back to the first artifacts, nearest first; each pair once."""
    pairs: list[tuple[Ref, Ref]] = []
    ahead, seen = [ref], {ref}
    while ahead:
        child = ahead.pop(0)
        for text in read_manifest(root, child).get("parents") or []:
            parent = Ref.parse(text)
            pairs.append((child, parent))
            if parent not in seen:
                seen.add(parent)
                ahead.append(parent)
    return pairs


COMMENTS = {
    "records": "every record read from a source, and what became of it; reason NULL: a row",
    "rows": "rows of every artifact that has them; datasets are in dataset_rows",
    "ledger": "decisions on rows; a row without a line is kept",
    "suite_items": "items of the evaluation suites",
    "scores": "one number a row, proxy and scorer",
    "features": "projected gradients, one a row and proxy",
    "embeddings": "embeddings, one a row and encoder",
    "regions": "the region of gradient space that a row lies in, at each scale; -1: its feature has no direction",
    "region_table": "regions of each scale: size, share, density, terms, exemplars",
    "selections": "rows of each arm, replicate and phase",
    "models": "models trained",
    "outcomes": "what a model did on one item of a suite",
    "comparisons": "differences between arms with intervals",
    "decisions": "what the loop decided in each round, and why",
    "diversity": "diversity of subsets",
    "dataset_rows": "rows of every published dataset version",
    "accounting": "records at ingest: read = kept + sum(dropped), by source; of the newest run",
    "accounting_all": "the same for every ingest artifact",
    "artifacts": "everything published; missing_files > 0: half deleted, and left out of the other views",
    "datasets": "published dataset versions",
    "runs": "executions of recipes; nested values are JSON text",
    "costs": "cost entries of runs",
    "alpha_spent": "error probability spent by confirmatory tests; only ever added to",
    "openings": "when sealed suites were opened",
    "every_row": "rows and dataset_rows together",
}
COLUMNS = {
    "artifact": "kind/name@fingerprint, or dataset/name@vN",
    "row_id": "the row's name for ever: 128-bit hash of its source and raw fields",
    "source": "name of the source in the recipe",
    "reason": "why; NULL in records: the record is a row",
    "feature": "vector, float16 at rest",
    "scale": "coarse (the map) or fine",
    "carried": "overlap of rows with the region of this number in the round before; NULL: a new region",
    "knn_density": "mean cosine of the rows to their ten nearest others",
    "twin": "the row or suite item that this row duplicates",
    "kept": "records of the source that became rows and were not dropped",
    "read": "records of the source",
    "dropped": "records of the source lost for this reason",
    "published": "file time of the manifest, UTC",
}

# A row's way, as table macros of the catalog; `current_ingest()` is what `accounting` shows.
MACROS = """
create macro explain_row(id) as table
select what, detail from (
  select distinct 1 as step, 'record' as what, concat_ws(', ', 'source ' || source, 'file ' || file,
    'record ' || position, 'not a row: ' || reason) as detail from records where row_id = id
  union all by name
  select distinct 2 as step, 'row' as what, concat_ws(', ', origin, 'source ' || source, 'split ' || split,
    'label ' || label, 'licence ' || licence,
    'parents ' || nullif(array_to_string(parents, ' '), '')) as detail
    from every_row where row_id = id
  union all by name
  select distinct 3 as step, 'prompt' as what, prompt as detail from every_row where row_id = id
  union all by name
  select distinct 4 as step, 'response' as what, response as detail from every_row where row_id = id
  union all by name
  select distinct 5 as step, 'ledger' as what, concat_ws(', ', stage, 'round ' || "round", decision, reason,
    'value ' || "value", 'threshold ' || threshold, 'twin ' || twin) as detail from ledger where row_id = id
  union all by name
  select distinct 6 as step, 'score' as what, concat_ws(', ', 'proxy ' || proxy, scorer || ' = ' || "value")
    as detail from scores where row_id = id
  union all by name
  select distinct 7 as step, 'region' as what, concat_ws(', ', 'proxy ' || proxy, scale || ' region ' || region,
    'distance ' || distance) as detail from regions where row_id = id
  union all by name
  select distinct 8 as step, 'selection' as what, concat_ws(', ', 'round ' || "round", phase, 'arm ' || arm,
    'replicate ' || replicate, 'rank ' || "rank") as detail from selections where row_id = id
  union all by name
  select distinct 9 as step, 'child' as what, row_id as detail from every_row where list_contains(parents, id)
  union all by name
  select distinct 10 as step, 'dataset' as what, artifact as detail from dataset_rows where row_id = id
) order by step, detail;

create macro curated(dataset_name) as table
select * from dataset_rows where dataset = dataset_name
  and "version" = (select max("version") from datasets where "name" = dataset_name);

create macro curated_at(dataset_name, version_number) as table
select * from dataset_rows where dataset = dataset_name and "version" = version_number;

create macro what_changed(dataset_name, v1, v2) as table
with old as (select * from dataset_rows where dataset = dataset_name and "version" = v1),
     new as (select * from dataset_rows where dataset = dataset_name and "version" = v2)
select 'added' as change, * exclude (artifact, dataset, "version") from new anti join old using (row_id)
union all by name
select 'removed' as change, * exclude (artifact, dataset, "version") from old anti join new using (row_id)
order by change, row_id;

create macro drops() as table
select source, file, position, row_id, reason, null::double as "value", null::double as threshold,
  null::varchar as twin from records where artifact = current_ingest() and reason is not null
union all by name
select r.source, r.file, r.position, l.row_id, l.reason, l."value", l.threshold, l.twin
  from ledger l left join records r on r.row_id = l.row_id and r.artifact = l.artifact and r.reason is null
  where l.artifact = current_ingest() and l.stage = 'ingest' and l.decision = 'drop'
order by source, file, position, reason;

create macro path_of(run_id, round_number, arm_name, suite_name, metric_name) as table
with way as (select steps as refs from runs where run = run_id)
select c.control, c.difference, c.low, c.high, m.model, m.replicate, s.row_id, s."rank", e.origin, e.parents,
  r.source, r.file, r.position
from way
  join comparisons c on contains(way.refs, c.artifact) and c."round" = round_number and c.arm = arm_name
    and c.suite = suite_name and c.metric = metric_name
  join models m on contains(way.refs, m.artifact) and m."round" = c."round" and m.phase = c.phase
    and m.arm = c.arm
  join selections s on contains(way.refs, s.artifact) and s."round" = m."round" and s.phase = m.phase
    and s.arm = m.arm and s.replicate = m.replicate
  left join (select distinct row_id, origin, parents from every_row) e on e.row_id = s.row_id
  left join (select distinct row_id, source, file, position from records where reason is null) r
    on r.row_id = s.row_id
order by c.control, m.replicate, s."rank", s.row_id;
"""

# Real records at ingest: read = kept + sum(dropped), for each artifact and source.
ACCOUNTING = """
create view accounting_all as
with each_source as (
  select artifact, source, count(*) as n_read from records group by all),
named as (
  select artifact, source, row_id, count(*) as n from records where reason is null group by all),
lines as (
  select artifact, row_id, reason, row_number() over (partition by artifact, row_id order by reason) as nth
  from ledger where stage = 'ingest' and decision = 'drop'),
lost as (
  select artifact, source, reason from records where reason is not null
  union all
  select named.artifact, named.source, coalesce(lines.reason, 'unnamed') from lines join named
    on named.artifact = lines.artifact and named.row_id = lines.row_id and lines.nth <= named.n),
counted as (
  select artifact, source, reason, count(*) as n_lost from lost group by all)
select s.artifact, s.source, s.n_read as read,
  (s.n_read - coalesce(sum(c.n_lost) over (partition by s.artifact, s.source), 0))::bigint as kept,
  c.reason, coalesce(c.n_lost, 0) as dropped
from each_source s left join counted c on c.artifact = s.artifact and c.source = s.source;
create view accounting as
  select * exclude (artifact) from accounting_all where artifact = current_ingest()
  order by source, dropped desc, reason;
"""
