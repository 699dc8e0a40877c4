"""Small proxies for tests: a decoder on an embedded world, and a bare linear softmax."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from curation.encoded import EmbeddedRows, Encoded
from curation.proxies import Reader, encode, make_reader
from curation.score.gradients import RowGradients, Sketch, row_gradients
from curation.specs import Proxy
from curation.train.fit import fit
from curation.world import make_world, pool_records, solve

SPEC = Proxy(layers=2, width=32, heads=4, max_tokens=24, batch_rows=32, steps=60)


def world_frame(rows: int, index: int = 0) -> pl.DataFrame:
    """Clean rows of a world's pool."""
    pairs = []
    for line in pool_records(make_world(11, index), rows):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["response"] and solve(record["prompt"]) == record["response"]:
            pairs.append((record["prompt"], record["response"]))
    columns = {"row_id": [f"r{i}" for i in range(len(pairs))], "prompt": [p for p, _ in pairs]}
    return pl.DataFrame(
        {**columns, "response": [r for _, r in pairs]}, schema_overrides={"prompt": pl.String}
    )


def trained_decoder(rows: int = 96, spec: Proxy = SPEC) -> tuple[nn.Module, Encoded, Reader]:
    """A decoder after some steps on a world, frozen; the rows; the reader."""
    frame = world_frame(2 * rows).head(rows)
    reader = make_reader(spec, frame)
    encoded = encode(reader, frame)
    model = fit(spec, reader, encoded, seed=5).model.requires_grad_(False)
    return model, encoded, reader


class Linear(nn.Module):
    """Logits are W x: a softmax without bias or hidden layer, with the name that layers of heads have."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            self.head.weight.copy_(weight)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def linear_rows(x: np.ndarray, y: list[int]) -> EmbeddedRows:
    return EmbeddedRows(
        torch.as_tensor(x, dtype=torch.float32), torch.tensor(y), torch.ones(len(y), dtype=torch.long)
    )


def linear_gradients(weight: np.ndarray, x: np.ndarray, y: list[int]) -> RowGradients:
    """Gradients of a linear softmax, sketched to so many dimensions that the sketch only permutes and signs."""
    model = Linear(torch.as_tensor(weight, dtype=torch.float32))
    return row_gradients(model, linear_rows(x, y), Sketch(d=weight.size, fold_width=10**6, seed=3))
