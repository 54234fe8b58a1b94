"""Solutions of a problem beside each other by what they cost, and those that nothing beats."""

from collections.abc import Iterable
from dataclasses import dataclass

from lilliput.measure.energy import NO_WIRES, Wires
from lilliput.methods.weight_generation.solution import Solution
from lilliput.ops.pareto import nondominated, thinned


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A solution, where it comes from, and its costs: energy and delay are those of the circuit and its wires alone.

    Reads of memory are in the stored bits.
    """

    name: str
    solution: Solution
    error: float
    energy_pj: float
    stored_bits: int
    delay_ns: float

    @staticmethod
    def of(name: str, solution: Solution, wires: Wires = NO_WIRES) -> "Point":
        cost = solution.cost(wires=wires)
        return Point(
            name=name,
            solution=solution,
            error=solution.error,
            energy_pj=cost.circuit.energy_pj + cost.circuit.wire_pj,
            stored_bits=cost.stored.total,
            delay_ns=cost.circuit.delay_ns,
        )

    @property
    def costs(self) -> tuple[float, float, float, float]:
        return self.error, self.energy_pj, float(self.stored_bits), self.delay_ns


def unbeaten(points: Iterable[Point], most: int | None = None) -> tuple[Point, ...]:
    """Those that no other is at most equal to in all four costs and below in one; of equals the first.

    At most `most` of them, the least crowded. In order of error, then energy.
    """
    found = list(points)
    found = [found[i] for i in nondominated([point.costs for point in found])] if found else []
    found.sort(key=lambda point: point.costs)
    if most is not None:
        found = [found[i] for i in thinned([point.costs for point in found], most)]
    return tuple(found)
