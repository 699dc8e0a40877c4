"""Real English text that every Python has: its own documentation and the source of its standard library."""

from __future__ import annotations

import ast
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curation.errors import UserError
from curation.randomness import generator

SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "pydoc_data", "__pycache__"}
ROWS_A_KIND = 400
CHARS = (120, 700)


@dataclass(frozen=True)
class Text:
    """One row of text and the kind it is of; an empty `prompt` means that the whole text counts in the loss."""

    kind: str
    prompt: str
    response: str


def read_corpus(path: Path | None, seed: int = 0) -> list[Text]:
    """Rows in a named random order: of the file (.jsonl or .txt), or of the standard library when there is none.

    A jsonl line needs `response` or `text`, and may have `prompt` and `label` (its kind). A .txt file is cut at
    blank lines and has one kind, so it gives no region purity.
    """
    rows = list(_library() if path is None else _file(path))
    if len(rows) < 200:
        raise UserError(
            f"{path or 'the standard library'} gave {len(rows)} rows of text; at least 200 are needed"
        )
    order = generator(seed, "benchmark", "rows").permutation(len(rows))
    return [rows[i] for i in order]


def _file(path: Path) -> Iterator[Text]:
    if path.suffix == ".txt":
        for part in re.split(r"\n\s*\n", path.read_text()):
            if len(part) >= CHARS[0]:
                yield Text("text", "", part[: CHARS[1]])
        return
    for line in path.read_text().splitlines():
        row = json.loads(line)
        response = row.get("response") or row.get("text") or ""
        if response:
            yield Text(str(row.get("label") or "text"), row.get("prompt") or "", response)


def _library() -> Iterator[Text]:
    from pydoc_data.topics import topics

    found: dict[str, list[Text]] = {}

    def add(kind: str, prompt: str, response: str) -> None:
        kept = found.setdefault(kind, [])
        if len(kept) < 20 * ROWS_A_KIND and len(prompt) + len(response) >= CHARS[0]:
            kept.append(Text(kind, prompt[: CHARS[1] // 2], response[: CHARS[1]]))

    for name in sorted(topics):
        for part in re.split(r"\n\s*\n(?=\S)", topics[name]):
            add("reference", "", part.strip())
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).parts):
            _read_module(path, add)
    for kind in sorted(found):
        order = generator(0, "benchmark", "kind", kind).permutation(len(found[kind]))[:ROWS_A_KIND]
        yield from (found[kind][i] for i in sorted(order))


def _read_module(path: Path, add) -> None:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError):
        return
    if path.parent.name == "encodings":
        lines = source.splitlines()
        for at in range(0, len(lines) - 8, 60):
            add("table", "", "\n".join(lines[at : at + 8]))
        return
    lines = source.splitlines()
    add("module", "", ast.get_docstring(tree) or "")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        words = ast.get_docstring(node) or ""
        head = lines[node.lineno - 1].strip()
        if ">>>" in words:
            example = words[words.index(">>>") :]
            cut = example.find("\n")
            add("doctest", example[:cut] + "\n", example[cut + 1 :])
        elif words:
            add("docstring", head + "\n", words)
        if isinstance(node, ast.FunctionDef) and not words:
            add("code", head + "\n", "\n".join(lines[node.lineno : node.end_lineno]))
    for comment in _comments(lines):
        add("comment", "", comment)


def _comments(lines: list[str]) -> Iterator[str]:
    run: list[str] = []
    for line in [*lines, ""]:
        text = line.strip()
        if text.startswith("#"):
            run.append(text.lstrip("# "))
        elif run:
            yield "\n".join(run)
            run = []
