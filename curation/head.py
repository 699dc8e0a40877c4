"""A classifier head on frozen sentence embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """embeddings (n, width) -> logits (n, classes), one hidden layer."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) -> (n, classes)."""
        return self.head(F.relu(self.up(x)))
