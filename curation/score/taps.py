"""Layers that write on a tape as the model runs.

A tapped layer runs its own product (weights frozen, no gradient for them) and writes two folds on the way: its
input's in the forward pass, its output gradient's in the backward pass. A scalar *anchor* that needs a gradient
makes the backward reach every tapped layer and nothing before the first of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from curation.losses import linear
from curation.score.layers import is_conv1d, is_linear
from curation.score.tape import Tape


@contextmanager
def tapped(
    model: nn.Module, tape: Tape, matrices: Mapping[str, nn.Module], vectors: Mapping[str, nn.Module]
) -> Generator[None]:
    """The model with these modules writing on the tape; as it was on leaving."""
    kept: list[tuple[nn.Module, Callable[..., Any] | None]] = []
    try:
        for module, forward in _forwards(model, tape, matrices, vectors):
            kept.append((module, module.__dict__.get("forward")))
            module.forward = forward
        _add_vectors(tape, vectors)
        yield
    finally:
        for module, forward in kept:
            del module.forward
            if forward is not None:
                module.forward = forward
        tape.release()


def _forwards(
    model: nn.Module, tape: Tape, matrices: Mapping[str, nn.Module], vectors: Mapping[str, nn.Module]
) -> Generator[tuple[nn.Module, Callable[..., Any]]]:
    for name, module in model.named_modules():
        if is_linear(module) and module is not tape.head:
            bias = getattr(module, "bias", None)
            heard = "biases" in tape.kinds and name in vectors and bias is not None
            layer = Linear(tape, name, module, tape.names[id(bias)] if heard else None)
            yield module, partial(_run_linear, layer, tape.anchor if name in tape.spots or heard else None)
        elif name in matrices and name in tape.spots and isinstance(module, nn.Embedding):
            yield module, partial(_run_embedding, tape, name, module, module.forward)
        elif name in vectors and not is_linear(module):
            yield module, partial(_run_norm, tape, module, copy.copy(module), module.forward)


def _add_vectors(tape: Tape, vectors: Mapping[str, nn.Module]) -> None:
    head_bias = getattr(tape.head, "bias", None) if "biases" in tape.kinds else None
    own = [getattr(module, side, None) for module in vectors.values() for side in ("weight", "bias")]
    for vector in [*own, head_bias]:
        if isinstance(vector, Tensor) and vector.ndim == 1:
            tape.add_flattening(tape.names[id(vector)], vector.numel())


class Linear:
    """A frozen linear layer: its product in the session's precision, and what it writes on the tape."""

    def __init__(self, tape: Tape, name: str, module: nn.Module, bias_name: str | None) -> None:
        self.tape, self.name, self.bias_name = tape, name, bias_name
        weight = module.weight.detach()  # type: ignore[union-attr,operator]
        weight = weight.T if is_conv1d(module) else weight
        bias = getattr(module, "bias", None)
        self.weight = weight.to(tape.dtype)
        self.bias = None if bias is None else bias.detach().to(tape.dtype)
        # Attention on a CPU is three times slower backward in bf16; what lies between other layers stays narrow.
        self.widen = "att" in name.lower() and tape.device.type == "cpu"

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """The layer's output, and which call of the pass this was."""
        tape, call = self.tape, self.tape.calls.get(self.name, 0)
        spots = tape.spots.get(self.name, ())
        narrow = tape.narrowed(x)
        if call < len(spots):
            tape.calls[self.name] = call + 1
            if spots[call].first:
                tape.write("a", spots[call], narrow)
        out = linear(narrow, self.weight, self.bias)
        return out.float() if self.widen else out, call

    def backward(self, e: Tensor, call: int, further: bool) -> Tensor | None:
        """The gradient of the layer's input, when the pass goes further back."""
        e = e.to(self.weight.dtype)
        spots = self.tape.spots.get(self.name, ())
        if call < len(spots):
            self.tape.write("e", spots[call], e)
        if self.bias_name is not None:
            self.tape.add_vector(self.bias_name, e)
        return linear(e, self.weight.T) if further else None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, layer: Linear) -> Tensor:
        out, ctx.call = layer.forward(x)
        ctx.layer = layer
        return out

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        return ctx.layer.backward(e, ctx.call, ctx.needs_input_grad[0]), None, None


def _run_linear(layer: Linear, anchor: Tensor | None, x: Tensor) -> Tensor:
    return _Product.apply(x, anchor, layer)  # type: ignore[return-value]


class _Listen(torch.autograd.Function):
    """The same tensor; its gradient is told to `hear` on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, hear: Callable[[Tensor], None]) -> Tensor:
        ctx.hear = hear
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        ctx.hear(e)
        return e, None, None


class _Lookup(TorchFunctionMode):
    """Remembers the ids that an embedding looked up: not all kinds are called with them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.embedding:
            self.ids: Tensor = args[0]
        return func(*args, **(kwargs or {}))


def _run_embedding(
    tape: Tape, name: str, module: nn.Embedding, forward: Callable[..., Tensor], *args: Any, **more: Any
) -> Tensor:
    with _Lookup() as lookup:
        out = forward(*args, **more)
    # Positions are shared by all rows; each row has its own gradient.
    ids = lookup.ids if lookup.ids.ndim == 2 else lookup.ids[None]
    if ids.ndim != 2 or len(ids) not in (1, tape.n) or ids.shape[1] > tape.t:
        raise tape.shared(lookup.ids)
    ids, out = ids.expand(tape.n, -1), out.view(*ids.shape, -1).expand(tape.n, -1, -1)
    spot = tape.spots[name][tape.calls.get(name, 0)]
    tape.calls[name] = tape.calls.get(name, 0) + 1

    def hear(e: Tensor) -> None:
        # The gradient of entry (v, c) is that of the head's weight it may be tied to: vocabulary out, width in.
        tape.write("a", spot, e * getattr(module, "embed_scale", 1.0))
        target = spot.pairs.e[:, spot.place]
        target.zero_()
        bucket = (ids % spot.pairs.r_out)[..., None]
        sign = spot.sign_out[ids]
        if module.padding_idx is not None:
            sign = sign * (ids != module.padding_idx)
        target[:, : ids.shape[1]].scatter_(2, bucket, sign[..., None].to(target.dtype))
        tape.written.add((id(spot.pairs), spot.place, "e"))

    return _Listen.apply(out, tape.anchor, hear)  # type: ignore[return-value]


def _run_norm(
    tape: Tape, module: nn.Module, bare: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """The norm's output; its weight's gradient is sum of e times what the weight multiplies, whatever its form."""
    weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
    bare.__dict__.pop("forward", None)
    with torch.no_grad():
        one, zero = (
            functional_call(bare, {"weight": torch.full_like(weight, value)}, (x,)) for value in (1.0, 0.0)
        )
        slope = one - zero

    def hear(e: Tensor) -> None:
        if "norms" in tape.kinds:
            tape.add_vector(tape.names[id(weight)], e * slope)
        if isinstance(bias, Tensor) and "biases" in tape.kinds:
            tape.add_vector(tape.names[id(bias)], e)

    return _Listen.apply(forward(x), tape.anchor, hear)  # type: ignore[return-value]
