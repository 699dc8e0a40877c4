"""References for the gradient engine: gradients by plain autograd, and the sketch written out as matrices."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.decoder import Decoder
from curation.encoded import EmbeddedRows, Encoded, LabelledTokens, TokenRows
from curation.randomness import generator
from curation.score.adam import adam_side_scales
from curation.score.exact import counted_parameters
from curation.score.gradients import Scales, Sketch, engine, row_gradients
from curation.score.layers import is_conv1d
from curation.score.projection import Flattening
from curation.score.tape import Spot

WIDE = 10**6  # a fold width at which no side is folded


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance of two rows, over the length of the second."""
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


def token_rows(n: int, vocabulary: int, longest: int = 20, seed: int = 1) -> TokenRows:
    """Rows of random tokens, of 2 to `longest`; some predict all but the first, others their second half."""
    rng = generator(seed, "token rows")
    length = rng.integers(2, longest + 1, n)
    ids, target = np.zeros((n, longest), dtype=np.int64), np.zeros((n, longest), dtype=bool)
    for i, size in enumerate(length):
        ids[i, :size] = rng.integers(3, vocabulary, size)
        target[i, 1 if i % 2 else max(1, size // 2) : size] = True
    return TokenRows(torch.from_numpy(ids), torch.from_numpy(target), torch.from_numpy(length))


def labelled_tokens(
    n: int, vocabulary: int, classes: int, tags: bool = False, seed: int = 2
) -> LabelledTokens:
    """Rows of random tokens with a class, or (`tags`) a class for about half of their tokens."""
    rows = token_rows(n, vocabulary, seed=seed)
    y = torch.from_numpy(generator(seed, "classes").integers(0, classes, rows.ids.shape))
    y = torch.where(rows.target, y, -1) if tags else y[:, 0]
    return LabelledTokens(rows.ids, rows.length, y)


def _row_loss(model: nn.Module, one: Encoded) -> Tensor:
    if isinstance(one, EmbeddedRows):
        return F.cross_entropy(model(one.x.double()), one.y, ignore_index=-1)
    if isinstance(one, LabelledTokens):
        logits = model(input_ids=one.ids, attention_mask=torch.ones_like(one.ids)).logits
        return F.cross_entropy(logits.flatten(0, -2), one.y.flatten(), ignore_index=-1)
    whole = model.head(model(one.ids)) if isinstance(model, Decoder) else model(input_ids=one.ids).logits
    labels = torch.where(one.target, one.ids, -100)
    return F.cross_entropy(whole[0, :-1], labels[0, 1:])


def loop_gradients(model: nn.Module, rows: Encoded, parameters: str | tuple[str, ...]) -> np.ndarray:
    """(n, p) float64 gradients by `torch.autograd.grad`, one unpadded row at a time, from all the logits."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    chosen = [model.get_parameter(name) for name in counted_parameters(model, parameters)]
    found = []
    for i in range(len(rows)):
        g = torch.autograd.grad(
            _row_loss(model, rows.take([i])), chosen, allow_unused=True, materialize_grads=True
        )
        found.append(torch.cat([part.flatten() for part in g]).numpy())
    return np.stack(found)


def by_parameter(
    model: nn.Module, parameters: str | tuple[str, ...], gradients: np.ndarray
) -> dict[str, np.ndarray]:
    """Flat gradients (n, p) as (n, *shape) of each parameter that counts."""
    shapes = {name: model.get_parameter(name).shape for name in counted_parameters(model, parameters)}
    parts = np.split(gradients, np.cumsum([shape.numel() for shape in shapes.values()])[:-1], axis=1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def fold_matrix(sign: Tensor, r: int, offset: int = 0) -> np.ndarray:
    """(n, r): entry k goes to bucket (offset + k) mod r with its sign."""
    n = len(sign)
    matrix = np.zeros((n, r))
    matrix[np.arange(n), (offset + np.arange(n)) % r] = sign.double().numpy()
    return matrix


def flatten(flattening: Flattening, flat: np.ndarray) -> np.ndarray:
    """(n, p) -> (n, d): entry j goes, with its sign, to its place in its run plus the run's roll, mod d."""
    d, p = flattening.d, flat.shape[1]
    at = (np.arange(p) + np.asarray(flattening.rolls)[np.arange(p) // d]) % d
    out = np.zeros((len(flat), d))
    np.add.at(out, (slice(None), at), flat * flattening.sign.double().numpy())
    return out


def unflatten(flattening: Flattening, features: np.ndarray, size: int) -> np.ndarray:
    """(n, d) -> (n, size): what was flattened, when it was no longer than d."""
    assert size <= flattening.d
    at = (np.arange(size) + flattening.rolls[0]) % flattening.d
    return features[:, at] * flattening.sign.numpy()[:size]


def explicit_sketch(
    model: nn.Module, rows: Encoded, sketch: Sketch, gradients: np.ndarray, scales: Scales | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) float64 features and (n,) norms: the engine's signs and folds applied to full gradients (n, p).

    A parameter that several calls share (a tied head, a repeated layer) must have one and the same sketch.
    """
    parts = by_parameter(model, sketch.parameters, gradients)
    modules = dict(model.named_modules())
    out, square = np.zeros((len(gradients), sketch.d)), np.zeros(len(gradients))
    with engine(model, rows, sketch, scales) as tape:
        sums: dict[int, np.ndarray] = {}
        known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

        def add(name: str, spot: Spot, turned: bool) -> None:
            p = spot.pairs
            left, right = fold_matrix(spot.sign_out, p.r_out, spot.offset), fold_matrix(spot.sign_in, p.r_in)
            if name in known:
                assert all(np.array_equal(a, b) for a, b in zip(known[name], (left, right), strict=True)), (
                    name
                )
                return
            known[name] = left, right
            g = parts[name].swapaxes(1, 2) if turned else parts[name]
            sums[id(p)] = sums.get(id(p), 0.0) + np.einsum("noi,or,is->nrs", g, left, right, optimize=True)

        for module, spots in tape.spots.items():
            for spot in spots:
                add(tape.names[id(modules[module].weight)], spot, is_conv1d(modules[module]))
        if tape.head_spot is not None:
            add(tape.head_name, tape.head_spot, False)
        for p in tape.pairs.values():
            square += (sums[id(p)] ** 2).sum((1, 2))
            out += flatten(p.flattening, sums[id(p)].reshape(len(out), -1))
        for name, flattening in tape.vector_flattenings.items():
            if name in parts:
                known[name] = parts[name], parts[name]
                square += (parts[name] ** 2).sum(1)
                out += flatten(flattening, parts[name])
    assert known.keys() == parts.keys(), known.keys() ^ parts.keys()
    return out, np.sqrt(square)


def side_scales(model: nn.Module, parameters: str) -> tuple[Scales, dict[str, np.ndarray]]:
    """Adam's scales of every counted parameter by side, and the same as one factor for each entry."""
    scales: Scales = {}
    whole: dict[str, np.ndarray] = {}
    for name in counted_parameters(model, parameters):
        shape = tuple(model.get_parameter(name).shape)
        v = generator(6, "second moment", name).random(shape) ** 2 + 0.01
        if len(shape) == 1:
            scales[name] = torch.from_numpy(v.astype(np.float32)), 1.0
            whole[name] = v
        else:
            out, back = adam_side_scales(v)
            scales[name] = torch.from_numpy(out).float(), torch.from_numpy(back).float()
            whole[name] = np.outer(out, back)
    return scales, whole


def check_scales(model: nn.Module, rows: Encoded, parameters: str, tolerance: float) -> None:
    """Features with Adam's side scales are those of the full gradient, scaled entry by entry."""
    scales, whole = side_scales(model, parameters)
    parts = by_parameter(model, parameters, loop_gradients(model, rows, parameters))
    scaled = np.concatenate([(part * whole[n]).reshape(len(rows), -1) for n, part in parts.items()], axis=1)
    ones: Scales = {name: (1.0, 1.0) for name in scales}
    for width in (WIDE, 20):
        sketch = Sketch(256, width, 3, parameters)
        found = row_gradients(model, rows, sketch, scales=scales)
        feature, norm = explicit_sketch(model, rows, sketch, scaled, ones)
        assert relative(found.feature, feature) < tolerance
        np.testing.assert_allclose(found.norm, norm, rtol=tolerance)
