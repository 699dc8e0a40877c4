"""The prepare scripts: public layouts made small, and the local copies where they are at hand."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "infra" / "recipes"
COPIES = ROOT.parent / "shared" / "data" / "corpora"
sys.path.insert(0, str(RECIPES))

import prepare_common  # noqa: E402
import prepare_intents  # noqa: E402
import prepare_intents_transfer  # noqa: E402
import prepare_scan  # noqa: E402

FOLD = "CrossValidation/autoGeneFromRealAnno/autoGene_1/CrossValidation/KFold_1"
HEADER = "answerid;scenario;intent;answer_annotation;answer_from_anno;answer_from_user\n"


def copies(name: str) -> Path:
    if not (COPIES / name / "train.parquet").is_file():
        pytest.skip(f"no local copy of {name} beside the repository")
    return COPIES / name


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_parquet(folder: Path, split: str, rows: list[dict[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(folder / f"{split}.parquet")


def texts(rows: list[dict[str, str]]) -> list[str]:
    return [row["text"] for row in rows]


def clinc(folder: Path) -> Path:
    domains = {f"domain{d}": [f"intent{d}_{i}" for i in range(15)] for d in range(2)}
    sizes = {"train": 100, "val": 20, "test": 30}
    full = {
        split: [[f"{split} {i} {n}", i] for intents in domains.values() for i in intents for n in range(size)]
        for split, size in sizes.items()
    }
    write_json(folder / "data" / "data_full.json", full | {"oos_test": [["what", "oos"]]})
    write_json(folder / "data" / "domains.json", domains)
    return folder


def clinc_copy(folder: Path, public: Path) -> Path:
    full = json.loads((public / "data" / "data_full.json").read_text())
    for split, name in (("train", "train"), ("id_dev", "val"), ("id_test", "test")):
        rows = [{"text": t, "label": i, "domain": f"clinc:domain{i[6]}"} for t, i in reversed(full[name])]
        write_parquet(folder, split, rows)
    return folder


def test_intents_follow_the_long_tail(tmp_path: Path) -> None:
    files = prepare_intents.prepare(clinc(tmp_path), 7)
    assert list(files["pool"][0]) == ["text", "label", "intent"]
    sizes = Counter(row["intent"] for row in files["pool"])
    expected = [100, 48, 29, 21, 16, 13, 11, 9, 8, 7, 6, 6]
    for domain in ("domain0", "domain1"):
        assert sorted((n for i, n in sizes.items() if i[6] == domain[6]), reverse=True) == expected
    unseen = {row["intent"] for row in files["unseen"]}
    tail = Counter(row["intent"] for row in files["tail"])
    assert len(unseen) == 6 and unseen.isdisjoint(sizes)
    assert len(tail) == 16 and len(set(tail.values())) == 1 and max(sizes[i] for i in tail) == 16
    shares = {row["intent"] for row in files["sealed"]}
    assert shares == unseen | set(tail)
    ids = Counter(row["intent"] for row in files["id"])
    assert all(abs(ids[i] - n / 2) <= 1 for i, n in sizes.items())


def test_intents_suites_are_disjoint_and_from_held_out_rows(tmp_path: Path) -> None:
    files = prepare_intents.prepare(clinc(tmp_path), 7)
    suites = [text for stem in ("id", "tail", "unseen", "sealed") for text in texts(files[stem])]
    assert len(suites) == len(set(suites))
    assert not any(text.startswith("train") for text in suites)
    assert all(text.startswith("train") for text in texts(files["pool"]))


def test_intents_same_files_from_both_forms_and_other_with_another_seed(tmp_path: Path) -> None:
    public = clinc(tmp_path / "public")
    files = prepare_intents.prepare(public, 7)
    assert files == prepare_intents.prepare(clinc_copy(tmp_path / "copy", public), 7)
    assert files != prepare_intents.prepare(public, 8)


def scan(folder: Path) -> Path:
    train = [("jump", "I_JUMP")] * 30 + [(f"walk {n}", f"I_WALK {n}") for n in range(900)]
    test = [(f"jump {n}", f"I_JUMP {n}") for n in range(1200)]
    split = folder / "add_prim_split"
    split.mkdir(parents=True)
    for name, rows in (("train", train), ("test", test)):
        lines = "".join(f"IN: {prompt} OUT: {response}\n" for prompt, response in rows)
        (split / f"tasks_{name}_addprim_jump.txt").write_text(lines)
    return folder


def test_scan_keeps_jump_alone_in_the_pool_and_writes_no_other_test_command(tmp_path: Path) -> None:
    files = prepare_scan.prepare(scan(tmp_path), 7)
    assert {stem: len(rows) for stem, rows in files.items()} == {
        "pool": 30 + 900 - 753,
        "id": 753,
        "jump": 800,
        "sealed": 200,
    }
    assert sum(row["prompt"] == "jump" for row in files["pool"]) == 30
    prompts = [{row["prompt"] for row in rows} for rows in files.values()]
    assert len(set.union(*prompts)) == sum(map(len, prompts))
    assert files["pool"][0] == {"prompt": "jump", "response": "I_JUMP"}


def test_scan_same_files_from_both_forms(tmp_path: Path) -> None:
    public = scan(tmp_path / "public")
    train, test = prepare_scan.load(public)
    write_parquet(tmp_path / "copy", "train", train[100:])
    write_parquet(tmp_path / "copy", "id_test", train[:100])
    write_parquet(tmp_path / "copy", "ood_test__addprim_jump", test[::-1])
    assert prepare_scan.prepare(tmp_path / "copy", 7) == prepare_scan.prepare(public, 7)


def transfer(folder: Path) -> Path:
    full = {
        split: [
            [f"{split} {i} {n}", i]
            for i in [*prepare_intents_transfer.CLINC, "transfer"]
            for n in range(size)
        ]
        for split, size in (("train", 5), ("val", 2), ("test", 3))
    }
    write_json(folder / "oos-eval" / "data" / "data_full.json", full)
    fold = folder / "NLU-Evaluation-Data" / FOLD
    for part in ("trainset", "testset/csv"):
        (fold / part).mkdir(parents=True)
        for intent in prepare_intents_transfer.HWU64:
            answers = [
                f"{part} {intent} one",
                f"{part} {intent} for [date : next week] please",
                "null",
                "Again",
            ]
            answers += ["Remind me", "remove [list name]"] if intent == "calendar_set" else []
            lines = "".join(f'1;a;b;"x";"y";"{answer}"\n' for answer in answers)
            (fold / part / f"{intent}.csv").write_text(HEADER + lines)
    return folder


def test_transfer_maps_labels_and_cleans_requests(tmp_path: Path) -> None:
    files = prepare_intents_transfer.prepare(transfer(tmp_path), 7)
    assert len(files["pool"]) == 26 * 5 and "transfer" not in {row["intent"] for row in files["pool"]}
    assert len({row["label"] for row in files["pool"]}) == 23
    every = [*files["ood"], *files["sealed"]]
    found = {row["text"]: row for row in every}
    assert "null" not in found and "Remind me" not in found and "remove [list name]" in found
    assert found["trainset calendar_set for next week please"]["label"] == "calendar_update"
    assert sum(text == "Again" for text in texts(every)) == 1
    assert len({row["label"] for row in every if row["corpus"] == "hwu64"}) == 23


def test_transfer_seals_a_tenth_of_both(tmp_path: Path) -> None:
    files = prepare_intents_transfer.prepare(transfer(tmp_path), 7)
    for stem, corpus in (("id", "clinc150"), ("ood", "hwu64")):
        sealed = [row for row in files["sealed"] if row["corpus"] == corpus]
        assert len(sealed) == round(0.1 * (len(files[stem]) + len(sealed)))
        assert set(texts(sealed)).isdisjoint(texts(files[stem]))


@pytest.mark.parametrize("script", [prepare_intents, prepare_intents_transfer, prepare_scan])
def test_a_missing_source_says_where_to_get_it(script, tmp_path: Path, monkeypatch, capsys) -> None:
    name = script.__name__.removeprefix("prepare_")
    monkeypatch.setattr(sys, "argv", [name, "--source", str(tmp_path), "--out", str(tmp_path / "out")])
    assert prepare_common.main(name, "", script.prepare) == 2
    message = capsys.readouterr().err
    assert (
        "https://github.com/" in message and f"python infra/recipes/{script.__name__}.py --source" in message
    )
    assert message.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_command_writes_jsonl(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        sys, "argv", ["x", "--source", str(scan(tmp_path / "s")), "--out", str(tmp_path / "o")]
    )
    assert prepare_common.main("scan", "", prepare_scan.prepare) == 0
    lines = (tmp_path / "o" / "jump.jsonl").read_text().splitlines()
    assert len(lines) == 800 and list(json.loads(lines[0])) == ["prompt", "response"]
    assert "jump.jsonl: 800 rows" in capsys.readouterr().out


def test_local_intents() -> None:
    files = prepare_intents.prepare(copies("clinc150_oos"), 7)
    assert {stem: len(rows) for stem, rows in files.items()} == {
        "pool": 2740,
        "id": 1360,
        "tail": 2560,
        "unseen": 1200,
        "sealed": 1100,
    }
    assert len({row["label"] for row in files["pool"]}) == 10
    assert len({row["intent"] for row in files["pool"]}) == 120


def test_local_transfer_agrees_with_the_table() -> None:
    train, ids, ood = prepare_intents_transfer.load(copies("intents_xc"))
    assert {(r["intent"], r["label"]) for r in train + ids} == set(prepare_intents_transfer.CLINC.items())
    assert {(r["intent"], r["label"]) for r in ood} == set(prepare_intents_transfer.HWU64.items())
    files = prepare_intents_transfer.prepare(copies("intents_xc"), 7)
    assert (len(files["pool"]), len(files["id"])) == (2600, 1170)
    assert len(files["ood"]) + sum(row["corpus"] == "hwu64" for row in files["sealed"]) == 5318


def test_local_scan() -> None:
    files = prepare_scan.prepare(copies("scan_addprim_jump"), 7)
    assert [len(files[stem]) for stem in ("pool", "id", "jump", "sealed")] == [13917, 753, 800, 200]
    assert {row["prompt"] for row in files["pool"] if "jump" in row["prompt"]} == {"jump"}
    assert all("jump" in row["prompt"] for row in files["jump"] + files["sealed"])
