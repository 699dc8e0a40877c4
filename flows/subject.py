"""A proxy as an estimate sees it: its own shape, a drawn model of that shape (or of fewer layers and words), and rows.

No weights are read: of a pretrained model its config alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from curation.decoder import Decoder, initialise
from curation.encoded import EmbeddedRows, Encoded, LabelledTokens, TokenRows
from curation.errors import UserError
from curation.head import Head
from curation.proxies import Reader
from curation.randomness import generator
from curation.score.cost import Shape, shape_of
from curation.score.gradients import Sketch, sketch_of
from curation.specs import Proxy

SAMPLE_PARAMETERS = 20_000_000  # of the blocks of the model that is measured
SAMPLE_VOCABULARY = 16_384


@dataclass(frozen=True)
class Lengths:
    """What the corpus looks like to a model: (n,) int64 tokens and predicted tokens of sampled rows, and its names.

    `rows` is how many rows the sample stands for; `names` how many words or classes the model is given.
    """

    tokens: np.ndarray
    answers: np.ndarray
    rows: int
    names: int


@dataclass(frozen=True)
class Subject:
    """The proxy's own shape; a model of it, or of fewer layers and words, with its shape; how rows are drawn for it."""

    shape: Shape
    sample: nn.Module
    sample_shape: Shape
    sketch: Sketch
    depth: float
    width: int
    rows: Callable[[np.ndarray, np.ndarray], Encoded]


def subject_of(proxy: Proxy, lengths: Lengths, encoder_width: int, seed: int = 0) -> Subject:
    """The model that a recipe's proxy would score with, as a shape and as a drawn sample of it."""
    sketch = sketch_of(proxy, seed)
    names = lengths.names
    if proxy.kind == "decoder":
        model: nn.Module = Decoder(names, proxy.max_tokens, proxy.layers, proxy.width, proxy.heads)
        shape = shape_of(model, sketch, proxy.layers * proxy.width)
        return Subject(
            shape,
            initialise(model, 1),
            shape,
            sketch,
            1.0,
            proxy.width,
            lambda t, a: _token_rows(t, a, names),
        )
    if proxy.kind == "head":
        model = Head(encoder_width, proxy.width, names)
        shape = shape_of(model, sketch, 0, embedded=True)
        return Subject(
            shape,
            initialise(model, 1),
            shape,
            sketch,
            1.0,
            encoder_width,
            lambda t, a: _embedded(t, encoder_width, names),
        )
    return _hub_subject(proxy, sketch, names)


def _hub_subject(proxy: Proxy, sketch: Sketch, names: int) -> Subject:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from storage.model_files import base_of, model_folder, read_config

    name = proxy.encoder if proxy.kind == "encoder" else proxy.model
    if not name:
        raise UserError(
            f'[proxy] kind = "{proxy.kind}" needs a model: set [proxy] model = "folder or hub name"'
        )
    folder = model_folder(name, weights=False)
    if (folder / "adapter_config.json").exists():
        folder = model_folder(base_of(folder), weights=False)
    config: Any = read_config(name, folder)
    causal = proxy.kind == "causal_lm"
    kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    if not causal:
        config.num_labels = max(2, names)
        config.pad_token_id = config.pad_token_id or 0
    hidden = sketch if sketch.parameters != "lora" else dataclasses.replace(sketch, parameters="hidden")
    with torch.device("meta"):
        shape = shape_of(kind.from_config(config), hidden, _attention(config))
    text, layers = config.get_text_config(), config.get_text_config().num_hidden_layers
    blocks = sum(p.n_in * p.n_out for p in shape.products)
    kept = int(np.clip(SAMPLE_PARAMETERS * layers // max(1, blocks), 1, layers))
    text.num_hidden_layers = kept
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:kept]
    text.vocab_size = words = min(text.vocab_size, SAMPLE_VOCABULARY)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (getattr(text, token, None) or 0) >= words:
            setattr(text, token, 0)
    sample = _drawn(kind, config)
    rows = _token_rows if causal else _labelled
    return Subject(
        shape,
        sample,
        shape_of(sample, hidden, _attention(config)),
        hidden,
        layers / kept,
        text.hidden_size,
        lambda t, a: rows(t, a, words),
    )


def _attention(config: Any) -> int:
    text = config.get_text_config()
    each = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return text.num_hidden_layers * text.num_attention_heads * each


def _drawn(kind: Any, config: Any) -> nn.Module:
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = kind.from_config(config).eval()
    model.tie_weights()
    values = torch.from_numpy(generator(1, "pace").standard_normal(1 << 16, dtype=np.float32))
    with torch.no_grad():
        for p in model.parameters():
            scale = p.shape[1] ** -0.5 if p.ndim > 1 else 0.02
            p.copy_((values.repeat(-(-p.numel() // len(values)))[: p.numel()] * scale).view(p.shape))
            if p.ndim == 1:
                p.add_(1.0)
    return model


def _token_rows(tokens: np.ndarray, answers: np.ndarray, words: int) -> TokenRows:
    n, t = len(tokens), max(2, int(tokens.max()))
    ids = generator(1, "pace ids", n, t).integers(4 if words > 8 else 0, words, (n, t))
    at = np.arange(t)
    target = (at >= (tokens - answers)[:, None]) & (at < tokens[:, None]) & (at > 0)
    return TokenRows(
        torch.from_numpy(ids), torch.from_numpy(target), torch.from_numpy(tokens.astype(np.int64))
    )


def _labelled(tokens: np.ndarray, answers: np.ndarray, words: int) -> LabelledTokens:
    ids = generator(1, "pace ids", len(tokens)).integers(4, words, (len(tokens), int(tokens.max())))
    length = torch.from_numpy(tokens.astype(np.int64))
    return LabelledTokens(torch.from_numpy(ids), length, torch.zeros(len(tokens), dtype=torch.long))


def _embedded(tokens: np.ndarray, width: int, classes: int) -> EmbeddedRows:
    rng = generator(1, "pace rows", len(tokens))
    x = torch.from_numpy(rng.standard_normal((len(tokens), width), dtype=np.float32))
    y = torch.from_numpy(rng.integers(0, classes, len(tokens)))
    return EmbeddedRows(x, y, torch.from_numpy(tokens.astype(np.int64)))


def reader_of(proxy: Proxy, lengths: Lengths, encoder_width: int) -> Reader:
    """A reader with as many words or classes as the sample has, to build and train models that are not pretrained."""
    names = tuple(str(i) for i in range(lengths.names))
    return Reader(proxy.kind, names, proxy.max_tokens, proxy.embedding_scale, encoder_width)
