"""The published way: one row at a time, its whole gradient, and a dense random projection of it to d.

As released: gradients stacked four at a time and given to traker's projector, which on a CPU is its plain PyTorch
one with Gaussian entries, and draws its matrix anew, block by block, for every stack.
"""

from __future__ import annotations

import torch
from peers.case import Case, Outcome, Run, Watch, batch_loss, inputs_of

STACK, ROWS, BLOCK, BLOCKS = 4, 8, 16, 2


def prepare(case: Case, d: int = 1024) -> Run:
    """Runs 8 rows' gradients and 32 of the d projected numbers for one stack, and scales."""
    from trak.projectors import BasicProjector, ProjectionType

    model = case.copy()
    weights = [model.get_submodule(name).weight.requires_grad_(True) for name in case.layers]
    order = case.rows.lengths().argsort(kind="stable")
    chosen = [order[int((i + 0.5) * len(order) / ROWS)] for i in range(ROWS)]
    tokens = int(case.rows.lengths()[chosen].sum())
    projector = BasicProjector(
        grad_dim=case.size,
        proj_dim=BLOCK * BLOCKS,
        seed=0,
        proj_type=ProjectionType.normal,
        device="cpu",
        block_size=BLOCK,
    )

    def run() -> Outcome:
        watch = Watch()
        stack = []
        for row in chosen:
            gradients = torch.autograd.grad(batch_loss(case, model, *inputs_of(case, [row])), weights)
            stack.append(torch.cat([g.flatten() for g in gradients]))
            stack = stack[-STACK:]
        passed = watch.read() * (case.tokens / tokens)
        watch = Watch()
        projector.project(torch.stack(stack), model_id=0)
        projected = watch.read() * (d / (BLOCK * BLOCKS)) * (len(case.rows) / STACK)
        return Outcome(None, 2 * d, "ideal; time scaled from a part", tuple(passed + projected))

    return run
