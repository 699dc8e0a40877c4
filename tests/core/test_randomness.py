"""Named draws: the same everywhere, whatever was drawn before, and different for every name."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curation.randomness import generator, key_of

parts = st.tuples(st.integers(0, 2**40), st.text(max_size=4), st.integers(-3, 10**6))


def test_draws_are_the_same_on_every_machine() -> None:
    assert key_of(7, "control", 1, 0) == 6218575912371664621
    assert generator(7, "control", 1, 0).integers(0, 1000, 5).tolist() == [729, 796, 236, 612, 937]
    assert generator(7, "control", 1, 0).permutation(5).tolist() == [1, 0, 4, 2, 3]


@given(parts)
def test_a_name_gives_one_stream(name: tuple[int, str, int]) -> None:
    first = generator(*name)
    generator(0, "another").random(9)
    assert np.array_equal(first.random(4), generator(*name).random(4))
    assert 0 <= key_of(*name) < 2**63


@given(parts, parts)
def test_other_names_give_other_keys(a: tuple[int, str, int], b: tuple[int, str, int]) -> None:
    assert (key_of(*a) == key_of(*b)) == (a == b)


def test_parts_of_a_name_do_not_run_together() -> None:
    assert (
        len(
            {
                key_of(1, "a", "b"),
                key_of(1, "ab"),
                key_of(1, "a", "b", ""),
                key_of(1, "", "ab"),
                key_of(11, "a", "b"),
            }
        )
        == 5
    )


def test_streams_of_two_names_are_unrelated() -> None:
    draws = np.stack([generator(3, "index", i).standard_normal(2000) for i in range(20)])
    correlation = np.corrcoef(draws)[np.triu_indices(20, 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)
