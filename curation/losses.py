"""What a model says of each answer, chunk by chunk: the logits of a corpus are never held whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_TOKENS = 1024


class LogitForm(NamedTuple):
    """How a model's logits come from its hidden states: `z = scale * head(hidden)`, then `cap * tanh(z / cap)`."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """The head's output (..., V) -> the model's logits."""
        z = raw if self.scale == 1.0 else raw * self.scale
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)


PLAIN = LogitForm()


@dataclass(frozen=True)
class Readout:
    """The end of a forward pass: m answers, each with the state that predicts it.

    `states` (m, c) before the output layer `head`, or the logits themselves when `head` is None; `answers` (m,)
    class or token numbers (-1: none that the model knows); `row` (m,) the row each belongs to.
    """

    states: Tensor
    answers: Tensor
    row: Tensor
    head: nn.Linear | None = None
    form: LogitForm = PLAIN

    def logits(self) -> Tensor:
        """(m, V) float32 logits, differentiable."""
        return self.form((self.states if self.head is None else self.head(self.states)).float())


@dataclass(frozen=True)
class AnswerLosses:
    """(m,) float32 tensors: `nll` in nats, `el2n` = |softmax - onehot| (Paul et al. 2021), `correct` bool."""

    nll: Tensor
    el2n: Tensor
    correct: Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias without gradient; on a CPU by oneDNN, a tenth faster than torch's own float32 product."""
    if (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel()
        and torch.backends.mkldnn.is_available()
    ):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def answer_losses(
    out: Readout,
    weight: Tensor | None = None,
    on_error: Callable[[slice, Tensor], None] | None = None,
    head_weight: Tensor | None = None,
) -> tuple[AnswerLosses, Tensor | None]:
    """Losses of every answer; with `weight` (m,) also d(sum of weight x nll) / d(states), (m, c).

    `on_error(part, e)` is given each chunk's gradient with respect to the head's own output, (chunk, V).
    `head_weight` stands in for the head's weight, in another precision. An answer of -1 weighs nothing.
    """
    states = out.states.detach()
    m = len(states)
    found = AnswerLosses(
        states.new_zeros(m, dtype=torch.float32),
        states.new_zeros(m, dtype=torch.float32),
        torch.zeros(m, dtype=torch.bool, device=states.device),
    )
    back = None if weight is None else torch.empty_like(states)
    for start in range(0, m, CHUNK_TOKENS):
        part = slice(start, min(start + CHUNK_TOKENS, m))
        _one_chunk(out, states[part], part, found, back, weight, on_error, head_weight)
    return found, back


def _one_chunk(
    out: Readout,
    states: Tensor,
    part: slice,
    found: AnswerLosses,
    back: Tensor | None,
    weight: Tensor | None,
    on_error: Callable[[slice, Tensor], None] | None,
    head_weight: Tensor | None,
) -> None:
    head, known = out.head, out.answers[part] >= 0
    answers = out.answers[part].clamp(min=0)[:, None]
    matrix = None if head is None else head.weight if head_weight is None else head_weight
    if head is None or matrix is None:
        raw = states.float()
    else:
        found_bias = getattr(head, "bias", None)
        bias = None if found_bias is None else found_bias.to(matrix.dtype)
        raw = linear(states.to(matrix.dtype), matrix, bias).float()
    logits = out.form(raw)
    # e = exp(logit - top) without the answer's own: p, 1 - p and the loss keep their digits in confident rows,
    # and the softmax is never divided out (a pass over the logits is dear).
    top, at_answer = logits.amax(1, keepdim=True), logits.gather(1, answers)
    right = (at_answer >= top)[:, 0] & known
    right[right.clone()] = logits[right].argmax(1) == answers[right, 0]  # ties go to the first
    slope = 1.0 if out.form.cap is None else 1 - (logits / out.form.cap) ** 2
    e = (logits - top).exp_() if out.form.cap is not None or head is None else logits.sub_(top).exp_()
    e.scatter_(1, answers, 0.0)
    others, own = e.sum(1, keepdim=True), (at_answer - top).exp()
    total = others + own
    miss = others / total
    nll = torch.where(own > 1e-30, torch.log1p(others / own), total.log() + top - at_answer)
    found.nll[part] = nll[:, 0]
    found.el2n[part] = torch.hypot(torch.linalg.vector_norm(e, dim=1, keepdim=True) / total, miss)[:, 0]
    found.correct[part] = right
    if back is None or weight is None:
        return
    w = torch.where(known, weight[part], 0.0)[:, None] * out.form.scale
    if on_error is None and out.form.cap is None and matrix is not None:
        own_part = (w * miss) * matrix[answers[:, 0]]
        back[part] = linear(e.to(matrix.dtype), matrix.T).to(back.dtype) * (w / total) - own_part
        return
    error = e.mul_(w / total).scatter_(1, answers, -w * miss)
    error *= slope
    if on_error is not None:
        on_error(part, error)
    back[part] = error if matrix is None else linear(error.to(matrix.dtype), matrix.T).to(back.dtype)
