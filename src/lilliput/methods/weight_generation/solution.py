"""A circuit for a problem: which of its outputs each wanted value takes, what that costs, and the weights it gives."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import UsageError
from lilliput.measure.energy import EYERISS, NO_WIRES, Memory, Wires
from lilliput.measure.generation_cost import GenerationCost, Selection, generation_cost
from lilliput.methods.weight_generation.problem import Problem
from lilliput.ops.netlist import Netlist

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """A circuit whose inputs are the problem's given values, and what it makes of each wanted value.

    `outputs` [wanted]: the output of the circuit that stands for the wanted value; several may share one.
    """

    problem: Problem
    netlist: Netlist
    outputs: Ints

    @property
    def made(self) -> Ints:
        """[wanted]"""
        return self.netlist.evaluate(self.problem.given)[self.outputs]

    @property
    def error(self) -> float:
        return self.problem.error(self.made)

    def cost(
        self,
        *,
        memory: Memory = EYERISS,
        level: str = "dram",
        wires: Wires = NO_WIRES,
        selection: Selection = "indexed",
        others: Mapping[str, float] | None = None,
    ) -> GenerationCost:
        """Beside plain storage of all weights, given and wanted."""
        problem = self.problem
        return generation_cost(
            self.netlist,
            given=problem.given_count,
            wanted=problem.wanted_count,
            own_inputs=problem.own_inputs,
            gates=problem.gates,
            memory=memory,
            level=level,
            wires=wires,
            selection=selection,
            others=others,
        )


def substitute_(net: Artifact, solution: Solution) -> dict[str, int]:
    """Give each weight of the problem what the circuit makes of its value; {parameter: how many changed}.

    Integers saturate to the grid of their channel. Shared values are resolved: indices are the circuit's now.
    """
    problem, values = solution.problem, solution.made
    changed: dict[str, int] = {}
    for place in problem.places:
        encoding = net.encoding(place.name)
        grid = encoding.grid
        if grid is None:
            raise UsageError(f"weights of {place.name!r}", "they have no grid now", "substitute before other methods")
        integers = encoding.integers().reshape(-1).clone()
        old = integers[place.positions].cpu().numpy()
        index = np.searchsorted(problem.wanted, old)
        if not np.array_equal(problem.wanted[np.minimum(index, len(values) - 1)], old):
            raise UsageError(f"weights of {place.name!r}", "they are others than the problem's", "make it again")
        integers[place.positions] = torch.from_numpy(values[index]).to(integers.device)
        low, high = (grid.spread(end, len(encoding.shape)) for end in grid.range())
        fresh = torch.clamp(integers.reshape(encoding.shape), low, high)
        plain = Encoding.of(net.parameter(place.name))
        if encoding.mask is not None:
            plain = plain.with_mask(encoding.mask)
        net.encode_(place.name, plain.with_grid(grid, fresh))
        changed[place.name] = int((values[index] != old).sum())
    return changed
