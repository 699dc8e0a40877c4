"""Random projections by signs and folds: linear, seeded by name, exact in expectation, no matrix product.

A stride fold adds entry k of a vector, with a random sign, to bucket k mod r; E<fold(u), fold(v)> = <u, v>
(a count sketch whose hash is a stride). Signs come from named Philox generators, so the projection is the same on
every device and needs no storage.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curation.randomness import generator


def signs(seed: int, name: str, size: int) -> Tensor:
    """(size,) float32 random signs of that name."""
    return torch.from_numpy(generator(seed, "sketch", name).integers(0, 2, size).astype(np.float32) * 2 - 1)


def fold_into(out: Tensor, x: Tensor, sign: Tensor, offset: int = 0, add: bool = False) -> None:
    """Writes (or adds) the fold of the last axis of x (..., n) to `out` (..., r): entry k to (offset + k) mod r."""
    r, n = out.shape[-1], x.shape[-1]
    x = x.to(out.dtype)
    written = r if add else 0
    if not add and n < r:
        out.zero_()
        written = r
    done = 0
    while done < n:
        at = (offset + done) % r
        width = min(r - at, n - done, r - written if written < r else n)
        part, scale = x[..., done : done + width], sign[done : done + width]
        if written < r:
            torch.mul(part, scale, out=out[..., at : at + width])
            written += width
        else:
            out[..., at : at + width].addcmul_(part, scale)
        done += width


class Flattening:
    """(n, p) -> (n, d): random signs, then every run of d entries rolled by its own offset and added."""

    def __init__(self, seed: int, name: str, size: int, d: int, device: torch.device) -> None:
        self.d = d
        self.sign = signs(seed, name + "/flat", size).to(device)
        self.rolls: list[int] = generator(seed, "rolls", name).integers(0, d, -(-size // d)).tolist()

    def add(self, out: Tensor, flat: Tensor) -> None:
        """Adds the sketch of `flat` (n, p) to `out` (n, d), both float32; `flat` is used up."""
        flat *= self.sign
        for k, roll in enumerate(self.rolls):
            run = flat[:, k * self.d : (k + 1) * self.d]
            first = min(run.shape[1], self.d - roll)
            out[:, roll : roll + first] += run[:, :first]
            out[:, : run.shape[1] - first] += run[:, first:]
