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
# Batches of many shapes leave holes in the heap, shard after shard: a batch comes to be held so many times (measured).
HOLES, HOLES_A_SHAPE = 6.0, 0.13
TOUCHED = 60e6  # bytes of libraries that come into memory with the first batch and the first table (measured)
SAMPLE_OPERATIONS = 80e9  # of the batches measured, a second of one core; at most twice that
FIRST_OPERATIONS = 5e9  # of the rows that warm the process up before

Plan = list[tuple[np.ndarray, int, int, int]]


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


def batch_list(shape: Shape, lengths: Lengths, at: np.ndarray) -> Plan:
    """(rows of the sample, rows, padded tokens, answers) of every batch of a shard."""
    tokens, answers = lengths.tokens[at], lengths.answers[at]
    return [
        (at[part], len(part), padded(shape, tokens[part]), int(answers[part].sum()))
        for part in batch_sizes(shape, tokens)
    ]


def seconds_of(pace: Pace, shape: Shape, lengths: Lengths, at: np.ndarray) -> float:
    """Seconds of one core to score a shard."""
    plan = batch_list(shape, lengths, at)
    return pace.setup + pace.batch * shapes_of(plan) + pace.operation * operations_of(shape, plan)


def shapes_of(plan: Plan) -> int:
    """Batches of another shape than any before."""
    return len({(n, t) for _, n, t, _ in plan})


def operations_of(shape: Shape, plan: Plan) -> float:
    """Operations of all its batches."""
    return sum(work_of(shape, n, t, m).operations for _, n, t, m in plan)


def peak_bytes(pace: Pace, subject: Subject, lengths: Lengths, at: np.ndarray) -> float:
    """Bytes that scoring a shard takes at its peak: model, rows, their features, and the largest batch."""
    shape, d = subject.shape, subject.sketch.d
    plan = batch_list(shape, lengths, at)
    heap = min(HOLES, 1 + HOLES_A_SHAPE * shapes_of(plan) * max(1.0, lengths.rows / len(at)))
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
    """The engine's pace on one core, or on a GPU: rows of all lengths, first cold and then again for `seconds`.

    What a first, small batch takes longer when cold is the process's start; the others find all but their shapes warm.
    """
    shape, model = subject.sample_shape, subject.sample.to(device or "cpu")
    samples = sample_of(shape, lengths, shards_of(lengths, shard_rows)[0])
    first, plan = (batch_list(shape, lengths, at) for at in samples)
    parts = [subject.rows(lengths.tokens[at], lengths.answers[at]) for at in samples]
    last = plan[-1][0]
    longest = subject.rows(lengths.tokens[last], lengths.answers[last])
    one, sketch = longest.take([0]), subject.sketch
    begun, rounds = time.perf_counter(), list[list[float]]()
    with one_core():
        cold = [timed(model, part, sketch) for part in parts]
        timed(model, one, sketch)
        until = time.perf_counter() + seconds
        while not rounds or time.perf_counter() < until:
            rounds.append([timed(model, part, sketch) for part in (one, *parts)])
    with engine(model, longest, sketch) as tape:
        tape.begin(longest)
        kept = activation_bytes(model, to_device(longest, tape.device)) / (tape.n * tape.t)
    less, start, more = np.median(rounds, axis=0).tolist()
    operations = operations_of(shape, plan)
    alone = operations_of(shape, batch_list(shape, lengths, last[:1]))
    operation = more / operations
    if operations > 2 * alone:
        operation = max(0.5 * operation, (more - less) / (operations - alone))
    new = COMPILED * (len({(p.n_in, p.n_out, p.answers) for p in shape.products}) + 1)
    batch = float(np.clip((cold[1] - more) / shapes_of(plan), 0.0, new))
    return Pace(
        operation=operation,
        setup=max(0.0, less - operation * alone) * subject.depth,
        batch=batch,
        start=max(0.0, cold[0] - start - batch * shapes_of(first)),
        activations=kept * subject.depth,
        rows=len(samples[1]) * len(rounds),
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


def sample_of(shape: Shape, lengths: Lengths, at: np.ndarray) -> list[np.ndarray]:
    """Row numbers of a small batch, and of whole batches of all lengths; of very dear ones a part."""
    plan = batch_list(shape, lengths, at)
    mean = operations_of(shape, plan) / len(plan)
    count = int(np.clip(SAMPLE_OPERATIONS / mean, 2, max(2, len(plan))))
    spaced = [plan[int(i)] for i in (np.arange(count) + 0.5) * len(plan) / count]
    middle, n, *_ = plan[len(plan) // 2]
    first = middle[: max(1, int(n * FIRST_OPERATIONS / max(mean, FIRST_OPERATIONS)))]
    share = min(1.0, 2 * SAMPLE_OPERATIONS / operations_of(shape, spaced))
    return [first, np.concatenate([rows[: max(1, int(n * share))] for rows, n, _, _ in spaced])]


def timed(model: nn.Module, rows: Encoded, sketch: Sketch) -> float:
    """CPU seconds of this process to score the rows; on a GPU, seconds."""
    clock = time.process_time if next(model.parameters()).device.type == "cpu" else time.perf_counter
    start = clock()
    row_gradients(model, rows, sketch)  # its results lie on the CPU when it returns
    return clock() - start
