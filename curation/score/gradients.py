"""Per-row gradient features: one forward, one backward to activations, weights frozen.

Each linear layer's output gets a zero *sink* whose gradient is the output gradient; with the layer's input it
gives the row's weight gradient G = sum_t e_t a_t^T as one batched product. Sides wider than `fold_width` are
first folded by random signs (exact below it), then G is folded to `d` by random signs and rolls, summed over
layers: an unbiased sketch of the concatenated gradient, E<f(u), f(v)> = <u, v>. No weight gradient of the
batch is formed, and no row sees another (loss: mean over the row's own response tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from curation.proxies import Encoded, batches, row_losses
from curation.randomness import generator

TOLERANCE_FP32 = 2e-4  # relative, rows against themselves in any other batch, padding or order


@dataclass(frozen=True)
class RowGradients:
    """(n, d) float32 `feature` (not normalised), and (n,) float64 `norm`, `nll`, `el2n`, `correct`, `n_tokens`."""

    feature: np.ndarray
    norm: np.ndarray
    nll: np.ndarray
    el2n: np.ndarray
    correct: np.ndarray
    n_tokens: np.ndarray


def _signs(seed: int, name: str, size: int) -> Tensor:
    return torch.from_numpy(generator(seed, "sketch", name).integers(0, 2, size).astype(np.float32) * 2 - 1)


def fold(x: Tensor, width: int, signs: Tensor) -> Tensor:
    """The last axis reduced to at most `width` by random signs and a stride fold; exact when already narrow."""
    size = x.shape[-1]
    if size <= width:
        return x
    x = torch.nn.functional.pad(x * signs, (0, -size % width))
    return x.view(*x.shape[:-1], -1, width).sum(-2)


def sketch(flat: Tensor, d: int, signs: Tensor, rolls: np.ndarray) -> Tensor:
    """(n, p) -> (n, d): random signs, then every run of d entries rolled by its own offset and added."""
    n, p = flat.shape
    signed = torch.nn.functional.pad(flat * signs, (0, -p % d)).view(n, -1, d)
    out = torch.zeros(n, d, dtype=flat.dtype)
    for chunk, roll in enumerate(rolls):
        out += torch.roll(signed[:, chunk], int(roll), dims=1)
    return out


class Sketcher:
    """The seeded projection of one model's layers; made from names and shapes alone, never stored."""

    def __init__(self, layers: dict[str, nn.Linear], d: int, fold_width: int, seed: int) -> None:
        self.d, self.fold_width = d, fold_width
        self.sides: dict[str, tuple[Tensor, Tensor]] = {}
        self.finals: dict[str, tuple[Tensor, np.ndarray]] = {}
        for name, layer in layers.items():
            n_out, n_in = layer.weight.shape
            self.sides[name] = (_signs(seed, name + "/in", n_in), _signs(seed, name + "/out", n_out))
            size = min(n_out, fold_width) * min(n_in, fold_width)
            rolls = generator(seed, "rolls", name).integers(0, d, -(-size // d))
            self.finals[name] = (_signs(seed, name + "/flat", size), rolls)

    def layer(self, name: str, a: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (n, T, in) and output gradients (n, T, out) -> (n, d) sketch and (n,) squared norms."""
        sign_in, sign_out = self.sides[name]
        a, e = fold(a, self.fold_width, sign_in), fold(e, self.fold_width, sign_out)
        gradient = torch.bmm(e.transpose(1, 2), a).flatten(1)
        signs, rolls = self.finals[name]
        return sketch(gradient, self.d, signs, rolls), (gradient * gradient).sum(1)


def _tapped_backward(model: nn.Module, layers: dict[str, nn.Linear], rows: Encoded):
    inputs: dict[str, Tensor] = {}
    sinks: dict[str, Tensor] = {}

    def tap(name: str):
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[name] = args[0].detach()
            sinks[name] = torch.zeros_like(output, requires_grad=True)
            return output + sinks[name]

        return hook

    handles = [layer.register_forward_hook(tap(name)) for name, layer in layers.items()]
    try:
        with torch.enable_grad():
            losses = row_losses(model, rows)
            gradients = torch.autograd.grad(losses.nll.sum(), list(sinks.values()))
    finally:
        for handle in handles:
            handle.remove()
    return losses, inputs, dict(zip(sinks, gradients, strict=True))


def _by_row(x: Tensor, rows: Encoded) -> Tensor:
    """A layer's (n, T, c), (n, c) or response-tokens-only (m, c) tensor as (n, T', c), zeros where it is silent."""
    if x.ndim == 3:
        return x
    if len(x) == len(rows) and not hasattr(rows, "target"):
        return x[:, None, :]
    row, _ = rows.target[:, 1:].nonzero(as_tuple=True)  # type: ignore[union-attr]
    count = torch.bincount(row, minlength=len(rows))
    start = torch.cumsum(count, 0) - count
    out = torch.zeros(len(rows), int(count.max()), x.shape[-1], dtype=x.dtype)
    out[row, torch.arange(len(row)) - start[row]] = x
    return out


def row_gradients(
    model: nn.Module, layers: dict[str, nn.Linear], rows: Encoded, d: int, fold_width: int, seed: int
) -> RowGradients:
    """Gradient features of every row, the same for any batching; `model` must be frozen and in eval mode."""
    sketcher = Sketcher(layers, d, fold_width, seed)
    n = len(rows)
    out = RowGradients(np.zeros((n, d), np.float32), *(np.zeros(n) for _ in range(5)))
    for index in batches(rows):
        part = rows.take(index)
        losses, inputs, gradients = _tapped_backward(model, layers, part)
        feature = torch.zeros(len(part), d)
        square = torch.zeros(len(part))
        for name in layers:
            f, s = sketcher.layer(name, _by_row(inputs[name], part), _by_row(gradients[name], part))
            feature += f
            square += s
        out.feature[index] = feature.numpy()
        out.norm[index] = square.double().sqrt().numpy()
        for name in ("nll", "el2n", "correct", "n_tokens"):
            getattr(out, name)[index] = getattr(losses, name).detach().double().numpy()
    return out


def exact_row_gradients(model: nn.Module, layers: dict[str, nn.Linear], rows: Encoded) -> np.ndarray:
    """The exact twin: (n, p) full gradients of each row on its own, weights of `layers` flattened in order."""
    from torch.func import functional_call, grad

    names = [f"{name}.weight" for name in layers]
    everything = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], one: Encoded) -> Tensor:
        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, batch: Encoded) -> Tensor:
                return row_losses(self.inner, batch).nll.sum()

        return functional_call(Whole(), {f"inner.{k}": v for k, v in weights.items()}, (one,))

    found = []
    for i in range(len(rows)):
        g = grad(loss)({k: everything[k] for k in names}, rows.take([i]))
        found.append(torch.cat([g[k].flatten() for k in names]).numpy())
    return np.stack(found)
