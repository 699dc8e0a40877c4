"""Sets of rows that a person can name: versions, candidates and other artifacts, and what they were decided on."""

from __future__ import annotations

import re
from typing import Any

from curation.errors import GradusError, UserError
from flows.status import steps_of
from storage.artifacts import Lake, Ref


def named(lake: Lake, text: str) -> Ref:
    """The artifact of `NAME@vN`, `vN` where the lake has one dataset, `KIND/NAME@FINGERPRINT`, or a fingerprint's beginning."""
    refs = lake.refs()
    names = sorted({ref.name for ref in refs if ref.is_dataset})
    if re.fullmatch(r"v?\d+", text) and len(names) == 1:
        text = f"{names[0]}@v{text.removeprefix('v')}"
    found = [r for r in refs if text in (str(r), str(r).partition("/")[2])]
    if not found and re.fullmatch(r"[0-9a-f]{4,12}", text):
        found = [r for r in refs if r.fingerprint.startswith(text)]
    if len(found) != 1:
        sets = [str(r).removeprefix("dataset/") for r in refs if r.is_dataset or r.kind == "candidate"]
        what = (
            f"{text!r} names several: {', '.join(map(str, found[:8]))}" if found else f"there is no {text!r}"
        )
        raise UserError(
            f"{what} in {lake.root}; versions and candidates: {', '.join(sets[-12:]) or 'none yet'}"
        )
    return found[0]


def evidence_of(lake: Lake, ref: Ref) -> Ref | None:
    """The artifact that a version or candidate was made on: a decision, or the pool of the base."""
    try:
        return Ref.parse(lake.manifest(ref).get("evidence") or "")
    except GradusError:
        return None


def parent_of(lake: Lake, ref: Ref) -> Ref | None:
    """The version that a version or candidate came after."""
    parent = lake.manifest(ref).get("parent")
    return Ref("dataset", ref.name, f"v{parent}") if isinstance(parent, int) else None


def run_of(lake: Lake, ref: Ref) -> tuple[dict[str, Any], int] | None:
    """(the newest run that made or found the artifact, the round); None when no run did."""
    for record in reversed(lake.runs()):
        for step in reversed(record.get("steps") or []):
            if step["artifact"] == str(ref):
                return record, int(step["round"])
    return None


def step_before(record: dict[str, Any], stage: str, round: int) -> Ref | None:
    """What a stage made in that round of the run; the last when it did so several times."""
    found = steps_of(record, stage, round)
    return found[-1] if found else None


def interval(low: float | None, high: float | None) -> str:
    """An interval in points."""
    return f"[{', '.join('–' if v is None or v != v else f'{v:.1f}' for v in (low, high))}]"
