"""Is anything new in the places that a recipe reads? Answered from names, sizes and times while these are unchanged.

What the last look saw is remembered in the lake (`arrivals/NAME.json`); losing it costs one run that reuses everything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.errors import UserError
from curation.specs import Recipe
from flows.recipe import load_recipe
from flows.run import recipe_hash
from flows.status import find_run
from flows.terminal import inline
from storage.artifacts import Lake, fingerprint
from storage.layout import pretty_json
from storage.shards import disk_errors, read_json, replace_file
from storage.sources import expand, file_hash

SETTLE_SECONDS = 10.0  # a file that was changed since then may still be written
NAMED = 3


@dataclass(frozen=True)
class Look:
    """What a look found: is it new, one line about it, a name for the content, and what to remember of it."""

    new: bool
    says: str
    content: str
    memory: dict[str, Any]


class _Waiting(Exception):
    """A file is not whole yet."""


def look(lake: Lake, recipe: Recipe, folder: Path, settle_seconds: float = SETTLE_SECONDS) -> Look:
    """Compares the recipe's files with those of the last look; content is read only where a file changed.

    `UserError`: all files of a source are gone, or one cannot be read.
    """
    before = _remembered(lake, recipe)
    try:
        stats = {key: _stats(paths) for key, paths in _places(recipe, folder, before["files"])}
        asked = {"recipe": recipe_hash(recipe)}
        if stats == _without_digests(before["files"]) and asked["recipe"] == before["recipe"]:
            return Look(False, f"{recipe.name}: nothing new", before["content"], before)
        files = {
            key: _digests(found, before["files"].get(key, {}), settle_seconds) for key, found in stats.items()
        }
    except _Waiting as reason:
        return Look(False, f"{recipe.name}: {reason}; looked at again next time", before["content"], before)
    parts = {key: sorted(digest for *_, digest in found.values()) for key, found in files.items()}
    content = fingerprint("arrivals", "1", {**asked, "files": parts}, [])
    changes = _changes(before["files"], files) or ["the recipe changed"]
    new = content != before["content"]
    says = f"{recipe.name}: {'' if new else 'nothing new, '}{', '.join(changes)}"
    return Look(new, says, content, {**asked, "files": files, "content": content})


def remember(lake: Lake, recipe: Recipe, found: Look) -> None:
    """The next look compares with this one: call it when the run that a new look asks for was made, or ordered."""
    if found.memory != _remembered(lake, recipe):
        with disk_errors("what was looked at is not remembered", "the next look finds the same again"):
            replace_file(_path(lake, recipe), pretty_json(found.memory))


def watch(recipe_path: Path, lake_path: Path, settle_seconds: float = SETTLE_SECONDS) -> str:
    """One line: nothing new, or the run that new files led to. A run that fails is tried again by the next call."""
    recipe = load_recipe(recipe_path)
    lake = Lake(lake_path)
    found = look(lake, recipe, recipe_path.resolve().parent, settle_seconds)
    says = f"{found.says}; {_run(recipe_path, lake)}" if found.new else found.says
    remember(lake, recipe, found)
    return says


def _run(recipe_path: Path, lake: Lake) -> str:
    from flows.execute import Request, execute
    from flows.orchestrate import curate_with_prefect

    run_id = execute(lake, Request(recipe=str(recipe_path)), curate_with_prefect, say=lambda _: None)
    record = find_run(lake, run_id)
    version = f", dataset/{record['recipe']}@v{record['version']}" if record.get("version") else ""
    return f"run {run_id} {record['state']}{version}"


def _places(recipe: Recipe, folder: Path, before: dict[str, Any]) -> Iterator[tuple[str, list[Path]]]:
    """`source/NAME` and `suite/NAME` with their files here; the hub is not asked."""
    entries = [("source", one) for one in recipe.source] + [("suite", one) for one in recipe.suite]
    for kind, one in entries:
        if one.path and not one.path.startswith("hf://"):
            key = f"{kind}/{one.name}"
            try:
                yield key, expand(one.path, folder, one.name)
            except UserError as error:
                if before.get(key):
                    raise UserError(
                        f"{kind} {one.name!r}: its {len(before[key])} file(s) of the last look are gone, no file matches "
                        f"{folder / one.path}; no run was started. Put them back, or correct `path` in the recipe"
                    ) from error
                if not any(c in one.path for c in "*?["):
                    raise
                raise _Waiting(f"no file matches {folder / one.path} yet") from error


def _stats(paths: list[Path]) -> dict[str, list[int]]:
    """path -> [bytes, time of the last change in ns]."""
    return {str(path): _stat(path) for path in paths}


def _stat(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except FileNotFoundError as error:
        raise _Waiting(f"{inline(path.name)} was moved during the look") from error
    return [facts.st_size, facts.st_mtime_ns]


def _digests(stats: dict[str, list[int]], before: dict[str, list], settle: float) -> dict[str, list]:
    """path -> [bytes, time, digest]; `_Waiting` when a file is empty or being written."""
    found = {}
    for path, stat in stats.items():
        name, known = inline(Path(path).name), before.get(path)
        age = time.time() - stat[1] / 1e9
        if known and known[:2] == stat:
            found[path] = known
            continue
        if stat[0] == 0:
            raise _Waiting(f"{name} is empty")
        if abs(age) < settle:  # a time to come (a clock that was set back) is waited for no longer
            raise _Waiting(f"{name} was changed {max(age, 0):.0f} s ago and may still be written")
        found[path] = [*stat, file_hash(Path(path))]
        if _stat(Path(path)) != stat:
            raise _Waiting(f"{name} is being written")
    return found


def _without_digests(files: dict[str, dict[str, list]]) -> dict[str, dict[str, list]]:
    return {key: {path: facts[:2] for path, facts in found.items()} for key, found in files.items()}


def _changes(before: dict[str, dict[str, list]], now: dict[str, dict[str, list]]) -> list[str]:
    """`1 new (b.jsonl)`, `2 changed (…)`, `1 renamed (a.jsonl)`, `1 gone (…): rows leave the pool`."""
    old = {path: facts[2] for found in before.values() for path, facts in found.items()}
    new = {path: facts[2] for found in now.values() for path, facts in found.items()}
    came, went = new.keys() - old.keys(), old.keys() - new.keys()
    renamed = {p for p in came if new[p] in {old[q] for q in went}}
    lost = {q for q in went if old[q] not in {new[p] for p in came}}
    kinds = {
        "new": came - renamed,
        "changed": {p for p in new.keys() & old.keys() if new[p] != old[p]},
        "renamed": renamed,
        "gone, whose rows leave the pool": lost,
    }
    return [f"{len(paths)} {kind} ({_names(paths)})" for kind, paths in kinds.items() if paths]


def _names(paths: set[str]) -> str:
    names = sorted(inline(Path(path).name)[:80] for path in paths)
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def _path(lake: Lake, recipe: Recipe) -> Path:
    return lake.root / "arrivals" / f"{recipe.name}.json"


def _remembered(lake: Lake, recipe: Recipe) -> dict[str, Any]:
    path = _path(lake, recipe)
    return read_json(path) if path.exists() else {"recipe": "", "files": {}, "content": ""}
