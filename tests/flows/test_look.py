"""The commands that look into a lake, on a small one: right figures, on 80 columns, and clear words when asked wrongly."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from curation.errors import GradusError
from flows.cli import app
from flows.explain import STORY, print_story
from flows.inspect import _disk
from flows.lineage import _print_node
from flows.status import status
from storage.artifacts import Lake, Ref
from storage.catalog import query
from tests.plain_run import plain_run
from tests.tiny import tiny_recipe


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    folder = tmp_path_factory.mktemp("look")
    plain_run(tiny_recipe(folder, rounds=2), folder / "lake", run_id="20260102-tiny")
    return Lake(folder / "lake", create=False)


def run(lake: Lake, *words: str) -> str:
    """What a command prints on 80 columns; raises what it raises."""
    found = CliRunner().invoke(app, [words[0], "--lake", str(lake.root), *words[1:]], env={"COLUMNS": "80"})
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.stdout


def facts(lake: Lake, *words: str) -> dict:
    return json.loads(run(lake, *words, "--json"))


def refused(lake: Lake, *words: str) -> str:
    with pytest.raises(GradusError) as error:
        run(lake, *words)
    return str(error.value)


def narrow(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 80


def test_sql_prints_tables_json_and_csv(lake: Lake) -> None:
    read = query(lake, "select sum(read) from (select distinct source, read from accounting)").item()
    question = "select sum(read)::int as n from (select distinct source, read from accounting)"
    assert f" {read} " in run(lake, "sql", question)
    assert json.loads(run(lake, "sql", question, "--json")) == [{"n": read}]
    assert run(lake, "sql", question, "--csv") == f"n\n{read}\n"
    assert narrow(run(lake, "sql", "select * from rows limit 3"))
    assert "the first 1,000 rows shown" in run(lake, "sql", "from range(1_000_000_000_000)")
    assert "rows shown" not in run(lake, "sql", "from range(1_000)")


def test_inspect_has_the_figures_of_status(lake: Lake) -> None:
    shown, known = facts(lake, "inspect"), status(lake, lake.runs()[-1])
    assert shown["accounting"]["read"] == known["accounting"]["rows_read"]
    assert shown["accounting"]["kept"] == known["accounting"]["rows_kept"]
    assert sum(shown["accounting"]["dropped"].values()) == known["accounting"]["rows_dropped"]
    assert [v["version"] for v in shown["versions"]][-1] == known["published"]["version"]
    assert len(shown["versions"]) + len(shown["candidates"]) >= 3
    for told, decision in zip(known["rounds"], shown["decisions"], strict=True):
        line = next(
            c
            for c in told["comparisons"]
            if (c["arm"], c["control"], c["suite"]) == ("candidate", "untargeted", "ood_mean")
        )
        assert decision["gain"]["diff"] == line["diff"] and decision["decision"] == told["decision"]
    text = run(lake, "inspect")
    assert narrow(text) and "against untargeted, n=6" in text and "thin" in text
    assert "records: read" in run(lake, "inspect", "tiny") and run(lake, "inspect", "20260102")
    assert "neither a dataset (tiny)" in refused(lake, "inspect", "nobody")


def test_inspect_of_an_empty_and_of_a_damaged_lake(lake: Lake, tmp_path: Path) -> None:
    assert "0.0 kB" in run(Lake(tmp_path / "empty"), "inspect")
    broken = Lake(shutil.copytree(lake.root, tmp_path / "broken"))
    ref = broken.refs("score")[-1]
    next(
        (broken.root / "artifacts" / "score" / f"tiny@{ref.fingerprint}" / "region_table").iterdir()
    ).unlink()
    text = run(broken, "inspect")
    assert "PROBLEM" in text and str(ref) in text and "records: read" in text
    assert facts(broken, "inspect")["problems"]


def test_inspect_while_folders_come_and_go(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Lake(shutil.copytree(lake.root, tmp_path / "busy"))
    known, work, walk = _disk(busy)["(work)"], busy.root / "work", os.walk
    (work / "train" / "shards").mkdir(parents=True)
    (work / "gone").write_bytes(b"1")
    (work / "stays").write_bytes(b"1")

    def racing(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        """The folders, after a run took away something that was listed."""
        for at, folders, names in walk(top):
            if Path(at) == work:
                (work / "train").rename(tmp_path / "train")
                (work / "gone").unlink()
            yield at, folders, names

    monkeypatch.setattr(os, "walk", racing)
    assert _disk(busy)["(work)"] == known + 1 and not (work / "gone").exists()


def test_a_damaged_artifact_is_named_and_hides_nothing_else(lake: Lake, tmp_path: Path) -> None:
    broken = Lake(shutil.copytree(lake.root, tmp_path / "broken"))
    row = query(lake, "select row_id, prompt from dataset_rows order by row_id limit 1").row(0)
    version = next(iter((broken.root / "datasets" / "tiny@v1" / "rows").iterdir()))
    version.write_bytes(version.read_bytes()[:-100])
    for words in (("diff", "v1", last_two(lake)[1]), ("diff", last_two(lake)[1], "v1", "--rows")):
        assert "dataset/tiny@v1 was half deleted: rows/" in refused(broken, *words)
    told = facts(broken, "explain", row[0])
    assert told["records"] and {v["artifact"] for v in told["versions"]}.isdisjoint({"dataset/tiny@v1"})
    found = CliRunner().invoke(app, ["find", "--lake", str(broken.root), row[1]])
    assert found.exit_code == 0 and row[0][:12] in found.stdout
    assert found.stderr.count("dataset/tiny@v1 is damaged and was left out") == 1
    records = broken.paths(broken.refs("ingest")[0], "records")[0]
    records.unlink()
    assert "was half deleted: records/" in refused(broken, "lineage", "v1")


def test_text_of_the_corpus_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"origin": "real", "source": "s", "label": "a\nversions that hold it\n  dataset/x@v9"}
    print_story({"row_id": "ab", "rows": [row]} | {part: [] for part in STORY if part != "rows"})
    _print_node({"artifact": "a", "sources": [{"source": "s\nb", "file": "f", "records": 1, "rows": 1}]}, 0)
    out = capsys.readouterr().out.splitlines()
    assert "  dataset/x@v9" not in out and not any(line.startswith("b f") for line in out)


def test_explain_tells_a_row_from_its_record_to_its_sets(lake: Lake) -> None:
    row = query(
        lake, "select row_id, parents[1] as parent from rows where origin = 'synthetic' and row_id in "
        "(select row_id from selections where arm = 'candidate') order by row_id limit 1"
    ).row(0)  # fmt: skip
    told = facts(lake, "explain", row[0][:10])
    assert told["row_id"] == row[0] and [p["row_id"] for p in told["parents"]] == [row[1]]
    parent = facts(lake, "explain", row[1])
    assert row[0] in [c["row_id"] for c in parent["children"]]
    assert parent["records"] and len(parent["scores"]) >= 8 and parent["regions"]
    chosen = {(s["round"], s["phase"], s["arm"]): (s["replicates"], s["of"]) for s in parent["selections"]}
    assert all(1 <= mine <= of <= 6 for mine, of in chosen.values())
    n = query(
        lake,
        "select count(distinct (round, phase, arm, artifact)) from selections where row_id = ?",
        [row[1]],
    )
    assert len(parent["selections"]) == n.item()
    text = run(lake, "explain", row[1])
    assert narrow(text) and text.index("where it came from") < text.index("what was decided") < text.index(
        "sets that"
    )
    dropped = query(
        lake, "select row_id, reason from ledger where stage = 'ingest' and decision = 'drop' limit 1"
    ).row(0)
    assert dropped[1] in run(lake, "explain", dropped[0]) and "no row ffffffff" in refused(
        lake, "explain", "ffffffff"
    )


def last_two(lake: Lake) -> tuple[str, str]:
    """The base and what was made of it: a version, or a candidate when no round published."""
    versions, candidates = lake.refs("dataset"), lake.refs("candidate")
    made = [r for r in [*versions, *candidates] if lake.manifest(r).get("parent") == 1]
    return "v1", str(made[0]).removeprefix("dataset/")


def test_diff_counts_what_a_join_counts(lake: Lake) -> None:
    old, new = last_two(lake)
    shown = facts(lake, "diff", old, new)
    before = lake.dataset("tiny", 1)
    after = lake.read(Ref.parse(shown["new"]["artifact"]), "rows")
    added = after.join(before, on="row_id", how="anti")
    assert shown["added"] == len(added) and shown["removed"] == len(
        before.join(after, on="row_id", how="anti")
    )
    assert shown["kept"] + shown["added"] == len(after) == shown["new"]["rows"]
    for lines in shown["by"].values():
        assert sum(n["added"] for n in lines) == len(added)
    assert {n["origin"]: n["added"] for n in shown["by"]["origin"]} == {"synthetic": len(added)}
    assert {c["control"] for c in shown["evaluation"]} >= {"previous", "untargeted"} and shown["diversity"]
    listed = json.loads(run(lake, "diff", old, new, "--rows", "--json"))
    assert {r["row_id"] for r in listed if r["change"] == "added"} == set(added["row_id"])
    back = facts(lake, "diff", new, old)
    assert (back["added"], back["removed"], back["evaluation"]) == (shown["removed"], shown["added"], None)
    assert narrow(run(lake, "diff", old, new))


@pytest.mark.parametrize("name", ["v99", "nobody@v1", "../../etc", "candidate/tiny@ffffffffffff", "'; drop"])
def test_an_unknown_set_lists_those_there_are(lake: Lake, name: str) -> None:
    assert "versions and candidates: " in refused(lake, "diff", "v1", name) and "tiny@v1" in refused(
        lake, "diff", name, "v1"
    )


def test_lineage_of_a_version_ends_at_source_files(lake: Lake) -> None:
    tree = facts(lake, "lineage", "v1")["tree"]
    assert tree["artifact"] == "dataset/tiny@v1"
    pool = tree["parents"][0]
    assert (
        pool["artifact"].startswith("ingest/")
        and sum(s["records"] for s in pool["sources"]) == pool["rows"]["records"]
    )
    old, new = last_two(lake)
    text = run(lake, "lineage", new)
    assert all(
        kind in text for kind in ("decide/", "evaluate/", "train/", "select/", "score/", "became rows")
    )
    assert text.count("became rows") == 6 and "(above)" in text  # each artifact once
    assert old


def test_a_printed_number_leads_to_rows_and_sources(lake: Lake) -> None:
    known = status(lake, lake.runs()[-1])["rounds"][0]
    line = next(
        c
        for c in known["comparisons"]
        if c["control"] == "untargeted" and c["suite"] == "ood_mean" and c["arm"] == "candidate"
    )
    number = f"{line['diff']:+.1f}"
    shown = facts(lake, "lineage", number)
    assert number in {f"{c['value']:+.1f}" for c in shown["found"]}
    place = next(
        i
        for i, c in enumerate(shown["found"], 1)
        if (c["round"], c["arm"], c["control"], c["suite"], c["metric"], c["phase"])
        == (1, "candidate", "untargeted", "ood_mean", "accuracy", "confirm")
    )
    way = facts(lake, "lineage", number, "--pick", str(place))["way"]
    candidate, control = way["arms"]
    assert (candidate["arm"], control["arm"]) == ("candidate", "untargeted") and candidate["models"] == 6
    sets = query(
        lake,
        "select count(*), count(distinct row_id) from selections where arm = 'candidate' and round = 1 and phase = 'confirm'",
    ).row(0)
    assert (
        (candidate["rows"], candidate["distinct_rows"])
        == sets
        == (sets[0], sum(s["rows"] for s in candidate["from"]))
    )
    text = run(lake, "lineage", number, "--pick", str(place))
    assert text.count("which came from") == 2
    assert query(lake, re.search(r'gradus sql "(from path_of.*)"', text)[1]).height == sets[0]  # type: ignore[index]
    by_path = facts(lake, "lineage", ":1:candidate:ood_mean:accuracy")["found"]
    assert {c["control"] for c in by_path} >= {"untargeted", "previous", None}


def test_lineage_says_what_it_does_not_find(lake: Lake) -> None:
    assert "prints as +987.6" in refused(lake, "lineage", "+987.6")
    assert "suites: " in refused(lake, "lineage", ":1:candidate:nowhere:accuracy")
    assert "the second part is the round" in refused(lake, "lineage", ":x:candidate:ood_mean:accuracy")
    assert "is found" in refused(lake, "lineage", ":1:candidate:ood_mean:accuracy", "--pick", "99")


def test_nearest_and_find(lake: Lake) -> None:
    row = query(
        lake, "select row_id, prompt from rows where row_id in (select row_id from features) limit 1"
    ).row(0)
    plain = run(lake, "nearest", row[0], "--k", "3", "--json")
    assert json.loads(run(lake, "nearest", row[0][:12], "--k", "3", "--build", "--json")) == json.loads(plain)
    assert len(json.loads(plain)) == 3 and narrow(run(lake, "nearest", row[0]))
    found = pl.DataFrame(json.loads(run(lake, "find", row[1], "--json")))
    assert row[0] in found["row_id"].to_list() and narrow(run(lake, "find", *row[1].split()))
    assert "no row has all of these words" in run(lake, "find", "xylophone")


MANUAL = Path(__file__).parents[2] / "infra" / "docs" / "notebook.md"


def test_every_block_of_the_notebook_manual_runs(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lake.root, tmp_path / "lake")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```$", MANUAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    known: dict = {}
    for block in blocks:
        if "matplotlib" not in block or importlib.util.find_spec("matplotlib"):
            exec(compile(block, str(MANUAL), "exec"), known)
    assert len(blocks) > 10 and len(known["found"]) and len(known["near"]) == 5 and len(known["story"])
