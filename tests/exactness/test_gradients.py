"""The gradient engine against full gradients, and the same features in any batch, order and padding (METHODS G.6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curation.decoder import initialise
from curation.encoded import EmbeddedRows
from curation.head import Head
from curation.randomness import generator
from curation.score.exact import counted_parameters, exact_cosines, exact_row_gradients
from curation.score.gradients import TOLERANCE, Sketch, engine, row_gradients
from curation.score.projection import Flattening, fold_into
from tests.sketching import (
    WIDE,
    by_parameter,
    check_scales,
    explicit_sketch,
    flatten,
    loop_gradients,
    relative,
    unflatten,
)
from tests.small import Linear, linear_rows, trained_decoder

D = 512
FLOAT64 = 1e-5  # float32 against float64: the worst row of a trained decoder is at 4e-6
CHOICES = ["hidden", "all", ("head",), ("embeddings",), ("norms",), ("biases",), ("linear", "head")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def decoder():
    return trained_decoder(96)[:2]


@pytest.fixture(scope="module")
def features(decoder) -> np.ndarray:
    return row_gradients(*decoder, Sketch(D, 256, 3)).feature


def head_and_rows(n: int = 24):
    model = initialise(Head(12, 10, 6), 2).eval().requires_grad_(False)
    rng = generator(8, "head rows")
    x = torch.from_numpy(rng.standard_normal((n, 12)).astype(np.float32)) * 3
    y = torch.from_numpy(rng.integers(0, 6, n))
    return model, EmbeddedRows(x, y, torch.ones(n, dtype=torch.long))


def linear_and_rows(n: int = 12):
    rng = generator(9, "linear rows")
    weight = torch.from_numpy(rng.standard_normal((7, 30)).astype(np.float32))
    return Linear(weight), linear_rows(rng.standard_normal((n, 30)), rng.integers(0, 7, n).tolist())


def pairwise_cosines(x: np.ndarray) -> np.ndarray:
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (z @ z.T)[np.triu_indices(len(z), 1)]


# -- the sketch of the full gradient, written out ----------------------------------------------------------------


@pytest.mark.parametrize("parameters", CHOICES, ids=str)
def test_features_are_the_sketch_of_gradients_by_plain_autograd(decoder, parameters) -> None:
    model, rows = decoder[0], decoder[1].take(np.arange(32))
    exact = loop_gradients(model, rows, parameters)
    for width in (WIDE, 20):
        sketch = Sketch(D, width, 3, parameters)
        found = row_gradients(model, rows, sketch)
        feature, norm = explicit_sketch(model, rows, sketch, exact)
        assert relative(found.feature, feature) < FLOAT64
        np.testing.assert_allclose(found.norm, norm, rtol=FLOAT64)


@pytest.mark.parametrize("parameters", ["hidden", "all"])
@pytest.mark.parametrize("make", [head_and_rows, linear_and_rows])
def test_features_of_classifiers_on_embeddings(make, parameters: str) -> None:
    model, rows = make()
    exact = loop_gradients(model, rows, parameters)
    for width in (WIDE, 5):
        sketch = Sketch(64, width, 3, parameters)
        found = row_gradients(model, rows, sketch)
        feature, norm = explicit_sketch(model, rows, sketch, exact)
        assert relative(found.feature, feature) < 2e-6
        np.testing.assert_allclose(found.norm, norm, rtol=2e-6)


@pytest.mark.parametrize("parameters", ["hidden", "all"])
def test_the_exact_twin_is_plain_autograd(decoder, parameters: str) -> None:
    """To 1e-4 only: the twin's float32 softmax loses digits of 1 - p in confident rows, which the engine keeps."""
    model, rows = decoder[0], decoder[1].take(np.arange(24))
    exact = loop_gradients(model, rows, parameters)
    assert relative(exact_row_gradients(model, rows, parameters), exact) < 1e-4
    z = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(exact_cosines(model, rows, parameters, block_rows=7), z @ z.T, atol=2e-5)


def test_with_identity_projections_the_engine_gives_the_gradient_itself(decoder) -> None:
    model, rows = decoder[0], decoder[1].take(np.arange(24))
    exact = loop_gradients(model, rows, "hidden")
    parts = by_parameter(model, "hidden", exact)
    sizes = [part[0].size for part in parts.values()]
    sketch = Sketch(d=2**14, fold_width=WIDE, seed=3)
    assert max(sizes) < sketch.d
    square = np.zeros(len(rows))
    for name, part in parts.items():
        found = row_gradients(model, rows, sketch, scales={n: (float(n == name), 1.0) for n in parts})
        with engine(model, rows, sketch) as tape:
            spot = tape.spots[name.removesuffix(".weight")][0]
            back = unflatten(spot.pairs.flattening, found.feature, spot.pairs.r_out * spot.pairs.r_in)
            back = back.reshape(-1, spot.pairs.r_out, spot.pairs.r_in)
            back = back * spot.sign_out.numpy()[:, None] * spot.sign_in.numpy()
        assert relative(back.reshape(len(rows), -1), part.reshape(len(rows), -1)) < FLOAT64, name
        square += found.norm**2
    np.testing.assert_allclose(np.sqrt(square), np.linalg.norm(exact, axis=1), rtol=FLOAT64)


def test_identity_projections_of_a_linear_softmax() -> None:
    model, rows = linear_and_rows()
    exact = loop_gradients(model, rows, "hidden")
    for seed in (0, 1, 2):
        found = row_gradients(model, rows, Sketch(exact.shape[1], WIDE, seed))
        np.testing.assert_allclose(
            np.sort(np.abs(found.feature)), np.sort(np.abs(exact)), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(found.norm, np.linalg.norm(exact, axis=1), rtol=1e-6)
        np.testing.assert_allclose(found.feature @ found.feature.T, exact @ exact.T, rtol=1e-4, atol=1e-4)


# -- scales ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", ["hidden", "all"])
def test_scales_are_those_of_the_full_gradient(decoder, parameters: str) -> None:
    check_scales(decoder[0], decoder[1].take(np.arange(16)), parameters, FLOAT64)


def test_a_scale_of_zero_leaves_a_layer_out(decoder) -> None:
    model, rows = decoder[0], decoder[1].take(np.arange(8))
    names = counted_parameters(model, "hidden")
    none = row_gradients(model, rows, Sketch(D), scales={name: (0.0, 1.0) for name in names})
    assert not none.feature.any()
    twice = row_gradients(model, rows, Sketch(D), scales={name: (2.0, 3.0) for name in names})
    once = row_gradients(model, rows, Sketch(D), scales={name: (1.0, 1.0) for name in names})
    assert relative(twice.feature, 6 * once.feature) < 1e-5


# -- batches, order, padding -------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([60, 200, 700, 4096]))
def test_any_order_subset_split_and_batch_give_the_same_features(
    decoder, features: np.ndarray, seed: int, shards: int, budget: int
) -> None:
    model, rows = decoder
    rng = generator(seed, "split")
    order = rng.permutation(len(rows))[: rng.integers(shards, len(rows) + 1)]
    for part in np.array_split(order, shards):
        found = row_gradients(model, rows.take(part), Sketch(D, 256, 3), max_batch_tokens=budget)
        assert relative(found.feature, features[part]) < TOLERANCE["fp32"]


def test_all_that_is_said_of_a_row_is_the_same_alone(decoder) -> None:
    model, rows = decoder
    for parameters in ("hidden", "all"):
        whole = row_gradients(model, rows, Sketch(D, 256, 3, parameters))
        alone = row_gradients(model, rows, Sketch(D, 256, 3, parameters), max_batch_tokens=1)
        assert relative(alone.feature, whole.feature) < TOLERANCE["fp32"]
        for name in ("norm", "nll", "el2n"):
            np.testing.assert_allclose(getattr(alone, name), getattr(whole, name), rtol=TOLERANCE["fp32"])
        for name in ("correct", "n_tokens"):
            assert np.array_equal(getattr(alone, name), getattr(whole, name))


def test_wider_padding_changes_nothing(decoder, features: np.ndarray) -> None:
    model, rows = decoder
    order = np.argsort(rows.lengths(), kind="stable")
    short, long = order[:6], order[-1:]
    together = row_gradients(model, rows.take(np.concatenate([short, long])), Sketch(D, 256, 3)).feature
    assert relative(together, features[np.concatenate([short, long])]) < TOLERANCE["fp32"]


def test_a_row_given_twice_has_one_feature(decoder) -> None:
    model, rows = decoder
    found = row_gradients(model, rows.take([5, 9, 5, 5]), Sketch(D, 256, 3))
    assert relative(found.feature[[2, 3]], found.feature[[0, 0]]) < TOLERANCE["fp32"]


def test_very_confident_rows_keep_their_digits(decoder) -> None:
    """Logits six times as far apart magnify what the padding does to attention's last digit: 2e-5, were it not whole."""
    model, rows = decoder
    plain = model.head.weight.clone()
    with torch.no_grad():
        model.head.weight.mul_(6)
    try:
        whole = row_gradients(model, rows, Sketch(D, 256, 3))
        alone = row_gradients(model, rows, Sketch(D, 256, 3), max_batch_tokens=1)
    finally:
        with torch.no_grad():
            model.head.weight.copy_(plain)
    assert whole.nll.min() < 1e-10
    assert np.linalg.norm(whole.feature, axis=1).min() < 1e-8
    assert relative(alone.feature, whole.feature) < TOLERANCE["fp32"] / 10


def test_classifiers_on_embeddings_are_blind_to_batches() -> None:
    model, rows = head_and_rows(40)
    whole = row_gradients(model, rows, Sketch(64, 8, 3)).feature
    order = generator(1, "order").permutation(len(rows))
    for part in (order, order[:1], order[:7]):
        found = row_gradients(model, rows.take(part), Sketch(64, 8, 3), max_batch_tokens=3).feature
        assert relative(found, whole[part]) < TOLERANCE["fp32"]


# -- seed, precision, fidelity -----------------------------------------------------------------------------------


def test_the_seed_names_the_projection(decoder) -> None:
    model, rows = decoder[0], decoder[1].take(np.arange(16))
    first, again, other = (row_gradients(model, rows, Sketch(D, 256, seed)).feature for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert relative(other, first) > 0.5


def test_bf16_is_another_precision_of_the_same_features(decoder, features: np.ndarray) -> None:
    model, rows = decoder
    sketch = Sketch(D, 256, 3, precision="bf16")
    found, again = (row_gradients(model, rows, sketch).feature for _ in range(2))
    assert np.array_equal(found, again)
    assert not np.array_equal(found, features)
    cosine = (found * features).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(features, axis=1)
    assert np.median(cosine) > 0.999
    assert cosine.min() > 0.98  # confident rows: their few logits are rounded to 3 digits
    assert np.corrcoef(pairwise_cosines(found), pairwise_cosines(features))[0, 1] > 0.998
    for budget in (1, 200):
        other = row_gradients(model, rows, sketch, max_batch_tokens=budget).feature
        assert relative(other, found) < TOLERANCE["bf16"]


def test_cosines_are_as_good_as_those_of_an_ideal_projection(decoder) -> None:
    model, rows = decoder
    exact = loop_gradients(model, rows, "hidden")
    truth = pairwise_cosines(exact)

    def agreement(found: np.ndarray) -> float:
        return float(np.corrcoef(pairwise_cosines(found), truth)[0, 1])

    dense = (
        generator(9, "dense").integers(0, 2, (exact.shape[1], D), dtype=np.int8).astype(np.float64) * 2 - 1
    )
    ideal = agreement(exact @ dense)
    assert ideal == pytest.approx(truth.std() / np.sqrt(truth.var() + 1 / D), abs=0.03)
    for width in (WIDE, 256, 32):
        assert (
            min(agreement(row_gradients(model, rows, Sketch(D, width, s)).feature) for s in (3, 4))
            > ideal - 0.03
        )


# -- the projection itself (G.6.1 to 3) --------------------------------------------------------------------------


def fold(x: Tensor, r: int, sign: Tensor, offset: int = 0) -> Tensor:
    out = torch.full((*x.shape[:-1], r), float("nan"), dtype=x.dtype)
    fold_into(out, x, sign, offset)
    return out


def test_projections_are_unbiased() -> None:
    rng = generator(5, "pairs")
    u, v = torch.from_numpy(rng.standard_normal((2, 300)).astype(np.float32))
    both = torch.stack([u, u + v])
    for reduce in ("fold", "flatten"):
        products = []
        for seed in range(400):
            if reduce == "fold":
                sign = torch.from_numpy(generator(seed, "s").choice([-1.0, 1.0], 300).astype(np.float32))
                f = fold(both, 32, sign)
            else:
                f = torch.zeros(2, 32)
                Flattening(seed, "pairs", 300, 32, CPU).add(f, both.clone())
            products.append(float(f[0] @ f[1]))
        error = np.std(products) / np.sqrt(len(products))
        assert np.mean(products) == pytest.approx(float(both[0] @ both[1]), abs=4 * error)


@given(
    st.integers(0, 99),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(0, 11),
)
@settings(deadline=None)
def test_folds_then_the_product_is_the_fold_of_the_gradient(
    seed: int, r: int, n_in: int, n_out: int, tokens: int, offset: int
) -> None:
    rng = generator(seed, "folds")
    a, e = (torch.from_numpy(rng.standard_normal((tokens, k))) for k in (n_in, n_out))
    sign_in, sign_out = (torch.from_numpy(rng.choice([-1.0, 1.0], k)) for k in (n_in, n_out))
    small = fold(e, r, sign_out, offset % r).T @ fold(a, r, sign_in)
    whole = fold(fold(e.T @ a, r, sign_in).T, r, sign_out, offset % r).T
    torch.testing.assert_close(small, whole, atol=1e-10, rtol=0)
    if r >= max(n_in, n_out) and offset % r == 0:
        torch.testing.assert_close(
            small[:n_out, :n_in] * sign_in * sign_out[:, None], e.T @ a, atol=1e-10, rtol=0
        )


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 40), st.integers(0, 11))
@settings(deadline=None)
def test_a_fold_adds_each_entry_to_its_bucket(seed: int, r: int, n: int, offset: int) -> None:
    rng = generator(seed, "bucket")
    x, sign = torch.from_numpy(rng.standard_normal((3, n))), torch.from_numpy(rng.choice([-1.0, 1.0], n))
    wanted = torch.zeros(3, r, dtype=x.dtype)
    for k in range(n):
        wanted[:, (offset + k) % r] += x[:, k] * sign[k]
    found = fold(x, r, sign, offset % r)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    fold_into(found, x, sign, offset % r, add=True)
    torch.testing.assert_close(found, 2 * wanted, atol=1e-12, rtol=0)


@given(st.integers(0, 99), st.integers(1, 60), st.integers(1, 16))
@settings(deadline=None)
def test_flattening_is_linear_and_keeps_one_hots(seed: int, p: int, d: int) -> None:
    flattening = Flattening(seed, "linear", p, d, CPU)

    def f(x: Tensor) -> Tensor:
        out = torch.zeros(len(x), d)
        flattening.add(out, x.clone())
        return out

    assert torch.equal(f(torch.eye(p)).norm(dim=1), torch.ones(p))
    x = torch.from_numpy(generator(seed, "flat").integers(-9, 10, (2, 3, p)).astype(np.float32))
    assert torch.equal(f(2 * x[0] + x[1]), 2 * f(x[0]) + f(x[1]))
    assert not f(torch.zeros(2, p)).any()
    np.testing.assert_allclose(f(x[0]).numpy(), flatten(flattening, x[0].double().numpy()))
