"""Models from folders: safetensors only, wrong ones refused in words, sizes without weights, digests of content."""

import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from curation.errors import DataError, UserError
from storage.encoders import PACKAGED
from storage.model_files import available_bytes, check_fits, model_digest, model_size
from storage.pretrained import load_causal, load_classifier, load_transformer
from tests.hub_models import tiny_bert_classifier, tiny_gpt2, tiny_llama, tiny_lora_llama, tiny_qwen2


def test_a_causal_model_comes_in_eval_mode_and_float32(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path)).half().save_pretrained(tmp_path)
    model, tokenizer = load_causal(str(tmp_path))
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert tokenizer.eos_token_id == 2 and tokenizer.pad_token_id is None


def test_an_architecture_without_sdpa_falls_back(tmp_path: Path) -> None:
    model, _ = load_causal(str(tiny_llama(tmp_path, kind="gemma2")))
    assert model.config._attn_implementation == "eager"  # type: ignore[union-attr]


def test_pickles_are_refused_with_a_command(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"pickles \(pytorch_model.bin\)(.|\n)*save_pretrained"):
        load_causal(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", "has no model"),
        ("config.json", "no config.json"),
        ("tokenizer.json", "without a tokenizer"),
    ],
)
def test_a_missing_file_is_named(file: str, message: str, tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=message):
        load_causal(str(tmp_path))


def test_broken_files_are_user_errors(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="could not be loaded"):
        load_causal(str(folder))
    (folder / "model.safetensors").write_bytes(whole[:6])
    with pytest.raises(DataError, match="no safetensors file"):
        model_digest(str(folder))
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(UserError, match="does not know"):
        load_causal(str(folder))


def test_the_wrong_architecture_is_refused(tmp_path: Path) -> None:
    bert, llama = str(tiny_bert_classifier(tmp_path / "bert")), str(tiny_llama(tmp_path / "llama"))
    with pytest.raises(UserError, match=r"BertForSequenceClassification, not a causal language\s+model"):
        load_causal(bert)
    with pytest.raises(UserError, match="no trained sequence classifier"):
        load_classifier(llama)
    with pytest.raises(UserError, match="no trained token classifier"):
        load_classifier(llama, tokens=True)


def test_lacking_weights_are_refused_not_drawn(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 .*up_proj"):
        load_causal(str(tmp_path))
    with pytest.raises(UserError, match="below its head"):
        load_classifier(str(tmp_path), 3)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    tiny_llama(tmp_path, vocab_size=100)
    with pytest.raises(UserError, match="embeds 100 tokens, but its tokenizer has"):
        load_causal(str(tmp_path))


def test_a_classifier_keeps_its_head_or_gets_a_new_one(tmp_path: Path) -> None:
    folder = str(tiny_bert_classifier(tmp_path / "bert", classes=3))
    for n_classes in (None, 3):
        model, _, missing = load_classifier(folder, n_classes)
        assert not missing and model.config.num_labels == 3
    llama, tokenizer, missing = load_classifier(str(tiny_llama(tmp_path / "llama")), 4)
    assert missing == ["score.weight"] and tokenizer.pad_token_id is None
    assert llama.config.pad_token_id == 2


def test_sentence_encoders_pool_by_the_mean(tmp_path: Path) -> None:
    shutil.copytree(tiny_bert_classifier(tmp_path / "bert"), tmp_path / "encoder")
    (tmp_path / "encoder" / "1_Pooling").mkdir()
    path = tmp_path / "encoder" / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}))
    model, _ = load_transformer(str(tmp_path / "encoder"))
    assert model.pooler is None
    path.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    with pytest.raises(UserError, match="mean of the tokens"):
        load_transformer(str(tmp_path / "encoder"))


def test_names_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        load_causal(str(tmp_path / "nothing"))

    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError, match=r"hub did not give it .*hf download Qwen/Qwen2.5-0.5B"):
        load_causal("Qwen/Qwen2.5-0.5B")


def test_hub_names_become_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str], **_: object) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert model_digest("someone/model") == model_digest(str(folder))
    assert model_size("someone/model") == model_size(str(folder))
    assert "*.safetensors" in asked[0] and "*.safetensors" not in asked[1]
    assert not any("bin" in p for patterns in asked for p in patterns)


def test_the_size_is_known_without_the_weights(tmp_path: Path) -> None:
    for make, tied in ((tiny_llama, False), (tiny_qwen2, True), (tiny_gpt2, True)):
        folder = make(tmp_path / make.__name__)
        model, _ = load_causal(str(folder))
        (folder / "model.safetensors").unlink()
        size = model_size(str(folder))
        assert size.parameters == sum(p.numel() for p in model.parameters())
        assert size.bytes_fp32 == 4 * size.parameters and size.tied is tied
        assert (size.layers, size.width, size.heads, size.vocabulary, size.context) == (2, 32, 4, 400, 64)
    packaged = model_size(PACKAGED)
    assert (packaged.layers, packaged.width, packaged.context, packaged.feed_forward) == (6, 384, 512, 1536)
    assert packaged.parameters == pytest.approx(22.7e6, rel=0.01) and not packaged.tied


def test_a_model_that_does_not_fit_is_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = str(tiny_llama(tmp_path))
    assert available_bytes() > 2**20
    check_fits("x", model_size(folder), available_bytes())
    monkeypatch.setattr("storage.pretrained.available_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"0.0 GiB in float32, and 0.0 GiB of memory are free"):
        load_causal(folder)


def test_the_digest_is_of_content_and_not_of_place(tmp_path: Path) -> None:
    a = tiny_llama(tmp_path / "a")
    b = Path(shutil.copytree(a, tmp_path / "b"))
    digest = model_digest(str(a))
    config = json.loads((b / "config.json").read_text())
    config |= {"_name_or_path": "/elsewhere", "transformers_version": "0"}
    (b / "config.json").write_text(json.dumps(config))
    AutoModelForCausalLM.from_pretrained(a).save_pretrained(tmp_path / "c", max_shard_size="40KB")
    parts = list((tmp_path / "c").glob("model-*.safetensors"))
    assert len(parts) > 1
    (b / "model.safetensors").unlink()
    for part in parts:
        shutil.copy(part, b)
    shutil.copy(tmp_path / "c" / "model.safetensors.index.json", b)
    assert model_digest(str(b)) == digest
    config["rope_theta"] = 5.0
    (b / "config.json").write_text(json.dumps(config))
    assert model_digest(str(b)) != digest
    tensors = load_file(a / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, a / "model.safetensors")
    assert model_digest(str(a)) != digest


def test_an_adapter_without_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base"})
    )
    with pytest.raises(UserError, match=r"pip install 'gradus\[lora\]'"):
        load_causal(str(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the lora extra is not installed")
def test_an_adapter_comes_with_its_base(tmp_path: Path) -> None:
    folder = tiny_lora_llama(tmp_path)
    model, _ = load_causal(str(folder))
    base, _ = load_causal(str(folder / "base"))
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids).logits, base(input_ids=ids).logits)
    assert type(model) is type(base) and sum("lora_A" in n for n, _ in model.named_parameters()) == 4
    assert model_size(str(folder)) == model_size(str(folder / "base"))
    digest = model_digest(str(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(folder / "base")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert model_digest(str(folder)) == digest != model_digest(str(folder / "base"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"pickles(.|\n)*adapter_model.safetensors"):
        load_causal(str(folder))
