"""Per-row gradient features: one forward, one backward to activations, weights frozen.

Every chosen layer's row gradient is G = sum_t e_t a_t^T. Both sides are folded to `fold_width` by random signs
before they are multiplied; the pairs of all virtual layers of one folded shape lie side by side along the token
axis, so that the sum over layers *and* tokens is one batched product; a last fold takes it to `d`. The whole is a
linear, unbiased sketch of the concatenated gradient, E<f(u), f(v)> = <u, v>; no weight gradient is ever formed, and
no row sees another (loss: mean over the row's own answers).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from curation.encoded import EmbeddedRows, Encoded, TokenRows, to_device
from curation.errors import UserError
from curation.losses import LogitForm, answer_losses
from curation.proxies import RowLosses, batches, by_row, form_of, output_layer, readout
from curation.score.attention import WholeBlocks
from curation.score.layers import apart, chosen_modules, find_layout, kinds_of
from curation.score.tape import Tape
from curation.score.taps import tapped
from curation.specs import Proxy

VERSION = "virtual_v2"
TOLERANCE = {
    "fp32": 1e-5,
    "bf16": 1e-1,
}  # relative: a row against itself in any other batch, padding or order
BATCH_FLOATS = {
    "cpu": 400_000,
    "cuda": 32 << 20,
}  # tokens x width of one batch; on a CPU they stay near its cache
PRODUCT_BYTES = 64 << 20  # of the rows' folded gradients in one batch, on a CPU


@dataclass(frozen=True)
class Sketch:
    """How gradients become features: everything that changes their numbers, and nothing else.

    `parameters`: hidden, all, lora, or a tuple of kinds (linear, head, embeddings, norms, biases, lora).
    `scales`: (parameter, factor) of its gradient, of `curation.score.scales`; none: modules as they weigh.
    `precision`: fp32, or bf16 for the linear layers' products and the folded pairs (sums stay float32).
    """

    d: int = 1024
    fold_width: int = 192
    seed: int = 0
    parameters: str | tuple[str, ...] = "hidden"
    precision: str = "fp32"
    scales: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class RowGradients:
    """(n, d) float32 `feature` (not normalised), and (n,) float64 `norm`, `nll`, `el2n`, `correct`, `n_tokens`.

    `norm` is the length of the folded gradient before its last fold, an estimate of the gradient's own.
    A row without an answer has a zero feature and NaN losses.
    """

    feature: np.ndarray
    norm: np.ndarray
    nll: np.ndarray
    el2n: np.ndarray
    correct: np.ndarray
    n_tokens: np.ndarray


Scales = dict[str, tuple[Tensor | float, Tensor | float]]


def row_gradients(
    model: nn.Module,
    rows: Encoded,
    sketch: Sketch,
    *,
    max_batch_tokens: int | None = None,
    scales: Scales | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> RowGradients:
    """Gradient features of every row, the same for any batching, order and padding, on the model's device.

    `scales`: parameter name -> (output side, input side) factors of its gradient, numbers or (n_out,), (n_in,):
    per-module scaling, Adam's preconditioner; of a vector the first counts. Running out of memory halves the token budget, and is said.
    """
    n = len(rows)
    out = RowGradients(np.zeros((n, sketch.d), np.float32), *(np.zeros(n) for _ in range(5)))
    if n == 0:
        return out
    device = next(model.parameters()).device
    with engine(model, rows, sketch, scales) as tape:
        budget = max_batch_tokens or default_batch_tokens(tape.width, device.type)
        most_rows = max(1, PRODUCT_BYTES // tape.product_bytes) if device.type == "cpu" else None
        pending = list(batches(rows, budget, most_rows))[::-1]
        while pending:
            index = pending.pop()
            try:
                _one_batch(model, to_device(rows.take(index), device), index, tape, out)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(index) == 1:
                    raise UserError(
                        f"one row of {int(rows.lengths()[index[0]])} tokens does not fit into the memory of {device} "
                        "(nothing of this shard was kept); lower [proxy] max_tokens or fold_width, or take a smaller model"
                    ) from error
                left = np.concatenate([index, *pending[::-1]])
                budget = max(1, min(budget, int(rows.lengths()[index].max()) * len(index)) // 2)
                say(f"{device} ran out of memory: batches of at most {budget} tokens from here on")
                most_rows = max(1, len(index) // 2) if isinstance(rows, EmbeddedRows) else most_rows
                tape.release()
                pending = [left[part] for part in batches(rows.take(left), budget, most_rows)][::-1]
    return out


def default_batch_tokens(width: int, device_type: str) -> int:
    """Padded tokens of one batch for a model of this width; it changes speed and memory, never a feature."""
    return int(
        np.clip(
            BATCH_FLOATS.get(device_type, 1 << 22) // width, 256, 4096 if device_type == "cpu" else 65_536
        )
    )


def sketch_of(spec: Proxy, seed: int, scales: tuple[tuple[str, float], ...] = ()) -> Sketch:
    """The sketch that a recipe's proxy asks for."""
    return Sketch(spec.feature_dimensions, spec.fold_width, seed, spec.parameters, spec.precision, scales)


def is_out_of_memory(error: Exception) -> bool:
    """True when a device or the host had no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def engine(
    model: nn.Module, rows: Encoded, sketch: Sketch, scales: Scales | None = None, alone: bool = False
) -> Generator[Tape]:
    """The model with its chosen layers tapped, frozen and in eval mode; as it was before on leaving.

    `alone`: layers that read one input are not joined, as when each has a scale of its own.
    """
    scales = {name: (factor, 1.0) for name, factor in sketch.scales} | (scales or {})
    kinds = kinds_of(sketch.parameters)
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    wanted = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in wanted:
        p.requires_grad_(False)
    try:
        head = output_layer(model) if isinstance(rows, TokenRows) else None
        matrices, vectors = chosen_modules(model, head, kinds)
        form = form_of(model) if head is not None else LogitForm()
        one = to_device(rows.take([int(np.argmax(rows.lengths() > 0))]), device)
        layers = find_layout(model, matrices, lambda: readout(model, one, form))
        if scales or alone:
            layers = apart(layers)
        tape = Tape(model, head, layers, kinds, sketch, scales, device)
        tape.form = form
        with tapped(model, tape, matrices, vectors):
            yield tape
    finally:
        for module, mode in modes:
            module.training = mode
        for p in wanted:
            p.requires_grad_(True)


def run_batch(model: nn.Module, part: Encoded, tape: Tape) -> RowLosses:
    """One forward and one backward over a batch: the losses of its rows; their folded gradients are on the tape."""
    tape.begin(part)
    with torch.enable_grad(), WholeBlocks() if tape.dtype == torch.float32 else nullcontext():
        found = readout(model, part, tape.form)
    count = torch.bincount(found.row, minlength=len(part))
    weight = (1.0 / count.clamp(min=1))[found.row]
    losses, back = answer_losses(found, weight, tape.head_error(found), tape.head_weight)
    if back is not None and found.states.requires_grad and len(found.states):
        torch.autograd.grad(found.states, tape.anchor, back.to(found.states.dtype), allow_unused=True)
    tape.finish()
    found_rows = by_row(model, found, losses, len(part))
    known = torch.bincount(found.row[found.answers >= 0], minlength=len(part))
    nothing = torch.where(
        known > 0, 0.0, torch.nan
    )  # no answer that the model knows: nothing to say of the row
    return replace(found_rows, nll=found_rows.nll + nothing, el2n=found_rows.el2n + nothing, n_tokens=known)


def _one_batch(model: nn.Module, part: Encoded, index: np.ndarray, tape: Tape, out: RowGradients) -> None:
    losses = run_batch(model, part, tape)
    feature, norm = tape.features()
    out.feature[index] = feature.cpu().numpy()
    out.norm[index] = norm.double().cpu().numpy()
    for name in ("nll", "el2n", "correct", "n_tokens"):
        getattr(out, name)[index] = getattr(losses, name).detach().double().cpu().numpy()
