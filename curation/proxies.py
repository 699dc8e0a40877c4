"""The kinds of proxy behind one small interface: encode rows, build a model, ask it for its losses.

`decoder` and `causal_lm` predict a row's response from its prompt; `head`, `classifier` and `encoder` give it a
label. Scoring, training and evaluation use only the functions here, so a further kind is one more branch in this
file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.checkpoint import EncoderWithHead, draw, logit_form
from curation.decoder import UNKNOWN, Decoder, build_vocabulary, encode_rows, initialise, words_of
from curation.encoded import EmbeddedRows, Encoded, LabelledTokens, TokenRows
from curation.errors import DataError, UserError
from curation.head import Head
from curation.losses import AnswerLosses, LogitForm, Readout, answer_losses
from curation.pretrained import (
    Pretrained,
    TooLong,
    class_lengths,
    encode_causal,
    encode_classes,
    token_lengths,
)
from curation.specs import Proxy
from curation.tokens import Notes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Reader:
    """How rows become tensors: the pool's words (decoder) or classes, and a pretrained model's tokenizer."""

    kind: str
    names: tuple[str, ...]
    max_tokens: int
    embedding_scale: float
    width: int = 0
    pretrained: Pretrained | None = None
    too_long: TooLong = "truncate"
    chat_template: bool = True
    separator: str = "\n"


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


def make_reader(
    spec: Proxy, pool: pl.DataFrame, width: int = 0, pretrained: Pretrained | None = None
) -> Reader:
    """The reader of a pool, shared by all arms and rounds; `width` is the embeddings' (head only).

    A classifier whose own classes hold all labels of the pool keeps its trained head, and their order.
    """
    if spec.kind == "decoder":
        texts = (f"{p} {r}" for p, r in pool.select("prompt", "response").iter_rows())
        names = tuple(build_vocabulary(texts, spec.max_vocabulary))
    elif spec.classifies:
        names = _classes(spec, pool, pretrained.classes if pretrained else ())
    else:
        names = ()
    return Reader(
        spec.kind,
        names,
        spec.max_tokens,
        spec.embedding_scale,
        width,
        pretrained,
        spec.too_long,
        spec.chat_template,
        spec.separator,
    )


def _classes(spec: Proxy, pool: pl.DataFrame, own: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(sorted(pool["label"].drop_nulls().unique()))
    if len(names) < 2:
        raise UserError(
            f'[proxy] kind = "{spec.kind}" classifies labels, but the pool has {len(names)} of them. '
            'Map the label with fields = {label = "..."}, or use kind = "decoder" or "causal_lm".'
        )
    if set(names) <= set(own):
        return own
    if spec.scorer_steps == 0:
        raise UserError(
            f"[proxy] scorer_steps = 0 would take gradients of an untrained head: the model's own classes "
            f"({', '.join(own[:5]) or 'none'}) are not the {len(names)} labels of the pool ({', '.join(names[:5])}); "
            "set scorer_steps to 1 or more"
        )
    return names


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
    if reader.pretrained is not None:
        return _encode_pretrained(reader, reader.pretrained, frame)[0]
    assert embeddings is not None
    x = np.stack([embeddings[k] for k in frame[key]]) if len(frame) else np.zeros((0, reader.width))
    y = [ids.get(label, -1) for label in frame["label"].fill_null("").to_list()]
    n_tokens = [len(words_of(p)) for p in frame["prompt"].to_list()]
    return EmbeddedRows(
        torch.from_numpy(x.astype(np.float32)) * reader.embedding_scale,
        torch.tensor(y, dtype=torch.long),
        torch.tensor(n_tokens, dtype=torch.long),
    )


def _encode_pretrained(reader: Reader, model: Pretrained, frame: pl.DataFrame) -> tuple[Encoded, Notes]:
    prompts, most = frame["prompt"].to_list(), reader.max_tokens
    if reader.kind == "causal_lm":
        responses = frame["response"].to_list()
        layout = (reader.too_long, reader.chat_template, reader.separator)
        return encode_causal(model.tokenizer, prompts, responses, most, *layout)
    ids = {name: i for i, name in enumerate(reader.names)}
    y = [ids.get(label, -1) for label in frame["label"].fill_null("").to_list()]
    return encode_classes(model.tokenizer, prompts, y, most, reader.too_long, model.pad)


def notes_of(reader: Reader, frame: pl.DataFrame) -> Notes:
    """What encoding does to each row: cut, refused, or nothing to predict; none of it for kind `head`."""
    if reader.pretrained is not None:
        return _encode_pretrained(reader, reader.pretrained, frame)[1]
    x = np.array([len(words_of(p)) for p in frame["prompt"].to_list()], dtype=np.int64)
    no = np.zeros(len(frame), dtype=bool)
    if reader.kind == "head":
        return Notes(x, no, no, no, no)
    y = np.array([len(words_of(r)) for r in frame["response"].to_list()], dtype=np.int64)
    room = reader.max_tokens - 2  # one for the separator, one for the end
    return Notes(x + y + 2, x > room - np.minimum(y, room), y > room, no, no)


def token_counts(
    spec: Proxy, frame: pl.DataFrame, tokenizer: PreTrainedTokenizerBase | None = None
) -> np.ndarray:
    """Tokens that training on each row costs, (n,) int64; the unit of budgets. A row that is refused costs 0."""
    prompts = frame["prompt"].to_list()
    if tokenizer is not None:
        if spec.kind == "causal_lm":
            layout = (spec.too_long, spec.chat_template, spec.separator)
            return token_lengths(tokenizer, prompts, frame["response"].to_list(), spec.max_tokens, *layout)
        return class_lengths(tokenizer, prompts, spec.max_tokens, spec.too_long)
    if spec.kind == "head":
        return np.array([len(words_of(p)) for p in prompts], dtype=np.int64)
    pairs = zip(prompts, frame["response"].to_list(), strict=True)
    counts = [len(words_of(p)) + len(words_of(r)) + 2 for p, r in pairs]
    return np.minimum(np.array(counts, dtype=np.int64), spec.max_tokens)


def build_model(spec: Proxy, reader: Reader, seed: int) -> nn.Module:
    """A model as training starts from it: fresh or pretrained; the same seed gives the same weights."""
    if reader.pretrained is not None:
        model, untrained = reader.pretrained.load(reader.names)
        if reader.kind == "encoder":
            head = Head(model.config.hidden_size, spec.width, len(reader.names))  # type: ignore[union-attr,arg-type]
            initialise(head, seed)
            return EncoderWithHead(model, head, spec.embedding_scale)
        return draw(model, untrained, seed)
    if reader.kind == "decoder":
        model: nn.Module = Decoder(len(reader.names), spec.max_tokens, spec.layers, spec.width, spec.heads)
    else:
        model = Head(reader.width, spec.width, len(reader.names))
    return initialise(model, seed)


def readout(model: nn.Module, rows: Encoded, form: LogitForm | None = None) -> Readout:
    """The end of the model's forward pass over a batch: states, answers and output layer; nothing is reduced.

    Any Hugging Face causal model or classifier will do; causal models see no mask, since rows are padded on the
    right. `form` saves asking a causal model for its `form_of` again.
    """
    if isinstance(rows, EmbeddedRows):
        return Readout(model(rows.x), rows.y, torch.arange(len(rows), device=rows.y.device))
    if isinstance(rows, LabelledTokens):
        t = rows.ids.shape[1]
        mask = torch.arange(t, device=rows.ids.device) < rows.length[:, None]
        logits = model(input_ids=rows.ids, attention_mask=mask.long()).logits
        if rows.y.ndim == 1:
            return Readout(logits, rows.y, torch.arange(len(rows), device=rows.y.device))
        row, at = (rows.y >= 0).nonzero(as_tuple=True)
        return Readout(logits[row, at], rows.y[row, at], row)
    row, at = rows.target[:, 1:].nonzero(as_tuple=True)
    answers = rows.ids[row, at + 1]
    if isinstance(model, Decoder):
        return Readout(model(rows.ids[:, :-1], only=(row, at)), answers, row, model.head)
    states = model.base_model(input_ids=rows.ids[:, :-1], use_cache=False).last_hidden_state  # type: ignore[operator,union-attr]
    return Readout(states[row, at], answers, row, output_layer(model), form or form_of(model))


def output_layer(model: nn.Module) -> nn.Linear | None:
    """The layer from hidden states to the logits of a language model; None for a classifier."""
    if isinstance(model, Decoder):
        return model.head
    find = getattr(model, "get_output_embeddings", None)
    return find() if callable(find) else None  # type: ignore[return-value]


def form_of(model: nn.Module) -> LogitForm:
    """How the model's logits come from its output layer; `UserError` when something lies between."""
    return logit_form(model) if callable(getattr(model, "get_output_embeddings", None)) else LogitForm()


def row_losses(model: nn.Module, rows: Encoded, form: LogitForm | None = None) -> RowLosses:
    """Losses of a batch, differentiable through `nll`; prompts are masked, each row is its own mean.

    A row whose label the head does not know has no gradient and is not correct; nor is an unknown word.
    """
    out = readout(model, rows, form)
    log_p = F.log_softmax(out.logits(), dim=-1)
    answers = out.answers.clamp(min=0)[:, None]
    nll = -log_p.gather(1, answers)[:, 0]
    with torch.no_grad():
        p = log_p.exp()
        p_answer = p.gather(1, answers)[:, 0]
        el2n = ((p * p).sum(1) - p_answer**2 + (1 - p_answer) ** 2).clamp(min=0).sqrt()
        correct = log_p.argmax(1) == out.answers
    nll = torch.where(out.answers >= 0, nll, nll.detach())
    return by_row(model, out, AnswerLosses(nll, el2n, correct), len(rows))


def by_row(model: nn.Module, out: Readout, found: AnswerLosses, n: int) -> RowLosses:
    """Losses of answers as means of their rows; a row without an answer that the model knows has NaN."""
    right = found.correct & (out.answers != UNKNOWN) if isinstance(model, Decoder) else found.correct
    count = torch.bincount(out.row, minlength=n)
    zero = torch.zeros(n, device=out.row.device)
    wrong = zero.index_add(0, out.row, (~right).float())
    return RowLosses(
        zero.index_add(0, out.row, found.nll) / count,
        zero.index_add(0, out.row, found.el2n) / count,
        (wrong == 0) & (count > 0),
        count,
    )


def batches(
    rows: Encoded, max_tokens: int = BATCH_TOKENS, max_rows: int | None = None
) -> Iterator[np.ndarray]:
    """Index arrays that cover the rows once, shortest first, each within a padded token budget and so many rows."""
    lengths = np.ones(len(rows), dtype=np.int64) if isinstance(rows, EmbeddedRows) else rows.lengths()
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or (stop + 1 - start) * lengths[order[stop]] > max_tokens
        if full or stop - start == max_rows:
            yield order[start:stop]
            start = stop


def predict(model: nn.Module, rows: Encoded) -> dict[str, np.ndarray]:
    """Per-row outcomes without gradients: `correct` bool, `p_correct` (geometric mean per token), `nll`, `el2n`.

    An answer with a word or label that the reader does not know, or without a token, is never correct; its
    `p_correct` is 0.
    """
    out = {k: np.zeros(len(rows)) for k in ("nll", "el2n", "correct")}
    known = np.ones(len(rows), dtype=bool)
    form = form_of(model) if isinstance(rows, TokenRows) else None
    with torch.no_grad():
        for index in batches(rows):
            part = readout(model, rows.take(index), form)
            losses = by_row(model, part, answer_losses(part)[0], len(index))
            for name in out:
                out[name][index] = getattr(losses, name).double().numpy()
            unknown = part.answers < 0
            if isinstance(model, Decoder):
                unknown |= part.answers == UNKNOWN
            known[index[part.row[unknown].numpy()]] = False
            known[index[losses.n_tokens.numpy() == 0]] = False
    return {
        "correct": out["correct"].astype(bool) & known,
        "p_correct": np.where(known, np.exp(-out["nll"]), 0.0),
        "nll": out["nll"],
        "el2n": out["el2n"],
    }


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """What training can change, by name: a tied tensor once; of a model with LoRA layers those alone."""
    once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name in once}
    adapter = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    return adapter or tensors


def frozen_copy(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model with these weights (its whole state, or what `weights_of` gives), in eval mode, without gradients."""
    found = model.load_state_dict(dict(tensors), strict=False)
    wrong = sorted({*(weights_of(model).keys() - tensors.keys()), *found.unexpected_keys})
    if wrong:
        raise DataError(
            f"{len(tensors)} tensors do not fit {type(model).__name__}: {', '.join(wrong[:3])} are on one side only; "
            "the proxy of the recipe is another than the one that was trained"
        )
    return model.eval().requires_grad_(False)
