"""Training of proxies: the same steps, batches and schedule for every arm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from curation.encoded import Encoded
from curation.proxies import Reader, build_model, row_losses
from curation.randomness import generator
from curation.specs import Proxy

WARMUP_STEPS = 50  # or a tenth of a short training


@dataclass(frozen=True)
class Fitted:
    """A trained model in eval mode, its optimiser steps, the tokens it read, and its last training loss."""

    model: nn.Module
    steps: int
    tokens: int
    train_nll: float


def batch_order(n: int, steps: int, batch_rows: int, seed: int) -> np.ndarray:
    """(steps, batch_rows) row numbers: epochs without replacement, each a named permutation."""
    needed = steps * batch_rows
    epochs = [generator(seed, "epoch", e).permutation(n) for e in range(-(-needed // n))]
    return np.concatenate(epochs)[:needed].reshape(steps, batch_rows)


def fit(spec: Proxy, reader: Reader, rows: Encoded, seed: int, steps: int | None = None) -> Fitted:
    """A model trained on the rows: AdamW, linear warm-up and decay, gradients clipped at 1.

    `seed` fixes initialisation and order; arms of one replicate share it. The loss of a batch is the mean over
    its response tokens. `train_nll` is the mean over the last tenth of the steps, in nats a token.
    """
    steps = spec.steps if steps is None else steps
    model = build_model(spec, reader, seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    order = batch_order(len(rows), steps, spec.batch_rows, seed)
    lengths = rows.lengths()
    warmup = max(1, min(WARMUP_STEPS, steps // 10))
    tail: list[float] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = spec.learning_rate * min(1.0, (step + 1) / warmup) * (1 - step / steps)
        losses = row_losses(model, rows.take(order[step]))
        weight = losses.n_tokens / losses.n_tokens.sum()
        loss = (losses.nll * weight).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step >= int(0.9 * steps):
            tail.append(loss.item())
    return Fitted(model.eval(), steps, int(lengths[order].sum()), float(np.mean(tail)))
