"""The two kinds of proxy behind one small interface: encode rows, build a model, ask it for its losses.

`decoder` predicts a row's response from its prompt; `head` classifies frozen sentence embeddings. Scoring,
training and evaluation use only the functions here, so a further kind is one more branch in this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.decoder import UNKNOWN, Decoder, build_vocabulary, encode_rows, initialise, words_of
from curation.encoded import EmbeddedRows, Encoded, TokenRows
from curation.errors import UserError
from curation.head import Head
from curation.specs import Proxy

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Reader:
    """How rows become tensors: the word vocabulary of the pool (decoder) or its class list (head)."""

    kind: str
    names: tuple[str, ...]
    max_tokens: int
    embedding_scale: float
    width: int = 0


@dataclass(frozen=True)
class RowLosses:
    """What one forward says of each row: (n,) tensors.

    `nll` is the mean negative log likelihood in nats over the row's response tokens, `el2n` the mean norm of
    softmax - onehot (Paul et al. 2021), `correct` whether every token is the most likely one.
    """

    nll: Tensor
    el2n: Tensor
    correct: Tensor
    n_tokens: Tensor


def make_reader(spec: Proxy, pool: pl.DataFrame, width: int = 0) -> Reader:
    """The reader of a pool, shared by all arms and rounds; `width` is the embeddings' (head only)."""
    if spec.kind == "decoder":
        texts = (f"{p} {r}" for p, r in pool.select("prompt", "response").iter_rows())
        names = tuple(build_vocabulary(texts, spec.max_vocabulary))
    else:
        names = tuple(sorted(pool["label"].drop_nulls().unique()))
        if len(names) < 2:
            raise UserError(
                f'[proxy] kind = "head" classifies labels, but the pool has {len(names)} of them. '
                'Map the label with fields = {label = "..."}, or use kind = "decoder".'
            )
    return Reader(spec.kind, names, spec.max_tokens, spec.embedding_scale, width)


def encode(
    reader: Reader,
    frame: pl.DataFrame,
    embeddings: Mapping[str, np.ndarray] | None = None,
    key: str = "row_id",
) -> Encoded:
    """A frame with prompt, response, label (and `key`, to find its embeddings) as tensors, in its order."""
    ids = {name: i for i, name in enumerate(reader.names)}
    if reader.kind == "decoder":
        return encode_rows(frame["prompt"].to_list(), frame["response"].to_list(), ids, reader.max_tokens)
    assert embeddings is not None
    x = np.stack([embeddings[k] for k in frame[key]]) if len(frame) else np.zeros((0, reader.width))
    y = [ids.get(label, -1) for label in frame["label"].fill_null("").to_list()]
    n_tokens = [len(words_of(p)) for p in frame["prompt"].to_list()]
    return EmbeddedRows(
        torch.from_numpy(x.astype(np.float32)) * reader.embedding_scale,
        torch.tensor(y, dtype=torch.long),
        torch.tensor(n_tokens, dtype=torch.long),
    )


def token_counts(spec: Proxy, frame: pl.DataFrame) -> np.ndarray:
    """Tokens that training on each row costs, (n,) int64; the unit of budgets."""
    if spec.kind == "head":
        return np.array([len(words_of(p)) for p in frame["prompt"].to_list()], dtype=np.int64)
    counts = [
        len(words_of(p)) + len(words_of(r)) + 2 for p, r in frame.select("prompt", "response").iter_rows()
    ]
    return np.minimum(np.array(counts, dtype=np.int64), spec.max_tokens)


def build_model(spec: Proxy, reader: Reader, seed: int) -> nn.Module:
    """A fresh model; the same seed gives the same weights."""
    if reader.kind == "decoder":
        model: nn.Module = Decoder(len(reader.names), spec.max_tokens, spec.layers, spec.width, spec.heads)
    else:
        model = Head(reader.width, spec.width, len(reader.names))
    return initialise(model, seed)


def _token_losses(logits: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = F.log_softmax(logits, dim=-1)
    nll = -log_p.gather(1, answers.clamp(min=0)[:, None])[:, 0]
    with torch.no_grad():
        p = log_p.exp()
        p_answer = p.gather(1, answers.clamp(min=0)[:, None])[:, 0]
        el2n = ((p * p).sum(1) - p_answer**2 + (1 - p_answer) ** 2).clamp(min=0).sqrt()
        correct = logits.argmax(1) == answers
    return nll, el2n, correct


def row_losses(model: nn.Module, rows: Encoded) -> RowLosses:
    """Losses of a batch, differentiable through `nll`; prompts are masked, each row is its own mean.

    A row whose label the head does not know has no gradient and is not correct; nor is an unknown word.
    """
    if isinstance(rows, EmbeddedRows):
        logits, answers, row = model(rows.x), rows.y, torch.arange(len(rows))
        nll, el2n, correct = _token_losses(logits, answers)
        nll = torch.where(answers >= 0, nll, nll.detach())
    else:
        logits, answers, row = model.target_logits(rows)  # type: ignore[operator]
        nll, el2n, correct = _token_losses(logits, answers)
        correct &= answers != UNKNOWN
    count = torch.bincount(row, minlength=len(rows)).to(nll.dtype)
    zero = torch.zeros(len(rows), dtype=nll.dtype)
    wrong = torch.zeros(len(rows)).index_add(0, row, (~correct).float())
    return RowLosses(
        zero.index_add(0, row, nll) / count,
        zero.index_add(0, row, el2n) / count,
        wrong == 0,
        count.long(),
    )


def batches(rows: Encoded, max_tokens: int = BATCH_TOKENS) -> Iterator[np.ndarray]:
    """Index arrays that cover the rows once, shortest first, each within a padded token budget."""
    lengths = np.ones(len(rows), dtype=np.int64) if isinstance(rows, EmbeddedRows) else rows.lengths()
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or (stop + 1 - start) * lengths[order[stop]] > max_tokens
        if full:
            yield order[start:stop]
            start = stop


def predict(model: nn.Module, rows: Encoded) -> dict[str, np.ndarray]:
    """Per-row outcomes without gradients: `correct` bool, `p_correct` (geometric mean per token), `nll`, `el2n`.

    An answer with a word or label that the reader does not know is never correct; its `p_correct` is 0.
    """
    out = {k: np.zeros(len(rows)) for k in ("nll", "el2n", "correct")}
    with torch.no_grad():
        for index in batches(rows):
            losses = row_losses(model, rows.take(index))
            for name in out:
                out[name][index] = getattr(losses, name).double().numpy()
    if isinstance(rows, TokenRows):
        known = ~(rows.target & (rows.ids == UNKNOWN)).any(1).numpy()
    else:
        known = (rows.y >= 0).numpy()
    return {
        "correct": out["correct"].astype(bool) & known,
        "p_correct": np.where(known, np.exp(-out["nll"]), 0.0),
        "nll": out["nll"],
        "el2n": out["el2n"],
    }


def layers_of(model: nn.Module, parameters: str) -> dict[str, nn.Linear]:
    """The linear layers whose gradients are the features, by name: all, or all but the output head."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    keep_head = parameters == "all" or isinstance(model, Head)
    return {n: m for n, m in found.items() if keep_head or n != "head"}


def frozen_copy(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model with these weights, in eval mode and without gradients."""
    model.load_state_dict(dict(tensors))
    return model.eval().requires_grad_(False)
