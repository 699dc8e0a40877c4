"""torch.func: vmap of grad gives every row's full gradient; one random sign and bucket a number folds it to d."""

from __future__ import annotations

import numpy as np
import torch
from peers.case import Case, Outcome, Run, batch_loss, inputs_of
from torch import Tensor
from torch.func import functional_call, grad, vmap

MAX_ROWS = 16  # at once: each holds a full gradient


def prepare(case: Case, d: int = 1024) -> Run:
    """Full per-row gradients of the hidden layers, count-sketched to `d` numbers."""
    model = case.copy()
    weights = {f"{name}.weight": model.get_submodule(name).weight for name in case.layers}
    rng = np.random.default_rng(0)
    bucket = {k: torch.from_numpy(rng.integers(0, d, v.numel())) for k, v in weights.items()}
    sign = {k: torch.from_numpy(rng.choice(np.float32([-1, 1]), v.numel())) for k, v in weights.items()}

    def loss(weights: dict[str, Tensor], ids: Tensor, other: Tensor) -> Tensor:
        def call(model, *_):
            return batch_loss(case, model, ids[None], other[None])

        return functional_call(_Wrapped(model, call), {f"model.{k}": v for k, v in weights.items()}, ())

    rows = vmap(grad(loss), in_dims=(None, 0, 0))

    def run() -> Outcome:
        feature = np.zeros((len(case.rows), d), dtype=np.float32)
        for index in case.batches(MAX_ROWS):
            out = torch.zeros(len(index), d)
            for name, g in rows(weights, *inputs_of(case, index)).items():
                out.index_add_(1, bucket[name], g.flatten(1).mul_(sign[name]))
            feature[index] = out.numpy()
        return Outcome(feature, 4 * d)

    return run


class _Wrapped(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, call) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self) -> Tensor:
        return self.call(self.model)
