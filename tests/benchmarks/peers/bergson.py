"""bergson: hooks on every linear layer, each gradient projected on both sides to p x p and kept whole."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import torch
from peers.case import Case, Outcome, Run, full_precision

os.environ.setdefault("TQDM_DISABLE", "1")


def prepare(case: Case, precision: str = "fp32", p: int = 16) -> Run:
    """Its in-memory collector with its default projection, the weights frozen as its own worker freezes them."""
    from bergson import CollectorComputer, GradientProcessor, InMemoryCollector
    from bergson.config import IndexConfig
    from datasets import Dataset

    if not (case.hugging_face and case.causal):
        raise NotImplementedError("takes Hugging Face causal language models only")
    model = case.copy(precision)
    model.get_input_embeddings().requires_grad_(True)
    lengths = case.rows.lengths()
    ids = [case.rows.ids[i, :n].tolist() for i, n in enumerate(lengths)]
    labels = [
        np.where(t[:n], i, -100).tolist() for t, i, n in zip(case.rows.target, ids, lengths, strict=True)
    ]
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    batches = [index.tolist() for index in case.batches()]
    processor = GradientProcessor(projection_dim=p)
    config = IndexConfig(run_path=f"{tempfile.mkdtemp()}/run", projection_dim=p, loss_reduction="mean")
    config.partial_run_path.mkdir()

    def run() -> Outcome:
        collector = InMemoryCollector(model=model.base_model, data=data, cfg=config, processor=processor)
        CollectorComputer(
            model, data, collector=collector, batches=batches, cfg=config
        ).run_with_collector_hooks()
        feature = torch.cat([g.view(len(data), -1) for g in collector.gradients.values()], dim=1)
        return Outcome(full_precision(feature), feature.shape[1] * feature.element_size())

    return run
