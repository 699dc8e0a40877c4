"""The engine on Hugging Face models: each family's features against plain autograd through its own logits."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from curation.checkpoint import EncoderWithHead
from curation.decoder import initialise
from curation.encoded import Encoded
from curation.head import Head
from curation.randomness import generator
from curation.score.exact import exact_row_gradients
from curation.score.gradients import TOLERANCE, Sketch, row_gradients
from tests.hub_models import WORDS, drawn, tiny_bert_classifier, tiny_gpt2, tiny_llama, tiny_lora_llama
from tests.sketching import (
    WIDE,
    by_parameter,
    check_scales,
    explicit_sketch,
    labelled_tokens,
    loop_gradients,
    relative,
    token_rows,
)

D = 256
FLOAT64 = 5e-6  # float32 against float64; the worst family here is at 2e-6
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},  # norms of queries and keys
    "gemma": {},  # embeddings scaled, norms of 1 + w
    "gemma2": {"sliding_window": 8, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 8},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "gpt_neox": {},
    "phi3": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},  # positions that are not looked up by the ids given
    "gpt2": {},
}
NO_BIAS = {"llama", "llama tied", "qwen3", "gemma", "gemma2", "gemma3_text", "cohere", "granite", "phi3"}


@cache
def family(name: str) -> nn.Module:
    with TemporaryDirectory() as folder:
        kind = name.split()[0]
        make = tiny_gpt2 if kind == "gpt2" else tiny_llama
        more = {} if kind == "gpt2" else {"kind": kind, **FAMILIES[name]}
        model = AutoModelForCausalLM.from_pretrained(make(Path(folder), **more))
    return model.eval()


ROWS = token_rows(8, WORDS)


def check(model: nn.Module, rows: Encoded, choices: list[Any]) -> None:
    """Features and norms of each choice of parameters, narrow and wide, against those of plain autograd."""
    for parameters in choices:
        exact = loop_gradients(model, rows, parameters)
        for width in (WIDE, 20):
            sketch = Sketch(D, width, 3, parameters)
            found = row_gradients(model, rows, sketch)
            feature, norm = explicit_sketch(model, rows, sketch, exact)
            assert relative(found.feature, feature) < FLOAT64, (parameters, width)
            np.testing.assert_allclose(found.norm, norm, rtol=FLOAT64)
        split = row_gradients(model, rows, sketch, max_batch_tokens=30)
        assert relative(split.feature, found.feature) < TOLERANCE["fp32"], parameters


@pytest.mark.parametrize("name", FAMILIES)
def test_features_of_a_causal_family(name: str) -> None:
    biases = [] if name in NO_BIAS else [("biases",)]
    check(family(name), ROWS, ["hidden", "all", ("embeddings", "head"), ("norms",), *biases])


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2", "gemma2"])
def test_the_exact_twin_of_a_causal_family(name: str) -> None:
    model, rows = family(name), ROWS.take(range(4))
    for parameters in ("hidden", "all"):
        exact = loop_gradients(model, rows, parameters)
        assert relative(exact_row_gradients(model, rows, parameters), exact) < FLOAT64


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2"])
def test_kinds_add_up(name: str) -> None:
    """A head alone counts by its own use of a tied weight, embeddings by theirs; together they are the weight's."""
    model = family(name)
    kinds = ["linear", "head", "embeddings", "norms"] + ([] if name in NO_BIAS else ["biases"])
    for width in (WIDE, 20):
        one = [row_gradients(model, ROWS, Sketch(D, width, 3, (kind,))).feature for kind in kinds]
        whole = row_gradients(model, ROWS, Sketch(D, width, 3, tuple(kinds))).feature
        assert relative(np.sum(one, axis=0), whole) < 2e-6
        assert all(np.linalg.norm(part, axis=1).min() > 0 for part in one)


@pytest.mark.parametrize("parameters", ["hidden", "all"])
def test_layers_that_read_one_input_may_scale_it_differently(parameters: str) -> None:
    check_scales(family("llama"), ROWS, parameters, FLOAT64)


def test_an_untied_head_alone() -> None:
    check(family("llama"), ROWS, [("head",), ("embeddings",)])


def test_a_token_that_pads_has_no_embedding_gradient() -> None:
    """As in torch: the row `padding_idx` of an embedding is never learnt, even where the token is read."""
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=5,
    )  # fmt: skip
    model = drawn(AutoModelForCausalLM.from_config(config), 3)
    rows = token_rows(6, 40)
    rows.ids[:, 0] = 5
    assert model.get_input_embeddings().padding_idx == 5
    check(model, rows, [("embeddings",), "all"])


def test_bf16_of_a_causal_family() -> None:
    for name in ("llama", "qwen2", "gpt2"):
        model = family(name)
        fine, coarse = (row_gradients(model, ROWS, Sketch(D, 20, 3, "all", p)) for p in ("fp32", "bf16"))
        again = row_gradients(model, ROWS, Sketch(D, 20, 3, "all", "bf16"), max_batch_tokens=30)
        cosine = (fine.feature * coarse.feature).sum(1) / np.linalg.norm(fine.feature, axis=1)
        assert (cosine / np.linalg.norm(coarse.feature, axis=1)).min() > 0.999
        assert relative(again.feature, coarse.feature) < TOLERANCE["bf16"]


# -- classifiers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [False, True])
def test_features_of_a_bert_classifier(tmp_path: Path, tags: bool) -> None:
    kind = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
    model = kind.from_pretrained(tiny_bert_classifier(tmp_path, tokens=tags)).eval()
    check(model, labelled_tokens(8, WORDS, 3, tags), ["hidden", "all", ("embeddings",), ("norms", "biases")])


def test_features_of_a_model_that_repeats_its_layers() -> None:
    """ALBERT runs one block several times: a parameter's gradient is the sum over its calls."""
    config = AlbertConfig(
        vocab_size=WORDS, embedding_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, num_labels=3, max_position_embeddings=64,
    )  # fmt: skip
    model = drawn(AlbertForSequenceClassification(config), 4)
    check(model, labelled_tokens(6, WORDS, 3), ["hidden", "all"])


def test_features_of_a_causal_classifier() -> None:
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    model = drawn(LlamaForSequenceClassification(config), 4)
    check(model, labelled_tokens(6, WORDS, 3), ["hidden", "all"])


def test_features_of_a_sentence_encoder_with_a_head() -> None:
    config = BertConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    encoder = drawn(AutoModel.from_config(config, add_pooling_layer=False), 4)
    model = EncoderWithHead(encoder, initialise(Head(16, 8, 3), 5), 10.0).eval()  # type: ignore[arg-type]
    check(model, labelled_tokens(8, WORDS, 3), ["hidden", "all"])


# -- LoRA --------------------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, its parts named as peft names them."""

    def __init__(self, base_layer: nn.Linear, rank: int, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base_layer.out_features, bias=False)})
        for part in (self.lora_A["default"], self.lora_B["default"]):
            noise = generator(5, name, part.in_features).standard_normal(tuple(part.weight.shape))
            part.weight = nn.Parameter(torch.from_numpy(noise.astype("float32") * 0.2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 2 * self.lora_B["default"](self.lora_A["default"](x))


def test_features_of_low_rank_adapters(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path)).eval()
    for i, layer in enumerate(model.model.layers):
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, Adapted(getattr(layer.self_attn, name), 4, f"{i}.{name}"))
    check(model, ROWS, ["lora", "hidden", ("linear", "lora", "head")])


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the lora extra is not installed")
def test_features_of_a_peft_adapter(tmp_path: Path) -> None:
    from storage.pretrained import load_causal

    model, _ = load_causal(str(tiny_lora_llama(tmp_path)))
    check(model, ROWS, ["lora", "hidden"])
    assert set(by_parameter(model, "lora", loop_gradients(model, ROWS, "lora"))) == {
        f"model.layers.{i}.self_attn.{name}.lora_{side}.default.weight"
        for i in (0, 1) for name in ("q_proj", "v_proj") for side in "AB"
    }  # fmt: skip
