"""The exact twin of the engine: full per-row gradients through `torch.func`, for tests and small corpora."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from curation.encoded import Encoded
from curation.proxies import output_layer, row_losses
from curation.randomness import generator
from curation.score.layers import chosen_modules, kinds_of, parameter_names


def counted_parameters(model: nn.Module, parameters: str | tuple[str, ...]) -> list[str]:
    """Names of the parameters that count, in the model's order."""
    kinds = kinds_of(parameters)
    names = parameter_names(model)
    matrices, vectors = chosen_modules(model, output_layer(model), kinds)
    found = {names[id(module.weight)] for module in matrices.values()}
    for module in vectors.values():
        if "norms" in kinds and module.weight.ndim == 1:  # type: ignore[union-attr,operator]
            found.add(names[id(module.weight)])
        if "biases" in kinds and isinstance(getattr(module, "bias", None), Tensor):
            found.add(names[id(module.bias)])
    return [name for name, _ in model.named_parameters() if name in found]


class _RowLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, one: Encoded) -> Tensor:
        return row_losses(self.inner, one).nll.sum()


def exact_row_gradients(
    model: nn.Module, rows: Encoded, parameters: str | tuple[str, ...] = "hidden"
) -> np.ndarray:
    """(n, p) float32 gradients of each row on its own, the parameters that count flattened in the model's order."""
    from torch.func import functional_call, grad

    names = counted_parameters(model, parameters)
    everything = dict(model.named_parameters())
    chosen: dict[str, Tensor] = {f"inner.{name}": everything[name] for name in names}
    whole = _RowLoss(model)

    def loss(weights: dict[str, Tensor], one: Encoded) -> Tensor:
        return functional_call(whole, weights, (one,), tie_weights=True)

    found = np.empty((len(rows), sum(p.numel() for p in chosen.values())), dtype=np.float32)
    for i in range(len(rows)):
        g = grad(loss)(chosen, rows.take([i]))
        found[i] = torch.cat([g[name].detach().flatten() for name in chosen]).cpu().numpy()
    return found


def exact_cosines(
    model: nn.Module, rows: Encoded, parameters: str | tuple[str, ...] = "hidden", block_rows: int = 32
) -> np.ndarray:
    """(n, n) float64 cosines of the exact gradients, two blocks of rows in memory at a time: for small n.

    Feed it to `vendi_of_kernel`: the G-Vendi without any projection. A zero gradient has cosine 0 with all others.
    """
    starts = range(0, len(rows), block_rows)
    cosine = np.zeros((len(rows), len(rows)))

    def block(start: int) -> np.ndarray:
        index = np.arange(start, min(start + block_rows, len(rows)))
        g = exact_row_gradients(model, rows.take(index), parameters)
        norm = np.linalg.norm(g.astype(np.float64), axis=1, keepdims=True)
        return (g / np.where(norm > 0, norm, 1.0)).astype(np.float32)

    for i in starts:
        left = block(i)
        for j in starts:
            if j < i:
                continue
            right = left if i == j else block(j)
            part = left.astype(np.float64) @ right.T.astype(np.float64)
            cosine[i : i + len(left), j : j + len(right)] = part
            cosine[j : j + len(right), i : i + len(left)] = part.T
    return cosine


def dense_features(gradients: np.ndarray, d: int, seed: int, block: int = 65_536) -> np.ndarray:
    """(n, d) float32: exact gradients (n, p) through a dense Rademacher projection, as published (arXiv 2505.20161)."""
    out = np.zeros((len(gradients), d), dtype=np.float32)
    for start in range(0, gradients.shape[1], block):
        part = gradients[:, start : start + block]
        signs = generator(seed, "dense", start).integers(0, 2, (part.shape[1], d), dtype=np.int8)
        out += part @ (signs.astype(np.float32) * 2 - 1)
    return out / np.float32(np.sqrt(d))
