"""A small causal decoder trained from scratch, and the word vocabulary it reads.

Pre-norm blocks, learned positions, ReLU (GELU is a quarter of a step on a CPU), untied head. Every random number comes from named Philox generators,
so the same seed gives the same model wherever it is built.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.encoded import TokenRows
from curation.randomness import generator

PAD, SEP, END, UNKNOWN = 0, 1, 2, 3
SPECIALS = ("<pad>", "<sep>", "<end>", "<unknown>")
_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """The text as words and single punctuation marks."""
    return _WORD.findall(text)


def build_vocabulary(texts: Iterable[str], max_words: int) -> dict[str, int]:
    """Word -> id of the most frequent words (ties in alphabetical order), after the four special tokens."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words_of(text))
    kept = sorted(counts, key=lambda w: (-counts[w], w))[: max_words - len(SPECIALS)]
    return {
        **{s: i for i, s in enumerate(SPECIALS)},
        **{w: i + len(SPECIALS) for i, w in enumerate(sorted(kept))},
    }


def encode_rows(
    prompts: Sequence[str], responses: Sequence[str], vocabulary: dict[str, int], max_tokens: int
) -> TokenRows:
    """Rows as `prompt <sep> response <end>`; long prompts lose their beginning, long responses their end.

    An unknown word of a response keeps its place and can never be predicted right.
    """
    ids = np.zeros((len(prompts), max_tokens), dtype=np.int64)
    target = np.zeros((len(prompts), max_tokens), dtype=bool)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        y = [vocabulary.get(w, UNKNOWN) for w in words_of(response)][: max_tokens - 2]
        y.append(END)
        x = [vocabulary.get(w, UNKNOWN) for w in words_of(prompt)]
        x = x[max(0, len(x) - (max_tokens - 1 - len(y))) :]
        x.append(SEP)
        ids[i, : len(x) + len(y)] = x + y
        target[i, len(x) : len(x) + len(y)] = True
    length = torch.from_numpy((ids != PAD).sum(1))
    width = max(2, int(length.max())) if len(ids) else 2
    return TokenRows(
        torch.from_numpy(ids[:, :width].copy()), torch.from_numpy(target[:, :width].copy()), length
    )


class Block(nn.Module):
    """Pre-norm causal self-attention and a ReLU layer of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, h: Tensor, only: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(n, T, width) -> the same; with `only` = (row, position) just those tokens leave, as (m, width)."""
        n, t, width = h.shape
        q, k, v = (
            self.qkv(self.norm1(h)).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, width)
        if only is not None:
            h, mixed = h[only], mixed[only]
        h = h + self.out(mixed)
        return h + self.down(F.relu(self.up(self.norm2(h))))


class Decoder(nn.Module):
    """ids (n, T) -> hidden states (n, T, width); `head` maps them to logits."""

    def __init__(self, n_words: int, max_tokens: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Embedding(n_words, width)
        self.position = nn.Embedding(max_tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_words, bias=False)

    def forward(self, ids: Tensor, only: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(n, T) int64 -> (n, T, width); with `only` = (row, position) the last block's (m, width) of just those."""
        h = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for i, block in enumerate(self.blocks):
            h = block(h, only if i == len(self.blocks) - 1 else None)
        return self.norm(h)

    def target_logits(self, rows: TokenRows) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (m, V), answers (m,) and row numbers (m,) of the m response tokens, and nothing else.

        The last block drops the other tokens after its attention: a quarter of a step saved, the same numbers.
        """
        row, at = rows.target[:, 1:].nonzero(as_tuple=True)
        hidden = self(rows.ids[:, :-1], only=(row, at))
        return self.head(hidden), rows.ids[row, at + 1], row


def initialise(model: nn.Module, seed: int) -> nn.Module:
    """The same model with every matrix drawn N(0, 0.02..1/sqrt(fan in)) from one named generator; biases 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            scale = 0.02 if ("token" in name or "position" in name) else parameter.shape[1] ** -0.5
            if name.endswith(("out.weight", "down.weight")):
                scale /= (2 * len(getattr(model, "blocks", [0]))) ** 0.5
            draw = generator(seed, "init", name).standard_normal(tuple(parameter.shape), dtype=np.float32)
            parameter.copy_(torch.from_numpy(draw) * scale)
    return model
