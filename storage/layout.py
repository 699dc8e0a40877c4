"""Where everything in a lake lies, and how it is named: references, fingerprints, checked names, paths."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from curation.errors import UserError

FORMAT = 1
WRITING = 3  # of how tables become bytes (`shards.write_parquet`): equal fingerprints promise equal bytes
MANIFEST = "manifest.json"
FILES = "files"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,119}")
EDITION = re.compile(r"[0-9a-f]{12}|v[1-9][0-9]*")


def checked_name(what: str, name: str) -> str:
    """The name itself when it can be a path part anywhere; `UserError` otherwise."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{what} {name!r} cannot be used: letters, digits and _ . = + - only, 1 to 120 characters, "
            "beginning with a letter, a digit or _"
        )
    return name


def entry_name(key: str) -> str:
    """A file name for any key: other characters than letters, digits and _ - . @ = are percent-encoded."""
    name = quote(key, safe="@=")
    name = "%2E" + name[1:] if name.startswith(".") else name
    if not name or len(name) > 200:
        raise UserError(f"the key {key[:60]!r} cannot be used: 1 to 200 characters")
    return name


@dataclass(frozen=True, order=True)
class Ref:
    """An artifact's name: `kind/name@fingerprint`, or `dataset/name@vN`."""

    kind: str
    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        checked_name("kind", self.kind)
        checked_name("name", self.name)
        if not EDITION.fullmatch(self.fingerprint) or self.is_dataset != (self.fingerprint[0] == "v"):
            raise UserError(
                f"{self.kind}/{self.name}@{self.fingerprint} is no artifact: after @ come 12 hex digits, "
                "or vN for a dataset"
            )

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}@{self.fingerprint}"

    @property
    def is_dataset(self) -> bool:
        """True for a published, numbered dataset."""
        return self.kind == "dataset"

    @property
    def version(self) -> int:
        """N of `dataset/name@vN`."""
        if not self.is_dataset:
            raise UserError(f"{self} has a fingerprint, not a version")
        return int(self.fingerprint[1:])

    @classmethod
    def parse(cls, text: str) -> Ref:
        """The reference that `str(ref)` wrote; `UserError` when it is none."""
        kind, slash, rest = text.partition("/")
        name, at, edition = rest.rpartition("@")
        if not (slash and at):
            raise UserError(f"{text!r} is no artifact; expected kind/name@fingerprint or dataset/name@vN")
        return cls(kind, name, edition)


def canonical_json(value: Any) -> str:
    """JSON text that is equal when the value is equal: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def pretty_json(value: Any) -> bytes:
    """JSON for a file that people read too: sorted keys, one a line, UTF-8, newline at the end."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "surrogatepass")


def fingerprint(stage: str, code_version: str, spec: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """12 hex digits that name what a stage makes of this spec and these inputs.

    `spec` must be JSON (dicts, lists, text, numbers, booleans, None); a tuple counts as a list.
    `inputs` keep their order. Nothing about where or when the stage runs belongs here.
    """
    body = canonical_json([WRITING, stage, code_version, dict(spec), list(inputs)])
    return hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def artifact_folder(root: Path, ref: Ref) -> Path:
    """The folder of a published artifact or dataset."""
    edition = f"{ref.name}@{ref.fingerprint}"
    return root / "datasets" / edition if ref.is_dataset else root / "artifacts" / ref.kind / edition


def work_folder(root: Path, ref: Ref, purpose: str = "") -> Path:
    """The folder where an artifact is made, before it is published; `purpose` keeps a recomputation apart."""
    return root / "work" / ref.kind / f"{ref.name}@{ref.fingerprint}{purpose}"


def lock_path(work: Path) -> Path:
    """The lock file beside a work folder."""
    return work.with_name(work.name + ".lock")


def published_refs(root: Path) -> list[Ref]:
    """All artifacts and datasets with a manifest, sorted; folders without one are not listed."""
    return [ref for ref in folder_refs(root)[0] if (artifact_folder(root, ref) / MANIFEST).exists()]


def folder_refs(root: Path) -> tuple[list[Ref], list[str]]:
    """(artifacts and datasets that have a folder, sorted; folders with another name, relative to the lake)."""
    refs, strange = [], []
    for folder in (*root.glob("artifacts/*/[!.]*"), *root.glob("datasets/[!.]*")):
        if folder.is_dir():
            ref = _ref_of(root, folder)
            if ref is None:
                strange.append(folder.relative_to(root).as_posix())
            else:
                refs.append(ref)
    return sorted(refs), sorted(strange)


def _ref_of(root: Path, folder: Path) -> Ref | None:
    kind = "dataset" if folder.parent == root / "datasets" else folder.parent.name
    with suppress(UserError):
        ref = Ref.parse(f"{kind}/{folder.name}")
        return ref if artifact_folder(root, ref) == folder else None
    return None
