"""Cards: valid for the Hub, and no text in them renders."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from markupsafe import Markup

from storage.cards import fenced, licences, plain, render

HOSTILE = [
    "**bold** _it_ `code` ~~gone~~", "[a](http://evil.example)", "![a](x.png)", "<script>alert(1)</script>", "<b>",
    "http://evil.example www.evil.example a@evil.example", "| a | b |", "# head", "> quote", "- list\n- two", "1. one",
    "```\nout\n```", "~~~", "---\nlicense: mit\n---", "===", "&lt;b&gt; &#60;", "\\*x\\*", "$x^2$", ":smile: @user #1",
    "\x1b[31mred\x00", "a\u202eb\u200b", "{{ 7 * 7 }} {% raw %}", "line\nline", "    indented", "\tb", "[x]: http://evil.example",
    "<!-- -->", "]]>", "+ plus", "* star", "a  \nb", "Ünï 😀", "<http://evil.example>", "&copy;", "'\"", "[^1]", "||spoiler||",
]  # fmt: skip


def facts(text: str = "x", **more: Any) -> dict[str, Any]:
    counts = [
        {"source": text, "licence": text, "origin": "real", "rows": 7},
        {"source": "synthetic", "licence": None, "origin": "synthetic", "rows": 3},
    ]
    arm = {
        "arm": text,
        "this": True,
        "ood": Markup("1.0"),
        "id": Markup("2.0"),
        "n": 3,
        "against": "",
        "p": "",
    }
    suites = [{"suite": text, "distribution": "ood", "items": 9}]
    return {
        "title": text,
        "words": "tickets@v2",
        "split": None,
        "gzip": False,
        "cleaning_note": None,
        "what": text,
        "loud": text,
        "rows": 10,
        "splits": {"train": 10},
        "format": "jsonl",
        "layout": "rows",
        "counts": counts,
        "urls": {text: text},
        "decision": {
            "decision": text, "round": 1, "strategy": text, "reason": text, "by_hand": {"of": text, "reason": text},
        },
        "cleaning": {"read": 12, "kept": 10, "drops": [(text, 2)], "contaminated": 1, "words": 10, "worlds": 0},
        "synthetic": {"rows": 3, "share": "30.0%", "how": text},
        "evaluation": [{"title": text, "unit": "accuracy", "arm": text, "arms": [arm], "suites": suites}],
        "sealed_note": text,
        "limits": [text],
        "recipe": f"name = '{text}'",
        "columns": [{"name": "row_id", "dtype": "string"}, {"name": "parents", "list": "string"}],
        "files": {"train.jsonl": {"bytes": 3, "sha256": "00"}},
        "gradus": "0.1.0",
        **more,
    }  # fmt: skip


def shown(markdown: str) -> tuple[str, set[str]]:
    """(the text that a reader sees, the kinds of tokens) of rendered Markdown, HTML and bare links switched on."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(markdown)
    inner = [child for token in tokens for child in token.children or []]
    text = "".join(t.content for t in inner if t.type in ("text", "html_inline", "code_inline"))
    return text, {t.type for t in (*tokens, *inner)}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "frame", ["{}", "{} after", "before {} after", "| a |\n|---|\n| {} |", "- {}", "> **{}**"]
)
def test_no_text_renders(text: str, frame: str) -> None:
    escaped = plain(text)
    assert "\n" not in escaped
    for scheme in ("http://", "www.", "@evil", ":smile:", "<", "$x", "@user"):
        assert scheme not in escaped  # what GitHub and the Hub make links, marks and formulas of
    _, kinds = shown(frame.format(escaped))
    allowed = {kind for kind in shown(frame.format("word"))[1]}
    assert kinds <= allowed | {"text"}


@pytest.mark.parametrize("text", [t for t in HOSTILE if t.isprintable()])
def test_a_reader_sees_the_text_itself(text: str) -> None:
    assert shown(f"before {plain(text)} after")[0] == f"before {' '.join(text.split())} after"


def test_hidden_characters_are_shown_and_long_text_is_cut() -> None:
    assert plain("a\u202eb\x1bc\u200bd\ne") == "a⟨202E⟩b⟨001B⟩c⟨200B⟩d e"
    assert len(plain("x" * 10_000)) < 700 and plain("x" * 10_000).endswith("…")
    assert plain("world-0 of a_b is 1.5 here.") == "world-0 of a_b is 1.5 here."


def test_a_code_block_is_not_ended_by_what_is_in_it() -> None:
    for inner in ("```\n<b>", "````", "~~~\n`", "\u202e\x1b["):
        _, kinds = shown(f"{fenced(inner, 'toml')}\n\nend")
        assert kinds == {"fence", "paragraph_open", "paragraph_close", "inline", "text"}
    assert "⟨202E⟩" in fenced("\u202e", "")


@pytest.mark.parametrize("text", ["x", *HOSTILE])
def test_the_card_parses_and_has_the_same_shape_whatever_the_text(text: str) -> None:
    card = DatasetCard(render(facts(text)))
    assert card.data.pretty_name == text if text.isprintable() else card.data.pretty_name
    assert card.data.size_categories == ["n<1K"] and "synthetic" in card.data.tags
    assert card.data.to_dict()["configs"][0]["data_files"] == [{"split": "train", "path": ["train.jsonl"]}]
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.text)
    shape = [t.type for t in tokens]
    plain_card = DatasetCard(render(facts("word")))
    expected = [
        t.type for t in MarkdownIt("commonmark", {"html": True}).enable("table").parse(plain_card.text)
    ]
    assert shape == expected
    kinds = {c.type for t in tokens for c in t.children or []}
    assert kinds <= {"text", "strong_open", "strong_close", "code_inline", "softbreak"}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([("Apache-2.0", "real"), (None, "synthetic")], ["apache-2.0"]),
        ([("Apache-2.0", "real"), ("MIT", "real")], ["other", "Apache-2.0", "MIT"]),
        ([(None, "real")], ["unknown"]),
        ([(None, "real"), ("MIT", "real")], ["other", "MIT", "unknown"]),
        ([("my own: see <here>", "real")], ["other", "my own: see <here>"]),
        ([("proprietary", "real")], ["other", "proprietary"]),
        ([("CC BY 4.0", "real")], ["other", "CC BY 4.0"]),
        ([("CC-BY-4.0", "real")], ["cc-by-4.0"]),
        ([(None, "synthetic")], ["unknown"]),
        ([], ["unknown"]),
    ],
)
def test_the_licence_is_that_of_the_rows(counts: list[tuple[str | None, str]], expected: list[str]) -> None:
    assert licences([{"licence": licence, "origin": origin} for licence, origin in counts]) == expected


@pytest.mark.parametrize(
    ("rows", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (2_000_000, "1M<n<10M")]
)
def test_the_size_is_the_hubs(rows: int, size: str) -> None:
    assert DatasetCard(render(facts(rows=rows))).data.size_categories == [size]


def test_the_command_is_whole() -> None:
    text = render(facts(split="it's", gzip=True))
    assert "gradus export tickets@v2 --format jsonl --layout rows --gzip --split 'it'\"'\"'s' --to" in text


def test_a_set_that_was_not_compared_has_no_row_of_its_own() -> None:
    arm = {**facts()["evaluation"][0]["arms"][0], "arm": "random", "this": False}
    table = {**facts()["evaluation"][0], "arm": None, "arms": [arm]}
    text = render(facts(evaluation=[table]))
    assert "| random |" in text and "**random**" not in text and "None" not in text
    assert "it was not compared here" in text and "minus it" not in text


def test_what_is_not_known_is_said() -> None:
    text = render(
        facts(
            loud=None,
            decision=None,
            cleaning=None,
            cleaning_note="no longer in the lake",
            synthetic=None,
            evaluation=[],
            sealed_note=None,
            recipe=None,
        )
    )
    assert "No model was trained on this set" in text and "no longer in the lake" in text
    assert "No row is synthetic" in text and "CAUTION" not in text and "gradus run" not in text
