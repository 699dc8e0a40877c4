"""What is only added to: dataset versions, spent alpha, openings of sealed suites; and runs, costs."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl

from curation.errors import DataError, DriftError, UserError
from storage import remote, shards
from storage.layout import MANIFEST, Ref, artifact_folder, checked_name, entry_name, pretty_json
from storage.lineage import describe, read_manifest

KEPT = "everything published before is kept"


def dataset_numbers(root: Path, name: str) -> list[int]:
    """Numbers of the published versions of a dataset, ascending."""
    checked_name("dataset", name)
    numbers = [number for found, number in dataset_folders(root) if found == name]
    return [n for n in numbers if (artifact_folder(root, Ref("dataset", name, f"v{n}")) / MANIFEST).exists()]


def dataset_folders(root: Path) -> list[tuple[str, int]]:
    """(name, number) of every version that has a folder, half-deleted ones too, ascending."""
    remote.refresh(root, "datasets")
    parts = [path.name.rpartition("@v") for path in root.glob("datasets/[!.]*@v*")]
    return sorted((name, int(number)) for name, _, number in parts if number.isdecimal())


def dataset_versions(root: Path, name: str) -> list[dict[str, Any]]:
    """Manifests of the versions of a dataset, oldest first, each with `version`, and `rows` as a number."""
    refs = [Ref("dataset", name, f"v{number}") for number in dataset_numbers(root, name)]
    found = [(ref.version, shards.read_json(artifact_folder(root, ref) / MANIFEST)) for ref in refs]
    return [{**facts, "version": version, "rows": facts["rows"]["rows"]} for version, facts in found]


def publish_dataset(root: Path, name: str, frame: pl.DataFrame, facts: Mapping[str, Any]) -> int:
    """The version with these rows: the next free number, or an earlier one of the same `content_fp`."""
    checked_name("dataset", name)
    shards.check_table("rows", frame)
    aside = root / "work" / "dataset" / f"{name}.{os.getpid()}.{secrets.token_hex(4)}"
    lock = root / "work" / "dataset" / f"{name}.lock"
    with shards.disk_errors(f"dataset {name} was not published", KEPT), shards.locked(lock):
        _clean_leftovers(lock.parent, name)
        before = dataset_versions(root, name)
        same = next((v["version"] for v in before if v["content_fp"] == facts["content_fp"]), None)
        if same is not None:
            return same
        have = [version["version"] for version in before]
        if facts["parent"] is not None and facts["parent"] not in have:
            raise UserError(
                f"dataset/{name}@v{facts['parent']} is not in the lake; versions: {have or 'none'}"
            )
        return _take_next_number(root, name, frame, facts, aside, max(have, default=0) + 1)


def _clean_leftovers(folder: Path, name: str) -> None:
    for leftover in folder.glob(f"{name}.*"):
        if leftover.is_dir() and leftover.name.count(".") == name.count(".") + 2:
            shutil.rmtree(leftover)


def _take_next_number(
    root: Path, name: str, frame: pl.DataFrame, facts: Mapping[str, Any], aside: Path, number: int
) -> int:
    (aside / "rows").mkdir(parents=True)
    try:
        shards.write_parquet(aside / "rows" / "all.parquet", frame)
        shards.fsync_folder(aside / "rows")
        while True:
            ref = Ref("dataset", name, f"v{number}")
            manifest = describe(ref, {**facts, "version": number}, {}, aside)
            shards.write_bytes(aside / MANIFEST, pretty_json(manifest))
            shards.fsync_folder(aside)
            if remote.move_folder(root, aside, artifact_folder(root, ref)):
                return number
            if read_manifest(root, ref)["content_fp"] == facts["content_fp"]:
                return number  # another machine published the same rows meanwhile
            (aside / MANIFEST).unlink()
            number += 1
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def spend_alpha(root: Path, entry: Mapping[str, Any]) -> bool:
    """True when booked now, False when it was there; `DriftError` when its key booked other values."""
    path = root / "alpha" / entry_name(entry["dataset"]) / f"{entry_name(entry['key'])}.json"
    with shards.disk_errors(f"the alpha of {entry['key']} was not booked", KEPT):
        if remote.create_file(root, path, pretty_json(dict(entry))):
            return True
    found = shards.read_json(path)
    if found != dict(entry):
        raise DriftError(
            f"the alpha of {entry['key']} was booked as {found}, now {dict(entry)}; the first stays"
        )
    return False


def alpha_spent(root: Path, dataset: str | None = None) -> list[dict[str, Any]]:
    """All entries of spent alpha in order of dataset, suite, streak, round; of one dataset when given."""
    remote.refresh(root, "alpha")
    folder = "*" if dataset is None else _verbatim(entry_name(dataset))
    entries = [shards.read_json(path) for path in root.glob(f"alpha/{folder}/[!.]*.json")]
    return sorted(entries, key=lambda e: (e["dataset"], e["suite"], e["streak"], e["round"], e["key"]))


def open_sealed(root: Path, dataset: str, suite_hash: str, key: str) -> bool:
    """True when opened now, False when `key` had opened it; `UserError` when another key had."""
    path = root / "openings" / entry_name(dataset) / f"{entry_name(suite_hash)}.json"
    opened = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"dataset": dataset, "suite_hash": suite_hash, "key": key, "opened": opened}
    with shards.disk_errors(f"the opening for {dataset} was not booked, so nothing was opened", KEPT):
        if remote.create_file(root, path, pretty_json(entry)):
            return True
    found = shards.read_json(path)
    if found["key"] != key:
        raise UserError(
            f"the sealed suite {suite_hash} was opened for {dataset} at {found['opened']} by {found['key']}; "
            "a suite is opened once for a dataset; add a fresh sealed suite to the recipe"
        )
    return False


def openings(root: Path) -> list[dict[str, Any]]:
    """All openings of sealed suites, in order of time."""
    remote.refresh(root, "openings")
    entries = [shards.read_json(path) for path in root.glob("openings/*/[!.]*.json")]
    return sorted(entries, key=lambda e: (e["opened"], e["dataset"], e["suite_hash"]))


def save_run(root: Path, run_id: str, run: Mapping[str, Any]) -> None:
    """The run's record is this one now."""
    with shards.disk_errors(f"the record of run {run_id} was not written", KEPT):
        remote.replace_file(
            root, root / "runs" / f"{entry_name(run_id)}.json", pretty_json({**run, "run": run_id})
        )


def runs(root: Path) -> list[dict[str, Any]]:
    """All runs that can be read, newest last by `started`, then by name."""
    remote.refresh(root, "runs")
    return sorted(readable(root, "runs/[!.]*.json")[0], key=by_start)


def by_start(run: Mapping[str, Any]) -> tuple[str, str]:
    """What runs are sorted by."""
    return str(run.get("started") or ""), run["run"]


def add_cost(root: Path, run_id: str, cost: Mapping[str, Any]) -> None:
    """One more cost entry; entries are files of their own, so that no writer waits for another."""
    name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}.json"
    with shards.disk_errors(f"a cost of run {run_id} was not booked", KEPT):
        remote.create_file(
            root, root / "costs" / entry_name(run_id) / name, pretty_json({**cost, "run": run_id})
        )


def costs(root: Path, run_id: str | None = None) -> list[dict[str, Any]]:
    """All cost entries in the order of booking; of one run when given."""
    remote.refresh(root, "costs")
    folder = "*" if run_id is None else _verbatim(entry_name(run_id))
    paths = sorted(root.glob(f"costs/{folder}/[!.]*.json"), key=lambda path: path.name)
    return [shards.read_json(path) for path in paths]


def readable(root: Path, pattern: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(the records in these files, in order of file name; of the other files what is wrong), to be shown only."""
    found, damage = [], {}
    for path in sorted(root.glob(pattern), key=lambda path: path.name):
        try:
            record = shards.read_json(path)
            if not isinstance(record, dict) or not isinstance(record.get("run", ""), str):
                raise DataError(f"{path} is no record; restore it from a backup")
            found.append({"run": unquote(path.stem), **record} if path.parent.name == "runs" else record)
        except FileNotFoundError:
            continue  # deleted since it was listed
        except DataError as error:
            damage[path.relative_to(root).as_posix()] = str(error)
    return found, damage


def _verbatim(name: str) -> str:
    return name.replace("[", "[[]")
