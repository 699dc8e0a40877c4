"""What the prepare scripts share: arguments, the two forms of a source, seeded content hashes, JSONL out."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl

Item = dict[str, str]
PREPARED = Path(__file__).parent / "prepared"


class MissingSource(Exception):
    """A file of the source is not where its documented layout has it; the message says what to type."""


def main(name: str, description: str, prepare: Callable[[Path, int], dict[str, list[Item]]]) -> int:
    """Exit code of one script: 0 with the files written and counted, 2 when the source is incomplete."""
    parser = argparse.ArgumentParser(prog=f"prepare_{name}.py", description=description)
    parser.add_argument(
        "--source", type=Path, required=True, help="public checkout, or folder of Parquet copies"
    )
    parser.add_argument("--out", type=Path, default=PREPARED / name, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=7, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        files = prepare(arguments.source, arguments.seed)
    except MissingSource as missing:
        print(missing, file=sys.stderr)
        return 2
    for stem, items in files.items():
        path = arguments.out / f"{stem}.jsonl"
        write_jsonl(path, items)
        print(f"{path}: {len(items):,} rows")
    return 0


def write_jsonl(path: Path, items: Iterable[Item]) -> None:
    """One JSON object a line, keys in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")


def rank(seed: int, *parts: str) -> str:
    """A seeded content hash: sorting by it is a random order, whatever the order of the source."""
    return hashlib.blake2b("\x1f".join([str(seed), *parts]).encode(), digest_size=16).hexdigest()


def shuffled(seed: int, purpose: str, items: Iterable[Item]) -> list[Item]:
    """The items in the seeded order of their content."""
    return sorted(items, key=lambda item: (rank(seed, purpose, *item.values()), *item.values()))


def by_content(items: Iterable[Item]) -> list[Item]:
    """The items sorted by their values, the order in which files are written."""
    return sorted(items, key=lambda item: tuple(item.values()))


def is_local(source: Path) -> bool:
    """Whether the source is a folder of Parquet copies (train.parquet and its fellows)."""
    return (source / "train.parquet").is_file()


def read_copy(source: Path, split: str) -> list[dict[str, str]]:
    """The rows of one Parquet copy, e.g. `ood_test__hwu64`, as dicts of its columns."""
    return pl.read_parquet(
        need(source / f"{split}.parquet", "complete the folder of Parquet copies")
    ).to_dicts()


def need(path: Path, help_text: str) -> Path:
    """The path itself, when the file is there."""
    if not path.is_file():
        raise MissingSource(f"{path} is missing: {help_text}")
    return path
