"""Rows as tensors: what a proxy reads. All kinds have `len`, `take` and `lengths`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

Index = Sequence[int] | np.ndarray | Tensor


def _at(index: Index) -> Tensor:
    return torch.as_tensor(np.asarray(index), dtype=torch.long)


@dataclass(frozen=True)
class TokenRows:
    """Rows for a causal language model: `ids` (n, T) int64 padded on the right, `length` (n,) int64 tokens.

    `target[i, t]`, (n, T) bool, says that token t is predicted (from the tokens before it) and counts in the loss.
    """

    ids: Tensor
    target: Tensor
    length: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Index) -> TokenRows:
        """The rows at `index`, cut to the longest of them."""
        at = _at(index)
        width = max(2, int(self.length[at].max())) if len(at) else 2
        return TokenRows(self.ids[at, :width], self.target[at, :width], self.length[at])

    def lengths(self) -> np.ndarray:
        """Tokens of each row, (n,) int64."""
        return self.length.numpy()


@dataclass(frozen=True)
class LabelledTokens:
    """Rows for a classifier: `ids` (n, T) int64 padded on the right, `length` (n,) int64 tokens, classes `y`.

    `y` is (n,) for a sequence classifier and (n, T) for a token classifier; -1: no class here that it knows.
    """

    ids: Tensor
    length: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Index) -> LabelledTokens:
        """The rows at `index`, cut to the longest of them."""
        at = _at(index)
        width = max(1, int(self.length[at].max())) if len(at) else 1
        y = self.y[at]
        return LabelledTokens(self.ids[at, :width], self.length[at], y[:, :width] if y.ndim == 2 else y)

    def lengths(self) -> np.ndarray:
        """Tokens of each row, (n,) int64."""
        return self.length.numpy()


@dataclass(frozen=True)
class EmbeddedRows:
    """Rows as embeddings: `x` (n, width) float32, `y` (n,) class numbers (-1: a label the head does not know)."""

    x: Tensor
    y: Tensor
    n_tokens: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Index) -> EmbeddedRows:
        """The rows at `index`."""
        at = _at(index)
        return EmbeddedRows(self.x[at], self.y[at], self.n_tokens[at])

    def lengths(self) -> np.ndarray:
        """Words of each row's text, (n,) int64."""
        return self.n_tokens.numpy()


Encoded = TokenRows | LabelledTokens | EmbeddedRows


def to_device(rows: Encoded, device: torch.device) -> Encoded:
    """The same rows with their tensors on that device."""
    if device.type == "cpu":
        return rows
    moved = {f.name: getattr(rows, f.name).to(device, non_blocking=True) for f in fields(rows)}
    return replace(rows, **moved)
