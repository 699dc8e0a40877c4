"""Texts as rows of token ids, whatever the tokenizer: batches of texts, special tokens, padding, and what was done.

The tokenizer is only called, never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curation.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_A_CALL = 2048
_FLAGS = ("prompt_cut", "response_cut", "refused", "empty")


@dataclass(frozen=True)
class Notes:
    """What encoding did to each row, (n,) each: `full_tokens` int64 before anything was cut, and bool masks.

    `prompt_cut`: the prompt lost its beginning; `response_cut`: the response, or a classifier's text, lost its
    end; `refused`: longer than `max_tokens`, and refused; `empty`: no token of its response can be predicted, or
    a classifier's text has none. Rows refused or empty hold one padding token and no target: report them, do not
    score them.
    """

    full_tokens: np.ndarray
    prompt_cut: np.ndarray
    response_cut: np.ndarray
    refused: np.ndarray
    empty: np.ndarray

    def counts(self) -> dict[str, int]:
        """How many rows each mask holds, by its name."""
        return {name: int(getattr(self, name).sum()) for name in _FLAGS}


class Row(NamedTuple):
    """One row: its ids, the first predicted position (or classes: 0), its tokens before cutting, what was done."""

    ids: list[int]
    first: int
    full: int
    flags: set[str]


def called(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Any], **more: Any) -> Iterator[Any]:
    """What the tokenizer says of each run of texts, without special tokens."""
    call: Any = tokenizer
    for start in range(0, len(texts), TEXTS_A_CALL):
        yield call(
            list(texts[start : start + TEXTS_A_CALL]),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **more,
        )


def tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    """The ids of each text, without special tokens."""
    for batch in called(tokenizer, texts):
        yield from batch["input_ids"]


def specials(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that this tokenizer puts before and after a text, e.g. ([BOS], []) or ([CLS], [SEP])."""
    call: Any = tokenizer
    bare: list[int] = call("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = call("a", add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise UserError(
        f"{type(tokenizer).__name__} changes a text's tokens when it adds its special tokens ({bare} became "
        f"{whole}), so a prompt cannot be masked exactly; use a model with a tokenizer.json of the usual kind"
    )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows: the pad token, else the end token, else 0; the tokenizer stays as it is."""
    found = (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int))
    return next(found, 0)


def packed(
    rows: Iterator[Row], n: int, pad: int, least: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Notes]:
    """Ids (n, T) int64 padded on the right, lengths (1 at least), first predicted positions, and the notes."""
    pieces: list[np.ndarray] = []
    first, full = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    flags = {name: np.zeros(n, dtype=bool) for name in _FLAGS}
    for i, row in enumerate(rows):
        pieces.append(np.array(row.ids, dtype=np.int32))
        first[i], full[i] = row.first, row.full
        for name in row.flags:
            flags[name][i] = True
    length = np.array([max(1, len(p)) for p in pieces], dtype=np.int64)
    ids = np.full((n, max(least, int(length.max(initial=0)))), pad, dtype=np.int64)
    for i, piece in enumerate(pieces):
        ids[i, : len(piece)] = piece
    return ids, length, first, Notes(full, **flags)
