"""The two proxies behind one interface: readers, encoding, batches, outcomes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.encoded import EmbeddedRows
from curation.errors import UserError
from curation.proxies import (
    batches,
    build_model,
    encode,
    frozen_copy,
    make_reader,
    predict,
    row_losses,
    token_counts,
)
from curation.score.gradients import Sketch, row_gradients
from curation.specs import Proxy
from tests.small import SPEC, Linear, linear_rows, world_frame

HEAD = Proxy(kind="head", width=8, embedding_scale=2.0)
texts = st.lists(
    st.tuples(st.text("ab c.", max_size=30), st.text("ab c.", max_size=30)), min_size=1, max_size=6
)


def labelled(labels: list[str | None]) -> pl.DataFrame:
    n = len(labels)
    columns = {
        "row_id": [f"r{i}" for i in range(n)],
        "prompt": [f"word number {i}" for i in range(n)],
        "response": [""] * n,
    }
    return pl.DataFrame({**columns, "label": labels}, schema_overrides={"label": pl.String})


def head_rows(labels: list[str | None], known: tuple[str, ...] = ("cold", "warm")):
    reader = make_reader(HEAD, labelled(list(known)), width=4)
    rng = np.random.Generator(np.random.Philox(1))
    vectors = {f"r{i}": rng.standard_normal(4) for i in range(len(labels))}
    return reader, encode(reader, labelled(labels), vectors)


@given(texts, st.integers(8, 20))
@settings(deadline=None)
def test_token_counts_are_the_lengths_of_the_encoded_rows(pairs: list[tuple[str, str]], most: int) -> None:
    frame = pl.DataFrame(pairs, schema=["prompt", "response"], orient="row")
    spec = Proxy(max_tokens=most)
    assert token_counts(spec, frame).tolist() == encode(make_reader(spec, frame), frame).lengths().tolist()


def test_the_head_reads_labels() -> None:
    reader, rows = head_rows(["warm", "cold", None, "hot"])
    assert isinstance(rows, EmbeddedRows)
    assert reader.names == ("cold", "warm")
    assert rows.y.tolist() == [1, 0, -1, -1]
    assert rows.lengths().tolist() == [3, 3, 3, 3]
    assert len(encode(reader, labelled([]), {})) == 0
    with pytest.raises(UserError, match="1 of them"):
        make_reader(HEAD, labelled(["cold", "cold"]))


def test_a_label_that_the_head_does_not_know_is_wrong_and_teaches_nothing() -> None:
    reader, rows = head_rows(["warm", "hot", None])
    model = build_model(HEAD, reader, 3)
    found = predict(model, rows)
    assert not found["correct"][1:].any()
    assert found["p_correct"][1:].tolist() == [0, 0]
    gradients = torch.autograd.grad(row_losses(model, rows.take([1, 2])).nll.sum(), model.parameters())
    assert all(not g.any() for g in gradients)
    frozen = model.eval().requires_grad_(False)
    norms = row_gradients(frozen, rows, Sketch(64, 256, 1, "all")).norm
    assert (norms > 0).tolist() == [True, False, False]


def test_an_unknown_word_of_a_response_is_never_right() -> None:
    spec = Proxy(width=16, heads=2, layers=1, max_vocabulary=64)
    frame = pl.DataFrame({"prompt": ["a", "a"], "response": ["b", "b"]})
    reader = make_reader(spec, frame)
    model = build_model(spec, reader, 1).eval().requires_grad_(False)
    with torch.no_grad():  # a model that always says <unknown>, then <end>
        model.token.weight.zero_(), model.position.weight.zero_(), model.norm.bias.fill_(1.0)
        model.norm.weight.zero_()
        model.head.weight.zero_()
        model.head.weight[3] = 1.0
    rows = encode(reader, pl.DataFrame({"prompt": ["a"], "response": ["new"]}))
    rows.target[0, -1] = False
    found = predict(model, rows)
    assert not found["correct"][0]
    assert found["p_correct"][0] == 0
    assert row_gradients(model, rows, Sketch(64, 256, 1)).correct[0] == 0


def test_outcomes_of_a_known_softmax() -> None:
    rows = linear_rows(np.array([[1.0], [1.0], [1.0]]), [0, 1, 2])
    found = predict(Linear(torch.tensor([[0.7], [0.2], [0.1]]).log()), rows)
    assert found["correct"].tolist() == [True, False, False]
    np.testing.assert_allclose(found["p_correct"], [0.7, 0.2, 0.1], rtol=1e-6)
    np.testing.assert_allclose(found["nll"], -np.log([0.7, 0.2, 0.1]), rtol=1e-6)
    np.testing.assert_allclose(found["el2n"][0], 0.37417, atol=1e-5)


def test_outcomes_do_not_depend_on_order() -> None:
    frame = world_frame(60)
    reader = make_reader(SPEC, frame)
    model = build_model(SPEC, reader, 2).eval()
    rows = encode(reader, frame)
    order = np.random.Generator(np.random.Philox(2)).permutation(len(rows))
    whole, shuffled = predict(model, rows), predict(model, rows.take(order))
    np.testing.assert_allclose(shuffled["nll"], whole["nll"][order], rtol=1e-5)
    np.testing.assert_allclose(whole["p_correct"], np.exp(-whole["nll"]), rtol=1e-6)


@given(st.integers(1, 60), st.integers(1, 200))
@settings(deadline=None, max_examples=30)
def test_batches_cover_the_rows_once_within_the_budget(n: int, most: int) -> None:
    frame = pl.DataFrame({"prompt": ["a " * (i % 7) for i in range(n)], "response": ["b"] * n})
    rows = encode(make_reader(SPEC, frame), frame)
    found = list(batches(rows, most))
    assert sorted(np.concatenate(found).tolist()) == list(range(n))
    for index in found:
        assert len(index) == 1 or len(index) * rows.lengths()[index].max() <= most
    assert list(batches(rows.take([]), most)) == []


def test_a_frozen_copy() -> None:
    reader = make_reader(SPEC, world_frame(20))
    model = build_model(SPEC, reader, 2)
    copy = frozen_copy(build_model(SPEC, reader, 3), model.state_dict())
    assert not copy.training
    assert all(
        torch.equal(a, b) and not b.requires_grad
        for a, b in zip(model.parameters(), copy.parameters(), strict=True)
    )
