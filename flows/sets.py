"""Sets of rows that a person can name: versions, candidates and other artifacts, and what they were decided on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from curation.errors import GradusError, UserError
from flows.status import steps_of
from storage.artifacts import Lake, Ref
from storage.lineage import removal_of


def named(lake: Lake, text: str | None = None) -> Ref:
    """The artifact of NAME (its newest version), NAME@vN, KIND/NAME@BEGINNING or a fingerprint's beginning.

    Where the lake has one dataset, vN is enough, and None is its newest version. `UserError` lists what there is;
    `DataError`: the artifact is half deleted, and no older version takes its place.
    """
    text = (text or "").removeprefix("dataset/")
    path, _, edition = text.partition("@")
    kind, _, name = path.rpartition("/")
    versions = _versions(lake)
    if not kind and (ref := _version(versions, name, edition)):
        lake.manifest(ref)  # raises when it is half deleted
        return ref
    refs = [r for r in lake.refs() if not r.is_dataset]
    found = [r for r in refs if (kind or r.kind) == r.kind and r.fingerprint.startswith(edition)]
    found = [r for r in found if r.name == name or (kind and not name)]
    if not kind and not edition:
        found = [r for r in refs if re.fullmatch("[0-9a-f]{4,12}", text) and r.fingerprint.startswith(text)]
    if len(found) == 1:
        return found[0]
    gone = ""
    if not found and kind and len(edition) == 12:
        with suppress(UserError):  # `DataError`: it is half deleted
            gone = removal_of(lake.root, Ref(kind, name, edition))
            lake.manifest(Ref(kind, name, edition))
    sets = [f"{n}@v{v}" for n, v in versions] + [str(r) for r in refs if r.kind == "candidate"]
    what = f"{text!r} names several: {', '.join(map(str, found[:8]))}" if found else f"there is no {text!r}"
    what = what if text else "several datasets are there, or none"
    raise UserError(
        f"{what} in {lake.address}{gone}; versions and candidates: {', '.join(sets[-20:]) or 'none yet'}"
    )


def _versions(lake: Lake) -> list[tuple[str, int]]:
    """(name, number) of every version, half deleted ones too."""
    return lake.dataset_folders()


def _version(versions: list[tuple[str, int]], name: str, edition: str) -> Ref | None:
    names = sorted({name for name, _ in versions})
    if len(names) == 1 and name not in names and not edition and re.fullmatch(r"(v?\d+)?", name):
        name, edition = names[0], name
    numbers = [number for other, number in versions if other == name]
    number = edition.removeprefix("v") or str(max(numbers, default=0))
    known = number.isdecimal() and int(number) in numbers
    return Ref("dataset", name, f"v{int(number)}") if known else None


def set_named(lake: Lake, text: str | None = None) -> Ref:
    """The version or candidate that a person named; `UserError` for any other artifact."""
    ref = named(lake, text)
    if not (ref.is_dataset or ref.kind == "candidate"):
        raise UserError(
            f"{ref} is neither a version nor a candidate; write NAME@vN or candidate/NAME@FINGERPRINT"
        )
    return ref


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


def runs_of(lake: Lake, ref: Ref) -> Iterator[tuple[dict[str, Any], int]]:
    """(run, round) of every run that made or found the artifact, newest first."""
    for record in reversed(lake.runs()):
        rounds = [step["round"] for step in record.get("steps") or [] if step["artifact"] == str(ref)]
        if rounds:
            yield record, int(rounds[-1])


def step_before(record: dict[str, Any], stage: str, round: int) -> Ref | None:
    """What a stage made in that round of the run; the last when it did so several times."""
    found = steps_of(record, stage, round)
    return found[-1] if found else None
