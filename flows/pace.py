"""How fast and in how much memory this machine scores: the engine itself, on a drawn model of the proxy's shape.

No weights are read: a model of the same shape, with fewer layers and words when it is large, scores synthetic rows
whose lengths are the corpus's.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from curation.decoder import Decoder, initialise
from curation.encoded import EmbeddedRows, Encoded, LabelledTokens, TokenRows, to_device
from curation.errors import UserError
from curation.head import Head
from curation.proxies import Reader
from curation.randomness import generator
from curation.score.cost import Shape, activation_bytes, batch_sizes, buffer_bytes, padded, shape_of, work_of
from curation.score.gradients import Sketch, engine, row_gradients, sketch_of
from curation.specs import Proxy

SAMPLE_PARAMETERS = 20_000_000  # of the blocks of the model that is measured
SAMPLE_VOCABULARY = 16_384
HEAP = 2.6  # a batch's bytes that a worker comes to hold: batches of many shapes leave holes in the heap (measured)
SAMPLE_OPERATIONS = 40e9  # of the rows that are measured, about a second of one core


@dataclass(frozen=True)
class Lengths:
    """What the corpus looks like to a model: (n,) int64 tokens and predicted tokens of sampled rows, and its names.

    `rows` is how many rows the sample stands for; `names` how many words or classes the model is given.
    """

    tokens: np.ndarray
    answers: np.ndarray
    rows: int
    names: int


@dataclass(frozen=True)
class Subject:
    """The proxy's own shape; a model of it, or of fewer layers and words, with its shape; how rows are drawn for it."""

    shape: Shape
    sample: nn.Module
    sample_shape: Shape
    sketch: Sketch
    depth: float
    width: int
    rows: Callable[[np.ndarray, np.ndarray], Encoded]


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


def subject_of(proxy: Proxy, lengths: Lengths, encoder_width: int, seed: int = 0) -> Subject:
    """The model that a recipe's proxy would score with, as a shape and as a drawn sample of it."""
    sketch = sketch_of(proxy, seed)
    names = lengths.names
    if proxy.kind == "decoder":
        model: nn.Module = Decoder(names, proxy.max_tokens, proxy.layers, proxy.width, proxy.heads)
        shape = shape_of(model, sketch, proxy.layers * proxy.width)
        return Subject(
            shape,
            initialise(model, 1),
            shape,
            sketch,
            1.0,
            proxy.width,
            lambda t, a: _token_rows(t, a, names),
        )
    if proxy.kind == "head":
        model = Head(encoder_width, proxy.width, names)
        shape = shape_of(model, sketch, 0, embedded=True)
        return Subject(
            shape,
            initialise(model, 1),
            shape,
            sketch,
            1.0,
            encoder_width,
            lambda t, a: _embedded(t, encoder_width, names),
        )
    return _hub_subject(proxy, sketch, names)


def _hub_subject(proxy: Proxy, sketch: Sketch, names: int) -> Subject:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from storage.model_files import base_of, model_folder, read_config

    name = proxy.encoder if proxy.kind == "encoder" else proxy.model
    if not name:
        raise UserError(
            f'[proxy] kind = "{proxy.kind}" needs a model: set [proxy] model = "folder or hub name"'
        )
    folder = model_folder(name, weights=False)
    if (folder / "adapter_config.json").exists():
        folder = model_folder(base_of(folder), weights=False)
    config: Any = read_config(name, folder)
    causal = proxy.kind == "causal_lm"
    kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    if not causal:
        config.num_labels = max(2, names)
        config.pad_token_id = config.pad_token_id or 0
    hidden = sketch if sketch.parameters != "lora" else dataclasses.replace(sketch, parameters="hidden")
    with torch.device("meta"):
        shape = shape_of(kind.from_config(config), hidden, _attention(config))
    text, layers = config.get_text_config(), config.get_text_config().num_hidden_layers
    blocks = sum(p.n_in * p.n_out for p in shape.products)
    kept = int(np.clip(SAMPLE_PARAMETERS * layers // max(1, blocks), 1, layers))
    text.num_hidden_layers = kept
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:kept]
    text.vocab_size = words = min(text.vocab_size, SAMPLE_VOCABULARY)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (getattr(text, token, None) or 0) >= words:
            setattr(text, token, 0)
    sample = _drawn(kind, config)
    rows = _token_rows if causal else _labelled
    return Subject(
        shape,
        sample,
        shape_of(sample, hidden, _attention(config)),
        hidden,
        layers / kept,
        text.hidden_size,
        lambda t, a: rows(t, a, words),
    )


def _attention(config: Any) -> int:
    text = config.get_text_config()
    each = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return text.num_hidden_layers * text.num_attention_heads * each


def _drawn(kind: Any, config: Any) -> nn.Module:
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = kind.from_config(config).eval()
    model.tie_weights()
    values = torch.from_numpy(generator(1, "pace").standard_normal(1 << 16, dtype=np.float32))
    with torch.no_grad():
        for p in model.parameters():
            scale = p.shape[1] ** -0.5 if p.ndim > 1 else 0.02
            p.copy_((values.repeat(-(-p.numel() // len(values)))[: p.numel()] * scale).view(p.shape))
            if p.ndim == 1:
                p.add_(1.0)
    return model


def _token_rows(tokens: np.ndarray, answers: np.ndarray, words: int) -> TokenRows:
    n, t = len(tokens), max(2, int(tokens.max()))
    ids = generator(1, "pace ids", n, t).integers(4 if words > 8 else 0, words, (n, t))
    at = np.arange(t)
    target = (at >= (tokens - answers)[:, None]) & (at < tokens[:, None]) & (at > 0)
    return TokenRows(
        torch.from_numpy(ids), torch.from_numpy(target), torch.from_numpy(tokens.astype(np.int64))
    )


def _labelled(tokens: np.ndarray, answers: np.ndarray, words: int) -> LabelledTokens:
    ids = generator(1, "pace ids", len(tokens)).integers(4, words, (len(tokens), int(tokens.max())))
    length = torch.from_numpy(tokens.astype(np.int64))
    return LabelledTokens(torch.from_numpy(ids), length, torch.zeros(len(tokens), dtype=torch.long))


def _embedded(tokens: np.ndarray, width: int, classes: int) -> EmbeddedRows:
    rng = generator(1, "pace rows", len(tokens))
    x = torch.from_numpy(rng.standard_normal((len(tokens), width), dtype=np.float32))
    y = torch.from_numpy(rng.integers(0, classes, len(tokens)))
    return EmbeddedRows(x, y, torch.from_numpy(tokens.astype(np.int64)))


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
    batch = max(buffer_bytes(shape, n, t, m) + pace.activations * n * t for _, n, t, m in plan)
    # Features in float32, scaled, checked and narrowed; ids and targets, and one batch of them.
    rows = len(at) * (15 * d + (4 * subject.width if shape.embedded else 9 * int(lengths.tokens[at].max())))
    return 4 * shape.parameters + HEAP * batch + rows


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
    less, more = float(np.median(setup)), float(np.median(whole))
    if operations > 2 * alone:
        operation = max((more - less) / (operations - alone), 0.5 * more / operations)
    else:
        operation = more / operations
    return Pace(
        operation=operation,
        setup=max(0.0, less - operation * alone) * subject.depth,
        batch=max(0.0, cold - more) / len(plan),
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


def reader_of(proxy: Proxy, lengths: Lengths, encoder_width: int) -> Reader:
    """A reader with as many words or classes as the sample has, to build and train models that are not pretrained."""
    names = tuple(str(i) for i in range(lengths.names))
    return Reader(proxy.kind, names, proxy.max_tokens, proxy.embedding_scale, encoder_width)
