"""Which parameters count, and the *virtual layers* they form: layers that read one input become one.

A layer's row gradient is G = sum_t e_t a_t^T (input a, output gradient e). Query, key and value projections read
the same input, gate and up projections too: their inputs are folded once, and their output gradients share one
fold, each member beginning where the one before it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from curation.errors import UserError

KINDS = ("linear", "head", "embeddings", "norms", "biases", "lora")
PRESETS: dict[str, tuple[str, ...]] = {
    "hidden": ("linear",),
    "all": ("linear", "head", "embeddings", "norms", "biases"),
    "lora": ("lora",),
}


@dataclass
class Call:
    """One use of a module in a forward pass: its place in its virtual layer and the fold offset of its outputs."""

    module: str
    parameter: str
    n_out: int
    offset: int = 0


@dataclass
class VirtualLayer:
    """Calls that read one input of `n_in` entries; `n_out` is the sum of theirs."""

    n_in: int
    calls: list[Call] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The parameter of the first call: what the random signs of the input side are named after."""
        return self.calls[0].parameter

    @property
    def n_out(self) -> int:
        """Entries of all outputs laid end to end."""
        return sum(call.n_out for call in self.calls)


@dataclass(frozen=True)
class Layout:
    """What a model's features are made of: virtual layers, and vectors (norm weights, biases) by parameter name."""

    layers: tuple[VirtualLayer, ...]
    vectors: tuple[str, ...]


def kinds_of(parameters: str | tuple[str, ...]) -> tuple[str, ...]:
    """The kinds of parameters that a preset (hidden, all, lora) or a tuple of kinds names."""
    kinds = PRESETS.get(parameters, (parameters,)) if isinstance(parameters, str) else parameters
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        raise UserError(
            f"[proxy] parameters = {parameters!r}: unknown {', '.join(wrong) or 'empty choice'}; "
            f"use {', '.join(PRESETS)} or a list of {', '.join(KINDS)}"
        )
    return kinds


def is_linear(module: nn.Module) -> bool:
    """True for linear layers and for GPT-2's Conv1D, which holds its weight the other way round."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """True for the Conv1D of Hugging Face's GPT models."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_norm(module: nn.Module) -> bool:
    """True for a layer norm or any root-mean-square norm with one weight vector."""
    weight = getattr(module, "weight", None)
    named = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
    return named and isinstance(weight, Tensor) and weight.ndim == 1


def parameter_names(model: nn.Module) -> dict[int, str]:
    """id of a parameter -> its name; a tied one has the name it is first met under."""
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    return names


def class_layer(model: nn.Module) -> nn.Module | None:
    """A classifier's output layer: its last linear layer with one output a class; None when it has no other layer."""
    linear = [module for module in model.modules() if is_linear(module)]
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    found = [module for module in linear if classes in (None, sides(module)[0])]
    return found[-1] if found and len(linear) > 1 else None


def chosen_modules(
    model: nn.Module, head: nn.Module | None, kinds: tuple[str, ...]
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Modules whose weight matrices count (linear, head, embeddings), and modules with vectors that count, by name.

    `head`: a language model's output layer; None: the model is a classifier, whose `class_layer` is its head.
    """
    head = head or class_layer(model)
    matrices: dict[str, nn.Module] = {}
    vectors: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        adapter = ".lora_A." in f".{name}" or ".lora_B." in f".{name}"
        kind = "head" if module is head else "lora" if adapter else "linear"
        if is_linear(module):
            if kind in kinds:
                matrices[name] = module
            if getattr(module, "bias", None) is not None and "biases" in kinds:
                vectors[name] = module
        elif isinstance(module, nn.Embedding) and "embeddings" in kinds:
            matrices[name] = module
        elif is_norm(module) and (
            "norms" in kinds or ("biases" in kinds and getattr(module, "bias", None) is not None)
        ):
            vectors[name] = module
    if not matrices and not vectors:
        raise UserError(
            f"[proxy] parameters: the model {type(model).__name__} has none of the kind {', '.join(kinds)}"
            + ('; load its adapter, or use parameters = "hidden"' if "lora" in kinds else "")
        )
    return matrices, vectors


def find_layout(
    model: nn.Module, matrices: dict[str, nn.Module], forward: Callable[[], Any]
) -> tuple[VirtualLayer, ...]:
    """The virtual layers that one forward pass shows, in its order; modules it never calls are left out."""
    names = parameter_names(model)
    seen: list[tuple[Tensor, VirtualLayer]] = []  # inputs are held, so that none takes another's place
    layers: list[VirtualLayer] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            n_out, n_in = sides(module)
            call = Call(name, names[id(module.weight)], n_out)
            for given, layer in seen:
                if not isinstance(module, nn.Embedding) and given is args[0]:
                    call.offset = layer.n_out
                    layer.calls.append(call)
                    return
            layers.append(VirtualLayer(n_in, [call]))
            if not isinstance(module, nn.Embedding):
                seen.append((args[0], layers[-1]))

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in matrices.items()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return tuple(layers)


def apart(layers: tuple[VirtualLayer, ...]) -> tuple[VirtualLayer, ...]:
    """The same calls, each a virtual layer of its own: where layers that read one input scale it differently."""
    return tuple(
        VirtualLayer(layer.n_in, [replace(call, offset=0)]) for layer in layers for call in layer.calls
    )


def sides(module: nn.Module) -> tuple[int, int]:
    """(n_out, n_in) of a layer's weight; of an embedding (vocabulary, width), as of the head that it may be tied to."""
    first, second = module.weight.shape  # type: ignore[union-attr,operator,misc]
    return (int(second), int(first)) if is_conv1d(module) else (int(first), int(second))
