"""Attention whose numbers do not hang on how far a batch was padded.

A CPU's attention sums over keys in blocks of vector width and the rest one by one, so a row of 13 tokens padded to
15 differs in its last digits from the same row padded to 40; a sure proxy magnifies that. With every length a
multiple of the block there is no rest, and a row's float32 numbers are the same bits beside any others.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

BLOCK = 16  # float32 numbers in the widest vector of today's CPUs


class WholeBlocks(TorchFunctionMode):
    """While open, self-attention over float32 on a CPU runs at lengths that are multiples of `BLOCK`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **options: Any
) -> Tensor:
    t = query.shape[-2]
    rest = -t % BLOCK
    if not rest or key.shape[-2] != t or query.device.type != "cpu" or query.element_size() != 4:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *more, **options)
    causal = options.get("is_causal") or (len(more) > 1 and more[1])
    if attn_mask is None and not causal:
        attn_mask = query.new_ones(t, t, dtype=bool)  # type: ignore[call-overload]
    if attn_mask is not None:
        # A key beyond the row is seen by nobody; a query there sees the row, for without any key it would be NaN.
        hidden, seen = (False, True) if not attn_mask.is_floating_point() else (-float("inf"), 0.0)
        attn_mask = F.pad(attn_mask.expand(*attn_mask.shape[:-2], t, t), (0, rest), value=hidden)
        attn_mask = F.pad(attn_mask, (0, 0, 0, rest), value=seen)
    query, key, value = (F.pad(x, (0, 0, 0, rest)) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask, *more, **options)[..., :t, :]
