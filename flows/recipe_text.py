"""A recipe as the TOML that gives it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curation.specs import Recipe


def recipe_text(recipe: Recipe) -> str:
    """The recipe as TOML that `gradus run` reads, without defaults; absolute paths are shortened to their last part."""
    given = recipe.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    tables = {name: value for name, value in given.items() if isinstance(value, (dict, list)) and value}
    lines = [
        f"format = {recipe.format}",
        *(_line(k, v) for k, v in given.items() if k not in {*tables, "format"}),
    ]
    for name, value in tables.items():
        for entry in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{name}]]" if isinstance(value, list) else f"[{name}]"]
            lines += [_line(k, v) for k, v in entry.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any) -> str:
    if name in ("path", "model", "encoder") and Path(str(value)).is_absolute():
        value = Path(value).name
    return f"{name} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # JSON's text and numbers are TOML's
