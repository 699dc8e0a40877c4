"""The gradient engine against its exact twin, and invariance to batches, order and padding (METHODS A.7, G.6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curation import proxies
from curation.decoder import initialise
from curation.encoded import EmbeddedRows
from curation.head import Head
from curation.proxies import layers_of
from curation.randomness import generator
from curation.score import gradients
from curation.score.gradients import (
    TOLERANCE_FP32,
    Sketcher,
    exact_row_gradients,
    fold,
    row_gradients,
    sketch,
)
from tests.small import identity_unsketch, trained_decoder

WIDE = 10**6  # no side is folded
D = 512


@pytest.fixture(scope="module")
def decoder():
    return trained_decoder(128)


@pytest.fixture(scope="module")
def exact(decoder) -> np.ndarray:
    model, layers, rows, _ = decoder
    return exact_row_gradients(model, layers, rows)


def head_and_rows(n: int = 24):
    model = Head(12, 10, 6)
    initialise(model, 2)
    model.eval().requires_grad_(False)
    rng = generator(8, "head rows")
    x = torch.from_numpy(rng.standard_normal((n, 12)).astype(np.float32)) * 3
    return (
        model,
        layers_of(model, "hidden"),
        EmbeddedRows(x, torch.from_numpy(rng.integers(0, 6, n)), torch.ones(n, dtype=torch.long)),
    )


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance of two rows, over the length of the second."""
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


def pairwise_cosines(x: np.ndarray) -> np.ndarray:
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (z @ z.T)[np.triu_indices(len(z), 1)]


def of_layers(flat: np.ndarray, layers: dict[str, torch.nn.Linear]) -> dict[str, np.ndarray]:
    sizes = [layer.weight.numel() for layer in layers.values()]
    return dict(zip(layers, np.split(flat, np.cumsum(sizes)[:-1], axis=1), strict=True))


def project_exact(
    flat: np.ndarray, layers: dict[str, torch.nn.Linear], d: int, width: int, seed: int
) -> np.ndarray:
    """The engine's projection applied to full gradients: both sides folded, then sketched, summed over layers."""
    sketcher = Sketcher(layers, d, width, seed)
    total = torch.zeros(len(flat), d)
    for name, g in of_layers(flat, layers).items():
        n_out, n_in = layers[name].weight.shape
        sign_in, sign_out = sketcher.sides[name]
        matrix = fold(torch.from_numpy(g).view(-1, n_out, n_in), width, sign_in)
        matrix = fold(matrix.transpose(1, 2), width, sign_out).transpose(1, 2)
        total += sketch(matrix.flatten(1), d, *sketcher.finals[name])
    return total.numpy()


@pytest.mark.parametrize("kind", ["decoder", "decoder with head", "head"])
def test_with_identity_projections_the_engine_is_the_exact_twin(decoder, kind: str) -> None:
    model, layers, rows, _ = decoder
    if kind == "head":
        model, layers, rows = head_and_rows()
    elif kind == "decoder with head":
        layers = layers_of(model, "all")
    rows = rows.take(np.arange(24))
    twin = exact_row_gradients(model, layers, rows)
    norms = np.zeros(len(rows))
    for name, g in of_layers(twin, layers).items():
        one = {name: layers[name]}
        found = row_gradients(model, one, rows, g.shape[1], WIDE, 3)
        back = identity_unsketch(found.feature, *Sketcher(one, g.shape[1], WIDE, 3).finals[name], g.shape[1])
        assert relative(back, g) < TOLERANCE_FP32, name
        norms += found.norm**2
    np.testing.assert_allclose(np.sqrt(norms), np.linalg.norm(twin, axis=1), rtol=TOLERANCE_FP32)
    whole = row_gradients(model, layers, rows, 64, WIDE, 3)
    np.testing.assert_allclose(whole.norm, np.linalg.norm(twin, axis=1), rtol=TOLERANCE_FP32)


@pytest.mark.parametrize("width", [WIDE, 20])
def test_features_are_the_projection_of_the_exact_gradients(decoder, exact: np.ndarray, width: int) -> None:
    model, layers, rows, _ = decoder
    found = row_gradients(model, layers, rows, D, width, 3)
    assert relative(found.feature, project_exact(exact, layers, D, width, 3)) < TOLERANCE_FP32


def test_batches_order_and_padding_change_nothing(decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    model, layers, rows, _ = decoder
    whole = row_gradients(model, layers, rows, D, 256, 3)
    order = generator(1, "order").permutation(len(rows))
    shuffled = row_gradients(model, layers, rows.take(order), D, 256, 3)
    assert relative(shuffled.feature, whole.feature[order]) < TOLERANCE_FP32
    parts = [row_gradients(model, layers, rows.take(index), D, 256, 3) for index in np.array_split(order, 5)]
    assert relative(np.concatenate([p.feature for p in parts]), whole.feature[order]) < TOLERANCE_FP32
    monkeypatch.setattr(gradients, "batches", lambda rows: proxies.batches(rows, max_tokens=1))
    alone = row_gradients(model, layers, rows, D, 256, 3)
    assert relative(alone.feature, whole.feature) < TOLERANCE_FP32
    for name in ("norm", "nll", "el2n"):
        np.testing.assert_allclose(getattr(alone, name), getattr(whole, name), rtol=TOLERANCE_FP32, atol=1e-6)
    assert np.array_equal(alone.n_tokens, whole.n_tokens)


def test_batches_and_order_change_nothing_for_the_head() -> None:
    model, layers, rows = head_and_rows(40)
    whole = row_gradients(model, layers, rows, 64, 8, 3)
    order = generator(1, "order").permutation(len(rows))
    assert (
        relative(row_gradients(model, layers, rows.take(order), 64, 8, 3).feature, whole.feature[order])
        < TOLERANCE_FP32
    )
    assert (
        relative(row_gradients(model, layers, rows.take([7]), 64, 8, 3).feature, whole.feature[[7]])
        < TOLERANCE_FP32
    )


def test_the_seed_names_the_projection(decoder) -> None:
    model, layers, rows, _ = decoder
    rows = rows.take(np.arange(16))
    first, again, other = (row_gradients(model, layers, rows, D, 256, s).feature for s in (3, 3, 4))
    assert np.array_equal(first, again)
    assert relative(other, first) > 0.5


def test_the_engine_leaves_the_model_as_it_was(decoder) -> None:
    model, layers, rows, _ = decoder
    before = {k: v.clone() for k, v in model.state_dict().items()}
    row_gradients(model, layers, rows.take(np.arange(4)), 64, 256, 3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())


def test_no_rows_give_no_features(decoder) -> None:
    model, layers, rows, _ = decoder
    assert row_gradients(model, layers, rows.take([]), 64, 256, 3).feature.shape == (0, 64)


def test_cosines_of_the_sketch_are_as_good_as_of_an_ideal_projection(decoder, exact: np.ndarray) -> None:
    model, layers, rows, _ = decoder
    truth = pairwise_cosines(exact)

    def agreement(features: np.ndarray) -> float:
        return float(np.corrcoef(pairwise_cosines(features), truth)[0, 1])

    dense = (
        generator(9, "dense").integers(0, 2, (exact.shape[1], D), dtype=np.int8).astype(np.float32) * 2 - 1
    )
    ideal = agreement(exact @ dense)
    spread = truth.std()
    assert ideal == pytest.approx(spread / np.sqrt(spread**2 + 1 / D), abs=0.03)
    for width, loss in ((WIDE, 0.02), (32, 0.03)):
        ours = [agreement(row_gradients(model, layers, rows, D, width, seed).feature) for seed in (3, 4)]
        print(
            f"cosines against exact: d={D} fold={width} {np.round(ours, 4)}, ideal {ideal:.4f}, spread {spread:.4f}"
        )
        assert min(ours) > ideal - loss


@pytest.mark.parametrize("reduce", ["sketch", "fold"])
def test_the_projections_are_unbiased(reduce: str) -> None:
    rng = generator(5, "pairs")
    u, v = torch.from_numpy(rng.standard_normal((2, 300)).astype(np.float32))
    v = v + u
    products = []
    for seed in range(400):
        signs = torch.from_numpy(generator(seed, "s").integers(0, 2, 300).astype(np.float32) * 2 - 1)
        both = torch.stack([u, v])
        rolls = generator(seed, "r").integers(0, 32, 10)
        f = sketch(both, 32, signs, rolls) if reduce == "sketch" else fold(both, 32, signs)
        products.append(float(f[0] @ f[1]))
    error = np.std(products) / np.sqrt(len(products))
    assert np.mean(products) == pytest.approx(float(u @ v), abs=4 * error)


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
@settings(deadline=None)
def test_fold_then_outer_product_is_folding_the_gradient(
    seed: int, width: int, n_in: int, n_out: int, tokens: int
) -> None:
    rng = generator(seed, "logra")
    a, e = (torch.from_numpy(rng.standard_normal((tokens, k))) for k in (n_in, n_out))
    sign_in, sign_out = (torch.from_numpy(rng.choice([-1.0, 1.0], k)) for k in (n_in, n_out))
    small = fold(e, width, sign_out).T @ fold(a, width, sign_in)
    whole = fold(fold(e.T @ a, width, sign_in).T, width, sign_out).T
    torch.testing.assert_close(small, whole, atol=1e-10, rtol=0)
    if width >= max(n_in, n_out):
        torch.testing.assert_close(small, e.T @ a, atol=1e-10, rtol=0)


@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 16))
@settings(deadline=None)
def test_the_sketch_is_linear_and_keeps_one_hots(seed: int, p: int, d: int) -> None:
    rng = generator(seed, "sketch test")
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], p))
    rolls = rng.integers(0, d, -(-p // d))

    def s(x: Tensor) -> Tensor:
        return sketch(x, d, signs, rolls)

    assert torch.equal(s(torch.eye(p, dtype=torch.float64)).norm(dim=1), torch.ones(p, dtype=torch.float64))
    a, b = torch.from_numpy(rng.standard_normal((2, 3, p)))
    torch.testing.assert_close(s(2 * a + b), 2 * s(a) + s(b), atol=1e-10, rtol=0)
    assert not s(torch.zeros(2, p)).any()
