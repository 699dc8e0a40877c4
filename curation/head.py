"""A classifier head on frozen sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class EmbeddedRows:
    """Rows as embeddings: `x` (n, width) float32, `y` (n,) class numbers (-1: a label the head does not know)."""

    x: Tensor
    y: Tensor
    n_tokens: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Sequence[int] | np.ndarray | Tensor) -> EmbeddedRows:
        """The rows at `index`."""
        at = torch.as_tensor(np.asarray(index), dtype=torch.long)
        return EmbeddedRows(self.x[at], self.y[at], self.n_tokens[at])

    def lengths(self) -> np.ndarray:
        """Words of each row's text, (n,) int64."""
        return self.n_tokens.numpy()


class Head(nn.Module):
    """embeddings (n, width) -> logits (n, classes), one hidden layer."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) -> (n, classes)."""
        return self.head(F.relu(self.up(x)))
