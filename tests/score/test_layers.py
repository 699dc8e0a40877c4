"""Which parameters count, and which layers share an input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from curation.decoder import Decoder
from curation.errors import UserError
from curation.head import Head
from curation.proxies import output_layer
from curation.score.layers import KINDS, PRESETS, apart, chosen_modules, find_layout, kinds_of, sides
from tests.hub_models import tiny_bert_classifier, tiny_gpt2, tiny_llama

IDS = torch.arange(3, 11)[None]


def decoder() -> Decoder:
    return Decoder(n_words=20, max_tokens=12, layers=2, width=16, heads=2)


def matrices(model: nn.Module, *kinds: str) -> list[str]:
    return list(chosen_modules(model, output_layer(model), kinds)[0])


def vectors(model: nn.Module, *kinds: str) -> list[str]:
    return list(chosen_modules(model, output_layer(model), kinds)[1])


def groups(model: nn.Module, *kinds: str) -> list[list[str]]:
    found = chosen_modules(model, output_layer(model), kinds)[0]
    layers = find_layout(model, found, lambda: model(IDS))
    return [[call.module for call in layer.calls] for layer in layers]


def test_presets_and_kinds() -> None:
    assert kinds_of("hidden") == ("linear",)
    assert kinds_of("norms") == ("norms",)
    assert kinds_of(("head", "linear")) == ("head", "linear")
    assert set(kinds_of("all")) == set(KINDS) - {"lora"}


@pytest.mark.parametrize("wrong", ["hiden", ("linear", "hed"), (), ("hidden",)])
def test_an_unknown_kind_names_the_choices(wrong) -> None:
    with pytest.raises(UserError) as error:
        kinds_of(wrong)
    for name in (*KINDS, *PRESETS):
        assert name in str(error.value)


def test_modules_of_the_decoder() -> None:
    model = decoder()
    hidden = [f"blocks.{b}.{m}" for b in (0, 1) for m in ("qkv", "out", "up", "down")]
    norms = ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"]
    assert matrices(model, "linear") == hidden
    assert matrices(model, "linear", "head") == [*hidden, "head"]
    assert matrices(model, "embeddings") == ["token", "position"]
    assert vectors(model, "norms") == norms
    assert sorted(vectors(model, "biases")) == sorted([*hidden, *norms])
    assert groups(model, "linear", "embeddings") == [["token"], ["position"], *([name] for name in hidden)]


def test_the_head_of_a_classifier_is_its_class_layer() -> None:
    assert matrices(Head(4, 3, 2), "linear") == ["up"]
    assert matrices(Head(4, 3, 2), "head") == ["head"]
    assert matrices(nn.Sequential(nn.Linear(4, 2)), "linear") == ["0"]  # or nothing would be left
    with pytest.raises(UserError, match="none of the kind head"):
        matrices(nn.Sequential(nn.Linear(4, 2)), "head")


def test_layers_that_read_one_input_are_one(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path))
    wanted = []
    for b in (0, 1):
        at, mlp = f"model.layers.{b}.self_attn.", f"model.layers.{b}.mlp."
        wanted += [[at + "q_proj", at + "k_proj", at + "v_proj"], [at + "o_proj"]]
        wanted += [[mlp + "gate_proj", mlp + "up_proj"], [mlp + "down_proj"]]
    assert groups(model, "linear") == wanted
    found = chosen_modules(model, output_layer(model), ("linear",))[0]
    layers = find_layout(model, found, lambda: model(IDS))
    assert [call.offset for call in layers[0].calls] == [0, 32, 48]
    assert (layers[0].n_in, layers[0].n_out, layers[0].name) == (32, 64, wanted[0][0] + ".weight")
    alone = apart(layers)
    assert [[c.module for c in layer.calls] for layer in alone] == [
        [name] for names in wanted for name in names
    ]
    assert all(call.offset == 0 for layer in alone for call in layer.calls)
    assert [call.offset for call in layers[0].calls] == [0, 32, 48]


def test_conv1d_holds_its_weight_the_other_way_round(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2(tmp_path))
    assert groups(model, "linear")[0] == ["transformer.h.0.attn.c_attn"]
    assert sides(model.transformer.h[0].attn.c_attn) == (96, 32)
    assert sides(model.lm_head) == sides(model.transformer.wte) == (400, 32)


def test_modules_of_a_bert_classifier(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_classifier(tmp_path))
    at = "bert.encoder.layer.0.attention.self."
    assert groups(model, "linear")[0] == [at + "query", at + "key", at + "value"]
    assert groups(model, "linear")[-1] == ["bert.pooler.dense"]
    assert groups(model, "head") == [["classifier"]]


def test_biases_where_there_are_none(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path))
    for kind, hint in (("biases", "biases"), ("lora", "load its adapter")):
        with pytest.raises(UserError, match=hint):
            chosen_modules(model, output_layer(model), (kind,))
    assert not vectors(model, "linear", "biases")


def test_modules_that_are_never_called_are_left_out_and_repeats_counted() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.never = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(self.again(x))

    model = Odd()
    found = chosen_modules(model, None, ("linear",))[0]
    layers = find_layout(model, found, lambda: model(torch.zeros(1, 8)))
    assert [[call.module for call in layer.calls] for layer in layers] == [["again"], ["again"]]
    assert not any(m._forward_pre_hooks for m in model.modules())
