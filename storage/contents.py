"""What a lake holds, as its JSON says: artifacts and what is wrong with them, runs, costs, alpha, openings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curation.errors import DataError, DriftError, UserError
from storage.artifacts import Lake
from storage.layout import MANIFEST, Ref, artifact_folder, folder_refs
from storage.ledger import by_start, readable
from storage.lineage import damage_of

ENTRIES = {"runs": "runs/", "costs": "costs/*/", "alpha_spent": "alpha/*/", "openings": "openings/*/"}


@dataclass(frozen=True)
class Found:
    """A published artifact as the disk has it: `damage` says what is wrong with it, or is empty."""

    ref: Ref
    manifest: Mapping[str, Any]
    published_ns: int
    damage: str


@dataclass(frozen=True)
class Contents:
    """What one look at a lake found; `damage` is of the records and folders that were left out, by path."""

    artifacts: list[Found]
    entries: dict[str, list[dict[str, Any]]]
    damage: dict[str, str]


def contents_of(lake: Lake, doubted: Iterable[Ref] = ()) -> Contents:
    """All that a lake holds; of the `doubted` artifacts the checksums are compared too."""
    entries, damage = {}, dict[str, str]()
    for table, folder in ENTRIES.items():  # before artifacts: a run names only what was published before
        entries[table], wrong = readable(lake.root, f"{folder}[!.]*.json")
        damage |= wrong
    entries["runs"].sort(key=by_start)
    entries["steps"] = [
        {**step, "run": run["run"], "step": n}
        for run in entries["runs"]
        for n, step in enumerate(steps_in(run), 1)
    ]
    refs, strange = folder_refs(lake.root)
    doubts = set(doubted)
    found = [one for ref in refs if (one := _look(lake, ref, ref in doubts))]
    for name in strange:
        damage[name] = "its name is no artifact's, so it is not read; move it out of the lake"
    return Contents(found, entries, damage)


def _look(lake: Lake, ref: Ref, doubted: bool) -> Found | None:
    folder = artifact_folder(lake.root, ref)
    try:
        if not (folder / MANIFEST).exists():
            return Found(ref, _guessed(folder, ref), folder.stat().st_mtime_ns, f"it has no {MANIFEST}")
        published_ns = (folder / MANIFEST).stat().st_mtime_ns
        try:
            manifest = lake.manifest(ref)
            damage = damage_of(folder, lake.files_here(manifest["files"])) or (
                _drift(lake, ref) if doubted else ""
            )
        except (DataError, KeyError, TypeError, AttributeError) as error:
            manifest, damage = _guessed(folder, ref), f"its manifest: {error}"
        return Found(ref, manifest, published_ns, damage)
    except (FileNotFoundError, UserError):
        return None  # deleted since it was listed


def _guessed(folder: Path, ref: Ref) -> dict[str, Any]:
    """What stands for a manifest that cannot be read: the tables whose rows are to be refused."""
    tables = {path.name: {} for path in folder.iterdir() if path.is_dir()}
    return {"schema": {"rows": {}, **tables} if ref.is_dataset else tables, "files": {}, "rows": {}}


def _drift(lake: Lake, ref: Ref) -> str:
    """Which file has other bytes than it was published with; empty when none."""
    try:
        lake.verify(ref)
    except DriftError as error:
        return str(error).removeprefix(f"{ref}: ")
    return ""


def published(contents: Contents) -> dict[str, list[dict[str, Any]]]:
    """The records of the tables `artifacts` and `datasets`; what was left out is a line of `artifacts`."""
    found = contents.artifacts
    facts = ("kind", "name", "stage", "code_version", "parents", "counts", "spec")
    artifacts = [
        {name: one.manifest.get(name) for name in facts}
        | {"artifact": str(one.ref), "kind": one.ref.kind, "name": one.ref.name}
        | {"fingerprint": one.ref.fingerprint, "damage": one.damage or None}
        | {"published": datetime.fromtimestamp(one.published_ns / 1e9, UTC).isoformat(timespec="seconds")}
        | {"tables": one.manifest["rows"], "rows": sum(one.manifest["rows"].values())}
        | {"bytes": sum(file["bytes"] for file in one.manifest["files"].values())}
        for one in found
    ]
    facts = ("parent", "strategy", "tokens", "decision", "evidence", "content_fp")
    datasets = [
        {"artifact": str(one.ref), "name": one.ref.name, "version": one.ref.version}
        | {"rows": one.manifest["rows"].get("rows")}
        | {name: one.manifest.get(name) for name in facts}
        for one in found
        if one.ref.is_dataset
    ]
    by_number = sorted(datasets, key=lambda entry: (entry["name"], entry["version"]))
    artifacts += [{"artifact": _shown(path), "damage": what} for path, what in contents.damage.items()]
    return {"artifacts": artifacts, "datasets": by_number}


def steps_in(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of a run, whatever its record says."""
    steps = run.get("steps")
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _shown(path: str) -> str:
    """A file name as text, also one that is not UTF-8."""
    return path.encode("utf-8", "replace").decode("utf-8")
