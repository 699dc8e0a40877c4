"""What the engine does with rows and sessions that go wrong: nothing spreads, and the model is left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from curation.decoder import Decoder, initialise
from curation.encoded import EmbeddedRows, Encoded, TokenRows
from curation.errors import UserError
from curation.head import Head
from curation.score import gradients, tape, taps
from curation.score.gradients import TOLERANCE, RowGradients, Sketch, row_gradients
from tests.hub_models import tiny_gpt2, tiny_llama
from tests.sketching import labelled_tokens, relative, token_rows

SKETCH = Sketch(64, 12, 3, "all")
BAD = 7  # the token that breaks the model


def decoder() -> Decoder:
    model = initialise(Decoder(n_words=20, max_tokens=20, layers=2, width=16, heads=2), 1)
    return model.eval().requires_grad_(False)  # type: ignore[return-value]


def rows_with(bad: tuple[int, ...], n: int = 10) -> TokenRows:
    """Rows of tokens of which only those of `bad` read the token BAD."""
    rows = token_rows(n, 20)
    rows.ids[rows.ids == BAD] = BAD + 1
    for i in bad:
        rows.ids[i, 0] = BAD
    return rows


def same_but(found: RowGradients, wanted: RowGradients, bad: tuple[int, ...]) -> None:
    good = np.setdiff1d(np.arange(len(wanted.norm)), bad)
    assert np.isfinite(found.feature[good]).all()
    assert relative(found.feature[good], wanted.feature[good]) < TOLERANCE["fp32"]
    for name in ("norm", "nll", "el2n", "correct", "n_tokens"):
        np.testing.assert_allclose(getattr(found, name)[good], getattr(wanted, name)[good], rtol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("parameters", ["hidden", "all", ("head", "norms")], ids=str)
def test_a_row_that_overflows_poisons_no_other(parameters: Any, value: float) -> None:
    bad = (0, 3, 8)
    rows, model, sketch = rows_with(bad), decoder(), Sketch(64, 12, 3, parameters)
    clean = row_gradients(model, rows, sketch)
    model.token.weight[BAD] = value
    for budget in (None, 45):
        found = row_gradients(model, rows, sketch, max_batch_tokens=budget)
        same_but(found, clean, bad)
        if value != 3e38:  # a norm takes the finite one
            assert not np.isfinite(found.norm[list(bad)]).any()
            assert not np.isfinite(found.nll[list(bad)]).any()


def test_a_row_that_overflows_poisons_no_other_of_a_hub_model(tmp_path: Path) -> None:
    bad = (1, 4)
    rows = rows_with(bad)
    for make in (tiny_llama, tiny_gpt2):
        model = AutoModelForCausalLM.from_pretrained(make(tmp_path / make.__name__)).requires_grad_(False)
        if model.config.tie_word_embeddings:  # the bad token would be a bad answer of every row
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), False)
        clean = row_gradients(model, rows, SKETCH)
        model.get_input_embeddings().weight[BAD] = float("inf")
        found = row_gradients(model, rows, SKETCH)
        same_but(found, clean, bad)
        assert not np.isfinite(found.norm[list(bad)]).any()


def test_a_bad_embedding_poisons_no_other_row() -> None:
    model = initialise(Head(4, 6, 3), 2).eval()
    x = torch.ones(5, 4) * torch.arange(1, 6)[:, None]
    clean = row_gradients(model, EmbeddedRows(x, torch.zeros(5, dtype=torch.long), torch.ones(5)), SKETCH)
    x[2] = float("nan")
    found = row_gradients(model, EmbeddedRows(x, torch.zeros(5, dtype=torch.long), torch.ones(5)), SKETCH)
    same_but(found, clean, (2,))
    assert np.isnan(found.norm[2])


def test_buffers_that_held_a_bad_batch_are_clean_for_the_next() -> None:
    rows = rows_with((0, 1, 2, 3))
    model = decoder()
    clean = row_gradients(model, rows, SKETCH)
    model.token.weight[BAD] = float("nan")
    found = row_gradients(model, rows, SKETCH, max_batch_tokens=1)
    same_but(found, clean, (0, 1, 2, 3))


def test_a_row_without_an_answer_has_no_feature() -> None:
    rows, model = rows_with(()), decoder()
    clean = row_gradients(model, rows, SKETCH)
    none = (0, 5, 9)
    rows.target[list(none)] = False
    for budget in (None, 1):
        found = row_gradients(model, rows, SKETCH, max_batch_tokens=budget)
        same_but(found, clean, none)
        assert not found.feature[list(none)].any() and not found.norm[list(none)].any()
        assert np.isnan(found.nll[list(none)]).all() and np.isnan(found.el2n[list(none)]).all()
        assert not found.n_tokens[list(none)].any() and not found.correct[list(none)].any()


def test_no_row_with_an_answer_at_all() -> None:
    rows = rows_with(())
    rows.target[:] = False
    found = row_gradients(decoder(), rows, SKETCH)
    assert not found.feature.any() and np.isnan(found.nll).all()
    empty = TokenRows(
        torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3).long()
    )
    assert not row_gradients(decoder(), empty, SKETCH).feature.any()


def test_classes_that_are_not_known() -> None:
    model = initialise(Head(4, 6, 3), 2).eval()
    y = torch.tensor([0, -1, 2])
    found = row_gradients(model, EmbeddedRows(torch.ones(3, 4), y, torch.ones(3).long()), SKETCH)
    assert (found.norm > 0).tolist() == [True, False, True]
    assert not found.correct[1]


def test_rows_of_one_and_two_tokens() -> None:
    rows, model = token_rows(8, 20, longest=2), decoder()
    rows.length[:3] = 1
    rows.target[:3] = False
    found = row_gradients(model, rows, SKETCH)
    assert (found.norm > 0).tolist() == [False] * 3 + [True] * 5
    alone = row_gradients(model, rows.take([5]), SKETCH)
    assert relative(alone.feature, found.feature[[5]]) < TOLERANCE["fp32"]


@pytest.mark.parametrize("rows", [token_rows(2, 20), labelled_tokens(2, 20, 3)])
def test_no_rows_give_no_features(rows: Encoded) -> None:
    found = row_gradients(decoder(), rows.take([]), SKETCH)
    assert found.feature.shape == (0, 64) and found.feature.dtype == np.float32
    assert found.norm.shape == (0,)


def test_a_gradient_of_zero_is_zero() -> None:
    model = decoder()
    model.head.weight.zero_()
    found = row_gradients(model, rows_with(()), Sketch(64, 12, 3))
    assert not found.feature.any() and not found.norm.any()
    np.testing.assert_allclose(found.nll, np.log(20), rtol=1e-6)


def test_wrong_parameters_are_refused_before_anything_is_tapped() -> None:
    model, rows = decoder(), rows_with(())
    with pytest.raises(UserError, match="unknown hed; use hidden, all, lora or a list of linear"):
        row_gradients(model, rows, Sketch(64, 12, 3, ("hed",)))
    with pytest.raises(UserError, match="none of the kind lora; load its adapter"):
        row_gradients(model, rows, Sketch(64, 12, 3, "lora"))
    assert state_of(model) == state_of(decoder())


# -- the model as it was -----------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> list[Any]:
    modules = [
        (name, m.training, m.__dict__.get("forward"), len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]
    return [*modules, *((name, p.requires_grad) for name, p in model.named_parameters())]


def mixed(model: nn.Module) -> nn.Module:
    """In train mode but for one part, some weights frozen, one forward replaced: all to be found again."""
    model.requires_grad_(True).train()
    model.blocks[0].eval()  # type: ignore[index,union-attr]
    model.token.weight.requires_grad_(False)  # type: ignore[union-attr]
    model.norm.forward = model.norm.forward  # type: ignore[union-attr]
    model.blocks[1].up.forward = model.blocks[1].up.forward  # type: ignore[index,union-attr]
    return model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_is_left_as_it_was(precision: str) -> None:
    model = mixed(decoder())
    before, weights = state_of(model), {k: v.clone() for k, v in model.state_dict().items()}
    row_gradients(model, rows_with(()), Sketch(64, 12, 3, "all", precision))
    assert state_of(model) == before
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def breaks(*_: Any, **__: Any) -> Any:
    raise ValueError("on purpose")


@pytest.mark.parametrize("where", ["loss", "forward", "patching", "sketch", "layout"])
def test_the_model_is_left_as_it_was_after_an_error(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    model = mixed(decoder())
    before = state_of(model)
    if where == "loss":
        monkeypatch.setattr(gradients, "answer_losses", breaks)
    elif where == "forward":
        monkeypatch.setattr(tape.Tape, "write", breaks)
    elif where == "patching":
        layer, made = taps.Linear, iter(range(100))
        monkeypatch.setattr(taps, "Linear", lambda *a: layer(*a) if next(made) < 3 else breaks())
    elif where == "sketch":
        monkeypatch.setattr(tape, "signs", breaks)
    else:
        monkeypatch.setattr(gradients, "readout", breaks)
    with pytest.raises(ValueError, match="on purpose"):
        row_gradients(model, rows_with(()), SKETCH)
    assert state_of(model) == before
