"""A recipe small enough for tests: six worlds, a few steps; nothing is learned, everything is exercised."""

from __future__ import annotations

import re
from pathlib import Path

DEMO = Path(__file__).parents[1] / "flows" / "demo.toml"


def tiny_recipe(folder: Path, rounds: int = 1, steps: int = 6, **fields: object) -> Path:
    """Writes the demo's recipe with small numbers into the folder; `fields` replace further lines."""
    numbers = {
        "name": '"tiny"',
        "worlds": 6,
        "steps": steps,
        "rows": 60,
        "added_rows": 30,
        "rounds": rounds,
        "candidates": 100,
        "width": 16,
        "feature_dimensions": 64,
        **fields,
    }
    text = DEMO.read_text(encoding="utf-8")
    for name, value in numbers.items():
        text, found = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value} ", text, count=1, flags=re.M)
        assert found, name
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path
