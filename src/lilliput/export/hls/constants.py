"""Which constants an operation has, and in which form: `docs/learned-functions.md` has the table."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lilliput.core.errors import ExportError
from lilliput.core.program import Ints, Operation, Program, Rescale
from lilliput.export.hls.names import Names
from lilliput.export.hls.shifts import after_shifts, factors_of_addends, right_shifts, shifts_of_addends

LAYERS = ("conv", "conv_transposed", "linear")
CODES = (-128, 127)
"""What results are saturated to, if a header says nothing else."""
ONE = 6
"""A shortcut's factor is 2^6, as published ones nearly are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant:
    """An array, or a number without dimensions."""

    name: str
    values: Ints
    type: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """The constants of one operation; `multiplies` if it needs a multiplier where others have a shift."""

    operation: Operation
    name: str
    constants: tuple[Constant, ...]
    multiplies: bool


def parts(program: Program, names: Names) -> list[Part]:
    """In the order of the program. Raises `ExportError` where two constants would have one name."""
    found: list[Part] = []
    owners: dict[str, str] = {}
    for o in program:
        if o.output not in names.of:
            continue
        name = names.of[o.output]
        own = list(_Constants(program, o, names).all())
        for constant in own:
            other = owners.setdefault(f"{name}{constant.name}", o.output)
            if other != o.output:
                found_twice = f"{other!r} and {o.output!r} would both have a constant {name}{constant.name}"
                raise ExportError("export to HLS", found_twice, "rename one of the two modules")
        named = tuple(Constant(name=f"{name}{c.name}", values=c.values, type=c.type) for c in own)
        if named:
            found.append(Part(operation=o, name=name, constants=named, multiplies=any(c.name == "_m" for c in own)))
    return found


def integer(name: str, values: Ints | int) -> Constant:
    """The narrowest of 8, 16 and 32 bits; signed, if that is no wider."""
    array = np.asarray(values, dtype=np.int64)
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    for bits in (8, 16):
        if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1):
            return Constant(name=name, values=array, type=f"ap_int<{bits}>")
        if low >= 0 and high < 1 << bits:
            return Constant(name=name, values=array, type=f"ap_uint<{bits}>")
    return Constant(name=name, values=array, type="ap_int<32>")


def shift(name: str, values: Ints | int) -> Constant:
    return Constant(name=name, values=np.asarray(values, dtype=np.int64), type="ap_uint<8>")


class _Constants:
    """Those of one operation; their names are what follows that of the operation."""

    def __init__(self, program: Program, o: Operation, names: Names) -> None:
        self.program, self.o, self.names = program, o, names

    def all(self) -> Iterator[Constant]:
        kind = self.o.kind
        if kind in LAYERS:
            yield from self._layer()
        elif kind == "add":
            yield from self._add()
        elif kind in ("table", "interpolate"):
            yield from self._function()
        elif self.o.rescale:
            yield from self._rescaled()
        elif "multipliers" in self.o.attributes:  # an argmax of sums with several scales
            yield integer("_m", np.array(self.o.attributes["multipliers"]))

    def _zeros(self) -> Iterator[Constant]:
        """The zero points of what it reads, if they are not 0."""
        zeros = [self.program.values[name].zero_point for name in self.o.inputs]
        if any(zeros):
            yield integer("_in_z", zeros[0] if len(zeros) == 1 else np.array(zeros))

    def _ends(self, rescale: Rescale) -> Iterator[Constant]:
        if rescale.zero_point:
            yield integer("_z", rescale.zero_point)
        for name, own, usual in zip(("_low", "_high"), (rescale.low, rescale.high), CODES, strict=True):
            if own != usual:
                yield integer(name, own)

    def _layer(self) -> Iterator[Constant]:
        weight = self.program.tensors[self.o.weight or ""]
        rescale = self.o.rescale[0] if self.o.rescale else None
        channels = self.program.values[self.o.output].shape[-1 if self.o.kind == "linear" else 0]
        sums = np.zeros(channels, np.int64) if self.o.bias is None else self.program.tensors[self.o.bias]
        yield integer("_w", self._as_matrix(weight))
        yield from self._zeros()
        if rescale is None:
            yield integer("_sum_b", sums)
            return
        shifts = right_shifts(rescale)
        moved = None if shifts is None else after_shifts(sums, shifts)
        if moved is None:
            yield integer("_sum_b", sums)
        behind = [b for b in (moved, rescale.offset) if b is not None]
        if behind:
            yield integer("_b", np.broadcast_to(sum(behind), (channels,)))
        yield from self._scaling(rescale, channels)
        yield from self._ends(rescale)

    def _as_matrix(self, weight: Ints) -> Ints:
        """Without kernels of one tap; patches as rows of pixels, each with its channels, in a ResMLP."""
        if self.names.is_resmlp and self.o.output == "embed":
            return weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        if "kernel" not in self.o.attributes or set(self.o.attributes["kernel"]) != {1}:
            return weight
        scales = self.o.attributes["groups"] == len(weight) > 1 and weight.shape[1] == 1  # a factor for each channel
        return weight.reshape(-1) if scales else weight.reshape(len(weight), -1)

    def _scaling(self, rescale: Rescale, count: int | None = None) -> Iterator[Constant]:
        """Shifts, and multipliers where these do not do; `count` of each, or a number."""

        def spread(values: Ints) -> Ints:
            return values.reshape(()) if count is None else np.broadcast_to(values, (count,))

        shifts = right_shifts(rescale)
        if shifts is None:
            yield integer("_m", spread(rescale.multiplier))
            shifts = rescale.shift
        yield shift("_s", spread(shifts))

    def _rescaled(self) -> Iterator[Constant]:
        yield from self._zeros()
        if self.o.kind == "concat":
            found = [right_shifts(r) for r in self.o.rescale]
            if any(s is None for s in found):
                yield integer("_m", np.array([int(r.multiplier[0]) for r in self.o.rescale]))
                found = [r.shift for r in self.o.rescale]
            yield shift("_s", np.array([0 if s is None else int(s[0]) for s in found]))
        else:
            yield from self._scaling(self.o.rescale[0])
        yield from self._ends(self.o.rescale[0])

    def _add(self) -> Iterator[Constant]:
        rescale, shifts = self.o.rescale[0], shifts_of_addends(self.o)
        yield from self._zeros()
        if shifts is None:
            factors, amount = factors_of_addends(self.o)
            yield integer("_m", np.array(factors))
            yield shift("_s", amount)
        elif self.names.is_resmlp and shifts[1] == 0:
            channels = self.program.values[self.o.output].shape[0]
            yield integer("_w", np.full(channels, 1 << ONE))
            yield integer("_b", np.zeros(channels, np.int64))
            yield shift("_s", np.full(channels, shifts[0] + ONE))
        elif any(shifts):
            yield shift("_s", np.array(shifts))
        yield from self._ends(rescale)

    def _function(self) -> Iterator[Constant]:
        table, amount = self.o.table, self.o.attributes.get("shift", 0)
        if table is None:
            return
        codes = (table.shape[-1] - (self.o.kind == "interpolate")) << amount
        yield integer("_lerp_lut", table)
        if "owner" in self.o.attributes:
            yield integer("_lerp_lut_row", np.array(self.o.attributes["owner"]))
        yield shift("_lerp_lut_s", amount)
        if self.o.attributes["first"] != -(codes >> 1):
            yield integer("_lerp_lut_first", self.o.attributes["first"])
