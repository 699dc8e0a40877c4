"""Known records and the fields, or the reason, that they give."""

from __future__ import annotations

import json

import pytest

from curation.ingest.normalize import answer_key, match_key, normalize
from curation.ingest.parse import map_record
from curation.specs import FieldMap

CHAT = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {"role": "assistant", "content": "hello"},
]


@pytest.mark.parametrize(
    ("record", "fields", "expected"),
    [
        ({"prompt": "p", "response": "r"}, {}, ("p", "r", None)),
        ({"question": "p", "answer": 42, "label": True}, {}, ("p", "42", "true")),
        ({"instruction": "p", "input": "i", "output": "r"}, {}, ("p\ni", "r", None)),
        ({"instruction": "p", "input": "", "output": "r"}, {}, ("p", "r", None)),
        ({"text": "t"}, {}, ("", "t", None)),
        ({"text": "t", "label": None}, {}, ("", "t", None)),
        ({"text": "t", "label": " "}, {}, ("", "t", None)),
        ({"text": "t", "label": 3}, {}, ("t", "", "3")),
        ({"text": "t", "label": 3.0}, {}, ("t", "", "3")),
        ({"text": "t", "prompt": None, "response": float("nan"), "label": "x"}, {}, ("t", "", "x")),
        ({"content": "t", "y": None}, {"prompt": "content", "label": "y"}, ("", "t", None)),
        ({"data": {"body": "t"}, "target": "x"}, {"prompt": "data.body", "label": "target"}, ("t", "", "x")),
        ({"a.b": "t", "l": ["u", "v"]}, {"prompt": "a.b", "response": "l.1"}, ("t", "v", None)),
        ({"q": "t", "label": "r"}, {"prompt": "q", "response": "label"}, ("t", "r", None)),
        ({"messages": CHAT}, {}, ("system: be short\nuser: hi", "hello", None)),
        (
            {"c": {"m": [*CHAT, {"role": "user", "content": "?"}]}},
            {"messages": "c.m"},
            ("system: be short\nuser: hi", "hello", None),
        ),
        ({"messages": CHAT[2:]}, {}, ("", "hello", None)),
        ({"messages": CHAT[:2]}, {}, "missing_field"),
        ({"messages": "hi"}, {"messages": "messages"}, "wrong_type"),
        ({"messages": ["hi"]}, {}, "wrong_type"),
        ({}, {}, "missing_field"),
        ({"prompt": "p"}, {}, "missing_field"),
        ({"text": None}, {}, "missing_field"),
        ({"text": "t"}, {"prompt": "text", "response": "r"}, "missing_field"),
        ({"text": " \n", "label": "x"}, {}, "empty"),
        ({"prompt": "p", "response": " "}, {}, "empty"),
        ({"prompt": ["p"], "response": "r"}, {}, "wrong_type"),
    ],
)
def test_fields(record, fields, expected):
    found = map_record(record, FieldMap(**fields))
    assert (found if isinstance(found, str) else (found.prompt, found.response, found.label)) == expected


def test_meta_and_cluster():
    record = {
        "text": "t",
        "label": 1,
        "group": 7,
        "url": "u" * 999,
        "ok": False,
        "none": None,
        "deep": {"a": 1},
    }
    found = map_record(record, FieldMap(cluster="group"))
    assert not isinstance(found, str)
    assert found.cluster == "7"
    assert json.loads(found.meta) == {"ok": False, "url": "u" * 200}
    many = map_record({"text": "t", **{f"k{i:03}": i for i in range(99)}}, FieldMap())
    assert not isinstance(many, str) and len(json.loads(many.meta)) == 32


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("cafe\u0301", "café"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("ze\u200bro\ufeff wi\u200ddth\u00ad", "zero width"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("a\x00b\x07\tc", "ab\tc"),
        ("  a   b  \n\u00a0 c ", "a b\nc"),
        ("\ud800x", "\ufffdx"),
        (" \u200b ", ""),
    ],
)
def test_normalize(raw, expected):
    assert normalize(raw) == expected
    assert normalize(expected) == expected


def test_keys():
    assert match_key("  Don't STOP,\nA.I.R.!  ") == "dont stop air"
    assert match_key("ＡＢＣ Straße") == "abc strasse"
    assert match_key("!!!") == "!!!" != match_key("???")
    assert match_key("1 + 1 < 3") == "1 + 1 < 3"
    assert answer_key(' "Yes." ') == answer_key("yes")
    assert answer_key("- a b") != answer_key("/ a b")
