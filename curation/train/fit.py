"""Training of proxies: the same steps, batches and schedule for every arm."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from curation.encoded import Encoded, LabelledTokens, TokenRows
from curation.losses import LogitForm
from curation.proxies import Reader, batches, build_model, form_of, output_layer, row_losses, weights_of
from curation.randomness import generator
from curation.specs import Proxy
from curation.train.forgetting import Forgetting

WARMUP_STEPS = 50  # or a tenth of a short training
PART_TOKENS = 1024  # of a pretrained model's batch in one backward: its activations are what fills the memory
PART_LOGITS = 64 << 20


@dataclass(frozen=True)
class Fitted:
    """A trained model in eval mode, its optimiser steps, the tokens it read, and its last training loss.

    `forgetting` (n,): how often each row was forgotten on the way (Toneva et al. 2019). Without steps it is NaN
    everywhere, and so is `train_nll`.
    """

    model: nn.Module
    steps: int
    tokens: int
    train_nll: float
    forgetting: np.ndarray


def batch_order(n: int, steps: int, batch_rows: int, seed: int) -> np.ndarray:
    """(steps, batch_rows) row numbers: epochs without replacement, each a named permutation."""
    needed = steps * batch_rows
    epochs = [generator(seed, "epoch", e).permutation(n) for e in range(-(-needed // n))]
    return np.concatenate(epochs)[:needed].reshape(steps, batch_rows)


def fit(
    spec: Proxy,
    reader: Reader,
    rows: Encoded,
    seed: int,
    steps: int | None = None,
    initial: nn.Module | None = None,
) -> Fitted:
    """A model trained on the rows: AdamW, linear warm-up and decay, gradients clipped at 1, no dropout.

    `seed` fixes initialisation and order; arms of one replicate share it. A copy of `initial`, or else a pretrained
    or fresh model, is where it starts; LoRA layers are trained alone. The loss of a batch is the mean over its
    response tokens. `train_nll` is the mean over the last tenth of the steps, in nats a token.
    """
    steps = spec.steps if steps is None else steps
    model = build_model(spec, reader, seed) if initial is None else deepcopy(initial)
    forgetting, tail = Forgetting(len(rows)), list[float]()
    if steps == 0:
        return Fitted(model.eval(), 0, 0, float("nan"), forgetting.counts())
    trained = _trained(model)
    optimiser = torch.optim.AdamW(
        trained, lr=spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    order = batch_order(len(rows), steps, spec.batch_rows, seed)
    warmup = max(1, min(WARMUP_STEPS, steps // 10))
    form = form_of(model) if isinstance(rows, TokenRows) else None
    part_tokens = None if reader.pretrained is None else _part_tokens(model)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = spec.learning_rate * min(1.0, (step + 1) / warmup) * (1 - step / steps)
        optimiser.zero_grad(set_to_none=True)
        loss, correct = _backward(model, rows.take(order[step]), form, part_tokens)
        forgetting.present(order[step], correct)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        if step >= int(0.9 * steps):
            tail.append(loss)
    tokens = int(rows.lengths()[order].sum())
    return Fitted(model.eval(), steps, tokens, float(np.mean(tail)), forgetting.counts())


def _trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes, each once; all others are frozen."""
    names = weights_of(model).keys()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return [p for p in model.parameters() if p.requires_grad]


def _part_tokens(model: nn.Module) -> int:
    head = output_layer(model)
    return PART_TOKENS if head is None else min(PART_TOKENS, max(1, PART_LOGITS // head.weight.shape[0]))


def _backward(
    model: nn.Module, batch: Encoded, form: LogitForm | None, part_tokens: int | None
) -> tuple[float, np.ndarray]:
    """Adds the gradient of the batch's mean loss; the loss, and which rows were correct. `part_tokens` bounds memory."""
    total = max(1, _answers(batch))
    loss, correct = 0.0, np.zeros(len(batch), dtype=bool)
    for index in [np.arange(len(batch))] if part_tokens is None else batches(batch, part_tokens):
        losses = row_losses(model, batch.take(index), form)
        some = losses.n_tokens > 0  # the others (refused, or nothing to predict) have no loss
        correct[index] = losses.correct.numpy()
        if some.any():
            part = (losses.nll[some] * (losses.n_tokens[some] / total)).sum()
            part.backward()
            loss += part.item()
    return loss, correct


def _answers(rows: Encoded) -> int:
    if isinstance(rows, TokenRows):
        return int(rows.target[:, 1:].sum())
    if isinstance(rows, LabelledTokens) and rows.y.ndim == 2:
        return int((rows.y >= 0).sum())
    return len(rows)
