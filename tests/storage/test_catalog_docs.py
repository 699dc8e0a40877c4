"""The manual of the catalog is true: every example runs and answers, and no view or macro is without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from catalog_lake import make_lake

from storage.artifacts import Lake
from storage.catalog import query

MANUAL = Path(__file__).parents[2] / "infra" / "docs" / "catalog.md"
EXAMPLES = re.findall(r"^```sql\n(.*?)^```$", MANUAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make_lake(tmp_path_factory.mktemp("manual") / "lake")


@pytest.mark.parametrize("sql", EXAMPLES)
def test_every_example_answers(lake: Lake, sql: str) -> None:
    assert any(value not in (None, 0) for line in query(lake, sql).rows() for value in line)


def test_every_view_and_macro_has_an_example(lake: Lake) -> None:
    text = " ".join(EXAMPLES)
    names = query(lake, "show tables")["name"].to_list()
    assert len(names) > 35
    for name in names:
        call, argument, _ = name.partition("(")
        used = rf"\b{call}\(" if argument else rf"\b(from|join|describe)\s+{call}\b"
        assert re.search(used, text), f"infra/docs/catalog.md has no example of {name}"


def test_everything_has_a_comment(lake: Lake) -> None:
    listed = query(lake, "show tables")
    assert listed.filter(listed["comment"].is_null())["name"].to_list() == []
    for name in listed["name"]:
        if "(" not in name:
            columns = query(lake, f"describe {name}")
            assert columns.columns == ["column_name", "column_type", "comment"]
            assert columns.filter(columns["comment"].is_null())["column_name"].to_list() == [], name
            assert columns["column_name"].to_list() == query(lake, f"from {name} limit 0").columns


def test_comments_are_only_of_what_there_is(lake: Lake) -> None:
    import tomllib

    texts = tomllib.loads(
        (Path(__file__).parents[2] / "storage" / "comments.toml").read_text(encoding="utf-8")
    )
    found = {name: set(query(lake, f"from {name} limit 0").columns) for name in texts["about"]}
    assert set(texts["columns"]) <= set().union(*found.values())
    seldom = {("runs", c) for c in ("host", "pid", "recipe_spec", "stop_reason", "version")}
    for name in set(texts) - {"about", "macros", "constants", "columns"}:
        assert {(name, column) for column in set(texts[name]) - found[name]} <= seldom


@pytest.mark.parametrize(
    "sql", ["describe rows", "DESCRIBE rows;", 'desc "rows"', "describe table rows", "show rows"]
)
def test_describe_tells_the_comments(lake: Lake, sql: str) -> None:
    assert "hash of its source" in dict(query(lake, sql).select("column_name", "comment").rows())["row_id"]


def test_describe_of_a_macro_tells_its_parameters(lake: Lake) -> None:
    assert query(lake, "describe CURATED_AT").row(0)[:2] == ("curated_at", ["dataset_name", "version_number"])


def test_describe_of_a_select_is_duckdbs_own(lake: Lake) -> None:
    assert query(lake, "describe select 1 as one")["column_name"].to_list() == ["one"]
