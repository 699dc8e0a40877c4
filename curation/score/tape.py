"""What one backward pass leaves behind: folded inputs and folded output gradients of every virtual layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from curation.encoded import Encoded, TokenRows
from curation.errors import UserError
from curation.losses import LogitForm, Readout
from curation.score.layers import VirtualLayer, parameter_names, sides
from curation.score.projection import Flattening, fold_into, signs

if TYPE_CHECKING:
    from curation.score.gradients import Sketch

Side = Tensor | float


@dataclass
class Pairs:
    """Folded pairs (a, e) of all virtual layers of one folded shape, side by side along the token axis."""

    r_in: int
    r_out: int
    flattening: Flattening
    dtype: torch.dtype
    count: int = 0
    storage: list[Tensor] = field(default_factory=list)
    a: Tensor = field(default_factory=lambda: torch.empty(0))
    e: Tensor = field(default_factory=lambda: torch.empty(0))

    def begin(self, n: int, t: int, device: torch.device) -> None:
        """Room for n rows of t tokens, in the storage of the batch before when it is large enough."""
        sizes = [n * self.count * t * r for r in (self.r_in, self.r_out)]
        if not self.storage or any(s.numel() < size for s, size in zip(self.storage, sizes, strict=True)):
            self.storage = []
            self.storage = [torch.empty(size, dtype=self.dtype, device=device) for size in sizes]
        self.a = self.storage[0][: sizes[0]].view(n, self.count, t, self.r_in)
        self.e = self.storage[1][: sizes[1]].view(n, self.count, t, self.r_out)

    def product(self) -> Tensor:
        """(n, r_out x r_in) float32: the folded gradients, summed over layers and tokens."""
        return torch.bmm(self.e.flatten(1, 2).transpose(1, 2), self.a.flatten(1, 2)).float().flatten(1)


@dataclass
class Spot:
    """Where one call of a layer writes: its virtual layer's place among the pairs, and what is folded how."""

    pairs: Pairs
    place: int
    sign_in: Tensor
    sign_out: Tensor
    offset: int
    first: bool
    last: bool


class Tape:
    """The state of one engine session: tapped modules, signs, buffers, and what the batch in hand has written."""

    def __init__(
        self,
        model: nn.Module,
        head: nn.Linear | None,
        layers: tuple[VirtualLayer, ...],
        kinds: tuple[str, ...],
        sketch: Sketch,
        scales: Mapping[str, tuple[Side, Side]],
        device: torch.device,
    ) -> None:
        self.sketch, self.device, self.kinds, self.scales = sketch, device, kinds, scales
        self.dtype = torch.bfloat16 if sketch.precision == "bf16" else torch.float32
        self.anchor = torch.zeros((), requires_grad=True, device=device)
        self.names = parameter_names(model)
        self.pairs: dict[tuple[int, int], Pairs] = {}
        self.spots: dict[str, list[Spot]] = {}
        self._parameter_of = {call.module: call.parameter for layer in layers for call in layer.calls}
        self.calls: dict[str, int] = {}
        self.written: set[tuple[int, int, str]] = set()
        self.vector_flattenings: dict[str, Flattening] = {}
        self.vector_sums: dict[str, Tensor] = {}
        self.cast: tuple[Tensor, Tensor] | None = None
        self.head_spot: Spot | None = None
        self.form = LogitForm()
        self.head_name = ""
        for layer in layers:
            self._add(layer)
        if head is not None and "head" in kinds:
            self.head_name = self.names[id(head.weight)]
            self.head_spot = self._side_by_side(self.head_name, *sides(head))
        self.head_weight = (
            head.weight.to(self.dtype) if head is not None and self.dtype != head.weight.dtype else None
        )
        self.head = head
        self.width = layers[0].n_in if layers else 1024

    @property
    def product_bytes(self) -> int:
        """Bytes of one row's folded gradients."""
        return max(4, sum(4 * p.r_in * p.r_out for p in self.pairs.values()))

    def _pairs_of(self, n_out: int, n_in: int) -> Pairs:
        r_out, r_in = min(n_out, self.sketch.fold_width), min(n_in, self.sketch.fold_width)
        if (r_out, r_in) not in self.pairs:
            flattening = Flattening(
                self.sketch.seed, f"{r_out}x{r_in}", r_out * r_in, self.sketch.d, self.device
            )
            self.pairs[r_out, r_in] = Pairs(r_in, r_out, flattening, self.dtype)
        return self.pairs[r_out, r_in]

    def _scaled(self, x: Tensor, name: str, side: int) -> Tensor:
        factor = self.scales.get(name, (1.0, 1.0))[side]
        return x * (factor.to(self.device) if isinstance(factor, Tensor) else factor)

    def _signs(self, name: str, side: int, size: int) -> Tensor:
        drawn = signs(self.sketch.seed, f"{name}/{'out' if side == 0 else 'in'}", size).to(self.device)
        return self._scaled(drawn, name, side).to(self.dtype)

    def _side_by_side(self, name: str, n_out: int, n_in: int) -> Spot:
        pairs = self._pairs_of(n_out, n_in)
        pairs.count += 1
        return Spot(
            pairs, pairs.count - 1, self._signs(name, 1, n_in), self._signs(name, 0, n_out), 0, True, True
        )

    def _add(self, layer: VirtualLayer) -> None:
        pairs = self._pairs_of(layer.n_out, layer.n_in)
        sign_in = self._signs(layer.name, 1, layer.n_in)
        for call in layer.calls:
            spot = Spot(
                pairs,
                pairs.count,
                sign_in,
                self._signs(call.parameter, 0, call.n_out),
                call.offset,
                call is layer.calls[0],
                call is layer.calls[-1],
            )
            self.spots.setdefault(call.module, []).append(spot)
        pairs.count += 1

    def places(self) -> list[tuple[str, Spot]]:
        """(parameter, where it writes) of every matrix that counts."""
        found = [(self._parameter_of[module], spot) for module, spots in self.spots.items() for spot in spots]
        return found + ([(self.head_name, self.head_spot)] if self.head_spot is not None else [])

    def add_flattening(self, name: str, size: int) -> None:
        """The way of a vector's gradient to the feature."""
        self.vector_flattenings[name] = Flattening(self.sketch.seed, name, size, self.sketch.d, self.device)

    # -- the batch in hand ---------------------------------------------------------------------------------------

    def begin(self, rows: Encoded) -> None:
        """Makes room for a batch; nothing of the batch before is left."""
        ids = getattr(rows, "ids", None)
        t = 1 if ids is None else ids.shape[1] - isinstance(rows, TokenRows)
        self.n, self.t = len(rows), t
        self.flat = rows.target[:, 1:].nonzero(as_tuple=True) if isinstance(rows, TokenRows) else None
        for pairs in self.pairs.values():
            pairs.begin(self.n, t, self.device)
        self.calls.clear()
        self.written.clear()
        self.vector_sums.clear()
        self.cast = None

    def narrowed(self, x: Tensor) -> Tensor:
        """A layer's input in the session's precision; query, key and value read one input, which is cast once."""
        if x.dtype == self.dtype:
            return x
        if self.cast is None or self.cast[0] is not x:
            self.cast = (x, x.to(self.dtype))
        return self.cast[1]

    def release(self) -> None:
        """Gives the buffers back."""
        for pairs in self.pairs.values():
            pairs.storage, pairs.a, pairs.e = [], torch.empty(0), torch.empty(0)
        self.vector_sums.clear()
        self.cast = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def finish(self) -> None:
        """Zeros where the batch in hand has written nothing: layers that its backward did not reach."""
        for pairs in self.pairs.values():
            for place in range(pairs.count):
                for side in ("a", "e"):
                    if (id(pairs), place, side) not in self.written:
                        getattr(pairs, side)[:, place].zero_()

    def features(self) -> tuple[Tensor, Tensor]:
        """(n, d) float32 features of the batch, and (n,) norms of what they were folded from."""
        out = torch.zeros(self.n, self.sketch.d, device=self.device)
        square = torch.zeros(self.n, device=self.device)
        for pairs in self.pairs.values():
            g = pairs.product()
            square += torch.linalg.vector_norm(g, dim=1) ** 2
            pairs.flattening.add(out, g)
        for name, total in self.vector_sums.items():
            vector = self._scaled(total, name, 0)
            square += torch.linalg.vector_norm(vector, dim=1) ** 2
            self.vector_flattenings[name].add(out, vector)
        return out, square.sqrt()

    def write(self, side: str, spot: Spot, x: Tensor) -> None:
        """Folds (n, t, c), (n t, c), (n, c) or, of the answers alone, (m, c) to the spot's place."""
        pairs = spot.pairs
        target = (pairs.a if side == "a" else pairs.e)[:, spot.place]
        sign, offset = (spot.sign_in, 0) if side == "a" else (spot.sign_out, spot.offset % pairs.r_out)
        key = (id(pairs), spot.place, side)
        add = key in self.written
        if x.ndim == 2 and len(x) == self.n * self.t:
            x = x.view(self.n, self.t, -1)
        if x.ndim == 3 and x.shape[:2] == (self.n, self.t):
            fold_into(target, x, sign, offset, add)
        else:
            narrow = torch.empty(*x.shape[:-1], target.shape[-1], dtype=target.dtype, device=x.device)
            fold_into(narrow, x, sign, offset)
            if not add:
                target.zero_()
            if x.ndim == 3 and len(x) == self.n and x.shape[1] <= self.t:
                target[:, : x.shape[1]] += narrow
            elif x.ndim == 2 and self.flat is not None and len(x) == len(self.flat[0]):
                target[self.flat] += narrow
            elif x.ndim == 2 and len(x) == self.n:
                target[:, 0] += narrow
            else:
                raise self.shared(x)
        self.written.add(key)

    def shared(self, x: Tensor) -> UserError:
        """The error of a layer whose input or gradient is not one of each row."""
        return UserError(
            f"a layer reads {tuple(x.shape)} for {self.n} rows of {self.t} tokens: not one input a row, so rows have no "
            "gradient of their own there (positions shared by all rows, say); nothing of this shard was kept. Choose "
            "other [proxy] parameters, or another model"
        )

    def add_vector(self, name: str, x: Tensor) -> None:
        """Adds the tokens' gradients of a vector, (n, t, c) or (m, c), to its rows' sums."""
        if x.ndim == 2 and self.flat is not None and len(x) == len(self.flat[0]):
            total = torch.zeros(self.n, x.shape[-1], device=x.device).index_add_(0, self.flat[0], x.float())
        else:
            if len(x) not in (self.n, self.n * self.t):
                raise self.shared(x)
            total = x.reshape(self.n, -1, x.shape[-1]).sum(1, dtype=torch.float32)
        known = self.vector_sums.get(name)
        self.vector_sums[name] = total if known is None else known + total

    def head_error(self, out: Readout) -> Callable[[slice, Tensor], None] | None:
        """What a chunk of the head's output gradients is handed to; None when the head does not count."""
        spot, bias = self.head_spot, getattr(self.head, "bias", None) if "biases" in self.kinds else None
        if out.head is None or (spot is None and bias is None):
            return None
        assert self.flat is not None
        rows, at = self.flat
        total = None if bias is None else torch.zeros(self.n, len(bias), device=self.device)
        if total is not None:
            self.vector_sums[self.names[id(bias)]] = total
        if spot is not None:
            self.write("a", spot, out.states.detach())
            spot.pairs.e[:, spot.place].zero_()
            self.written.add((id(spot.pairs), spot.place, "e"))

        def take(part: slice, error: Tensor) -> None:
            if spot is not None:
                narrow = torch.empty(len(error), spot.pairs.r_out, dtype=self.dtype, device=error.device)
                fold_into(narrow, error, spot.sign_out)
                spot.pairs.e[:, spot.place][rows[part], at[part]] = narrow
            if total is not None:
                total.index_add_(0, rows[part], error)

        return take
