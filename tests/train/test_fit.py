"""Training: the same bits for the same seed, the same steps and order for every arm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curation.pretrained import Pretrained
from curation.proxies import Reader, encode, make_reader, predict
from curation.specs import Proxy
from curation.train import fit as fitting
from curation.train.fit import batch_order, fit
from storage.pretrained import load_causal
from tests.hub_models import tiny_llama, tiny_lora_llama, tiny_qwen2
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


def test_training_goes_on_from_a_model_and_leaves_it_as_it_was(small) -> None:
    reader, rows = small
    first = fit(SPEC, reader, rows, seed=4, steps=60)
    before = {k: v.clone() for k, v in first.model.state_dict().items()}
    further = fit(SPEC, reader, rows, seed=5, steps=2, initial=first.model.requires_grad_(False))
    assert further.train_nll < 0.7 * fit(SPEC, reader, rows, seed=5, steps=2).train_nll
    assert all(torch.equal(v, before[k]) for k, v in first.model.state_dict().items())
    same = fit(SPEC, reader, rows, seed=5, steps=0, initial=first.model)
    assert all(torch.equal(v, before[k]) for k, v in same.model.state_dict().items())
    assert same.steps == same.tokens == 0 and np.isnan(same.train_nll) and np.isnan(same.forgetting).all()


def test_forgetting_is_counted_before_each_step(small) -> None:
    reader, rows = small
    n = len(rows)
    spec = SPEC.model_copy(update={"batch_rows": n})  # every row in every step
    untrained = predict(fit(spec, reader, rows, seed=4, steps=0).model, rows)["correct"]
    once = fit(spec, reader, rows, seed=4, steps=1).forgetting
    assert np.array_equal(np.isinf(once), ~untrained)
    found = fit(spec, reader, rows, seed=4, steps=40).forgetting
    assert found.shape == (n,) and not np.isnan(found).any() and np.isfinite(found).any()


def pretrained_reader(spec: Proxy, folder: Path) -> Reader:
    model = Pretrained(load_causal(str(folder))[1], lambda _: (load_causal(str(folder))[0], ()))
    return make_reader(spec, pl.DataFrame(), 0, model)


LLAMA = Proxy(kind="causal_lm", model="here", max_tokens=24, batch_rows=8, steps=6, chat_template=False)


def test_a_tied_language_model_is_fine_tuned_and_rows_without_an_answer_change_nothing(
    tmp_path: Path,
) -> None:
    reader = pretrained_reader(LLAMA, tiny_qwen2(tmp_path))
    frame = pl.DataFrame({"prompt": ["the mill"] * 8, "response": [f"{i} bridges" for i in range(8)]})
    rows = encode(reader, frame)
    fitted = fit(LLAMA.model_copy(update={"learning_rate": 1e-2}), reader, rows, seed=1, steps=30)
    start = fit(LLAMA, reader, rows, seed=1, steps=0)
    assert predict(fitted.model, rows)["nll"].mean() < 0.5 * predict(start.model, rows)["nll"].mean()
    model = fitted.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[operator]
    some = encode(
        reader,
        frame.with_columns(response=pl.when(pl.int_range(8) < 4).then("response").otherwise(pl.lit(""))),
    )
    spec = LLAMA.model_copy(update={"batch_rows": 4})
    nothing = fit(spec, reader, some.take([4, 5, 6, 7]), seed=1, steps=3)
    assert nothing.train_nll == 0 and not nothing.forgetting[np.isfinite(nothing.forgetting)].any()
    mixed = fit(LLAMA, reader, some, seed=1, steps=3)
    assert np.isfinite(mixed.train_nll)
    assert all(torch.isfinite(v).all() for v in mixed.model.state_dict().values())
    found = predict(mixed.model, some)
    assert not found["correct"][4:].any() and found["p_correct"][4:].tolist() == [0] * 4


def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = pretrained_reader(LLAMA, tiny_llama(tmp_path))
    frame = pl.DataFrame(
        {"prompt": ["a" * i for i in range(1, 9)], "response": ["the mill " * i for i in range(8)]}
    )
    rows = encode(reader, frame)
    whole = fit(LLAMA, reader, rows, seed=1, steps=4)
    monkeypatch.setattr(fitting, "PART_TOKENS", 30)
    parts = fit(LLAMA, reader, rows, seed=1, steps=4)
    assert parts.train_nll == pytest.approx(whole.train_nll, rel=1e-6)
    assert np.array_equal(parts.forgetting, whole.forgetting)
    for k, v in parts.model.state_dict().items():
        torch.testing.assert_close(v, whole.model.state_dict()[k], rtol=1e-3, atol=1e-4)


def test_only_the_adapter_of_a_model_with_lora_layers_is_trained(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    reader = pretrained_reader(LLAMA, tiny_lora_llama(tmp_path))
    rows = encode(reader, pl.DataFrame({"prompt": ["the mill"] * 8, "response": ["under the bridge"] * 8}))
    before = fit(LLAMA, reader, rows, seed=1, steps=0).model.state_dict()
    after = fit(LLAMA, reader, rows, seed=1, steps=3).model.state_dict()
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert moved and moved == {k for k in before if ".lora_" in k}
