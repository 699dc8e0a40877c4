"""One record as the fields of a row, or the reason why it is none."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from curation.specs import FieldMap

PROMPT_KEYS = ("prompt", "question", "instruction", "input", "text")
RESPONSE_KEYS = ("response", "answer", "output", "completion", "target")
ASSISTANT_ROLES = ("assistant", "gpt", "model", "bot")
MAX_META_KEYS = 32
MAX_META_CHARS = 200


@dataclass(frozen=True)
class Parsed:
    """The raw mapped fields of one record; a text-only row has an empty prompt."""

    prompt: str
    response: str
    label: str | None
    cluster: str | None
    meta: str


class _RefusedError(Exception):
    """Carries the reason why a record is no row."""


def map_record(record: dict[str, Any], fields: FieldMap) -> Parsed | str:
    """The record's prompt, response, label, cluster and meta (JSON), raw; or a reason.

    Reasons: `missing_field` (absent or null), `empty` (no visible character), `wrong_type` (no text or
    number). Without a field map: `messages` is a chat; `instruction` with `input` is one prompt; a prompt
    with a label and no response is a classification row; `text` alone (or a mapped prompt alone) is a
    text-only row.
    """
    try:
        used: set[str] = set()
        chat = _chat_of(record, fields, used)
        named = {fields.prompt, fields.response}
        label_key = fields.label or ("label" if "label" not in named else None)
        label = _label(_named(record, label_key, used)) if label_key else None
        cluster = _label(_named(record, fields.cluster, used)) if fields.cluster else None
        prompt, response = chat if chat else _pair(record, fields, label, used)
    except _RefusedError as refused:
        return str(refused)
    if not (prompt.strip() or response.strip()):
        return "empty"
    return Parsed(prompt, response, label, cluster, _meta(record, used))


def _lookup(record: Any, key: str) -> Any:
    """The value at a key, whole or dotted (numbers reach into lists); None where there is none."""
    if isinstance(record, dict) and key in record:
        return record[key]
    value = record
    for part in key.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _named(record: dict[str, Any], key: str, used: set[str]) -> Any:
    used.add(key if key in record else key.partition(".")[0])
    return _lookup(record, key)


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _first(
    record: dict[str, Any], named: str | None, defaults: tuple[str, ...], used: set[str]
) -> tuple[str, Any]:
    """The first key that holds a value, and the value; a named key is the only one looked at."""
    for key in (named,) if named else (key for key in defaults if key not in used):
        value = _lookup(record, key)
        if not _is_null(value):
            used.add(key if key in record else key.partition(".")[0])
            return key, value
    return named or "", None


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    raise _RefusedError("wrong_type")


def _label(value: Any) -> str | None:
    """The label as text: `3`, `true`; whole floats as integers; None where it is null or blank."""
    if _is_null(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _string(value).strip() or None


def _pair(record: dict[str, Any], fields: FieldMap, label: str | None, used: set[str]) -> tuple[str, str]:
    others = used | ({fields.response} if fields.response else set())
    key, prompt = _first(record, fields.prompt, PROMPT_KEYS, others)
    used |= others
    _, answer = _first(record, fields.response, RESPONSE_KEYS, used)
    if prompt is None:
        raise _RefusedError("missing_field")
    prompt = _string(prompt)
    if key == "instruction" and not fields.prompt and isinstance(extra := record.get("input"), str):
        used.add("input")
        prompt = f"{prompt}\n{extra}" if extra.strip() else prompt
    if not prompt.strip():
        raise _RefusedError("empty")
    if answer is not None:
        response = _string(answer)
        if not response.strip() and label is None:
            raise _RefusedError("empty")
        return prompt, response
    if fields.response:
        raise _RefusedError("missing_field")
    if label is not None:
        return prompt, ""
    if fields.prompt or key == "text":
        return "", prompt
    raise _RefusedError("missing_field")


def _chat_of(record: dict[str, Any], fields: FieldMap, used: set[str]) -> tuple[str, str] | None:
    """The turns before as `role: content` lines, and the last assistant answer; None for no chat."""
    if fields.messages:
        turns = _named(record, fields.messages, used)
    elif not fields.prompt and not fields.response and isinstance(record.get("messages"), list):
        turns = _named(record, "messages", used)
    else:
        return None
    if turns is None:
        raise _RefusedError("missing_field")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _RefusedError("wrong_type")
    said = [
        (_string(_either(turn, "role", "from")), _content(_either(turn, "content", "value")))
        for turn in turns
    ]
    last = max((i for i, (role, _) in enumerate(said) if role.casefold() in ASSISTANT_ROLES), default=None)
    if last is None:
        raise _RefusedError("missing_field")
    if not said[last][1].strip():
        raise _RefusedError("empty")
    return "\n".join(f"{role}: {content}" for role, content in said[:last]), said[last][1]


def _either(turn: dict[str, Any], key: str, other: str) -> Any:
    value = turn.get(key, turn.get(other))
    return "" if value is None else value


def _content(value: Any) -> str:
    """A turn's text; the text parts joined where the content is a list of parts."""
    if isinstance(value, list):
        parts = [p.get("text") if isinstance(p, dict) else p for p in value]
        return "\n".join(p for p in parts if isinstance(p, str))
    return _string(value)


def _meta(record: dict[str, Any], used: set[str]) -> str:
    """The other top-level scalars as JSON, sorted; the first 32 of them, each cut at 200 characters."""
    kept: dict[str, Any] = {}
    for key in sorted(k for k in record if k not in used):
        value = record[key]
        if isinstance(value, str):
            value = value[:MAX_META_CHARS]
        elif not isinstance(value, (bool, int, float)) or _is_null(value) or abs(value) > 1e300:
            continue
        kept[key[:MAX_META_CHARS]] = value
        if len(kept) == MAX_META_KEYS:
            break
    return json.dumps(kept)
