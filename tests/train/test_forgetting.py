"""Forgetting events: known answers (METHODS F.5), against the authors' definition, for any batching."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.train.forgetting import Forgetting


def count(*sequences: list[int]) -> list[float]:
    state = Forgetting(len(sequences))
    for step in range(max(map(len, sequences))):
        shown = [i for i, s in enumerate(sequences) if step < len(s)]
        state.present(shown, [bool(sequences[i][step]) for i in shown])
    return state.counts().tolist()


def test_known_answers() -> None:
    assert count([0, 1, 1, 0, 1, 0, 0, 1], [0, 0, 0], [0, 1, 1], [1], [1, 0]) == [2, np.inf, 0, 0, 1]


def test_a_row_never_shown_is_not_a_row_never_learnt() -> None:
    state = Forgetting(3)
    state.present([0, 2], [False, True])
    assert state.counts() == pytest.approx([np.inf, np.nan, 0], nan_ok=True)
    assert state.presentations.tolist() == [1, 0, 1]


def test_no_rows_and_empty_batches() -> None:
    assert Forgetting(0).counts().shape == (0,)
    state = Forgetting(1)
    state.present([], [])
    assert state.presentations.tolist() == [0]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_only_the_order_of_a_rows_own_presentations_counts(
    shown: list[tuple[int, bool]], cuts: list[int]
) -> None:
    state = Forgetting(5)
    edges = [0, *sorted(cuts), len(shown)]
    for start, stop in pairwise(edges):
        state.present([i for i, _ in shown[start:stop]], [c for _, c in shown[start:stop]])
    for row, found in enumerate(state.counts()):
        own = np.array([c for i, c in shown if i == row], dtype=int)
        if not len(own):
            assert np.isnan(found)
        elif not own.any():
            assert found == np.inf
        else:
            assert found == (np.diff(own) == -1).sum()
        assert state.presentations[row] == len(own)
