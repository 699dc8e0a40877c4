"""traker end to end: torch.func gradients and its CPU projector (Gaussian there), through TRAKer.featurize."""

from __future__ import annotations

import logging
import os
import tempfile

import numpy as np
import torch
from peers.case import Case, Outcome, Run, Watch, batch_loss, inputs_of
from torch import Tensor, nn
from torch.func import functional_call

os.environ.setdefault("TQDM_DISABLE", "1")
ROWS, BLOCK, BLOCKS = 16, 16, 2


def prepare(case: Case, d: int = 1024) -> Run:
    """Featurizes 16 rows with 32 of the d numbers and scales the projection's share."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput
    from trak.projectors import BasicProjector, ProjectionType

    class RowLoss(AbstractModelOutput):
        def __init__(self) -> None: ...

        def get_output(self, model: nn.Module, weights, buffers, ids: Tensor, other: Tensor) -> Tensor:
            return functional_call(model, (weights, buffers), (ids[None], other[None]))

        def get_out_to_loss_grad(self, model, weights, buffers, batch) -> Tensor:
            return torch.ones(len(batch[0]), 1)

    class Lossy(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, other: Tensor) -> Tensor:
            return batch_loss(case, self.model, ids, other)

    model = Lossy(case.copy())
    order = case.rows.lengths().argsort(kind="stable")
    chosen = np.array([order[int((i + 0.5) * len(order) / ROWS)] for i in range(ROWS)])
    share = len(case.rows) / ROWS
    batch = inputs_of(case, chosen)
    logging.getLogger("TRAK").setLevel(logging.ERROR)
    projector = BasicProjector(
        grad_dim=case.size,
        proj_dim=BLOCK * BLOCKS,
        seed=0,
        proj_type=ProjectionType.normal,
        device="cpu",
        block_size=BLOCK,
    )

    def run() -> Outcome:
        tracker = TRAKer(
            model=model,
            task=RowLoss(),
            train_set_size=ROWS,
            save_dir=tempfile.mkdtemp(),
            device="cpu",
            projector=projector,
            use_half_precision=False,
            grad_wrt=[f"model.{name}.weight" for name in case.layers],
            logging_level=logging.ERROR,
        )
        tracker.load_checkpoint(model.state_dict(), model_id=0)
        tracker.gradient_computer.compute_per_sample_grad(
            batch
        )  # a cold call would hide the projection's share
        watch = Watch()
        tracker.gradient_computer.compute_per_sample_grad(batch)
        passed = watch.read()
        watch = Watch()
        tracker.featurize(batch, num_samples=ROWS)
        projected = np.maximum(watch.read() - passed, 0) * (d / (BLOCK * BLOCKS))
        return Outcome(None, 4 * d, "ideal; time scaled from a part", tuple((passed + projected) * share))

    return run
