"""Running out of memory halves the batches, is said, and changes no feature."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from curation.decoder import Decoder, initialise
from curation.encoded import EmbeddedRows
from curation.errors import UserError
from curation.head import Head
from curation.score import gradients
from curation.score.gradients import TOLERANCE, Sketch, row_gradients
from tests.sketching import labelled_tokens, relative, token_rows

SKETCH = Sketch(64, 12, 3, "all")
ROWS = token_rows(24, 20)


@pytest.fixture
def model() -> Decoder:
    return initialise(Decoder(n_words=20, max_tokens=20, layers=2, width=16, heads=2), 1).eval()  # type: ignore[return-value]


def small_memory(monkeypatch: pytest.MonkeyPatch, tokens: int, error: Exception) -> list[int]:
    """Memory for batches of so many padded tokens; the sizes that were tried, in order."""
    tried: list[int] = []
    whole = gradients.readout

    def readout(model, rows, form=None):
        ids = getattr(rows, "ids", None)
        size = len(rows) if ids is None else ids.numel()
        out = whole(model, rows, form)
        tried.append(size)
        if size > tokens:
            raise error
        return out

    monkeypatch.setattr(gradients, "readout", readout)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_batches_are_halved_until_they_fit(monkeypatch, model, error: Exception) -> None:
    undisturbed = row_gradients(model, ROWS, SKETCH)
    tried = small_memory(monkeypatch, 60, error)
    said: list[str] = []
    found = row_gradients(model, ROWS, SKETCH, say=said.append)
    assert relative(found.feature, undisturbed.feature) < TOLERANCE["fp32"]
    for name in ("norm", "nll", "el2n", "n_tokens", "correct"):
        np.testing.assert_allclose(getattr(found, name), getattr(undisturbed, name), rtol=1e-5)
    assert all("cpu ran out of memory: batches of at most" in line for line in said)
    budgets = [int(line.split("at most ")[1].split()[0]) for line in said]
    assert budgets and all(2 * b <= a for a, b in pairwise(budgets))
    assert sum(size > 60 for size in tried) == len(said)


def test_what_was_done_before_is_not_done_again(monkeypatch, model) -> None:
    """The shortest rows come first and fit; only what is left is cut anew."""
    tried = small_memory(monkeypatch, 90, torch.OutOfMemoryError("full"))
    said: list[str] = []
    row_gradients(model, ROWS, SKETCH, max_batch_tokens=100, say=said.append)
    fits = [size for size in tried[1:] if size <= 90]  # the first call is the one that lays the layers out
    assert len(said) >= 1
    assert int(ROWS.length.sum()) <= sum(fits) < 1.5 * int(ROWS.length.sum())


@pytest.mark.parametrize("kind", ["embedded", "labelled"])
def test_rows_of_other_kinds(monkeypatch, kind: str) -> None:
    if kind == "embedded":
        net = initialise(Head(4, 6, 3), 2).eval()
        x = torch.arange(80.0).view(20, 4) / 40
        rows = EmbeddedRows(x, torch.arange(20) % 3, torch.full((20,), 50))
    else:
        net = Tagger().eval()
        rows = labelled_tokens(20, 20, 3)
    undisturbed = row_gradients(net, rows, Sketch(64, 12, 3))
    small_memory(monkeypatch, 3 if kind == "embedded" else 40, torch.OutOfMemoryError("full"))
    said: list[str] = []
    found = row_gradients(net, rows, Sketch(64, 12, 3), say=said.append)
    assert said and relative(found.feature, undisturbed.feature) < TOLERANCE["fp32"]


class Tagger(torch.nn.Module):
    """The mean of a row's tokens, classified: the least that reads `LabelledTokens`."""

    def __init__(self) -> None:
        super().__init__()
        self.word = torch.nn.Embedding(20, 8)
        self.out = torch.nn.Linear(8, 3)
        initialise(self, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        mask = attention_mask[..., None].float()
        mean = (self.word(input_ids) * mask).sum(1) / mask.sum(1)
        return type("Out", (), {"logits": self.out(mean * 50)})


def test_one_row_that_does_not_fit_is_an_error(monkeypatch, model) -> None:
    small_memory(monkeypatch, 10, torch.OutOfMemoryError("full"))
    monkeypatch.setattr(gradients, "find_layout", lambda *_: ())
    with pytest.raises(
        UserError, match=rf"one row of {int(ROWS.length.max())} tokens does not fit .* of cpu .*max_tokens"
    ):
        row_gradients(model, ROWS.take([int(ROWS.length.argmax())]), SKETCH, say=lambda _: None)
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_other_errors_are_not_taken_for_memory(monkeypatch, model) -> None:
    small_memory(monkeypatch, 60, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        row_gradients(model, ROWS, SKETCH)


def test_the_warning_is_one_of_python_when_nobody_listens(monkeypatch, model) -> None:
    small_memory(monkeypatch, 60, torch.OutOfMemoryError("full"))
    with pytest.warns(UserWarning, match="ran out of memory"):
        row_gradients(model, ROWS, SKETCH)
