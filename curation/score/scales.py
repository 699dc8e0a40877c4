"""Per-module scaling: which factor gives every module's gradient the same root mean square length."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from curation.encoded import Encoded
from curation.score.gradients import Sketch, engine, run_batch
from curation.score.tape import Tape


def module_energies(model: nn.Module, rows: Encoded, sketch: Sketch) -> dict[str, float]:
    """Parameter name -> mean squared length of the rows' gradient with respect to it, unscaled (matrices only).

    Estimated from folded pairs, so exact up to the fold; a few hundred rows are enough. It says where the gradient
    lives: with a tied head most of it is the head's. Rows whose gradient is not finite count as zero.
    """
    total: dict[str, float] = {}
    with engine(model, rows, sketch, alone=True) as tape:
        for index in _batches(rows):
            run_batch(model, rows.take(index), tape)
            for name, square in _squares(tape):
                total[name] = total.get(name, 0.0) + square
    return {name: value / len(rows) for name, value in total.items()}


def module_scales(model: nn.Module, rows: Encoded, sketch: Sketch) -> tuple[tuple[str, float], ...]:
    """(parameter, factor) that brings each module's gradient to the same root mean square length over these rows.

    A module without any gradient keeps its factor of 1. Put it into `Sketch.scales`.
    """
    energies = module_energies(model, rows, sketch)
    return tuple(
        (name, float(np.float32(1 / np.sqrt(value))) if value > 0 else 1.0)
        for name, value in sorted(energies.items())
    )


def _batches(rows: Encoded, size: int = 16) -> Iterable[np.ndarray]:
    order = np.argsort(rows.lengths(), kind="stable")
    return (order[start : start + size] for start in range(0, len(order), size))


def _squares(tape: Tape) -> Iterable[tuple[str, float]]:
    for name, spot in tape.places():
        a, e = spot.pairs.a[:, spot.place].float(), spot.pairs.e[:, spot.place].float()
        square = torch.bmm(e.transpose(1, 2), a).square().sum((1, 2))
        yield name, float(square[square.isfinite()].sum())
