"""EL2N, gradient norm and masks: known answers (METHODS F.5, A.7.6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from curation.decoder import Decoder, initialise
from curation.encoded import TokenRows
from curation.proxies import row_losses
from curation.score.exact import exact_row_gradients
from curation.score.gradients import TOLERANCE, Sketch, row_gradients
from tests.small import linear_gradients


def decoder(seed: int = 1) -> Decoder:
    model = Decoder(n_words=20, max_tokens=12, layers=2, width=16, heads=2)
    initialise(model, seed)
    model.eval().requires_grad_(False)
    return model


def rows(*pairs: tuple[list[int], list[int]], width: int = 10) -> TokenRows:
    ids, target = (
        torch.zeros(len(pairs), width, dtype=torch.long),
        torch.zeros(len(pairs), width, dtype=torch.bool),
    )
    for i, (prompt, response) in enumerate(pairs):
        ids[i, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        target[i, len(prompt) : len(prompt) + len(response)] = True
    return TokenRows(ids, target, (ids != 0).sum(1))


def test_el2n_and_gradient_norm_of_a_known_softmax() -> None:
    x = np.array([3.0, 4.0])  # norm 5
    weight = np.outer(np.log([0.7, 0.2, 0.1]), x) / 25
    found = linear_gradients(weight, x[None], [0])
    assert found.el2n[0] == pytest.approx(0.37417, abs=1e-5)
    assert found.norm[0] == pytest.approx(1.87083, abs=1e-5)
    assert np.linalg.norm(found.feature[0]) == pytest.approx(1.87083, abs=1e-5)
    assert found.nll[0] == pytest.approx(-np.log(0.7), abs=1e-6)
    assert found.correct[0] == 1


def test_el2n_of_a_uniform_softmax() -> None:
    found = linear_gradients(np.zeros((10, 4)), np.ones((1, 4)), [3])
    assert found.el2n[0] == pytest.approx(0.94868, abs=1e-5)
    assert found.nll[0] == pytest.approx(np.log(10), abs=1e-5)


def reference_nll(model: Decoder, batch: TokenRows, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each row over the labels that are not -100, from all the logits."""
    logits = model.head(model(batch.ids[:, :-1]))
    each = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
    return each.sum(1) / (labels[:, 1:] != -100).sum(1)


def test_the_gathered_path_is_the_full_forward_with_the_prompt_masked() -> None:
    model = decoder().requires_grad_(True)
    batch = rows(([5, 6, 7, 1], [8, 9, 2]), ([5, 1], [4, 2]), ([4, 4, 9, 10, 11, 1], [12, 2]))
    hidden = model(batch.ids[:, :-1])
    row, at = batch.target[:, 1:].nonzero(as_tuple=True)
    logits, answers, row_found = model.target_logits(batch)
    torch.testing.assert_close(logits, model.head(hidden)[row, at], atol=1e-5, rtol=1e-5)
    assert torch.equal(row, row_found)
    assert answers.tolist() == [8, 9, 2, 4, 2, 12, 2]

    labels = torch.where(batch.target, batch.ids, -100)
    expected, got = reference_nll(model, batch, labels), row_losses(model, batch).nll
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(expected.sum(), model.parameters())
    for a, b in zip(torch.autograd.grad(got.sum(), model.parameters()), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_labels_of_the_prompt_do_not_count_and_those_of_the_answer_do() -> None:
    model = decoder()
    prompt, answer = [5, 6, 7, 1], [8, 9, 2]
    base = exact_row_gradients(model, rows((prompt, answer)))
    # the last answer token is read by nobody, so changing it changes only a label
    other = exact_row_gradients(model, rows((prompt, [8, 9, 3])))
    assert np.abs(base - other).max() > 1e-4
    # the same text with more of it masked: those labels, and nothing else, leave the loss
    with_prompt = rows((prompt, answer))
    with_prompt.target[0, 1:4] = True
    assert row_losses(model, with_prompt).n_tokens.tolist() == [6]
    assert np.abs(base - exact_row_gradients(model, with_prompt)).max() > 1e-4
    assert row_losses(model, rows((prompt, answer))).n_tokens.tolist() == [3]


def test_padding_changes_nothing() -> None:
    model = decoder()
    short, long = ([5, 1], [4, 2]), ([4, 4, 9, 10, 11, 1], [12, 13, 14, 2])
    alone = row_gradients(model, rows(short, width=4), Sketch(128, 256, 7, "all"))
    padded = row_gradients(model, rows(short, long), Sketch(128, 256, 7, "all"))
    scale = np.linalg.norm(alone.feature[0])
    assert np.abs(alone.feature[0] - padded.feature[0]).max() < 1e-5 * max(scale, 1)
    assert np.linalg.norm(alone.feature[0] - padded.feature[0]) < TOLERANCE["fp32"] * scale
    np.testing.assert_allclose(alone.nll[0], padded.nll[0], rtol=1e-5)


def test_length_only_rescales_a_repeated_mean() -> None:
    model = decoder()
    found = row_gradients(model, rows(([5, 1], [4, 2]), ([5, 1], [4, 2])), Sketch(64, 256, 7))
    np.testing.assert_allclose(found.feature[0], found.feature[1], rtol=1e-5, atol=1e-7)
    assert found.n_tokens.tolist() == [2, 2]
