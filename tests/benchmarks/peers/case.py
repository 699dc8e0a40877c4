"""What every competitor is given (a model, rows, batches) and what it gives back."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from curation.encoded import LabelledTokens, TokenRows

HEADS = ("lm_head", "head", "classifier", "score")


@dataclass(frozen=True)
class Case:
    """A model in eval mode, its rows, their kinds of text, and the batches that all competitors share."""

    name: str
    model: nn.Module
    rows: TokenRows | LabelledTokens
    kinds: np.ndarray
    max_batch_tokens: int

    @property
    def layers(self) -> list[str]:
        """Names of the hidden linear layers: all but the head. Their weights are what the features are of."""
        return [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and name.split(".")[-1] not in HEADS
        ]

    @property
    def size(self) -> int:
        """Numbers in one row's exact gradient."""
        return sum(self.model.get_submodule(name).weight.numel() for name in self.layers)

    @property
    def width(self) -> int:
        """Entries of a token's hidden state."""
        first = self.model.get_submodule(self.layers[0])
        return first.in_features if isinstance(first, nn.Linear) else first.weight.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens of all rows, padding left out."""
        return int(self.rows.lengths().sum())

    @property
    def causal(self) -> bool:
        """Whether rows are predicted token by token (else they have one class each)."""
        return isinstance(self.rows, TokenRows)

    @property
    def hugging_face(self) -> bool:
        """Whether the model is one of transformers (the embedded decoder is not)."""
        return hasattr(self.model, "base_model")

    def copy(self, precision: str = "fp32") -> nn.Module:
        """The model for one competitor alone, all weights frozen."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        return model.bfloat16() if precision == "bf16" else model

    def batches(self, max_rows: int = 10**9) -> Iterator[np.ndarray]:
        """Index arrays that cover the rows once, shortest first, each within the padded token budget."""
        lengths = self.rows.lengths()
        order = np.argsort(lengths, kind="stable")
        start = 0
        for stop in range(1, len(order) + 1):
            rows = stop + 1 - start
            if stop == len(order) or rows > max_rows or rows * lengths[order[stop]] > self.max_batch_tokens:
                yield order[start:stop]
                start = stop


@dataclass(frozen=True)
class Outcome:
    """What one run gave: features (n, d) of all rows or none, bytes that it keeps a row, and a remark.

    A competitor too slow for all rows runs a part and says what the whole would have cost: (CPU, wall) `seconds`.
    """

    feature: np.ndarray | None
    bytes_a_row: float
    remark: str = ""
    seconds: tuple[float, float] | None = None


Run = Callable[[], Outcome]


def row_weights(rows: TokenRows) -> Tensor:
    """(n, T-1) float32: what each prediction counts, so that every row's weights add to 1."""
    target = rows.target[:, 1:].float()
    return target / target.sum(1, keepdim=True)


def causal_loss(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The sum over rows of each row's mean cross-entropy; logits (n, T, V), ids (n, T), weights (n, T-1)."""
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (nll * weights.flatten()).sum()


def inputs_of(case: Case, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """A batch as (ids, what the loss needs beside them): weights of tokens, or classes."""
    part = case.rows.take(index)
    return part.ids, row_weights(part) if isinstance(part, TokenRows) else part.y


def seen(ids: Tensor) -> Tensor:
    """(n, 1, T, T) bool: which tokens a classifier's attention sees. Whole, for vmap can't look into a short one."""
    return (ids != 0)[:, None, None, :].expand(-1, 1, ids.shape[1], -1)


def logits_of(case: Case, model: nn.Module, ids: Tensor) -> Tensor:
    """What the stock model says of a batch; a mask only where tokens see those to their right."""
    if not case.hugging_face:
        return model.head(model(ids))
    if case.causal:
        return model(input_ids=ids, use_cache=False).logits
    return model(input_ids=ids, attention_mask=seen(ids)).logits


def batch_loss(case: Case, model: nn.Module, ids: Tensor, other: Tensor) -> Tensor:
    """The sum of the rows' losses by the stock model call."""
    logits = logits_of(case, model, ids)
    return causal_loss(logits, ids, other) if case.causal else F.cross_entropy(logits, other, reduction="sum")


class Watch:
    """CPU and wall seconds since it was made."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def read(self) -> np.ndarray:
        """(CPU, wall) seconds."""
        return np.array([time.process_time() - self.cpu, time.perf_counter() - self.wall])


def full_precision(tensor: Tensor) -> np.ndarray:
    """The tensor as a float32 array."""
    return tensor.detach().to(torch.float32).numpy()
