"""The integers that a circuit makes: a tensor may be made of them, and keep for each weight which of them it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lilliput.core.errors import UsageError
from lilliput.core.grid import Grid
from lilliput.ops.cartesian_functions import MULTIPLEXER, limits
from lilliput.ops.netlist import MOST_GATES, MOST_INPUTS, MOST_OUTPUTS, Netlist, sources


@dataclass(frozen=True, kw_only=True, eq=False)
class Bank:
    """A circuit and what it is given: `inputs` are integers of its width, kept beside it."""

    netlist: Netlist
    inputs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        net, (low, high) = self.netlist, limits(self.netlist.bits)
        asked = "a bank of values"
        if len(self.inputs) != net.inputs or not all(low <= value <= high for value in self.inputs):
            found = f"{len(self.inputs)} values for {net.inputs} inputs of {net.bits} bits"
            raise UsageError(asked, found, "give one of that width for each")
        if net.inputs > MOST_INPUTS or len(net.gates) > MOST_GATES or len(net.outputs) > MOST_OUTPUTS:
            found = f"{net.inputs} inputs, {len(net.gates)} gates, {len(net.outputs)} outputs"
            raise UsageError(asked, found, f"use at most {MOST_INPUTS}, {MOST_GATES} and {MOST_OUTPUTS}")
        if not net.outputs or any(gate.function == MULTIPLEXER for gate in net.gates):
            raise UsageError(asked, "no outputs, or multiplexers", "give a circuit that makes constants")

    @staticmethod
    def of(netlist: Netlist, inputs: Sequence[int]) -> "Bank":
        """Without gates that no output depends on and inputs that nothing reads; outputs ascending, each once."""
        net = replace(netlist, outputs=tuple(sorted(set(netlist.outputs)))).pruned()
        read = {pin for gate in net.gates for pin in sources(gate)} | set(net.outputs)
        kept = [pin for pin in range(net.inputs) if pin in read]
        return Bank(netlist=net.with_inputs(kept), inputs=tuple(int(inputs[pin]) for pin in kept))

    @cached_property
    def values(self) -> Tensor:
        """int64, ascending and distinct: what the outputs are."""
        return torch.unique(torch.from_numpy(self.netlist.evaluate(list(self.inputs))))

    def index(self, q: Tensor) -> Tensor:
        """int64 of the shape of `q`: the place of each integer in `values`, or of one beside it."""
        return torch.searchsorted(self.values.to(q.device), q.contiguous()).clamp(max=len(self.values) - 1)

    def holds(self, q: Tensor) -> Tensor:
        """bool of the shape of `q`."""
        return self.values.to(q.device)[self.index(q)] == q

    def within(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the last place of `values` in each range; the last is before the first where none is."""
        values = self.values.to(low.device)
        return torch.searchsorted(values, low), torch.searchsorted(values, high, right=True) - 1

    def reaches(self, grid: Grid) -> bool:
        """Is there a value in the range of each slice that has bits?"""
        first, last = self.within(*grid.range())
        return not bool(((last < first) & (grid.bit_width > 0)).any())

    def nearest(self, real: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """int64: of the values in `low` to `high`, which broadcast, the nearest; of two the upper one."""
        values = self.values.to(real.device)
        between = (values[1:] + values[:-1]).double() / 2
        first, last = self.within(low, high)
        place = torch.searchsorted(between, real.double().contiguous(), right=True)
        return values[torch.minimum(torch.maximum(place, first), last)]

    def same(self, other: "Bank | None") -> bool:
        return other is not None and self.inputs == other.inputs and self.netlist == other.netlist

    def describe(self) -> str:
        return f"{len(self.values)} values from {len(self.netlist.gates)} gates"
