"""What `gradus estimate` says before anything loads: parts that do not depend on how busy the machine is."""

import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from curation.score.cost import work_of
from curation.specs import Proxy
from flows.cli import DEMO, app
from flows.estimate import Scoring, corpus_sample, estimate, lengths_of, scoring, trainings_of
from flows.pace import SAMPLE_OPERATIONS, Pace, batch_list, peak_bytes, sample_of, seconds_of, shards_of
from flows.recipe import load_recipe
from flows.run import Run
from flows.subject import Lengths, subject_of
from tests.hub_models import tiny_gpt2, tiny_llama

RECIPE = """format = 1
name = "small"
[[source]]
name = "pool"
path = "*.jsonl"
[[suite]]
name = "held"
holdout_rows = 0.1
distribution = "ood"
[proxy]
{proxy}
[budget]
rows = 20
"""
PACE = Pace(operation=1e-11, setup=0.01, batch=0.002, start=0.1, activations=1000.0, rows=1, spent=0.1)


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr(scoring, "__defaults__", (0.05,))


def run_in(folder, proxy: str, long: int = 300, short: int = 100) -> Run:
    for name, n, words in (("a", long, 4), ("b", short, 9)):
        lines = [
            json.dumps({"prompt": "add " * words, "response": "so it is", "label": f"l{i % 3}"})
            for i in range(n)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(proxy=proxy))
    return Run(None, load_recipe(path), folder, workers=2)  # type: ignore[arg-type]


def test_sample_is_in_proportion_to_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.estimate.SAMPLE_ROWS", 60)
    run = run_in(tmp_path, "max_tokens = 24")
    frame, rows = corpus_sample(run)
    assert rows == 400
    lengths, _ = lengths_of(run.recipe, frame, rows)
    assert (lengths.tokens == 4 + 1 + 3 + 1).sum() == pytest.approx(3 * (lengths.tokens == 14).sum(), abs=3)
    assert set(lengths.answers.tolist()) == {4} and lengths.rows == 400


def test_scoring_is_the_sum_of_shards_and_reads_no_weights(tmp_path):
    for make, name in ((tiny_llama, "llama"), (tiny_gpt2, "gpt2")):
        folder = tmp_path / name
        folder.mkdir()
        model = make(folder / "model")
        for path in model.glob("*.safetensors"):
            path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")  # a header without a tensor
        proxy = f'kind = "causal_lm"\nmodel = "{model}"\nmax_tokens = 64\nfeature_dimensions = 64'
        found = scoring(run_in(folder, proxy, 30, 10))
        assert found.rows == 40 and found.core_seconds > 0 and found.memory_mb > 50
        assert found.subject.shape == found.subject.sample_shape


def test_deep_models_are_measured_with_fewer_layers(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.subject.SAMPLE_PARAMETERS", 20_000)
    model = tiny_llama(tmp_path / "model", num_hidden_layers=6)
    proxy = Proxy(kind="causal_lm", model=str(model), feature_dimensions=64)
    subject = subject_of(proxy, Lengths(np.array([9]), np.array([3]), 1, 5), 0)
    assert len(subject.shape.products) == 6 * 7 and len(subject.sample_shape.products) < 6 * 7
    assert subject.depth == len(subject.shape.products) / len(subject.sample_shape.products)


def test_seconds_are_linear_in_shards():
    lengths = Lengths(np.arange(1, 501) % 17 + 5, np.full(500, 3), 3000, 60)
    subject = subject_of(Proxy(max_tokens=24), lengths, 0)
    shards = shards_of(lengths, 1000)
    assert [len(s) for s in shards] == [1000] * 3
    one = seconds_of(PACE, subject.shape, lengths, shards[0])
    plan = batch_list(subject.shape, lengths, shards[0])
    assert sum(n for _, n, _, _ in plan) == 1000 and len(plan) > 3
    assert one > PACE.setup + 3 * PACE.batch
    small = peak_bytes(PACE, subject, lengths, shards[0][:100])
    assert small < peak_bytes(PACE, subject, lengths, shards[0])


def test_workers_start_together_and_take_whole_shards():
    found = Scoring(9, (1.0, 1.0, 1.0), 0.0, None, None, PACE)  # type: ignore[arg-type]
    assert [found.seconds(w) for w in (1, 2, 3, 8)] == pytest.approx([3.1, 2.1, 1.1, 1.1])
    assert found.core_seconds == pytest.approx(3.1)


def test_pace_is_of_whole_batches_of_all_lengths():
    lengths = Lengths(np.arange(1, 2001) % 40 + 5, np.full(2000, 3), 2000, 60)
    subject = subject_of(Proxy(max_tokens=64), lengths, 0)
    plan = batch_list(subject.shape, lengths, np.arange(2000))
    first, rest = sample_of(subject.shape, lengths, np.arange(2000))
    assert len(plan) > 5 and sorted(rest) == list(range(2000))  # a cheap model: all of them
    assert list(first) == list(plan[len(plan) // 2][0])
    dear = dataclasses.replace(subject.shape, products=subject.shape.products * 4000)
    each = work_of(dear, *plan[0][1:]).operations
    assert each > SAMPLE_OPERATIONS
    first, rest = sample_of(dear, lengths, np.arange(2000))
    assert len(first) == 1 and len(rest) < plan[0][1] and np.ptp(lengths.tokens[rest]) > 10


def test_every_stage_has_a_line():
    run = Run(None, load_recipe(DEMO), DEMO.parent, workers=2)  # type: ignore[arg-type]
    stages = [e.stage for e in estimate(run)]
    assert stages == ["ingest", "score", "synthesize", "select", "train", "evaluate, decide"]
    assert trainings_of(run.recipe) == 8 * 3 * 2 + 8 * 3


def test_command_prints_a_table(tmp_path):
    run_in(tmp_path, 'kind = "head"')
    result = CliRunner().invoke(app, ["estimate", str(tmp_path / "recipe.toml")])
    assert result.exit_code == 0, result.exception
    assert "embed" in result.output and "400 rows" in result.output and "together" in result.output
