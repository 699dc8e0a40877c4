"""Rows for Hugging Face models as token ids.

Special tokens, cutting and padding are done here and not by the tokenizer, so that the prompt mask is exact and no
token is doubled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from curation.encoded import LabelledTokens, TokenRows
from curation.errors import UserError
from curation.tokens import TEXTS_A_CALL, Notes, Row, called, packed, padding_id, specials, tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TooLong = Literal["truncate", "refuse"]
_ANSWER = "gradus-answer"


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model as a reader needs it: its tokenizer, and `load`, which gives the model afresh.

    `load(names)`: the model in eval mode, with an output for each of these classes, and its parameters that no
    file holds. `classes`: those of its own trained head, in order. `pad`: what fills rows; None: the tokenizer's.
    """

    tokenizer: PreTrainedTokenizerBase
    load: Callable[[tuple[str, ...]], tuple[nn.Module, Sequence[str]]]
    classes: tuple[str, ...] = ()
    pad: int | None = None


def _templated(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> tuple[Iterator[str], list[int]]:
    """Each prompt as a user's turn with the assistant's opened (an empty one stays empty); the end of a turn."""
    call: Any = tokenizer
    question = {"role": "user", "content": "a"}
    try:
        whole: str = call.apply_chat_template(
            [question, {"role": "assistant", "content": _ANSWER}], tokenize=False
        )
        call.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the model's author: it can raise anything
        raise UserError(
            f"the chat template of this tokenizer failed ({type(error).__name__}: {error}); nothing was encoded. "
            "Set chat_template = false, or name a model whose template takes a user's and an assistant's turn"
        ) from error
    if _ANSWER not in whole:
        raise UserError(
            "the chat template of this tokenizer leaves out the assistant's turn; set chat_template = false"
        )
    tail = whole.rpartition(_ANSWER)[2].strip()
    texts: Iterator[str] = (
        call.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
        if p
        else ""
        for p in prompts
    )
    return texts, next(tokens(tokenizer, [tail])) if tail else []


def _causal_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    max_tokens: int,
    too_long: TooLong,
    chat_template: bool,
    separator: str,
) -> Iterator[Row]:
    opening, _ = specials(tokenizer)
    end = tokenizer.eos_token_id
    ending = [end] if isinstance(end, int) else []
    chat = chat_template and bool(tokenizer.chat_template)
    for start in range(0, len(prompts), TEXTS_A_CALL):
        some = prompts[start : start + TEXTS_A_CALL]
        if chat:
            texts, end_of_turn = _templated(tokenizer, some)
        else:
            texts, end_of_turn = (p if not p or p[-1].isspace() else p + separator for p in some), []
        asked = tokens(tokenizer, list(texts))
        answered = tokens(tokenizer, responses[start : start + TEXTS_A_CALL])
        for prompt, x, y in zip(some, asked, answered, strict=True):
            own = chat and bool(prompt)  # the template writes its own opening token, when it wants one
            close = end_of_turn or ending if own else ending
            yield _laid_out(opening, own, x, y, close, max_tokens, too_long == "refuse")


def _laid_out(
    opening: list[int],
    own: bool,
    x: list[int],
    y: list[int],
    ending: list[int],
    max_tokens: int,
    refuse: bool,
) -> Row:
    lead = x or y
    if opening and lead[: len(opening)] == opening:
        del lead[: len(opening)]
    elif own:
        opening = []
    if ending and y[-len(ending) :] == ending:
        del y[-len(ending) :]
    full = len(opening) + len(x) + len(y) + len(ending)
    if refuse and full > max_tokens:
        return Row([], 0, full, {"refused"})
    flags: set[str] = set()
    room = max_tokens - max(len(opening), min(1, len(x)))
    answer = y + ending
    if len(answer) > room:
        flags.add("response_cut")
        answer = y[:room]
    kept = min(len(x), max_tokens - len(opening) - len(answer))
    if kept < len(x):
        flags.add("prompt_cut")
    first = max(1, len(opening) + kept)
    if len(opening) + kept + min(len(y), len(answer)) <= first:
        return Row([], 0, full, {"empty"})
    return Row(opening + x[len(x) - kept :] + answer, first, full, flags)


def encode_causal(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    max_tokens: int,
    too_long: TooLong = "truncate",
    chat_template: bool = False,
    separator: str = "\n",
) -> tuple[TokenRows, Notes]:
    """Rows as prompt + response + end, of which the response and its end are predicted; and what had to be cut.

    Prompt and response are tokenized apart, so that the mask is exact. A prompt is the tokenizer's opening token,
    the text and `separator`, or a user's turn of its chat template (when it has one and `chat_template`). The
    response ends with the end token, or the template's end of turn. A prompt too long loses its beginning (not
    the opening token), a response its end, and then no end is predicted, because the text does not end there.
    A row without a prompt predicts all its tokens but the first.
    """
    rows = _causal_rows(tokenizer, prompts, responses, max_tokens, too_long, chat_template, separator)
    ids, length, first, notes = packed(rows, len(prompts), padding_id(tokenizer), 2)
    at = np.arange(ids.shape[1])
    target = (at >= first[:, None]) & (at < length[:, None]) & (first > 0)[:, None]
    return TokenRows(torch.from_numpy(ids), torch.from_numpy(target), torch.from_numpy(length)), notes


def token_lengths(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    max_tokens: int,
    too_long: TooLong = "truncate",
    chat_template: bool = False,
    separator: str = "\n",
) -> np.ndarray:
    """Tokens of each row as `encode_causal` would give it, (n,) int64, without holding the rows; 0: not scored."""
    rows = _causal_rows(tokenizer, prompts, responses, max_tokens, too_long, chat_template, separator)
    return np.fromiter((len(row.ids) for row in rows), dtype=np.int64, count=len(prompts))


def encode_classes(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    y: Sequence[int] | np.ndarray,
    max_tokens: int,
    too_long: TooLong = "truncate",
    pad: int | None = None,
) -> tuple[LabelledTokens, Notes]:
    """Texts and their class numbers `y` (n,) for a sequence classifier, and what had to be cut.

    `pad`: the model's `config.pad_token_id` (a causal classifier finds a row's last token by it); default: the
    tokenizer's. A text refused or without tokens gets class -1.
    """
    opening, closing = specials(tokenizer)
    refuse = too_long == "refuse"
    rows = (_enclosed(opening, x, closing, max_tokens, refuse) for x in tokens(tokenizer, texts))
    ids, length, _, notes = packed(rows, len(texts), padding_id(tokenizer) if pad is None else pad, 1)
    classes = np.where(notes.refused | notes.empty, -1, np.asarray(y, dtype=np.int64).reshape(len(texts)))
    return LabelledTokens(torch.from_numpy(ids), torch.from_numpy(length), torch.from_numpy(classes)), notes


def class_lengths(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int, too_long: TooLong = "truncate"
) -> np.ndarray:
    """Tokens of each text as `encode_classes` would give it, (n,) int64; 0: not scored."""
    opening, closing = specials(tokenizer)
    refuse = too_long == "refuse"
    rows = (_enclosed(opening, x, closing, max_tokens, refuse) for x in tokens(tokenizer, texts))
    return np.fromiter((len(row.ids) for row in rows), dtype=np.int64, count=len(texts))


def encode_tags(
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[int]],
    max_tokens: int,
    too_long: TooLong = "truncate",
    pad: int | None = None,
) -> tuple[LabelledTokens, Notes]:
    """Rows of words, one class number a word, for a token classifier: `y` (n, T) is on each word's first token.

    All other tokens have class -1. `UserError` when a row has another number of tags than words.
    """
    uneven = [i for i, (w, t) in enumerate(zip(words, tags, strict=True)) if len(w) != len(t)]
    if uneven:
        i = uneven[0]
        raise UserError(
            f"{len(uneven)} rows have another number of tags than words (first: row {i}, {len(words[i])} words, "
            f"{len(tags[i])} tags); nothing was encoded. Give one tag a word"
        )
    opening, closing = specials(tokenizer)
    places: list[list[int]] = []
    rows = _tagged(tokenizer, words, tags, opening, closing, max_tokens, too_long == "refuse", places)
    ids, length, _, notes = packed(rows, len(words), padding_id(tokenizer) if pad is None else pad, 1)
    y = np.full(ids.shape, -1, dtype=np.int64)
    for i, row in enumerate(places):
        y[i, : len(row)] = row
    return LabelledTokens(torch.from_numpy(ids), torch.from_numpy(length), torch.from_numpy(y)), notes


def _tagged(
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[int]],
    opening: list[int],
    closing: list[int],
    max_tokens: int,
    refuse: bool,
    places: list[list[int]],
) -> Iterator[Row]:
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} cannot say which token is of which word; use a fast tokenizer"
        )
    done = 0
    for batch in called(tokenizer, [list(w) for w in words], is_split_into_words=True):
        for j, x in enumerate(batch["input_ids"]):
            row = _enclosed(opening, x, closing, max_tokens, refuse)
            at = batch.word_ids(j)[: max(0, len(row.ids) - len(opening) - len(closing))]
            fresh = (w is not None and w != before for w, before in zip(at, [None, *at], strict=False))
            inner = [tags[done][w] if new else -1 for w, new in zip(at, fresh, strict=True)]
            places.append([*repeat(-1, len(opening)), *inner] if inner else [])
            done += 1
            yield row


def _enclosed(opening: list[int], x: list[int], closing: list[int], max_tokens: int, refuse: bool) -> Row:
    full = len(opening) + len(x) + len(closing)
    if refuse and full > max_tokens:
        return Row([], 0, full, {"refused"})
    if not x:
        return Row([], 0, full, {"empty"})
    kept = x[: max_tokens - len(opening) - len(closing)]
    return Row(opening + kept + closing, 0, full, {"response_cut"} if len(kept) < len(x) else set())
