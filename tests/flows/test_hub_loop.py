"""Recipes whose proxy is a Hugging Face model, from the file to the decision; models that cannot be used are refused."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from curation.errors import GradusError, UserError
from curation.proxies import Reader, encode, make_reader, predict, weights_of
from curation.score.gradients import row_gradients, sketch_of
from curation.specs import Recipe
from curation.train.fit import fit
from flows.cli import app
from flows.data import encoding_notes, feature_matrix, model_from_bytes
from flows.pretrained import pinned, pretrained_of, proxy_spec, tokens_of
from flows.recipe import load_recipe
from storage.artifacts import Lake, Ref
from storage.models import bytes_to_tensors, tensors_to_bytes
from storage.pretrained import load_classifier
from tests.hub_models import tiny_bert_classifier, tiny_llama, tiny_qwen2
from tests.plain_run import plain_run

RECIPE = """
format = 1
name = "hub"
[[source]]
name = "pool"
path = "pool.jsonl"
[[suite]]
name = "new"
path = "new.jsonl"
distribution = "ood"
use = "steer+judge"
[proxy]
PROXY
steps = 2
batch_rows = 8
feature_dimensions = 64
[budget]
rows = 40
[select]
strategies = []
[decide]
work = "choose"
fixed_strategy = "gradient_logdet"
replicates = 6
"""
CAUSAL = 'kind = "causal_lm"\nmodel = "model"\nmax_tokens = 48\nscorer_steps = 0'
CLASSIFIER = 'kind = "classifier"\nmodel = "model"\nmax_tokens = 48'
PLACES = ("harbour", "market", "station", "bridge", "museum", "garden", "library")


def write(path: Path, start: int, rows: int) -> None:
    lines = []
    for i in range(start, start + rows):
        place, hour = PLACES[i % 7], i * 7919 % 1000
        line = {"prompt": f"visit {hour} to the {place} {i * 104729 % 997}", "label": "ab"[i % 2]}
        lines.append(json.dumps({**line, "response": f"at {hour % 24}"}) + "\n")
    path.write_text("".join(lines))


def recipe_in(folder: Path, proxy: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "pool.jsonl", 0, 80)
    write(folder / "new.jsonl", 500, 24)
    (folder / "r.toml").write_text(RECIPE.replace("PROXY", proxy))
    return folder / "r.toml"


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lake]:
    folder = tmp_path_factory.mktemp("causal")
    tiny_llama(folder / "model")
    recipe = recipe_in(folder, CAUSAL)
    plain_run(recipe, folder / "lake")
    return recipe, Lake(folder / "lake", create=False)


def artifact(lake: Lake, kind: str) -> Ref:
    return next(r for r in lake.refs(kind))


def test_a_language_model_goes_from_the_file_to_the_decision(causal) -> None:
    _, lake = causal
    decision = lake.read(artifact(lake, "decide"), "decisions")
    assert decision["decision"].to_list()[0] in ("publish", "keep", "futile", "inconclusive")
    features = lake.read(artifact(lake, "score"), "features")
    assert len(features) == 80 and feature_matrix(features).shape == (80, 64)
    np.testing.assert_allclose(np.linalg.norm(feature_matrix(features), axis=1), 1, rtol=1e-2)
    assert features["nll"].is_finite().all() and (features["n_tokens"] > 1).all()
    models = lake.read(artifact(lake, "train"), "models")
    assert len(models) == 4 * 6 and models["train_nll"].is_finite().all()
    outcomes = lake.read(artifact(lake, "evaluate"), "outcomes")
    assert outcomes["p_correct"].is_between(0, 1).all() and outcomes["model"].n_unique() == 24


def test_a_scorer_without_steps_is_the_model_as_it_was(causal) -> None:
    recipe, lake = causal
    score, base = artifact(lake, "score"), lake.read(artifact(lake, "score"), "models")
    assert base["steps"].to_list() == [0] and math.isnan(base["train_nll"][0])
    spec = load_recipe(recipe)
    model = pretrained_of(spec.proxy)
    assert model is not None
    kept = bytes_to_tensors(lake.read_file(score, "scorer-00.safetensors"))
    original = model.load(())[0].state_dict()
    assert all(kept[name].equal(original[name]) for name in kept)


def test_a_second_run_reuses_everything_also_when_the_model_has_moved(causal, tmp_path: Path) -> None:
    recipe, lake = causal
    shutil.copytree(recipe.parent / "model", tmp_path / "elsewhere")
    moved = recipe.with_name("moved.toml")
    moved.write_text(recipe.read_text().replace('"model"', json.dumps(str(tmp_path / "elsewhere"))))
    for path in (recipe, moved):
        assert [s["stage"] for s in plain_run(path, lake.root).steps if not s["reused"]] == []
    config = tmp_path / "elsewhere" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    changed = proxy_spec(load_recipe(moved))["model"]
    assert changed != proxy_spec(load_recipe(recipe))["model"] and "elsewhere" not in changed


def test_a_classifier_gets_a_head_for_the_pool_s_labels(tmp_path: Path) -> None:
    tiny_bert_classifier(tmp_path / "model", classes=2)
    recipe = recipe_in(tmp_path, CLASSIFIER)
    plain_run(recipe, tmp_path / "lake")
    lake = Lake(tmp_path / "lake", create=False)
    assert len(lake.read(artifact(lake, "decide"), "decisions")) == 1
    kept = bytes_to_tensors(lake.read_file(artifact(lake, "score"), "scorer-00.safetensors"))
    assert kept["classifier.weight"].shape == (2, 32) and kept["classifier.weight"].std() < 0.04  # drawn anew
    features = lake.read(artifact(lake, "score"), "features")
    assert (features["norm"] > 0).all() and (features["el2n"] > 0).all()


def reader_of(recipe: Recipe, frame: pl.DataFrame) -> Reader:
    return make_reader(recipe.proxy, frame, 0, pretrained_of(recipe.proxy))


def test_weights_of_a_tied_model_are_kept_once_and_come_back(tmp_path: Path) -> None:
    tiny_qwen2(tmp_path / "model")
    recipe = load_recipe(recipe_in(tmp_path, CAUSAL))
    frame = pl.read_ndjson(tmp_path / "pool.jsonl").with_columns(row_id=pl.col("prompt"))
    reader = reader_of(recipe, frame)
    assert reader.pretrained is not None
    model = reader.pretrained.load(())[0]
    model.get_input_embeddings().weight.data[5] = 7.0  # type: ignore[operator]
    whole, once = tensors_to_bytes(model.state_dict()), tensors_to_bytes(weights_of(model))
    assert len(whole) - len(once) >= 400 * 32 * 4  # the tied head
    for data in (whole, once):
        copy = model_from_bytes(recipe, reader, data)
        head, table = copy.get_output_embeddings(), copy.get_input_embeddings()  # type: ignore[operator]
        assert head.weight is table.weight and float(head.weight[5, 0]) == 7.0
        assert not copy.training and not head.weight.requires_grad
    with pytest.raises(GradusError, match="do not fit"):
        model_from_bytes(recipe, reader, tensors_to_bytes({"a": head.weight}))


def test_what_encoding_does_is_told_and_counted(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    path = recipe_in(tmp_path, CAUSAL.replace("48", "12\nchat_template = false"))
    rows = [("a", "the mill"), ("where " * 40, "the mill"), ("a", "the river " * 40), ("a", "")]
    frame = pl.DataFrame(
        [(f"r{i}", p, r, None) for i, (p, r) in enumerate(rows)],
        schema={"row_id": pl.String, "prompt": pl.String, "response": pl.String, "label": pl.String},
        orient="row",
    )
    recipe = load_recipe(path)
    notes = encoding_notes(reader_of(recipe, frame), frame)
    assert {(i, why) for i, why in notes.select("row_id", "reason").iter_rows()} == {
        ("r1", "prompt_cut"),
        ("r2", "prompt_cut"),
        ("r2", "response_cut"),
        ("r3", "no_response"),
    }
    assert notes.filter(pl.col("row_id") == "r1")["value"][0] > 40
    lengths = encode(reader_of(recipe, frame), frame).lengths().tolist()
    assert tokens_of(recipe, frame).tolist()[:3] == lengths[:3] and max(lengths) == 12
    path.write_text(path.read_text().replace("batch_rows", 'too_long = "refuse"\nbatch_rows'))
    recipe = load_recipe(path)
    notes = encoding_notes(reader_of(recipe, frame), frame)
    assert set(notes.filter(pl.col("reason") == "too_long")["row_id"]) == {"r1", "r2"}
    assert tokens_of(recipe, frame).tolist()[1:] == [0, 0, 0]


def test_the_small_decoder_tells_what_it_cuts_too(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_in(tmp_path, 'kind = "decoder"\nmax_tokens = 8'))
    rows = [("a b", "c d e f"), ("a b c", "c d e f"), ("a", "c " * 9), ("", "c")]
    frame = pl.DataFrame(rows, schema=["prompt", "response"], orient="row").with_columns(
        row_id=pl.Series([f"r{i}" for i in range(4)])
    )
    notes = encoding_notes(reader_of(recipe, frame), frame)
    assert notes.rows() == [
        ("r1", "prompt_cut", 9.0),
        ("r2", "prompt_cut", 12.0),
        ("r2", "response_cut", 12.0),
    ]


@pytest.mark.parametrize("kind", ["classifier", "encoder"])
def test_labelled_text_is_learned(kind: str, tmp_path: Path) -> None:
    tiny_bert_classifier(tmp_path / "model", classes=3)
    field = "model" if kind == "classifier" else "encoder"
    text = f'kind = "{kind}"\n{field} = "model"\nmax_tokens = 48\nwidth = 16\nlearning_rate = 1e-2'
    recipe = load_recipe(recipe_in(tmp_path, text))
    texts = [f"{('mill', 'bridge')[i % 2]} number {i}" for i in range(40)]
    frame = pl.DataFrame({"prompt": texts, "label": ["ab"[i % 2] for i in range(40)]})
    reader = reader_of(recipe, frame)
    rows = encode(reader, frame)
    assert tokens_of(recipe, frame).tolist() == rows.lengths().tolist()
    again, fitted = (fit(recipe.proxy, reader, rows, 3, 40) for _ in range(2))
    assert predict(fitted.model, rows)["correct"].mean() > 0.9
    assert fitted.forgetting.shape == (40,) and fitted.train_nll == again.train_nll
    copy = model_from_bytes(recipe, reader, tensors_to_bytes(weights_of(fitted.model)))
    found = row_gradients(copy, rows, sketch_of(recipe.proxy, 1))
    np.testing.assert_allclose(found.nll, predict(fitted.model, rows)["nll"], rtol=1e-4, atol=1e-6)
    assert (found.norm > 0).all()
    unknown = encode(reader, frame.with_columns(label=pl.lit("new")))
    assert not predict(copy, unknown)["correct"].any()


def test_a_classifier_trained_for_the_pool_s_labels_keeps_its_head(tmp_path: Path) -> None:
    folder = tiny_bert_classifier(tmp_path / "model", classes=3)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "b", "1": "c", "2": "a"}
    (folder / "config.json").write_text(json.dumps(config))
    recipe = load_recipe(recipe_in(tmp_path, CLASSIFIER + "\nscorer_steps = 0"))
    frame = pl.read_ndjson(tmp_path / "pool.jsonl")
    reader = reader_of(recipe, frame)
    assert reader.names == ("b", "c", "a") and encode(reader, frame).y[:2].tolist() == [2, 0]  # type: ignore[union-attr]
    model = fit(recipe.proxy, reader, encode(reader, frame), 1, 0).model
    whole = load_classifier(str(folder))[0].state_dict()
    assert all(tensor.equal(whole[name]) for name, tensor in model.state_dict().items())


def refused(recipe: Path, command: str) -> str:
    args = [command, str(recipe), *(["--lake", str(recipe.parent / "lake")] if command == "run" else [])]
    result = CliRunner().invoke(app, args)
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    assert not list((recipe.parent / "lake").glob("artifacts/*/*/manifest.json"))
    return str(result.exception)


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("harm", "proxy", "words"),
    [
        (as_pickle, CAUSAL, ("weights as pickles", "pytorch_model.bin", "save_pretrained")),
        (shutil.rmtree, CAUSAL.replace('"model"', '"./model"'), ("is no folder",)),
        (lambda f: (f / "tokenizer.json").unlink(), CAUSAL, ("without a tokenizer", "tokenizer.json")),
        (None, CAUSAL.replace("48", "400"), ("max_tokens = 400", "at most 64 tokens")),
        (None, CAUSAL.replace('model = "model"', ""), ('needs model = "FOLDER or hub name"',)),
        (None, CLASSIFIER.replace('"classifier"', '"decoder"'), ("does not read model", "causal_lm")),
        (
            None,
            CLASSIFIER.replace("max_tokens = 48", "max_tokens = 48\nscorer_steps = 0"),
            ("untrained head",),
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_words(command, harm, proxy, words, tmp_path: Path) -> None:
    if command == "run" and words == ("untrained head",):
        pytest.skip("a pool's labels are known when it has been read")
    tiny_llama(tmp_path / "model")
    recipe = recipe_in(tmp_path, proxy)
    if harm is not None:
        harm(tmp_path / "model")
    message = refused(recipe, command)
    assert all(word in message for word in words), message


def test_a_model_that_does_not_fit_in_training_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llama(tmp_path / "model")
    spec = load_recipe(recipe_in(tmp_path, CAUSAL)).proxy
    monkeypatch.setattr("flows.pretrained.available_bytes", lambda: 400_000)
    with pytest.raises(UserError, match=r"gradients and the optimiser's moments, and 0\.0 GiB"):
        pretrained_of(spec)


def test_hub_names_are_pinned_to_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path / "fetched")
    spec = load_recipe(recipe_in(tmp_path, CAUSAL.replace('"model"', '"owner/pinned"')))
    monkeypatch.setattr("flows.pretrained.model_folder", lambda name, weights: folder)
    assert pinned(spec).proxy.model == str(folder)
    plain = load_recipe(recipe_in(tmp_path, 'kind = "decoder"'))
    assert pinned(plain) is plain
