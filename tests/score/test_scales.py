"""Per-module scaling against the exact twin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from curation.score.exact import counted_parameters, exact_row_gradients
from curation.score.gradients import Sketch, row_gradients
from curation.score.scales import module_energies, module_scales
from flows.features import sketch_from_bytes, sketch_to_bytes
from tests.small import trained_decoder

WIDE = Sketch(d=64, fold_width=10**6, seed=3, parameters=("linear", "head"))


@pytest.fixture(scope="module")
def trained():
    model, rows, _ = trained_decoder(32)
    return model, rows


def test_energies_are_mean_squared_lengths_of_the_exact_gradients(trained) -> None:
    model, rows = trained
    exact = exact_row_gradients(model, rows, WIDE.parameters)
    sizes = {name: model.get_parameter(name).numel() for name in counted_parameters(model, WIDE.parameters)}
    parts = np.split(exact.astype(np.float64), np.cumsum(list(sizes.values()))[:-1], axis=1)
    expected = {name: float((g**2).sum(1).mean()) for name, g in zip(sizes, parts, strict=True)}
    found = module_energies(model, rows, WIDE)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3)


def test_scaled_modules_weigh_the_same_and_features_change(trained) -> None:
    model, rows = trained
    scaled = replace(WIDE, scales=module_scales(model, rows, WIDE))
    for value in module_energies(model, rows, scaled).values():
        assert value == pytest.approx(1.0, rel=1e-3)
    plain, other = row_gradients(model, rows, WIDE).feature, row_gradients(model, rows, scaled).feature
    assert np.abs(plain - other).max() > 0.1
    assert np.allclose(row_gradients(model, rows.take([5]), scaled).feature, other[[5]], rtol=1e-4, atol=1e-5)


def test_a_sketch_survives_its_bytes(trained) -> None:
    model, rows = trained
    scaled = replace(WIDE, scales=module_scales(model, rows, WIDE))
    assert sketch_from_bytes(sketch_to_bytes(scaled)) == scaled
    assert sketch_from_bytes(sketch_to_bytes(Sketch())) == Sketch()
