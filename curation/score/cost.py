"""What a row's gradient feature costs, from shapes alone: operations, numbers moved, bytes held.

Counted as the engine works: one forward, one backward to activations that stops at the first layer used, both folds
of every layer, one batched product, and the output layer's chunks. The model may lie on the meta device, where it
takes no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curation.decoder import Decoder
from curation.encoded import EmbeddedRows, Encoded, TokenRows
from curation.losses import CHUNK_TOKENS
from curation.proxies import batches, output_layer, readout
from curation.score.gradients import PRODUCT_BYTES, Sketch, default_batch_tokens
from curation.score.layers import chosen_modules, class_layer, find_layout, kinds_of

MOVED = 24.0  # operations of a matrix product in the time that one number of an elementwise pass takes


@dataclass(frozen=True)
class Product:
    """A linear layer: its sides, whether only answers go through it, whether the backward pass does."""

    n_in: int
    n_out: int
    answers: bool = False
    backward: bool = True


@dataclass(frozen=True)
class Shape:
    """What cost depends on. `folded` is (r_in, r_out, virtual layers) of each folded shape; `attention` the width
    of all heads, summed over layers; `head` (width, vocabulary) of a language model's output layer;
    `inputs` the numbers folded on the input side of each token.
    """

    products: tuple[Product, ...]
    folded: tuple[tuple[int, int, int], ...]
    attention: int
    head: tuple[int, int] | None
    inputs: int
    width: int
    parameters: int
    number_bytes: int
    embedded: bool = False

    @property
    def product_bytes(self) -> int:
        """Bytes of one row's folded gradients."""
        return max(4, sum(4 * r_in * r_out for r_in, r_out, _ in self.folded))


@dataclass(frozen=True)
class Work:
    """Operations of matrix products (a multiplication and an addition are two), and numbers moved beside them."""

    forward: float
    backward: float
    product: float
    head: float
    moved: float

    @property
    def operations(self) -> float:
        """All of it in operations of a matrix product; what seconds are proportional to."""
        return self.forward + self.backward + self.product + self.head + MOVED * self.moved


def shape_of(model: nn.Module, sketch: Sketch, attention: int, embedded: bool = False) -> Shape:
    """The shape of a decoder, a head on embeddings (`embedded`) or a Hugging Face model, on any device.

    `attention`: heads x their width, summed over layers.
    """
    kinds = kinds_of(sketch.parameters)
    head = None if embedded else output_layer(model)
    every = ("linear", "lora") if head is not None else ("linear", "lora", "head")
    found, _ = chosen_modules(model, head, every)
    classes = None if head is not None else class_layer(model)
    layers = find_layout(model, found, lambda: _pass(model, embedded))
    early = {"embeddings", "norms", "biases"} & set(kinds)
    last = f"blocks.{len(model.blocks) - 1}." if isinstance(model, Decoder) else ""
    products: list[Product] = []
    counts: dict[tuple[int, int], int] = {}
    inputs = 0
    for i, layer in enumerate(layers):
        for call in layer.calls:
            cut = bool(last) and call.module.startswith(last) and not call.module.endswith("qkv")
            products.append(Product(layer.n_in, call.n_out, cut, i > 0 or bool(early)))
        name = layer.calls[0].module
        kind = "lora" if ".lora_" in name else "head" if found[name] is classes else "linear"
        if kind in kinds:
            _count(counts, layer.n_in, layer.n_out, sketch)
            inputs += layer.n_in
    sides = None if head is None else (int(head.weight.shape[1]), int(head.weight.shape[0]))
    if sides is not None:
        for _ in {"head", "embeddings"} & set(kinds):
            _count(counts, *sides, sketch)
            inputs += sides[0]
    return Shape(
        products=tuple(products),
        folded=tuple((r_in, r_out, count) for (r_in, r_out), count in counts.items()),
        attention=attention,
        head=sides,
        inputs=inputs,
        width=layers[0].n_in if layers else 1024,
        parameters=sum(p.numel() for p in model.parameters()),
        number_bytes=2 if sketch.precision == "bf16" else 4,
        embedded=embedded,
    )


def _count(counts: dict[tuple[int, int], int], n_in: int, n_out: int, sketch: Sketch) -> None:
    key = min(n_in, sketch.fold_width), min(n_out, sketch.fold_width)
    counts[key] = counts.get(key, 0) + 1


def _pass(model: Any, embedded: bool) -> None:
    device = next(model.parameters()).device
    at = torch.zeros(1, dtype=torch.long, device=device)
    if embedded:
        model(torch.zeros(1, model.up.in_features, device=device))
        return
    ids = torch.zeros(1, 4, dtype=torch.long, device=device)
    if isinstance(model, Decoder):
        model(ids, only=(at, at))
        return
    # A mask of four dimensions is taken as it is: making one would need values, which the meta device has not.
    model.base_model(input_ids=ids, attention_mask=torch.zeros(1, 1, 4, 4, device=device))


def work_of(shape: Shape, rows: int, tokens: int, answers: int) -> Work:
    """The cost of one batch: `rows` of `tokens` each (padding too; of embeddings 1), `answers` of them together."""
    n = rows * tokens
    forward = backward = moved = 0.0
    for p in shape.products:
        operations = 2.0 * (answers if p.answers else n) * p.n_in * p.n_out
        forward += operations
        backward += operations if p.backward else 0.0
        moved += (answers if p.answers else n) * 4 * p.n_out  # out and its gradient, each made and read
    scores = 4.0 * rows * tokens**2 * shape.attention
    product = sum(2.0 * n * count * r_in * r_out for r_in, r_out, count in shape.folded)
    moved += n * shape.inputs + 3 * rows * shape.product_bytes / 4
    head = 0.0
    if shape.head is not None:
        head = 4.0 * answers * shape.head[0] * shape.head[1]
        moved += 5 * answers * shape.head[1]
    return Work(forward + scores, backward + 2 * scores, product, head, moved)


def buffer_bytes(shape: Shape, rows: int, tokens: int) -> int:
    """Bytes that a batch holds beside the model and the activations: folded pairs and their product."""
    pairs = rows * tokens * sum(count * (r_in + r_out) for r_in, r_out, count in shape.folded)
    return pairs * shape.number_bytes + rows * shape.product_bytes


def head_bytes(shape: Shape, answers: int) -> int:
    """Bytes of one chunk of logits, its states and their gradients."""
    if shape.head is None:
        return 0
    c, v = shape.head
    return 4 * min(answers, CHUNK_TOKENS) * (v + 2 * c)


def activation_bytes(model: nn.Module, part: Encoded) -> int:
    """Bytes of what the forward pass of a batch keeps for the backward pass, its weights not counted.

    The model must be tapped (`gradients.engine`), or need gradients otherwise.
    """
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.enable_grad():
        _end = readout(model, part)
    return sum(kept.values())


def batch_sizes(shape: Shape, lengths: np.ndarray, device_type: str = "cpu") -> Iterator[np.ndarray]:
    """Row numbers of each batch that the engine would make of rows of these lengths, (n,) int64."""
    n = len(lengths)
    length, none = torch.from_numpy(np.asarray(lengths, dtype=np.int64)), torch.zeros(n, 0)
    rows = EmbeddedRows(none, length, length) if shape.embedded else TokenRows(none, none, length)
    most = max(1, PRODUCT_BYTES // shape.product_bytes) if device_type == "cpu" else None
    return batches(rows, default_batch_tokens(shape.width, device_type), most)


def padded(shape: Shape, lengths: np.ndarray) -> int:
    """Tokens that each row of a batch takes up: of a language model one less than the longest, of embeddings 1."""
    if shape.embedded:
        return 1
    return max(1, int(lengths.max()) - (shape.head is not None))
