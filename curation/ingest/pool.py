"""From records to the pool: rows named once, copies told apart, every drop explained."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

import polars as pl

from curation.ingest.decontaminate import decontaminate
from curation.ingest.deduplicate import deduplicate
from curation.ingest.filter import unusable
from curation.ingest.ledger import without
from curation.ingest.normalize import normalize
from curation.ingest.parse import Parsed, map_record
from curation.rows import RECORDS, ROWS, row_id, text_of
from curation.specs import FieldMap, Ingest

Item = tuple[int, dict[str, Any] | None, str | None]


def parse_batch(
    items: Iterable[Item],
    source_name: str,
    file: str,
    licence: str | None,
    split: str,
    fields: FieldMap,
    world: int = 0,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(RECORDS, ROWS) of one batch: a record for every item, a row for the first of each id.

    `items` are (position, record or None, reason or None). A record's reason is null when it became the row;
    `exact_copy` names the row that it repeats. Ids hash the raw fields; rows hold the normalised ones.
    """
    named_by = source_name if world == 0 else f"{source_name}#{world}"
    records: list[tuple[str, str, int, str | None, str | None]] = []
    rows: dict[str, tuple[Any, ...]] = {}
    for position, record, reason in items:
        parsed = reason or "unparsable" if record is None else map_record(record, fields)
        cleaned = parsed if isinstance(parsed, str) else _clean(parsed)
        if isinstance(parsed, str) or isinstance(cleaned, str):
            records.append((source_name, file, position, None, str(cleaned)))
            continue
        name = row_id(named_by, parsed.prompt, parsed.response, parsed.label)
        records.append((source_name, file, position, name, "exact_copy" if name in rows else None))
        if name not in rows:
            prompt, response, label = cleaned
            length = len(text_of(prompt, response))
            rows[name] = (
                name,
                world,
                source_name,
                split,
                prompt,
                response,
                label,
                "real",
                [],
                licence,
                length,
                parsed.meta,
            )
    return (
        pl.DataFrame(records, schema=RECORDS, orient="row"),
        pl.DataFrame(list(rows.values()), schema=ROWS, orient="row"),
    )


def _clean(parsed: Parsed) -> tuple[str, str, str | None] | str:
    """Normalised prompt, response and label; `empty` where a prompt was nothing but invisible characters."""
    prompt, response = normalize(parsed.prompt), normalize(parsed.response)
    if parsed.prompt and not prompt:
        return "empty"
    return prompt, response, (normalize(parsed.label) or None) if parsed.label is not None else None


def merge_copies(
    records: pl.DataFrame, rows: pl.DataFrame, known: Set[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The batch without the rows whose ids are `known` from earlier batches; their records become
    `exact_copy`.

    Add the ids of the rows returned to `known` before the next batch. Batches in source and file order give
    the same rows however they are cut.
    """
    seen = [name for name in rows["row_id"].to_list() if name in known]
    if not seen:
        return records, rows
    again = pl.col("reason").is_null() & pl.col("row_id").is_in(seen)
    copies = pl.when(again).then(pl.lit("exact_copy")).otherwise(pl.col("reason")).alias("reason")
    return records.with_columns(copies), rows.filter(~pl.col("row_id").is_in(seen))


def settle(rows: pl.DataFrame, suite_items: pl.DataFrame, spec: Ingest) -> pl.DataFrame:
    """The LEDGER of the pool: filters, then duplicates, then contamination; one `drop` line a dropped row.

    Rows are in (source, file, position) order and stay as they are: no line means kept.
    """
    filtered = unusable(rows, spec.max_chars)
    left = without(rows, filtered)
    repeated = deduplicate(left, spec.near_duplicate_jaccard)
    left = without(left, repeated)
    leaked = decontaminate(left, suite_items, spec.decontaminate_ngram_words, spec.near_duplicate_jaccard)
    return pl.concat([filtered, repeated, leaked])


def accounting(records: pl.DataFrame, ledger: pl.DataFrame) -> dict[str, int]:
    """Counts of real records: read = kept + dropped as records + dropped as rows, exactly."""
    read = records.height
    as_records = records.filter(pl.col("reason").is_not_null()).height
    named = records.filter(pl.col("reason").is_null()).select("row_id")
    dropped = ledger.filter(pl.col("decision") == "drop").select("row_id")
    as_rows = named.join(dropped, on="row_id", how="semi").height
    kept = named.join(dropped, on="row_id", how="anti").height
    return {"read": read, "kept": kept, "dropped_as_records": as_records, "dropped_as_rows": as_rows}
