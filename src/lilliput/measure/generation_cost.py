"""What weights cost that a circuit makes: stored bits and energy, beside the same weights stored plainly.

A circuit makes each distinct value once. Which of them a weight has must be kept too: as an index for each weight
(`indexed`: read from memory, a multiplexer chooses), or as wires (`wired`: nothing is read, and nothing can change). As
both say the same, the bits of indices count in either case. The circuit's description counts as in `Netlist.pack`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from lilliput.core.errors import UsageError
from lilliput.measure.energy import EYERISS, NO_WIRES, PUBLISHED, CircuitCost, GateTable, Memory, Wires, circuit_cost
from lilliput.ops import cartesian_functions as f
from lilliput.ops.netlist import FUNCTION_BITS, Netlist, output_bits, sources, width_of

Selection = Literal["indexed", "wired"]


@dataclass(frozen=True, kw_only=True)
class StoredBits:
    """`given`: weights that stay stored; `addresses`: which of them are inputs; `own`: inputs that are none of them."""

    given: int
    addresses: int
    own: int
    indices: int
    functions: int
    wiring: int
    counts: int

    @property
    def total(self) -> int:
        return self.given + self.addresses + self.own + self.indices + self.functions + self.wiring + self.counts


@dataclass(frozen=True, kw_only=True)
class GenerationCost:
    """Energies are for getting every weight once. `others`: stored bits of other ways to keep the same weights.

    `plain`: the weights as they were. `table`: the circuit's values in a table instead, with the same indices.
    """

    circuit: CircuitCost
    stored: StoredBits
    plain_bits: int
    energy_pj: float
    plain_energy_pj: float
    table_bits: int
    table_energy_pj: float
    selection_pj: float
    level: str
    others: Mapping[str, float] = field(default_factory=dict[str, float])

    def warnings(self) -> tuple[str, ...]:
        """Everything that the circuit does not make smaller or cheaper; empty if it is better throughout."""
        total, found = self.stored.total, list[str]()
        known = {"plain storage": self.plain_bits, "a table of the same values": self.table_bits, **self.others}
        for name, bits in known.items():
            if total >= bits:
                found.append(f"larger: {total:,} bits with the circuit, {bits:,.0f} by {name}")
        for name, pj in (("plain weights", self.plain_energy_pj), ("a table of the same values", self.table_energy_pj)):
            if self.energy_pj >= pj:
                ours = f"{self.energy_pj:.4g} pJ with the circuit"
                found.append(f"dearer: {ours}, {pj:.4g} pJ with {name} read from {self.level}")
        return tuple(found)

    @property
    def verdict(self) -> str:
        return "; ".join(self.warnings()) or "smaller and cheaper than what it was compared with"


def stored_bits(net: Netlist, *, given: int, wanted: int, own_inputs: int | None = None) -> StoredBits:
    """For `given` weights that stay stored and `wanted` ones that the circuit makes.

    `own_inputs` of the circuit are no stored weight; by default all if no weight stays stored, else none.
    """
    own = (0 if given else net.inputs) if own_inputs is None else own_inputs
    pins = net.inputs
    wiring = output_bits(net)
    for gate in net.gates:
        wiring += len(sources(gate)) * width_of(pins)
        pins += 1
    functions = len(net.gates) * FUNCTION_BITS
    return StoredBits(
        given=given * net.bits,
        addresses=(net.inputs - own) * width_of(given),
        own=own * net.bits,
        indices=wanted * width_of(len(net.outputs)),
        functions=functions,
        wiring=wiring,
        counts=8 * len(net.pack()) - functions - wiring,
    )


def generation_cost(
    net: Netlist,
    *,
    given: int,
    wanted: int,
    own_inputs: int | None = None,
    gates: GateTable = PUBLISHED,
    memory: Memory = EYERISS,
    level: str = "dram",
    wires: Wires = NO_WIRES,
    selection: Selection = "indexed",
    others: Mapping[str, float] | None = None,
) -> GenerationCost:
    """Of `given` stored weights and `wanted` made ones of `net.bits` bits, all needed once; the circuit runs once.

    A multiplexer of m values is m - 1 of two, and all of them switch for each weight: the most that it can take.
    """
    if selection not in get_args(Selection):
        raise UsageError(f"selection {selection!r}", "it is not known", f"use {' or '.join(get_args(Selection))}")
    if given < 0 or wanted < 0:
        raise UsageError("the cost of weights", f"{min(given, wanted)} of them", "give numbers of at least 0")
    circuit = circuit_cost(net, gates, wires)
    stored = stored_bits(net, given=given, wanted=wanted, own_inputs=own_inputs)
    choosing = wires.pj(wanted, net.bits)
    if selection == "indexed":
        two = gates.at(net.bits).energy_pj[f.MULTIPLEXER]
        choosing += memory.read_pj(stored.indices, level) + wanted * max(len(net.outputs) - 1, 0) * two
    plain = (given + wanted) * net.bits
    values = len(set(net.outputs)) * net.bits
    return GenerationCost(
        circuit=circuit,
        stored=stored,
        plain_bits=plain,
        energy_pj=circuit.energy_pj + circuit.wire_pj + choosing + memory.read_pj(stored.given + stored.own, level),
        plain_energy_pj=memory.read_pj(plain, level),
        table_bits=stored.given + stored.indices + values,
        table_energy_pj=choosing + memory.read_pj(stored.given + values, level),
        selection_pj=choosing,
        level=level,
        others=dict(others or {}),
    )
