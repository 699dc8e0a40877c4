"""How fast and in how much memory this machine scores: the engine itself, on a drawn model and rows of the corpus's lengths."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from curation.encoded import Encoded, to_device
from curation.randomness import generator
from curation.score.cost import (
    Shape,
    activation_bytes,
    batch_sizes,
    buffer_bytes,
    head_bytes,
    padded,
    work_of,
)
from curation.score.gradients import Sketch, engine, row_gradients
from flows.subject import Lengths, Subject

COMPILED = 0.01  # seconds at most to compile a layer's two products for a batch of a new shape
# Batches of many shapes leave holes in the heap: what a batch takes comes to be held so many times (measured).
HOLES, HOLES_A_SHAPE = 3.0, 0.13
TOUCHED = 35e6  # bytes of libraries that come into memory with the first batch (measured)
SAMPLE_OPERATIONS = 40e9  # of the rows that are measured, about a second of one core


@dataclass(frozen=True)
class Pace:
    """How fast and large the engine is here: seconds of one core for an operation of `work_of`, to begin a shard, for
    a batch of a new shape (its products are compiled), and to start in a process; `activations` are the bytes that
    one token keeps; `rows` were scored to know it, in `spent` seconds.
    """

    operation: float
    setup: float
    batch: float
    start: float
    activations: float
    rows: int
    spent: float


def shards_of(lengths: Lengths, shard_rows: int) -> list[np.ndarray]:
    """Row numbers of the sample, one array a shard, as many rows as the corpus has."""
    n = lengths.rows
    at = generator(1, "pace shards", n).integers(0, len(lengths.tokens), n)
    if n <= len(lengths.tokens):
        at = np.arange(n)
    return [at[start : start + shard_rows] for start in range(0, n, shard_rows)]


def batch_list(shape: Shape, lengths: Lengths, at: np.ndarray) -> list[tuple[np.ndarray, int, int, int]]:
    """(rows of the sample, rows, padded tokens, answers) of every batch of a shard."""
    tokens, answers = lengths.tokens[at], lengths.answers[at]
    return [
        (at[part], len(part), padded(shape, tokens[part]), int(answers[part].sum()))
        for part in batch_sizes(shape, tokens)
    ]


def seconds_of(pace: Pace, shape: Shape, lengths: Lengths, at: np.ndarray) -> float:
    """Seconds of one core to score a shard."""
    plan = batch_list(shape, lengths, at)
    works = [work_of(shape, n, t, m).operations for _, n, t, m in plan]
    return pace.setup + pace.batch * len({(n, t) for _, n, t, _ in plan}) + pace.operation * sum(works)


def peak_bytes(pace: Pace, subject: Subject, lengths: Lengths, at: np.ndarray) -> float:
    """Bytes that scoring a shard takes at its peak: model, rows, their features, and the largest batch."""
    shape, d = subject.shape, subject.sketch.d
    plan = batch_list(shape, lengths, at)
    heap = min(HOLES, 1 + HOLES_A_SHAPE * len({(n, t) for _, n, t, _ in plan}))
    batch = max(
        heap * (buffer_bytes(shape, n, t) + pace.activations * n * t) + head_bytes(shape, m)
        for _, n, t, m in plan
    )
    # Features in float32, scaled, checked and narrowed; ids and targets, and one batch of them.
    rows = len(at) * (15 * d + (4 * subject.width if shape.embedded else 9 * int(lengths.tokens[at].max())))
    return 4 * shape.parameters + batch + rows + TOUCHED


def measure(
    subject: Subject,
    lengths: Lengths,
    shard_rows: int = 4096,
    seconds: float = 2.0,
    device: torch.device | None = None,
) -> Pace:
    """The engine's pace on one core, or on a GPU: rows of all lengths, again and again for `seconds`."""
    shape, model = subject.sample_shape, subject.sample.to(device or "cpu")
    at = _some_rows(shape, lengths, shards_of(lengths, shard_rows)[0])
    plan = batch_list(shape, lengths, at)
    operations = sum(work_of(shape, n, t, m).operations for _, n, t, m in plan)
    rows = subject.rows(lengths.tokens[at], lengths.answers[at])
    longest = subject.rows(lengths.tokens[plan[-1][0]], lengths.answers[plan[-1][0]])
    one = longest.take([0])
    begun, setup, whole = time.perf_counter(), list[float](), list[float]()
    with one_core():
        start, cold = timed(model, one, subject.sketch), timed(model, rows, subject.sketch)
        while not whole or time.perf_counter() - begun < seconds:
            setup.append(timed(model, one, subject.sketch))
            whole.append(timed(model, rows, subject.sketch))
    with engine(model, longest, subject.sketch) as tape:
        tape.begin(longest)
        kept = activation_bytes(model, to_device(longest, tape.device)) / (tape.n * tape.t)
    n, t, m = 1, int(padded(shape, lengths.tokens[plan[-1][0][:1]])), int(lengths.answers[plan[-1][0][0]])
    alone = work_of(shape, n, t, m).operations
    kinds = {(p.n_in, p.n_out, p.answers) for p in shape.products}
    less, more = float(np.median(setup)), float(np.median(whole))
    if operations > 2 * alone:
        operation = max((more - less) / (operations - alone), 0.5 * more / operations)
    else:
        operation = more / operations
    return Pace(
        operation=operation,
        setup=max(0.0, less - operation * alone) * subject.depth,
        batch=float(np.clip((cold - more) / len(plan), 0.0, COMPILED * (len(kinds) + 1))),
        start=max(0.0, start - less),
        activations=kept * subject.depth,
        rows=len(at) * len(whole),
        spent=time.perf_counter() - begun,
    )


@contextmanager
def one_core() -> Generator[None]:
    """One thread, as a worker has; as many as before on leaving."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _some_rows(shape: Shape, lengths: Lengths, at: np.ndarray) -> np.ndarray:
    plan = batch_list(shape, lengths, at)
    works = [work_of(shape, n, t, m).operations for _, n, t, m in plan]
    if min(works) > SAMPLE_OPERATIONS:
        middle = len(plan) // 2
        return plan[middle][0][: max(1, int(plan[middle][1] * SAMPLE_OPERATIONS / works[middle]))]
    count = max(1, min(len(plan), int(SAMPLE_OPERATIONS / np.mean(works))))
    spaced = (np.arange(count) + 0.5) * len(plan) / count
    return np.concatenate([plan[int(i)][0] for i in spaced])


def timed(model: nn.Module, rows: Encoded, sketch: Sketch) -> float:
    """CPU seconds of this process to score the rows; on a GPU, seconds."""
    clock = time.process_time if next(model.parameters()).device.type == "cpu" else time.perf_counter
    start = clock()
    row_gradients(model, rows, sketch)  # its results lie on the CPU when it returns
    return clock() - start
