"""What `gradus gc` shows and does: which parts of a lake nothing needs any more, why, and how much they hold."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from flows.inspect import megabytes
from flows.status import state_of
from flows.table import print_block
from flows.terminal import inline, say
from storage.artifacts import Lake
from storage.catalog import fresh_catalog
from storage.gc import remove, unneeded
from storage.shards import sweep

LISTED = 40
SILENT_DAYS = 7  # a run of another machine that wrote no record for so long is not in progress


def gc(lake: Lake, keep_days: float, yes: bool = False, drop_candidates: bool = False) -> dict[str, Any]:
    """{removed, found (path, artifact, why, bytes, run), bytes, bytes_freed}; nothing is touched unless `yes`."""
    since = time.time() - keep_days * 86_400

    def plan():
        return unneeded(lake.root, since, in_progress, drop_candidates)

    facts: dict[str, Any] = {"removed": yes, "keep_days": keep_days, "drop_candidates": drop_candidates}
    if not yes:
        found = plan()
        return facts | _sums([asdict(one) for one in found])
    done = remove(lake.root, plan, {"keep_days": keep_days, "drop_candidates": drop_candidates})
    sweep(lake.root)
    fresh_catalog(lake)
    return facts | _sums([asdict(one) for one in done["removed"]]) | {"bytes_freed": done["bytes_freed"]}


def _sums(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {"found": found, "bytes": sum(one["bytes"] for one in found)}


def in_progress(record: Mapping[str, Any]) -> bool:
    """Whether a run may still read what it named: its process lives, or it is another machine's and not silent."""
    if state_of(dict(record)) != "running":
        return False
    seen = datetime.fromisoformat(record["started"]).timestamp() + record["seconds"]
    return record.get("host") == platform.node() or time.time() - seen < SILENT_DAYS * 86_400


def print_gc(facts: dict[str, Any]) -> None:
    """What went, or would go, on a terminal."""
    found = facts["found"]
    lines = [
        (inline(one["artifact"] or one["path"]), megabytes(one["bytes"]), inline(one["why"])) for one in found
    ]
    if lines:
        print_block("removed" if facts["removed"] else "not needed any more", lines[:LISTED])
    if len(lines) > LISTED:
        say(f"  and {len(lines) - LISTED:,} more: --json lists all")
    if facts.get("bytes_freed") or (facts["removed"] and found):
        say(f"removed {len(found):,}, freed {megabytes(facts['bytes_freed'])}")
    elif found:
        say(f"{len(found):,} hold {megabytes(facts['bytes'])}; nothing was removed: add --yes to remove them")
    else:
        more = "" if facts["drop_candidates"] else "; --drop-candidates lets old candidates go too"
        say(
            f"nothing to remove: all is needed, or younger than {facts['keep_days']:g} days (--keep-days){more}"
        )
