"""Losses in chunks, and their gradients, against the plain softmax over all logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curation import losses
from curation.losses import LogitForm, Readout, answer_losses, linear
from curation.randomness import generator

FORMS = [LogitForm(), LogitForm(scale=0.25), LogitForm(cap=2.0), LogitForm(scale=3.0, cap=5.0)]


def drawn(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(generator(4, "losses", name).standard_normal(shape).astype(np.float32))


def readout(m: int, form: LogitForm = FORMS[0], bias: bool = False, unknown: bool = True) -> Readout:
    """m answers of a head over 13 words and 6 wide; every fifth answer is one that the model does not know."""
    head = nn.Linear(6, 13, bias=bias).requires_grad_(False)
    head.weight.copy_(drawn("weight", 13, 6))
    if bias:
        head.bias.copy_(drawn("bias", 13))
    answers = torch.from_numpy(generator(4, "answers").integers(0, 13, m))
    if unknown:
        answers[::5] = -1
    return Readout(drawn("states", m, 6), answers, torch.arange(m), head, form)


def plain(out: Readout, weight: Tensor) -> dict[str, Tensor]:
    """The same by definition, float64, all the logits at once."""
    states = out.states.double().requires_grad_(True)
    raw = states
    if out.head is not None:
        raw = F.linear(
            states, out.head.weight.double(), None if out.head.bias is None else out.head.bias.double()
        )
    raw = raw if out.head is None else raw.requires_grad_(True)
    logits = out.form(raw)
    known, answers = out.answers >= 0, out.answers.clamp(min=0)
    nll = F.cross_entropy(logits, answers, reduction="none")
    total = (torch.where(known, nll, 0.0) * weight.double()).sum()
    back, error = torch.autograd.grad(total, (states, raw))
    onehot = F.one_hot(answers, logits.shape[1])
    return {
        "nll": nll.detach(),
        "el2n": (logits.softmax(1) - onehot).norm(dim=1).detach(),
        "correct": (logits.argmax(1) == answers) & known,
        "back": back,
        "error": error,
    }


def found(out: Readout, weight: Tensor, listen: bool) -> dict[str, Tensor]:
    errors: list[Tensor] = []
    places: list[slice] = []

    def hear(part: slice, error: Tensor) -> None:
        places.append(part)
        errors.append(error.clone())

    each, back = answer_losses(out, weight, hear if listen else None)
    assert back is not None
    values = {"nll": each.nll, "el2n": each.el2n, "correct": each.correct, "back": back}
    if listen:
        assert [i for p in places for i in range(p.start, p.stop)] == list(range(len(out.states)))
        values["error"] = torch.cat(errors)
    return values


def agree(out: Readout, listen: bool, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    weight = torch.from_numpy(generator(4, "weights").random(len(out.states)).astype(np.float32))
    wanted, got = plain(out, weight), found(out, weight, listen)
    assert torch.equal(got.pop("correct"), wanted["correct"])
    for name, value in got.items():
        np.testing.assert_allclose(value.double(), wanted[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("listen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_losses_of_a_head(form: LogitForm, bias: bool, listen: bool) -> None:
    agree(readout(37, form, bias), listen)


@pytest.mark.parametrize("listen", [False, True])
def test_losses_of_logits_as_they_are(listen: bool) -> None:
    logits = drawn("logits", 20, 7) * 3
    answers = torch.from_numpy(generator(4, "y").integers(-1, 7, 20))
    before = logits.clone()
    agree(Readout(logits, answers, torch.arange(20)), listen)
    assert torch.equal(logits, before)


@given(st.integers(1, 40), st.integers(1, 12), st.booleans())
@settings(max_examples=25)
def test_chunks_leave_no_trace(m: int, chunk: int, listen: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CHUNK_TOKENS", chunk)
        agree(readout(m), listen)


def test_no_answers() -> None:
    each, back = answer_losses(readout(0), torch.zeros(0))
    assert each.nll.shape == each.el2n.shape == each.correct.shape == (0,)
    assert back is not None and back.shape == (0, 6)
    assert answer_losses(readout(3))[1] is None


def test_ties_go_to_the_first_as_argmax_does() -> None:
    logits = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 1, 1], [2, 2, 2], [2, 2, 2]])
    each, _ = answer_losses(Readout(logits, torch.tensor([0, 1, 2, 0, 2]), torch.arange(5)))
    assert each.correct.tolist() == [True, False, False, True, False]


def test_an_unknown_answer_weighs_nothing_and_is_never_right() -> None:
    out = readout(10, bias=True)
    each, back = answer_losses(out, torch.ones(10))
    assert back is not None
    assert not back[::5].any() and back[1:5].abs().sum(1).min() > 0
    assert not each.correct[::5].any()


@pytest.mark.parametrize("listen", [False, True])
def test_confident_answers_keep_their_digits(listen: bool) -> None:
    """1 - p = e^-gap / (1 + e^-gap) far below float32's last digit of 1: to 1e-35 (EL2N, of squares, to 1e-18)."""
    gaps = [20.0, 40.0, 60.0, 80.0]
    logits = torch.tensor([[gap, 0.0, -1.0] for gap in gaps])
    other = np.exp([[-gap, -gap - 1] for gap in gaps])
    miss = other.sum(1)
    got = found(Readout(logits, torch.zeros(4, dtype=torch.long), torch.arange(4)), torch.ones(4), listen)
    np.testing.assert_allclose(got["nll"], miss, rtol=1e-6)
    np.testing.assert_allclose(got["el2n"][:2], np.hypot(miss, np.linalg.norm(other, axis=1))[:2], rtol=1e-6)
    np.testing.assert_allclose(got["back"], np.column_stack([-miss, other]), rtol=1e-6)
    assert got["correct"].all()


@pytest.mark.parametrize("listen", [False, True])
def test_hopeless_answers_and_huge_logits(listen: bool) -> None:
    logits = torch.tensor([[0.0, 1e4, -1e4], [0.0, 200.0, 0.0], [3e38, -3e38, 0.0]])
    got = found(Readout(logits, torch.zeros(3, dtype=torch.long), torch.arange(3)), torch.ones(3), listen)
    np.testing.assert_allclose(got["nll"], [1e4, 200.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(got["el2n"], [2**0.5, 2**0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(got["back"], [[-1, 1, 0], [-1, 1, 0], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("listen", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_not_a_number_keeps_to_itself(value: float, listen: bool) -> None:
    clean, sick = readout(9), readout(9)
    sick.states[4] = value
    weight, others = torch.ones(9), [0, 1, 2, 3, 5, 6, 7, 8]
    a, b = found(clean, weight, listen), found(sick, weight, listen)
    for name in a:
        assert torch.equal(a[name][others], b[name][others]), name
    assert not b["nll"][4].isfinite() and not b["back"][4].isfinite().any()


def test_another_precision_of_the_head() -> None:
    out = readout(30)
    assert out.head is not None
    fine, back = answer_losses(out, torch.ones(30))
    coarse, rough = answer_losses(out, torch.ones(30), head_weight=out.head.weight.bfloat16())
    assert back is not None and rough is not None and rough.dtype == torch.float32
    torch.testing.assert_close(coarse.nll, fine.nll, rtol=0.05, atol=0.05)
    torch.testing.assert_close(rough, back, rtol=0.05, atol=0.05)
    assert not torch.equal(rough, back)


def test_the_product_without_gradient() -> None:
    x, w, b = drawn("x", 3, 5, 6), drawn("w", 4, 6), drawn("b", 4)
    torch.testing.assert_close(linear(x, w, b), F.linear(x, w, b))
    torch.testing.assert_close(linear(x.transpose(0, 1), w.T.contiguous().T), F.linear(x.transpose(0, 1), w))
    assert linear(x[:0], w, b).shape == (0, 5, 4)
    assert linear(x.bfloat16(), w.bfloat16()).dtype == torch.bfloat16
