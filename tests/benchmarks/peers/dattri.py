"""dattri: its linear layers' backward replaced by one that keeps a projected gradient (LoGra, rank 16)."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import torch
from peers.case import Case, Outcome, Run, batch_loss, full_precision, inputs_of
from torch import nn
from torch.utils.data import DataLoader

os.environ.setdefault("TQDM_DISABLE", "1")


def prepare(case: Case, precision: str = "fp32", rank: int = 16) -> Run:
    """Its block-projected attributor without a Hessian: `cache` over the case's batches, gradients in memory."""
    from dattri.algorithm.block_projected_if import BlockProjectedIFAttributor
    from dattri.task import AttributionTask

    model = case.copy(precision)
    for name in case.layers:
        if not isinstance(model.get_submodule(name), nn.Linear):
            raise NotImplementedError(
                f"supports nn.Linear only ({type(model.get_submodule(name)).__name__} here)"
            )
        model.get_submodule(name).weight.requires_grad_(True)
    index = list(case.batches())
    # One axis more: it takes the layers' shapes from batch[0][0]. The loss is a mean, for it multiplies by the rows.
    batches = [(ids[None], other) for ids, other in (inputs_of(case, i) for i in index)]
    loader = DataLoader(batches, batch_size=1, collate_fn=lambda one: one[0])

    def loss(model: nn.Module, batch, _device: str) -> torch.Tensor:
        return batch_loss(case, model, batch[0][0], batch[1]) / len(batch[1])

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    first = {"device": "cpu", "proj_dim": rank, "proj_max_batch_size": 64, "proj_type": "normal"}
    attributor = BlockProjectedIFAttributor(
        task,
        case.layers,
        hessian="Identity",
        sparsifier_kwargs=first,
        offload="none",
        cache_dir=tempfile.mkdtemp(),
    )

    def run() -> Outcome:
        attributor.cache(loader)
        kept = [
            torch.cat([g.flatten(1) for g in attributor.offload_manager.retrieve_gradients(b)], dim=1)
            for b in range(len(index))
        ]
        feature = np.empty((len(case.rows), kept[0].shape[1]), dtype=np.float32)
        for i, part in zip(index, kept, strict=True):
            feature[i] = full_precision(part)
        return Outcome(feature, feature.shape[1] * kept[0].element_size())

    return run
