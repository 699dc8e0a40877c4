"""`gradus doctor`: what it reports, and that it fails with what to fix."""

import json
import os

import pytest
import torch
from typer.testing import CliRunner

from curation.specs import Proxy
from flows.cli import app
from flows.doctor import attention, devices, disk, examine, memory, precision, writable


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr(examine, "__defaults__", (0.05,))


def doctor(*args: str):
    return CliRunner().invoke(app, ["doctor", *args])


def test_a_usable_machine(tmp_path):
    result = doctor("--json", "--lake", str(tmp_path / "lake"))
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    found = {f["name"]: f for f in facts["findings"]}
    assert facts["usable"] and facts["rows_per_second"] > 0
    assert found["attention"]["value"] == "sdpa" and found["torch"]["value"] == torch.__version__
    assert found["lake folder"]["value"].endswith("lake") and not (tmp_path / "lake").exists()
    if not torch.cuda.is_available():
        assert found["device"]["value"].startswith("cpu")


def test_for_people(tmp_path):
    result = doctor("--lake", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "rows/s a worker" in result.output and "torch.cuda.is_available() is" in result.output


def test_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADUS_DEVICES", "cuda:0,cuda:99")
    missing = [f for f in devices(2) if f.fix]
    assert "cuda:99" in missing[-1].value and "GRADUS_DEVICES" in missing[-1].fix


def test_no_number_when_scoring_cannot_be_tried(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'format = 1\nname = "x"\n[[source]]\nname = "a"\npath = "none.jsonl"\n[[suite]]\nname = "s"\nholdout_rows = 0.1\n'
        'distribution = "ood"\n'
    )
    result = doctor(str(recipe), "--json", "--lake", str(tmp_path))
    facts = json.loads(result.output)
    assert result.exit_code == 1 and facts["rows_per_second"] is None and not facts["usable"]
    assert any("none.jsonl" in f["fix"] for f in facts["findings"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_others(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in writable("lake", tmp_path / "lake").fix
    tmp_path.chmod(0o700)


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "lake").write_text("")
    assert "cannot be written" in writable("lake", tmp_path / "lake").fix


def test_full_disk_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5}))
    assert "less than 1 GiB" in disk(tmp_path).fix
    assert memory(1e15, 2).fix and not memory(1e6, 1).fix


def test_precision_says_what_the_processor_has():
    has = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if not torch.cuda.is_available():
        assert ("has native" in precision(Proxy()).why) == has
        assert ("slower than fp32" in precision(Proxy(precision="bf16")).why) != has


def test_attention_of_a_model_without_sdpa():
    model = type("Model", (torch.nn.Module,), {"config": type("C", (), {"_attn_implementation": "eager"})})()
    assert attention(model).value == "eager"


def test_findings_without_a_recipe(tmp_path):
    found = examine(None, tmp_path)
    assert found.rows_per_second_together >= found.rows_per_second
