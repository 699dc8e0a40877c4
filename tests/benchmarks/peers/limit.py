"""The limit: what a careful person's stock forward and activation-gradient backward costs, without any features.

Weights are frozen, the embeddings are cut off (they are the leaf), attention is SDPA without a mask where tokens
see only those before them, and the loss is fused: hidden states' gradients are made chunk by chunk, so logits
are never whole.
"""

from __future__ import annotations

import torch
from peers.case import Case, Outcome, Run, inputs_of, row_weights, seen
from torch import Tensor, nn

from curation.encoded import TokenRows

CHUNK = 512


def prepare(case: Case) -> Run:
    """Runs the bare pass over the case's batches."""
    model = case.copy()
    one = _causal if case.hugging_face and case.causal else _classifier if case.hugging_face else _embedded

    def run() -> Outcome:
        for index in case.batches():
            one(case, model, index)
        return Outcome(None, 0.0)

    return run


def hidden_gradient(hidden: Tensor, answers: Tensor, weights: Tensor, head: Tensor) -> Tensor:
    """d loss / d hidden, (m, width), of sum_i weights_i * cross-entropy(head @ hidden_i, answers_i)."""
    out = torch.empty_like(hidden)
    for at in range(0, len(hidden), CHUNK):
        part = slice(at, at + CHUNK)
        p = torch.softmax(hidden[part] @ head.T, dim=1)
        p[torch.arange(len(p)), answers[part]] -= 1
        torch.mm(p.mul_(weights[part, None]), head, out=out[part])
    return out


def _backward(hidden: Tensor, leaf: Tensor, part: TokenRows, head: Tensor) -> None:
    """`hidden` (m, width): the states before the m predicted tokens, row by row."""
    where = part.target[:, 1:]
    gradient = hidden_gradient(hidden.detach(), part.ids[:, 1:][where], row_weights(part)[where], head)
    torch.autograd.grad(hidden, leaf, gradient)


def _causal(case: Case, model: nn.Module, index) -> None:
    part = case.rows.take(index)
    leaf = model.get_input_embeddings()(part.ids).requires_grad_()
    hidden = model.base_model(inputs_embeds=leaf, use_cache=False).last_hidden_state
    _backward(hidden[:, :-1][part.target[:, 1:]], leaf, part, model.get_output_embeddings().weight)


def _embedded(case: Case, model: nn.Module, index) -> None:
    part = case.rows.take(index)
    ids = part.ids[:, :-1]
    leaf = (model.token(ids) + model.position.weight[: ids.shape[1]]).requires_grad_()
    only = part.target[:, 1:].nonzero(as_tuple=True)
    h = leaf
    for i, block in enumerate(model.blocks):
        h = block(h, only if i == len(model.blocks) - 1 else None)
    _backward(model.norm(h), leaf, part, model.head.weight)


def _classifier(case: Case, model: nn.Module, index) -> None:
    ids, classes = inputs_of(case, index)
    leaf = model.get_input_embeddings()(ids).requires_grad_()
    logits = model(inputs_embeds=leaf, attention_mask=seen(ids)).logits
    torch.autograd.grad(nn.functional.cross_entropy(logits, classes, reduction="sum"), leaf)
