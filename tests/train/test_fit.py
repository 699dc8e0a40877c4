"""Training: the same bits for the same seed, the same steps and order for every arm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curation.proxies import Reader, encode, make_reader, predict
from curation.specs import Proxy
from curation.train.fit import batch_order, fit
from tests.small import SPEC, linear_rows, world_frame


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 16), st.integers(0, 99))
def test_every_row_is_used_equally_often(n: int, steps: int, batch: int, seed: int) -> None:
    order = batch_order(n, steps, batch, seed)
    assert order.shape == (steps, batch)
    counts = np.bincount(order.ravel(), minlength=n)
    assert counts.max() - counts.min() <= 1
    for epoch in range(steps * batch // n):  # and none twice before all once
        assert len(set(order.ravel()[epoch * n : (epoch + 1) * n].tolist())) == n


def test_arms_of_equal_size_share_their_order() -> None:
    assert np.array_equal(batch_order(50, 20, 8, 3), batch_order(50, 20, 8, 3))
    assert not np.array_equal(batch_order(50, 20, 8, 3), batch_order(50, 20, 8, 4))
    assert np.array_equal(batch_order(50, 20, 8, 3), batch_order(50, 30, 8, 3)[:20])


@pytest.fixture(scope="module")
def small():
    frame = world_frame(80)
    reader = make_reader(SPEC, frame)
    return reader, encode(reader, frame)


def test_a_training_is_the_same_to_the_bit_and_its_seed_matters(small) -> None:
    reader, rows = small
    torch.manual_seed(1)
    first = fit(SPEC, reader, rows, seed=4, steps=12)
    torch.manual_seed(2)
    again, other = fit(SPEC, reader, rows, seed=4, steps=12), fit(SPEC, reader, rows, seed=5, steps=12)
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in first.model.state_dict().items())
    assert (first.train_nll, first.steps, first.tokens) == (again.train_nll, 12, again.tokens)
    moved = [
        k for k, v in first.model.state_dict().items() if not torch.equal(v, other.model.state_dict()[k])
    ]
    assert len(moved) == len(first.model.state_dict())
    assert not first.model.training


def test_tokens_are_those_of_the_rows_that_were_read(small) -> None:
    reader, rows = small
    order = batch_order(len(rows), 7, SPEC.batch_rows, 4)
    assert fit(SPEC, reader, rows, seed=4, steps=7).tokens == rows.lengths()[order].sum()


def test_the_decoder_learns(small) -> None:
    reader, rows = small
    short, long = (fit(SPEC, reader, rows, seed=4, steps=s) for s in (1, 150))
    assert long.train_nll < 0.5 * short.train_nll
    assert predict(long.model, rows)["nll"].mean() < 0.5 * predict(short.model, rows)["nll"].mean()


def test_the_head_learns_and_rows_without_a_known_label_do_not_move_it() -> None:
    spec = Proxy(kind="head", width=16, batch_rows=16, learning_rate=1e-2)
    rng = np.random.Generator(np.random.Philox(3))
    y = rng.integers(0, 3, 60)
    x = np.eye(3)[y] * 4 + rng.standard_normal((60, 3))
    reader = Reader("head", ("a", "b", "c"), 0, 1.0, 3)
    rows = linear_rows(x, y.tolist())
    fitted = fit(spec, reader, rows, seed=1, steps=60)
    assert predict(fitted.model, rows)["correct"].mean() > 0.9
    unknown = fit(spec, reader, linear_rows(x, [-1] * 60), seed=1, steps=5)
    untrained = fit(spec.model_copy(update={"learning_rate": 1e-30}), reader, rows, seed=1, steps=5)
    for k, v in unknown.model.state_dict().items():  # weight decay only
        torch.testing.assert_close(v, untrained.model.state_dict()[k], rtol=1e-3, atol=1e-6)
