"""`gradus export` and `gradus publish` on a real small lake: the right rows, loud cards, and runs that are not confused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import datasets
import duckdb
import polars as pl
import pytest
from huggingface_hub import DatasetCard
from typer.testing import CliRunner

from curation.errors import DataError, UserError
from curation.rows import LEDGER, RECORDS
from curation.specs import Recipe
from flows.card_facts import _cleaning, _evaluation
from flows.cli import app
from flows.origin import Origin
from flows.recipe import load_recipe
from flows.recipe_text import recipe_text
from flows.status import find_run, steps_of
from storage.artifacts import Lake
from storage.formats import COLUMNS
from tests.plain_run import plain_run
from tests.tiny import tiny_recipe

DOCS = Path(__file__).parents[2] / "infra" / "docs" / "export.md"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two rounds in which nothing won."""
    folder = tmp_path_factory.mktemp("tiny")
    plain_run(tiny_recipe(folder, rounds=2), folder / "lake")
    return folder


@pytest.fixture
def lake(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shutil.copytree(first / "lake", tmp_path / "lake")
    return Lake(tmp_path / "lake")


def gradus(lake: Lake, *words: object) -> str:
    """What the command prints; raises what it raises."""
    found = CliRunner().invoke(app, [str(word) for word in words] + ["--lake", str(lake.root)])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def card(folder: Path) -> DatasetCard:
    return DatasetCard((folder / "README.md").read_text(encoding="utf-8"))


def test_the_newest_version_is_the_default_and_its_card_has_the_evidence(lake: Lake, tmp_path: Path) -> None:
    said = gradus(lake, "export", "--to", tmp_path / "out", "--format", "hf")
    assert "tiny@v1: 60 rows as hf" in said
    want = lake.dataset("tiny", 1).select(COLUMNS)
    assert pl.DataFrame(datasets.load_dataset(str(tmp_path / "out"))["train"].data.table).equals(want)
    text = card(tmp_path / "out").text
    assert card(tmp_path / "out").data.license == "apache-2.0" and "CAUTION" not in text
    read = len(lake.read(lake.refs("ingest")[0], "records"))
    assert f"had {read} records" in text and "| world-0 | Apache-2.0 | real | 60 |" in text
    for arm in ("**previous**", "candidate", "untargeted", "gradient_logdet"):
        assert re.search(rf"\| {re.escape(arm)} \| \d+\.\d \[.+\] \| \d+\.\d \[.+\] \| 6 \|", text), arm
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (
        told["ref"] == "dataset/tiny@v1"
        and told["fingerprint"] == lake.dataset_versions("tiny")[0]["content_fp"]
    )


def test_the_card_holds_the_recipe_and_the_command(lake: Lake, first: Path, tmp_path: Path) -> None:
    gradus(lake, "export", "--to", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```toml\n(.*?)```", text, re.S)
    assert block and Recipe.model_validate(tomllib.loads(block[1])) == load_recipe(first / "tiny.toml")
    assert "gradus export tiny@v1 --format parquet --layout rows --to FOLDER" in text


def test_recipe_text_gives_any_recipe_back_without_machine_paths() -> None:
    source = {"name": "a", "path": "/home/me/data.jsonl", "fields": {"prompt": 'q "x" \\ \n\x7f é😀'}}
    suite = {"name": "s", "holdout_rows": 0.1, "distribution": "ood"}
    given = {"name": "r", "source": [source, {**source, "name": "b", "path": "in/*.gz"}], "suite": [suite]}
    recipe = Recipe.model_validate({**given, "proxy": {"learning_rate": 1e-5}, "score": {"extra": ["ifd"]}})
    back = Recipe.model_validate(tomllib.loads(recipe_text(recipe)))
    assert [s.path for s in back.source] == ["data.jsonl", "in/*.gz"]
    assert back.model_copy(update={"source": recipe.source}) == recipe
    assert back.source[0].fields == recipe.source[0].fields


def test_a_candidate_that_did_not_win_says_so_loudly(lake: Lake, tmp_path: Path) -> None:
    ref = next(r for r in lake.refs("candidate"))
    said = gradus(lake, "export", "tiny", "--candidate", ref.fingerprint[:6], "--to", tmp_path / "out")
    text = card(tmp_path / "out").text
    assert "DID NOT WIN" in said and text.index("DID NOT WIN") < 300
    decision = lake.read(steps_of(find_run(lake), "decide")[-1], "decisions").row(0, named=True)["decision"]
    assert decision != "publish" and "**candidate**" in text and "n=6 diff=" in text
    found = pl.read_parquet(tmp_path / "out" / "train.parquet")
    assert found.equals(lake.read(ref, "rows").select(COLUMNS))
    assert f"{(found['origin'] == 'synthetic').sum()} of {len(found)} rows" in text
    assert "synthetic" in card(tmp_path / "out").data.tags


@pytest.mark.parametrize(
    ("arm", "round", "replicate"), [("untargeted", 2, 3), ("gradient_logdet", 1, 0), ("previous", 2, 5)]
)
def test_an_arm_is_the_rows_that_were_compared(
    lake: Lake, tmp_path: Path, arm: str, round: int, replicate: int
) -> None:
    words = [
        "--arm",
        arm,
        "--round",
        round,
        "--replicate",
        replicate,
        "--format",
        "jsonl",
        "--layout",
        "chat",
    ]
    gradus(lake, "export", "--run", "te", *words, "--to", tmp_path / "out")
    sets = steps_of(find_run(lake), "select", round, "confirm")[-1]
    chosen = lake.read(sets, "selections").filter(pl.col("arm") == arm, pl.col("replicate") == replicate)
    found = pl.read_ndjson(tmp_path / "out" / "train.jsonl")
    assert len(found) == len(chosen) and set(found["row_id"]) == set(chosen["row_id"])
    assert set(found["source"]) <= {f"world-{replicate}", "synthetic"}
    text = card(tmp_path / "out").text
    assert "An arm of a comparison" in text and f"| **{arm}** |" in text
    assert (
        f"gradus export tiny --arm {arm} --run test --round {round} --phase confirm --replicate {replicate} --format jsonl"
        in text
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["other"], r"no 'other'.*tiny@v1"),
        (["tiny@v7"], r"tiny@v7.*tiny@v1"),
        (["tiny@x"], r"tiny@x.*tiny@v1"),
        (["tiny", "--candidate", ""], r"candidate/tiny@\w+, candidate/tiny@"),
        (["candidate/tiny@ffffffffffff"], r"candidate/tiny@\w+, candidate/tiny@"),
        (["../../etc@v1"], r"etc@v1.*tiny@v1"),
        (["tiny", "--version", "1", "--candidate", "ab"], "both"),
        (["--arm", "best"], r"arms \(replicates\): candidate \(0–5\), previous \(0–5\), untargeted"),
        (["--arm", "untargeted", "--replicate", "9"], r"untargeted \(0–5\)"),
        (["--arm", "untargeted", "--round", "9"], "rounds: 1, 2"),
        (["--arm", "untargeted", "--run", "nope"], "runs: test"),
        (["other", "--arm", "untargeted"], "there are runs of: tiny"),
        (["other", "--arm", "untargeted", "--run", "te"], "run test is of tiny, not of other"),
        (["--arm", "untargeted", "--phase", "judge"], "confirm, full, screen"),
        (["--arm", "untargeted", "--phase", "screen"], "no arm 'untargeted'"),
        (["--phase", "screen"], "go with --arm"),
        (["--candidate", "ffffff"], r"candidate/tiny@\w+"),
        (["--arm", "untargeted", "--version", "1"], "without --version"),
        (["--round", "1"], "go with --arm"),
        (["--split", "dev"], "splits: train"),
        (["--format", "xlsx"], "webdataset"),
    ],
)
def test_what_there_is_not_is_answered_with_what_there_is(
    lake: Lake, tmp_path: Path, words: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        gradus(lake, "export", *words, "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_half_deleted_version_is_named_and_never_replaced_by_an_older_one(
    lake: Lake, tmp_path: Path
) -> None:
    candidate = lake.refs("candidate")[0]
    gradus(lake, "publish", candidate)
    (lake.root / "datasets" / "tiny@v2" / "manifest.json").unlink()
    for words in ([], ["tiny"], ["tiny@v2"]):
        with pytest.raises(DataError, match=r"dataset/tiny@v2 was half deleted"):
            gradus(lake, "export", *words, "--to", tmp_path / "out")
    gradus(lake, "export", "tiny@v1", "--to", tmp_path / "out")
    shutil.rmtree(lake.root / "datasets" / "tiny@v1" / "rows")
    with pytest.raises(DataError, match=r"dataset/tiny@v1 was half deleted"):
        gradus(lake, "publish", "tiny@v1")


def test_a_card_without_its_run_still_comes_and_says_what_is_unknown(lake: Lake, tmp_path: Path) -> None:
    shutil.rmtree(lake.root / "runs")
    gradus(lake, "export", lake.refs("candidate")[0], "--to", tmp_path / "out")
    text = card(tmp_path / "out").text
    assert "DID NOT WIN" in text and "No model was trained on this set" in text


def test_the_card_of_an_arm_that_was_not_compared_claims_no_figures(lake: Lake) -> None:
    record = find_run(lake)
    for arm, phase, marked in (("untargeted", "confirm", 1), ("nobody", "full", 0)):
        tables, _ = _evaluation(lake, Origin(arm, None, None, record, 2, phase=phase))
        assert [sum(a["this"] for a in table["arms"]) for table in tables] == [marked] * len(tables) != []
        assert all(bool(a["against"]) != (a["this"] or not marked) for t in tables for a in t["arms"])


def test_a_base_that_no_run_began_with_has_no_figures_of_others(lake: Lake, tmp_path: Path) -> None:
    pool, base = lake.refs("ingest")[0], lake.dataset("tiny", 1)
    ref = lake.publish_candidate("tiny", base.head(20), "base", None, str(pool), 1, "of no run")
    gradus(lake, "export", ref, "--to", tmp_path / "out")
    text = card(tmp_path / "out").text
    assert "No model was trained on this set" in text and "```toml" not in text and "records: " in text


def test_a_damaged_pool_or_a_record_of_another_gradus_does_not_stop_a_sound_version(
    lake: Lake, tmp_path: Path
) -> None:
    ledger = lake.paths(lake.refs("ingest")[0], "ledger")[0]
    ledger.chmod(0o644)
    ledger.write_bytes(ledger.read_bytes()[:100])
    gradus(lake, "export", "--to", tmp_path / "out")
    text = card(tmp_path / "out").text
    assert "is damaged, or no longer in the lake" in text and "| **previous** |" in text
    record = next((lake.root / "runs").glob("*.json"))
    told = json.loads(record.read_text())
    told["recipe_spec"]["decide"]["of_another_gradus"] = 1
    record.write_text(json.dumps(told))
    gradus(lake, "export", "--to", tmp_path / "out", "--overwrite")
    text = card(tmp_path / "out").text
    assert "```toml" not in text and "as another version of Gradus wrote it" in text


def test_a_row_is_dropped_for_the_reason_that_came_first(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    records = [{"source": "a", "file": "f", "position": i, "row_id": f"r{i}"} for i in range(3)]
    lines = [
        {"row_id": "r1", "stage": "ingest", "round": 0, "decision": "drop", "reason": reason}
        for reason in ("too_short", "near_copy")
    ]
    with lake.draft("ingest", "tickets", "0" * 12, {"parents": []}) as draft:
        draft.write_shard(
            "all",
            {"records": pl.DataFrame(records, schema=RECORDS), "ledger": pl.DataFrame(lines, schema=LEDGER)},
        )
        pool = draft.publish()
    told = _cleaning(lake, Origin("previous", "base", pool), None)
    assert told and told["drops"] == [("too_short", 1)] and (told["read"], told["kept"]) == (3, 2)


def test_the_card_of_a_candidate_tells_that_it_was_published_by_hand(lake: Lake, tmp_path: Path) -> None:
    candidate = lake.refs("candidate")[0]
    gradus(lake, "publish", candidate)
    said = gradus(lake, "export", candidate.fingerprint[:6], "--to", tmp_path / "out")
    assert "Published BY HAND as tiny@v2. This candidate DID NOT WIN" in said


def test_publishing_by_hand_rolls_back_and_undoes(lake: Lake, tmp_path: Path) -> None:
    alpha, candidate = lake.alpha_spent(), lake.refs("candidate")[0]
    said = gradus(lake, "publish", candidate, "--reason", "people <b>like</b> it")
    assert "dataset/tiny@v2 is the newest version now" in said and "undo:  gradus publish tiny@v1" in said
    assert "changed" in gradus(lake, "publish", candidate) and len(lake.dataset_versions("tiny")) == 2
    gradus(lake, "publish", "tiny@v1", "--reason", "rolled back")
    assert "changed" in gradus(lake, "publish", "tiny@v1") and "changed" in gradus(lake, "publish", "tiny@v3")
    versions = lake.dataset_versions("tiny")
    assert [v["version"] for v in versions] == [1, 2, 3]
    assert [v["decision"] for v in versions] == ["base", "by hand", "by hand"]
    assert lake.dataset("tiny", 3).equals(lake.dataset("tiny", 1))
    assert lake.dataset("tiny", 2).equals(lake.read(candidate, "rows"))
    assert lake.alpha_spent() == alpha
    asked = gradus(lake, "sql", "select version, decision from datasets order by version", "--csv")
    assert asked.splitlines()[1:] == ["1,base", "2,by hand", "3,by hand"]
    told = gradus(
        lake, "sql", "select reason from decisions where decision = 'by hand' order by reason", "--csv"
    )
    assert told.splitlines()[1:] == ["people <b>like</b> it", "rolled back"]
    gradus(lake, "export", "--to", tmp_path / "out")
    text = card(tmp_path / "out").text
    assert (
        "BY HAND" in text
        and "rolled back" in text
        and "tiny&#64;v1: rolled back" in text.replace("&#58;", ":")
    )


def test_a_later_run_of_the_same_recipe_is_not_confused(lake: Lake, first: Path) -> None:
    candidate = lake.refs("candidate")[0]
    gradus(lake, "publish", candidate)
    gradus(lake, "publish", "tiny@v1")
    alpha, refs = lake.alpha_spent(), lake.refs()
    again = plain_run(first / "tiny.toml", lake.root, run_id="again")
    assert all(step["reused"] for step in again.steps)
    assert again.facts["version"] == 1 and lake.refs() == refs and lake.alpha_spent() == alpha


def test_the_examples_of_the_manual_run(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(sh|sql|python)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    fingerprint = lake.refs("candidate")[0].fingerprint
    assert {kind for kind, _ in blocks} == {"sh", "sql", "python"}
    for kind, text in blocks:
        if kind == "sql":
            assert duckdb.sql(text).fetchall()
        elif kind == "python":
            exec(compile(text, str(DOCS), "exec"), {})
        else:
            for line in text.replace("FINGERPRINT", fingerprint).splitlines():
                command = shlex.split(line, comments=True)
                if command[:1] == ["gradus"]:
                    gradus(lake, *command[1:])
