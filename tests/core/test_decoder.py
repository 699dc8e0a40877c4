"""Words, encoding and the decoder's weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.decoder import (
    END,
    PAD,
    SEP,
    SPECIALS,
    UNKNOWN,
    Decoder,
    build_vocabulary,
    encode_rows,
    initialise,
    words_of,
)

VOCABULARY = build_vocabulary(["a b c d e f ."], 64)
sentences = st.lists(st.sampled_from(["a", "b", "c", "new", "."]), max_size=12).map(" ".join)


def test_words_and_single_marks() -> None:
    assert words_of("Don't stop_it, 3.5<sep>!") == [
        "Don",
        "'",
        "t",
        "stop_it",
        ",",
        "3",
        ".",
        "5",
        "<",
        "sep",
        ">",
        "!",
    ]
    assert words_of("") == []


def test_vocabulary_keeps_the_most_frequent_and_breaks_ties_by_name() -> None:
    found = build_vocabulary(["b b a a c", "d"], len(SPECIALS) + 3)
    assert list(found) == [*SPECIALS, "a", "b", "c"]
    assert list(found.values()) == list(range(7))
    assert found == build_vocabulary(["d", "c a b a b"], len(SPECIALS) + 3)


def test_a_row_is_prompt_sep_response_end() -> None:
    rows = encode_rows(["a b", ""], ["c", "d new"], VOCABULARY, 8)
    a, b, c, d = (VOCABULARY[w] for w in "abcd")
    assert rows.ids.tolist() == [[a, b, SEP, c, END], [SEP, d, UNKNOWN, END, PAD]]
    assert rows.target.tolist() == [[False, False, False, True, True], [False, True, True, True, False]]
    assert rows.lengths().tolist() == [5, 4]


def test_long_prompts_lose_their_beginning_and_long_responses_their_end() -> None:
    rows = encode_rows(["a b c d e f", "a"], ["a b", "a b c d e f a b"], VOCABULARY, 7)
    names = {i: w for w, i in VOCABULARY.items()}
    assert [names[i] for i in rows.ids[0].tolist()] == ["d", "e", "f", "<sep>", "a", "b", "<end>"]
    assert [names[i] for i in rows.ids[1].tolist()] == ["<sep>", "a", "b", "c", "d", "e", "<end>"]


@given(st.lists(st.tuples(sentences, sentences), max_size=5), st.integers(4, 30))
def test_every_row_fits_ends_and_has_its_targets_in_one_run(pairs: list[tuple[str, str]], most: int) -> None:
    rows = encode_rows([p for p, _ in pairs], [r for _, r in pairs], VOCABULARY, most)
    assert len(rows) == len(pairs)
    assert rows.ids.shape[1] <= max(2, most)
    for i, (prompt, response) in enumerate(pairs):
        n = int(rows.lengths()[i])
        ids, target = rows.ids[i, :n].tolist(), rows.target[i].tolist()
        assert n == min(most, len(words_of(prompt)) + len(words_of(response)) + 2) or n < most
        assert ids[-1] == END
        assert ids.count(SEP) == 1
        assert target == [ids.index(SEP) < t < n for t in range(len(target))]
        assert sum(target) == min(len(words_of(response)), most - 2) + 1


def test_take_cuts_to_the_longest() -> None:
    rows = encode_rows(["a b c", "a"], ["a b", "a"], VOCABULARY, 20)
    assert rows.take([1]).ids.shape == (1, 4)
    assert torch.equal(rows.take([1, 0]).ids[1], rows.ids[0])
    assert len(rows.take(np.array([], dtype=int))) == 0


def model(seed: int) -> Decoder:
    built = Decoder(20, 12, layers=2, width=16, heads=2)
    initialise(built, seed)
    return built


def test_weights_come_from_the_seed_and_the_name_alone() -> None:
    torch.manual_seed(0)
    first = model(4).state_dict()
    torch.manual_seed(1)
    again, other = model(4).state_dict(), model(5).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert all(not torch.equal(v, other[k]) for k, v in first.items() if v.ndim > 1)
    assert first["blocks.0.norm1.weight"].eq(1).all()
    assert first["blocks.0.qkv.bias"].eq(0).all()
    assert first["token.weight"].std().item() == pytest.approx(0.02, rel=0.2)
    assert first["blocks.0.qkv.weight"].std().item() == pytest.approx(16**-0.5, rel=0.1)
    assert first["blocks.0.down.weight"].std().item() == pytest.approx(64**-0.5 / 2, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(4, 19), min_size=2, max_size=10), st.integers(0, 9))
def test_a_token_sees_only_what_comes_before(ids: list[int], at: int) -> None:
    at = min(at, len(ids) - 1)
    built = model(4).eval()
    changed = ids.copy()
    changed[at] = 4 + (ids[at] - 3) % 16
    with torch.no_grad():
        a, b = built(torch.tensor([ids])), built(torch.tensor([changed]))
    torch.testing.assert_close(a[:, :at], b[:, :at], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(a[:, at:], b[:, at:], atol=1e-6)
