"""Every kind of bad input gets one clear message and exit code 2 before any long work, and publishes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curation.errors import GradusError
from flows.cli import app

RECIPE = """
format = 1
name = "t"
[[source]]
name = "pool"
path = "pool.jsonl"
[[suite]]
name = "new"
path = "new.jsonl"
distribution = "ood"
use = "steer+judge"
[proxy]
kind = "head"
steps = 5
[budget]
rows = 100
[select]
strategies = ["gradient_logdet"]
[decide]
work = "choose"
max_replicates = 8
"""


def write(path: Path, texts: list[str]) -> None:
    path.write_text(
        "".join(json.dumps({"text": t, "label": "ab"[i % 2]}) + "\n" for i, t in enumerate(texts))
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(
        tmp_path / "pool.jsonl",
        [f"question number {i * 7919} about subject {i * 104729 % 1000}" for i in range(200)],
    )
    write(
        tmp_path / "new.jsonl",
        [f"an unseen topic {i * 611953} of kind {i * 15485863 % 999}" for i in range(40)],
    )
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path


def refused(folder: Path, command: str = "check", **options: str) -> str:
    args = [command, str(folder / "r.toml"), *[x for k, v in options.items() for x in (f"--{k}", v)]]
    if command == "run":
        args += ["--lake", str(folder / "lake")]
    result = CliRunner().invoke(app, args)
    assert isinstance(result.exception, GradusError), result.output
    assert (
        not list((folder / "lake" / "artifacts").glob("*/*/manifest.json"))
        if (folder / "lake").exists()
        else True
    )
    return str(result.exception)


def change(folder: Path, old: str, new: str) -> None:
    assert old in RECIPE
    (folder / "r.toml").write_text(RECIPE.replace(old, new))


def test_a_good_recipe_is_accepted(folder):
    result = CliRunner().invoke(app, ["check", str(folder / "r.toml")])
    assert result.exit_code == 0, result.exception
    assert "200 rows kept" in result.output and "suite new" in result.output


@pytest.mark.parametrize("command", ["check", "run"])
def test_missing_file(folder, command):
    (folder / "pool.jsonl").unlink()
    message = refused(folder, command)
    assert "pool.jsonl" in message and "--source pool=PATH" in message


def test_missing_suite_names_the_suite_option(folder):
    (folder / "new.jsonl").unlink()
    assert "--suite new=PATH" in refused(folder)


@pytest.mark.parametrize("command", ["check", "run"])
def test_unknown_field_names_the_nearest(folder, command):
    change(folder, "rows = 100", "row = 100")
    message = refused(folder, command)
    assert "budget.row" in message and "'rows'" in message


def test_wrong_strategy_names_the_nearest(folder):
    change(folder, '"gradient_logdet"', '"gradient_logdets"')
    assert "did you mean 'gradient_logdet'" in refused(folder)


def test_empty_corpus(folder):
    (folder / "pool.jsonl").write_text("")
    assert "pool.jsonl" in refused(folder) and "no record" in refused(folder)


@pytest.mark.parametrize("command", ["check", "run"])
def test_overlapping_suite(folder, command):
    (folder / "new.jsonl").write_text((folder / "pool.jsonl").read_text())
    message = refused(folder, command)
    assert "suite 'new' overlaps the training pool" in message and "--suite new=PATH" in message


def test_budget_larger_than_the_pool(folder):
    change(folder, "rows = 100", "rows = 5000")
    assert "rows = 5000" in refused(folder) and "200" in refused(folder)


def test_too_few_replicates(folder):
    change(folder, "max_replicates = 8", "max_replicates = 4")
    assert "too few replicates" in refused(folder) and "at least 6" in refused(folder)


def test_rho_needs_a_scorer_that_trains(folder):
    change(folder, "steps = 5\n", 'steps = 5\nscorer_steps = 0\n[score]\nextra = ["rho"]\n')
    assert "scorer_steps = 0 trains none" in refused(folder)


def test_unknown_source_option(folder):
    assert "did you mean 'pool'" in refused(folder, source="pol=x.jsonl")


def test_fields_that_match_nothing(folder):
    change(folder, 'path = "pool.jsonl"', 'path = "pool.jsonl"\nfields = {prompt = "body"}')
    assert "max_unparsable_share" in refused(folder) and "fields" in refused(folder)


def test_init_writes_a_recipe_that_check_accepts(folder):
    out = folder / "made.toml"
    result = CliRunner().invoke(app, ["init", str(folder / "pool.jsonl"), "--out", str(out)])
    assert result.exit_code == 0 and "holds parts of the pool out" in result.output
    checked = CliRunner().invoke(app, ["check", str(out)])
    assert checked.exit_code == 0, checked.exception


def test_init_on_text_to_text_rows(tmp_path):
    rows = [
        {"instruction": f"add {i} and {i * 31 % 17}", "output": f"it is {i + i * 31 % 17}"}
        for i in range(300)
    ]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "qa.toml"
    assert CliRunner().invoke(app, ["init", str(tmp_path / "qa.jsonl"), "--out", str(out)]).exit_code == 0
    checked = CliRunner().invoke(app, ["check", str(out)])
    assert checked.exit_code == 0, checked.exception


def test_status_without_a_run(tmp_path):
    result = CliRunner().invoke(app, ["status", "--lake", str(tmp_path / "none")])
    assert isinstance(result.exception, GradusError) and "there is no lake" in str(result.exception)
