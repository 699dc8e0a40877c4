"""opacus: full per-row gradients by its hooks, without any projection."""

from __future__ import annotations

import warnings

from peers.case import Case, Outcome, Run, batch_loss, inputs_of
from torch import nn

MAX_ROWS = 16  # at once: each holds a full gradient


def prepare(case: Case) -> Run:
    """Per-row gradients of the hidden layers, made and dropped: nothing is kept to compare."""
    from opacus import GradSampleModule

    warnings.filterwarnings("ignore", module="torch.nn.modules.module")
    model = case.copy()
    for name in case.layers:
        model.get_submodule(name).weight.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    hooked = GradSampleModule(model, loss_reduction="sum").train()  # it records nothing in eval mode

    def run() -> Outcome:
        for index in case.batches(MAX_ROWS):
            batch_loss(case, hooked, *inputs_of(case, index)).backward()
            for name in case.layers:
                weight = model.get_submodule(name).weight
                if weight.grad_sample is None or len(weight.grad_sample) != len(index):
                    raise RuntimeError(f"no per-row gradient of {name}")
                weight.grad_sample = weight.grad = None
        return Outcome(None, 4 * case.size, "exact, not kept")

    return run
