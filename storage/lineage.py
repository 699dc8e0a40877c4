"""What an artifact is made of: its manifest, its parents, does a recomputation agree; a row's way in SQL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from curation.errors import DataError, DriftError, UserError
from storage import remote, shards
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
            remote.fetch(root, artifact_folder(root, ref), {n: old[n] for n in (name,) if n in old})
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
        if remote.copied(root, folder / MANIFEST):
            return shards.read_json(folder / MANIFEST)
        if folder.exists():
            raise DataError(half_deleted(ref, folder, "it has no manifest.json")) from error
        gone = removal_of(root, ref)
        raise UserError(f"{ref} is not in the lake {root}{gone}; `gradus inspect` lists what is") from error


def removal_of(root: Path, ref: Ref) -> str:
    """When and why `gradus gc` removed an artifact and how to have it again, inside a message; empty if it did not."""
    for path in sorted(root.glob("gc/[!.]*.json"), reverse=True):
        entry = shards.read_json(path)
        for one in entry["removed"]:
            if one["artifact"] == str(ref):
                run = one["run"] or "its run"
                return f": `gradus gc` removed it on {entry['at'][:10]}; the recipe of {run}, run again, makes the same bytes"
    return ""


def damage_of(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Which of these files is missing or has another size than it was published with; empty when none."""
    for name, facts in files.items():
        try:
            size = os.stat(f"{folder}/{name}").st_size  # noqa: PTH116 (much quicker)
        except FileNotFoundError:
            return f"{name} is missing"
        if size != facts["bytes"]:
            return f"{name} has {size} bytes, published with {facts['bytes']}"
    return ""


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
