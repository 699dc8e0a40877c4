"""A dataset card in Hugging Face's format: facts in, Markdown out, in which no text of a corpus renders."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from huggingface_hub import DatasetCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

CLIP = 600
SIZES = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B"]
LICENCES = {  # what the Hub knows and data is often under; any other name goes under `other`
    "afl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "cc", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "gfdl",
    "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "mit", "mpl-2.0", "odbl", "odc-by", "openrail", "pddl",
    "unlicense", "unknown",
}  # fmt: skip
WHAT = {
    "row_id": "the row's name: 128-bit hash of its source and raw fields",
    "source": "name of the source in the recipe",
    "split": "split of the set",
    "prompt": "what the model reads; empty for plain text",
    "response": "what the model is to answer; empty when the label is the answer",
    "label": "class label, where there is one",
    "origin": "real or synthetic",
    "parents": "row_id of the rows that a synthetic row was made from",
    "licence": "licence of the source; none for synthetic rows",
    "n_chars": "characters of prompt and response",
    "meta": "other fields of the record, or the plan of a synthetic row, as JSON text",
    "messages": "the prompt as the user's turn, and the response (or the label) as the assistant's",
    "instruction": "the prompt",
    "input": "empty",
    "output": "the response, or the label where there is none",
    "text": "prompt and response, a line break between them",
}


def plain(text: object, limit: int = CLIP) -> str:
    """Text that Markdown shows as it is, on one line: no markup, HTML, link, or hidden character in it takes effect."""
    shown = " ".join("".join(map(_visible, str(text)[:limit])).split()) + (
        "…" if len(str(text)) > limit else ""
    )
    # A dash or underscore inside a word, and a dot inside a number or at the end of a sentence, are no markup.
    return re.sub(
        r"(?<=\w)[-_](?=\w)|(?<=\d)\.(?=\d)|(?<=[^\W\d])\.(?=\s|$)|([!-$&*+\-.:<>@\[-`{-~])",
        lambda m: f"&#{ord(m[1])};" if m[1] else m[0],
        shown,
    )


def _visible(c: str) -> str:
    if c in "\n\t\r":
        return " "
    hidden = unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return f"⟨{ord(c):04X}⟩" if hidden else c


def fenced(text: str, language: str) -> Markup:
    """The text as a code block that nothing in it can end; hidden characters are shown."""
    shown = "".join(c if c in "\n\t" else _visible(c) for c in text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return Markup("\n").join([Markup(fence + language), Markup(shown.rstrip("\n")), Markup(fence)])


def _escaped(value: object) -> Markup:
    return value if isinstance(value, Markup) else Markup(plain(value))


@cache
def _template() -> Any:
    page = Environment(
        loader=PackageLoader("storage", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=False,  # it would escape for HTML; `finalize` escapes every value for Markdown
        finalize=_escaped,
    )
    page.filters["fenced"] = cast(Any, fenced)
    return page.get_template("card.md.jinja")


def render(facts: Mapping[str, Any]) -> str:
    """README.md of an export: `facts` are its `export.json` and what `flows.card_facts` found of the rows."""
    columns = [{**column, "type": _type(column), "what": WHAT[column["name"]]} for column in facts["columns"]]
    more = {"columns": columns, "front": Markup(front_matter(facts))}
    more |= {"reading": reading(facts), "command": _command(facts)}
    text = _template().render({**facts, **more})
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _command(facts: Mapping[str, Any]) -> str:
    how = f"--format {facts['format']} --layout {facts['layout']}" + " --gzip" * facts["gzip"]
    how += f" --split {shlex.quote(facts['split'])}" if facts["split"] is not None else ""
    run = "gradus run recipe.toml\n" if facts["recipe"] else ""
    return f"{run}gradus export {facts['words']} {how} --to FOLDER"


def _type(column: Mapping[str, Any]) -> str:
    if isinstance(inner := column.get("list"), list):
        return f"list of {{{', '.join(field['name'] for field in inner)}}}"
    return f"list of {inner}" if inner else str(column["dtype"])


def front_matter(facts: Mapping[str, Any]) -> str:
    """The YAML that the Hub and `datasets.load_dataset` read: licence, size, tags, files of each split, columns."""
    names = licences(facts["counts"])
    rows, features = facts["rows"], facts["columns"]
    if facts["format"] == "webdataset":
        text = [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
        features = [{"name": "json", "struct": features}, *text]
    configs = [{"split": split, "path": _files(facts, split)} for split in facts["splits"]]
    found: dict[str, Any] = {
        "configs": [{"config_name": "default", "data_files": configs}],
        "dataset_info": {"features": features},
    }
    data = DatasetCardData(
        license=names[0],
        license_name=None if names[0] != "other" else " and ".join(names[1:])[:120],
        pretty_name=facts["title"],
        size_categories=[SIZES[min(max(0, len(str(rows)) - 3), len(SIZES) - 1)]],
        tags=["gradus", *(["synthetic"] if any(c["origin"] == "synthetic" for c in facts["counts"]) else [])],
        # `datasets` takes the text NULL of a CSV for a missing value, so a card of one does not send it there.
        **(found if facts["format"] != "csv" else {}),
    )
    return data.to_yaml()


def _files(facts: Mapping[str, Any], split: str) -> list[str]:
    pattern = re.compile(rf"(data/)?{re.escape(split)}(\.|-\d{{5}}-of-)")
    return [name for name in facts["files"] if pattern.match(name)]


def licences(counts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The licence as the Hub names it, when all real rows share one; else `other` and the names found."""
    found = sorted({c["licence"] or "unknown" for c in counts if c["licence"] or c["origin"] == "real"})
    if not found:
        return ["unknown"]
    known = len(found) == 1 and found[0].lower() in LICENCES
    return [found[0].lower()] if known else ["other", *found]


def reading(facts: Mapping[str, Any]) -> str:
    """What reads the files back exactly, in the folder of the export: SQL for DuckDB, or Python."""
    types = {column["name"]: _sql_type(column) for column in facts["columns"]}
    names = ["'" + name.replace("'", "''") + "'" for name in facts["files"]]
    path = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
    if facts["format"] == "parquet":
        return f"from {path}" if len(names) == 1 else f"from read_parquet({path})"
    if facts["format"] == "jsonl":
        columns = ", ".join(f"{name}: '{kind}'" for name, kind in types.items())
        return (
            f"from read_json({path}, format = 'newline_delimited', maximum_object_size = 100000000,\n"
            f"               columns = {{{columns}}})"
        )
    if facts["format"] == "csv":
        number = ",\n  n_chars::bigint as n_chars" if "n_chars" in types else ""
        parents = "if(parents = '', [], string_split(parents, ' ')) as parents"
        return (
            f"select * replace ({parents}{number}) from (\n  select regexp_replace(columns(*), '^''', '') from read_csv({path},\n"
            "    header = true, all_varchar = true, allow_quoted_nulls = false, max_line_size = 100000000))"
        )
    return 'from datasets import load_dataset\n\nrows = load_dataset(".")'


def _sql_type(column: Mapping[str, Any]) -> str:
    inner = column.get("list")
    if isinstance(inner, list):
        return f"STRUCT({', '.join(field['name'] + ' VARCHAR' for field in inner)})[]"
    return "VARCHAR[]" if inner else {"int64": "BIGINT"}.get(column["dtype"], "VARCHAR")
