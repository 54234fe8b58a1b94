"""Learned bit widths: each output channel of a weight trains the number of its levels and the size of its steps.

Csefalvay and Imber (2023), "Self-compressing neural networks", https://arxiv.org/abs/2301.13142; the rounding and its
gradients are those of `ops.bit_width`. Channels may share a width (`Owners`): the paper has one for each, and names
groups as a remedy where rare features are forgotten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.edits import Edit, Slice
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import DataError
from lilliput.ops import bit_width
from lilliput.ops.affine import short
from lilliput.ops.bit_width import Rounded
from lilliput.training.attach import CELL, DIVERGED, Attached
from lilliput.training.optimizer import Memory
from lilliput.training.restore import put_

BITS, EXPONENT = ":bits", ":exponent"
"""What the name of a weight ends with to name its widths and its exponents, in groups of parameters."""
LOWEST, HIGHEST = -60.0, 60.0
"""Exponents stay between these."""
EXPONENTS = ("real", "whole", "short")
"""Real numbers; whole numbers; or those of scales with a mantissa of 3 bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Widths:
    """What a weight has learned: `raw` real numbers of its shape, `bits` and `exponent` [widths].

    `owner` int64 [channels] says which width is whose; channels are dimension `axis` of the weight. Where `mask` is
    False the weight is 0. With `unit` [channels], raw numbers count in that.
    """

    raw: Tensor
    bits: Tensor
    exponent: Tensor
    owner: Tensor
    axis: int
    mask: Tensor | None = None
    unit: Tensor | None = None

    @staticmethod
    def of(
        encoding: Encoding, *, axis: int, bits: float, owner: Tensor, dither: torch.Generator | None = None
    ) -> "Widths":
        """From a weight as it is stored: on its grid where it has one for each channel.

        Else on `bits` bits that reach to the largest weight of each width. With `dither`, raw numbers of a weight on a
        grid count in its steps and start anywhere in their cells.
        """
        encoding = encoding.to(torch.device("cpu"))
        raw, unit = encoding.decode().float(), None
        count = int(owner.max()) + 1
        rows = raw.movedim(axis, 0).flatten(1)
        reach = torch.zeros(count).scatter_reduce(0, owner, rows.abs().amax(1), "amax").clamp(min=1e-12)
        grid = encoding.grid
        if grid is not None and grid.axis == axis and encoding.sharing is None and count == len(owner):
            exponent = torch.log2(grid.scale.float())
            most = encoding.values.abs().movedim(axis, 0).flatten(1).amax(1).float()
            width = torch.where(most > 0, torch.log2(2 * most + 1), 0.0)
            if dither is not None:
                unit = grid.scale.float().clone()
                moved = CELL * (2 * torch.rand(raw.shape, generator=dither) - 1)
                raw = raw / grid.spread(unit, raw.dim()) + moved
        else:
            width = torch.full((count,), float(bits))
            exponent = torch.log2(reach) - (bits - 1) + 1e-4  # so that the largest is the last level
        return Widths(
            raw=raw.clone(), bits=width, exponent=exponent, owner=owner, axis=axis, mask=encoding.mask, unit=unit
        )

    def rounded(self, exponent: Tensor) -> Rounded:
        """The integers at these exponents [widths]."""
        found = bit_width.rounded(self.real(), self.spread(self.bits.detach()), self.spread(exponent))
        return found if self.mask is None else replace(found, integers=found.integers * self.mask)

    def real(self) -> Tensor:
        """The raw numbers as weights, without gradient."""
        return self.raw.detach() * self.units()

    def units(self) -> Tensor | float:
        """What raw numbers count in, shaped to broadcast."""
        if self.unit is None:
            return 1.0
        return self._shaped(self.unit)

    def spread(self, values: Tensor) -> Tensor:
        """One number for each width, shaped to broadcast over the weight."""
        return self._shaped(values[self.owner])

    def _shaped(self, channels: Tensor) -> Tensor:
        return channels.reshape([-1 if d == self.axis else 1 for d in range(self.raw.dim())])

    def gathered(self, values: Tensor) -> Tensor:
        """[widths]: sums over the entries of each, of a tensor of the weight's shape."""
        rows = values.movedim(self.axis, 0).flatten(1).sum(1)
        return torch.zeros(len(self.bits), dtype=rows.dtype, device=rows.device).index_add(0, self.owner, rows)

    def to(self, place: torch.device) -> "Widths":
        """A copy there."""
        return replace(
            self,
            raw=self.raw.detach().to(place, copy=True),
            bits=self.bits.detach().to(place, copy=True),
            exponent=self.exponent.detach().to(place, copy=True),
            owner=self.owner.to(place),
            mask=None if self.mask is None else self.mask.to(place),
            unit=None if self.unit is None else self.unit.to(place),
        )

    def select(self, dim: int, index: Tensor) -> "Widths":
        """Of the slices that stay; widths that nothing has any more go too."""
        raw = self.raw.detach().index_select(dim, index)
        mask = None if self.mask is None else self.mask.index_select(dim, index)
        if dim != self.axis:
            return replace(self, raw=raw, mask=mask)
        kept, owner = torch.unique(self.owner[index], return_inverse=True)
        bits, exponent = self.bits.detach()[kept], self.exponent.detach()[kept]
        unit = None if self.unit is None else self.unit[index]
        return replace(self, raw=raw, mask=mask, bits=bits, exponent=exponent, owner=owner, unit=unit)


def widths_kept(owner: Tensor, index: Tensor) -> Tensor:
    """The numbers of the widths that are left when these channels stay."""
    return torch.unique(owner[index])


class LearnedBits(Attached):
    """`Attached`, with `widths` for some weights; exponents count as `exponents` says, one of `EXPONENTS`.

    Everything else that is encoded trains in its encoding.
    """

    def __init__(
        self,
        net: Artifact,
        *,
        widths: Mapping[str, Widths],
        exponents: str = "real",
        dither: torch.Generator | None = None,
    ) -> None:
        others = {name: e for name, e in net.encodings.items() if name not in widths}
        super().__init__(replace(net, encodings=others), dither=dither)
        self._exponents = exponents
        self._home = {n: p for n, p in net.module.named_parameters() if n in widths}
        self.widths = {name: w.to(self._home[name].device) for name, w in widths.items()}
        for w in self.widths.values():
            for tensor in (w.raw, w.bits, w.exponent):
                tensor.requires_grad_()
        self._rounded: dict[str, Rounded] = {}
        self._pulls: dict[str, Tensor] = {}
        self.project_()

    def exponent_of(self, widths: Widths) -> Tensor:
        """As it counts in the forward."""
        exponent = widths.exponent.detach()
        if self._exponents == "whole":
            return torch.floor(exponent + 0.5)
        return torch.log2(short(torch.exp2(exponent))) if self._exponents == "short" else exponent

    def describe(self) -> str:
        parts = [f"{n} {w.raw.sum()} {w.bits.sum()} {w.exponent.sum()}" for n, w in self.widths.items()]
        return f"{super().describe()} {self._exponents} {parts}"

    def trainable(self) -> dict[str, Tensor]:
        own = super().trainable()
        for name, w in self.widths.items():
            own |= {name: w.raw, name + BITS: w.bits, name + EXPONENT: w.exponent}
        return own

    def aliases(self) -> dict[str, list[str]]:
        return {name + end: [name + end] for name in self.widths for end in (BITS, EXPONENT)}

    def pull_(self) -> None:
        super().pull_()
        with torch.no_grad():
            for name, w in self.widths.items():
                gradient = self._home[name].grad
                self._home[name].grad = None
                if gradient is None:
                    gradient = torch.zeros_like(w.raw)
                self._give_(name, w, gradient if w.mask is None else gradient * w.mask)

    def _give_(self, name: str, w: Widths, gradient: Tensor) -> None:
        bits, exponent = w.spread(w.bits.detach()), w.spread(self.exponent_of(w))
        slopes = bit_width.slopes(w.real(), bits, exponent, self._rounded[name])
        w.raw.grad = gradient * slopes.x * w.units()
        w.bits.grad = w.gathered(gradient * slopes.bits)
        w.exponent.grad = w.gathered(gradient * slopes.exponent)

    def charge_(self, name: str, slopes: Tensor) -> None:
        """Add what the integers of a weight cost: `slopes` of a loss for each integer, at this size of the steps."""
        w = self.widths[name]
        if w.raw.grad is None or w.bits.grad is None or w.exponent.grad is None:
            return
        with torch.no_grad():
            at = self._rounded[name]
            bits, exponent = w.spread(w.bits.detach()), w.spread(self.exponent_of(w))
            step = torch.exp2(exponent)
            of = bit_width.slopes(w.real(), bits, exponent, at)
            each = slopes / step if w.mask is None else slopes / step * w.mask
            w.raw.grad += each * of.x * w.units()
            w.bits.grad += w.gathered(each * of.bits)
            # at fixed raw numbers: less the part of the exponent's slope that moves the value, not the integer
            w.exponent.grad += w.gathered(each * (of.exponent - bit_width.LN2 * at.integers * step))

    def integers(self, name: str) -> Tensor:
        """Of the weight, as they are now (floats)."""
        return self._rounded[name].integers

    def project_(self) -> None:
        super().project_()
        with torch.no_grad():
            for name, w in self.widths.items():
                for tensor in (w.raw, w.bits, w.exponent):
                    if not bool(torch.isfinite(tensor).all()):
                        raise DataError(f"training of {name!r} and its bits", "NaN or infinity", DIVERGED)
                w.bits.clamp_(0.0, bit_width.MOST_BITS)
                w.exponent.clamp_(LOWEST, HIGHEST)
                exponent = self.exponent_of(w)
                self._rounded[name] = w.rounded(exponent)
                self._home[name].copy_(self._rounded[name].integers * torch.exp2(w.spread(exponent)))

    def bake_(self, net: Artifact) -> None:
        super().bake_(net)
        for name, w in self.widths.items():
            net.encode_(name, self.encoding(name, w).to(net.parameter(name).device))

    def encoding(self, name: str, w: Widths) -> Encoding:
        """Integers on grids of one scale for each channel."""
        q = self._rounded[name].integers.long()
        rows = q.movedim(w.axis, 0).flatten(1)
        grid = Grid(
            scale=self._scale(w)[w.owner],
            zero_point=torch.zeros(len(w.owner), dtype=torch.int64, device=w.owner.device),
            bit_width=bit_width.width(rows.amin(1), rows.amax(1)),
            signed=True,
            axis=w.axis,
        )
        plain = Encoding.of(torch.zeros(q.shape, device=q.device)).with_grid(grid, q)
        return plain if w.mask is None else plain.with_mask(w.mask)

    def _scale(self, w: Widths) -> Tensor:
        scale = torch.exp2(self.exponent_of(w))
        return short(scale) if self._exponents == "short" else scale

    def learned(self) -> dict[str, Widths]:
        """Copies, on the CPU."""
        return {n: w.to(torch.device("cpu")) for n, w in self.widths.items()}

    def state(self) -> dict[str, dict[str, Tensor]]:
        parts: dict[str, dict[str, Tensor]] = {"raws": {}, "bits": {}, "exponents": {}}
        for name, w in self.widths.items():
            parts["raws"][name] = w.raw.detach().to("cpu", copy=True)
            parts["bits"][name] = w.bits.detach().to("cpu", copy=True)
            parts["exponents"][name] = w.exponent.detach().to("cpu", copy=True)
        found = super().state()
        found["parameters"] = {n: t for n, t in found["parameters"].items() if n not in self.widths}
        return {**found, **parts}

    def load_(self, state: dict[str, dict[str, Tensor]]) -> None:
        put_(lambda name: self.widths[name].raw, state["raws"])
        put_(lambda name: self.widths[name].bits, state["bits"])
        put_(lambda name: self.widths[name].exponent, state["exponents"])
        super().load_(state)


def after(widths: Mapping[str, Widths], edits: Sequence[Edit]) -> dict[str, Widths]:
    """What is left of the widths after these edits of the network."""
    left = dict(widths)
    for edit in edits:
        if isinstance(edit, Slice) and edit.path in left:
            left[edit.path] = left[edit.path].select(edit.dim, torch.tensor(edit.index, dtype=torch.int64))
    return left


def memory_after(memory: Memory, widths: Mapping[str, Widths], edits: Sequence[Edit]) -> Memory:
    """What the optimizer remembers of widths (as they were before), after these edits."""
    left = dict(memory)
    now = dict(widths)
    for edit in edits:
        if not (isinstance(edit, Slice) and edit.path in now):
            continue
        index = torch.tensor(edit.index, dtype=torch.int64)
        if edit.dim == now[edit.path].axis:
            kept = widths_kept(now[edit.path].owner, index)
            for end in (BITS, EXPONENT):
                if edit.path + end in left:
                    state = left[edit.path + end]
                    left[edit.path + end] = {
                        k: v[kept] if isinstance(v, Tensor) and v.dim() else v for k, v in state.items()
                    }
        now[edit.path] = now[edit.path].select(edit.dim, index)
    return left
