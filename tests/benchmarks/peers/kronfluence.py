"""kronfluence: its per-sample gradient pass (self-influence with the identity in place of the Hessian)."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import torch
from peers.case import Case, Outcome, Run, batch_loss, row_weights
from torch import Tensor, nn

os.environ.setdefault("TQDM_DISABLE", "1")


def prepare(case: Case) -> Run:
    """Every row's gradient made layer by layer and dotted with itself; one number a row is kept."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    class RowLoss(Task):
        def compute_train_loss(self, batch, model: nn.Module, sample: bool = False) -> Tensor:
            return batch_loss(case, model, *batch)

        def compute_measurement(self, batch, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return case.layers

    order = np.argsort(case.rows.lengths(), kind="stable")
    other = row_weights(case.rows) if case.causal else case.rows.y
    data = [(case.rows.ids[i], other[i], int(case.rows.length[i])) for i in order]

    def together(rows) -> tuple[Tensor, Tensor]:
        width = max(n for _, _, n in rows)
        ids = torch.stack([i[:width] for i, _, _ in rows])
        return ids, torch.stack([w[: width - 1] if w.ndim else w for _, w, _ in rows])

    task = RowLoss()
    model = prepare_model(case.copy(), task)
    analyzer = Analyzer("rows", model, task, cpu=True, disable_tqdm=True, output_dir=tempfile.mkdtemp())
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0, collate_fn=together))
    analyzer.fit_all_factors("none", data, factor_args=FactorArguments(strategy="identity"))
    batch = max(1, case.max_batch_tokens // int(case.rows.lengths().max()))

    def run() -> Outcome:
        analyzer.compute_self_scores("self", "none", data, batch, overwrite_output_dir=True)
        scores = analyzer.load_self_scores("self")["all_modules"]
        norms = np.empty(len(order), dtype=np.float32)
        norms[order] = scores.float().clamp(min=0).sqrt().flatten().numpy()
        return Outcome(norms[:, None], 4, "norms only")

    return run
