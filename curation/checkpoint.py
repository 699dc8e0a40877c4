"""What is asked of a pretrained model before it is used, and the head put on a sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.errors import UserError
from curation.head import Head
from curation.losses import LogitForm
from curation.randomness import generator

PROBE_TOKENS = 8
CAPS = ("final_logit_softcapping", "logits_soft_cap")
TOLERANCE = 1e-4  # relative to the largest logit of the probe


class ClassLogits(NamedTuple):
    """A classifier's answer: `logits` (n, classes)."""

    logits: Tensor


class EncoderWithHead(nn.Module):
    """Token ids -> class logits: a transformer, the mean of its tokens as a unit vector times `scale`, and a head.

    `encoder` maps (input_ids, attention_mask) to an object with `last_hidden_state` (n, T, width). Padding
    never enters the mean.
    """

    def __init__(self, encoder: nn.Module, head: Head, scale: float) -> None:
        super().__init__()
        self.encoder, self.head, self.scale = encoder, head, scale

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, T), (n, T) -> (n, width) unit sentence embeddings times `scale`."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return F.normalize(mean, dim=-1) * self.scale

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> ClassLogits:
        """(n, T) int64, (n, T) 1 for a token and 0 for padding -> `.logits` (n, classes)."""
        return ClassLogits(self.head(self.embed(input_ids, attention_mask)))


def draw(model: nn.Module, names: Sequence[str], seed: int) -> nn.Module:
    """The same model with these parameters drawn N(0, 0.02) from named generators; biases 0, norms 1."""
    with torch.no_grad():
        for name in names:
            parameter = model.get_parameter(name)
            if parameter.ndim < 2:
                parameter.fill_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
            else:
                numbers = generator(seed, "init", name).standard_normal(
                    tuple(parameter.shape), dtype=np.float32
                )
                parameter.copy_(torch.from_numpy(numbers) * 0.02)
    return model


def _probe(model: nn.Module) -> Tensor:
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    return torch.arange(PROBE_TOKENS, device=weight.device)[None] * 7919 % len(weight)


def check_causal(model: nn.Module) -> None:
    """`UserError` when a token's logits depend on later tokens: an encoder loaded as a language model."""
    ids = _probe(model)
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    with torch.no_grad():
        a, b = (model(input_ids=i, use_cache=False).logits[0, :-1] for i in (ids, other))
    if not torch.allclose(a, b, rtol=0, atol=TOLERANCE * float(a.abs().max())):
        raise UserError(
            f"{type(model).__name__} looks at later tokens (its logits moved by {float((a - b).abs().max()):.3g} when "
            'the last token changed), so it is no causal language model; use kind = "classifier", or another model'
        )


def logit_form(model: nn.Module) -> LogitForm:
    """The scale and soft cap between a causal model's head and its logits, found by a probe of eight tokens.

    `UserError` when logits are not `form(head(base_model(ids).last_hidden_state))`, so that they could not be
    computed in chunks.
    """
    whole: Any = model
    head = whole.get_output_embeddings()
    config = whole.config.get_text_config()
    with torch.no_grad():
        ids = _probe(model)
        logits = whole(input_ids=ids, use_cache=False).logits.double()
        raw = head(whole.base_model(input_ids=ids, use_cache=False)[0]).double() if head is not None else None
    caps = [c for c in (getattr(config, name, None) for name in CAPS) if c]
    if raw is not None and raw.shape == logits.shape:
        forms = [LogitForm(scale, c) for c in (None, *caps) for scale in (1.0, _scale_of(raw, logits, c))]
        errors = [float((form(raw) - logits).abs().max()) for form in forms]
        if min(errors) <= TOLERANCE * float(logits.abs().max()):
            return forms[errors.index(min(errors))]
    raise UserError(
        f"the logits of {type(model).__name__} are not its output head on its last hidden states (something lies "
        "between), and Gradus computes them in chunks from these; nothing was scored. Name another proxy, such as "
        "a Llama, Qwen, GPT-2, GPT-NeoX, OPT, Phi, OLMo or Gemma model"
    )


def _scale_of(raw: Tensor, logits: Tensor, cap: float | None) -> float:
    """The least-squares scale, from logits where the cap bends little."""
    if cap is not None:
        straight = logits.abs() < cap / 2
        raw, logits = raw[straight], cap * torch.atanh(logits[straight] / cap)
    return float(f"{float((raw * logits).sum() / (raw * raw).sum().clamp(min=1e-30)):.6g}")
