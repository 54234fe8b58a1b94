"""Two layers by one circuit: each gives its own row of values, and multiplexers of the outputs choose by the layer.

The published way to make all layers. The circuit runs once for each layer, on the values that this one gives; an output
is wired to one pin for the first and to another for the second, and the multiplexers between them are a column of the
grid. Beside it stands the same by one bank of values that all layers share, without multiplexers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt

from lilliput.core.artifact import Artifact
from lilliput.core.errors import UsageError
from lilliput.measure.energy import EYERISS, NO_WIRES, PUBLISHED, GateTable, Memory, Wires, circuit_cost
from lilliput.measure.generation_cost import GenerationCost, Selection, generation_cost
from lilliput.methods.weight_generation.codebook import exact
from lilliput.methods.weight_generation.evolution_settings import EvolutionSettings
from lilliput.methods.weight_generation.grid import MOST_COST, MOST_SUM, netlist_of, place_
from lilliput.methods.weight_generation.problem import Problem, problem_of
from lilliput.methods.weight_generation.tidy import once
from lilliput.ops.cartesian import Circuit, Shape, random_circuit
from lilliput.ops.cartesian_functions import IDENTITY, MULTIPLEXER
from lilliput.ops.cartesian_goal import Goal, whole
from lilliput.ops.cartesian_islands import best, islands
from lilliput.ops.cartesian_search import start
from lilliput.ops.cartesian_state import Bools, State
from lilliput.ops.netlist import Gate, Netlist, sources, width_of

Ints = npt.NDArray[np.int64]
LAYERS = 2
"""Multiplexers of the grid choose between two rows of data."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """`layers`: the problem of each row of data. `shared`: all of it as one, whose given values all layers may use.

    Values that both layers have come first and share their inputs and outputs, then each layer's own in ascending
    order; a layer with fewer of them repeats its last.
    """

    layers: tuple[Problem, ...]
    shared: Problem

    @property
    def given(self) -> Ints:
        """[rows of data, inputs]"""
        return _aligned([layer.given for layer in self.layers])

    @property
    def wanted(self) -> Ints:
        """[rows of data, outputs]"""
        return _aligned([layer.wanted for layer in self.layers])

    @property
    def counts(self) -> Ints:
        """[rows of data, outputs]: how many weights want it; 0 for those that are repeated."""
        wanted = self.wanted
        found = np.zeros(wanted.shape, dtype=np.int64)
        for row, values, layer in zip(found, wanted, self.layers, strict=True):
            count = len(layer.counts)
            row[:count] = layer.counts[np.searchsorted(layer.wanted, values[:count])]
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class RowsSolution:
    """`outputs` [outputs of the problem]: the circuit's output that stands for each."""

    problem: Rows
    netlist: Netlist
    outputs: Ints

    @property
    def made(self) -> Ints:
        """[rows of data, outputs of the problem]"""
        return self.netlist.evaluate(self.problem.given)[:, self.outputs]

    @property
    def error(self) -> float:
        """The sum of squared errors of all weights."""
        return float((self.problem.counts * (self.made - self.problem.wanted) ** 2).sum())

    @property
    def multiplexers(self) -> int:
        """Of two numbers each."""
        return sum(gate.function == MULTIPLEXER for gate in self.netlist.pruned().gates)

    def cost(
        self,
        *,
        memory: Memory = EYERISS,
        level: str = "dram",
        wires: Wires = NO_WIRES,
        selection: Selection = "indexed",
    ) -> GenerationCost:
        """Beside plain storage, and beside the exact circuit of one shared bank (`others`).

        Gates, multiplexers among them, switch once for each layer, and each layer names the weights that it gives.
        """
        layers, net, shared = self.problem.layers, self.netlist, self.problem.shared
        plain = generation_cost(
            net, given=shared.given_count, wanted=shared.wanted_count, own_inputs=0, gates=shared.gates, memory=memory,
            level=level, wires=wires, selection=selection,
            others={"one shared bank": exact(shared).cost(memory=memory, level=level, wires=wires).stored.total},
        )  # fmt: skip
        addresses = sum(len(layer.given) * width_of(layer.given_count) for layer in layers)
        again = (len(layers) - 1) * (plain.circuit.energy_pj + plain.circuit.wire_pj)
        more = (len(layers) - 1) * len(set(net.outputs)) * net.bits  # a table for each layer
        return replace(
            plain,
            stored=replace(plain.stored, addresses=addresses),
            energy_pj=plain.energy_pj + again,
            table_bits=plain.table_bits + more,
            table_energy_pj=plain.table_energy_pj + memory.read_pj(more, level),
        )


def problem_of_rows(
    net: Artifact,
    *,
    given: Sequence[str | Sequence[str]],
    wanted: Sequence[str | Sequence[str]],
    gates: GateTable = PUBLISHED,
) -> Rows:
    """A selection for each of two layers, as in `problem_of`. No weight may be in several of them."""
    if not len(given) == len(wanted) == LAYERS:
        found = f"{len(given)} given and {len(wanted)} wanted"
        raise UsageError("rows of data", found, f"give {LAYERS} selections each, or use problem_of for a shared bank")
    shared = problem_of(net, given=_flat(given), wanted=_flat(wanted), gates=gates)
    layers = (problem_of(net, given=g, wanted=w, gates=gates) for g, w in zip(given, wanted, strict=True))
    widened = tuple(replace(layer, bits=shared.bits, gates=shared.gates) for layer in layers)
    return _checked(Rows(layers=widened, shared=shared))


def rows_of_values(
    given: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], *, bits: int = 8, gates: GateTable = PUBLISHED
) -> Rows:
    """From plain lists, one for each layer: values that come twice count twice."""
    layers = [Problem.of_values(g, w, bits=bits, gates=gates) for g, w in zip(given, wanted, strict=True)]
    everything = [[v for part in parts for v in part] for parts in (given, wanted)]
    return _checked(Rows(layers=tuple(layers), shared=Problem.of_values(*everything, bits=bits, gates=gates)))


def evolved(problem: Rows, settings: EvolutionSettings, generations: int, *, processes: int = 1) -> RowsSolution:
    """So many generations from a random circuit or from one exact circuit for each layer; not dearer than its start.

    A grid prices multiplexers also where both sides are one pin, and a solution does not: so both ends are compared.
    """
    goal, states = begun(problem, settings)
    search, first = settings.search(int(goal.row_weights.sum())), best(states)
    rounds, rest = divmod(generations, settings.round_generations)
    for count, length in ((rounds, settings.round_generations), (1, rest)):
        if count and length:
            states = islands(goal, search, states, rounds=count, generations=length, processes=processes)
    last = best(states)
    found = [solution_of_rows(problem, state.circuit) for state in (last, first)]
    if max(first.error, last.error) > last.threshold:
        return found[0]
    return min(found, key=lambda solution: circuit_cost(solution.netlist, problem.shared.gates).energy_pj)


def begun(problem: Rows, settings: EvolutionSettings) -> tuple[Goal, list[State]]:
    """The goal, and the islands at generation 0."""
    wanted, gates = problem.wanted, problem.shared.gates
    if wanted.shape[1] > settings.rows:
        found = f"{wanted.shape[1]} wanted values, one in each row"
        raise UsageError(f"a grid of {settings.rows} rows", found, f"use at least {wanted.shape[1]} rows")
    most = min(MOST_COST, MOST_SUM // (settings.rows * settings.columns))
    goal = Goal(
        inputs=problem.given,
        targets=wanted,
        bits=problem.shared.bits,
        weights=problem.counts,
        energy=whole(gates.energy_pj, most)[0],
        delay=whole(gates.delay_ns, most)[0],
    )
    states: list[State] = []
    for island in range(settings.islands):
        drawn = np.random.SeedSequence((settings.seed, island)).generate_state(2, np.uint64)
        circuit, locked = _circuit(problem, settings, int(drawn[0]))
        search = settings.search(int(goal.row_weights.sum()))
        states.append(start(goal, circuit, search, int(drawn[1]), locked))
    return goal, states


def solution_of_rows(problem: Rows, circuit: Circuit) -> RowsSolution:
    """The active gates, with what is equal in both rows once."""
    net, outputs = netlist_of(circuit)
    net, outputs = once(net, problem.given, outputs, problem.shared.gates.delay_ns)
    return RowsSolution(problem=problem, netlist=net, outputs=outputs)


def _circuit(problem: Rows, settings: EvolutionSettings, seed: int) -> tuple[Circuit, tuple[Bools, Bools]]:
    """The last column are multiplexers, one for each output; from the constructive circuits they may become wires."""
    inputs, outputs, bits = problem.given.shape[1], problem.wanted.shape[1], problem.shared.bits
    shape = Shape(
        inputs=inputs,
        outputs=outputs,
        rows=settings.rows,
        columns=settings.columns,
        levels_back=settings.looks_back,
        bits=bits,
    )
    circuit = random_circuit(shape, np.random.default_rng(seed))
    ports = shape.nodes - shape.rows + np.arange(outputs)
    free, nodes = np.zeros((shape.nodes, 3), dtype=bool), circuit.nodes.copy()
    free[: shape.nodes - shape.rows] = True
    free[ports, :2] = True
    nodes[shape.nodes - shape.rows :, 2] = MULTIPLEXER
    if settings.starts == "constructive":
        net, pins = _side_by_side(problem)
        place = place_(nodes, shape, net)
        nodes[ports, :2] = np.asarray(place)[pins].T
        nodes[ports[pins[0] == pins[1]], 2] = IDENTITY
        free[ports, 2] = True
    kept = Circuit(shape=shape, nodes=nodes, outputs=(inputs + ports).astype(np.int32))
    return kept, (~free, np.ones(outputs, dtype=bool))


def _side_by_side(problem: Rows) -> tuple[Netlist, Ints]:
    """An exact circuit for each layer on the same inputs, and [rows of data, outputs] its pins."""
    inputs, gates = problem.given.shape[1], list[Gate]()
    pins = np.zeros(problem.wanted.shape, dtype=np.int64)
    for row, given, wanted, layer in zip(pins, problem.given, problem.wanted, problem.layers, strict=True):
        solution = exact(layer)
        net = solution.netlist
        place = [*np.argsort(given[: net.inputs]).tolist(), *range(inputs + len(gates), inputs + len(gates) + net.pins)]
        gates += [Gate(gate.function, *(place[pin] for pin in sources(gate))) for gate in net.gates]
        made = [place[net.outputs[output]] for output in solution.outputs.tolist()]
        row[:] = np.asarray(made)[np.searchsorted(layer.wanted, wanted)]
    found = Netlist(
        bits=problem.shared.bits, inputs=inputs, gates=tuple(gates), outputs=tuple(np.unique(pins).tolist())
    )
    return found, pins


def _checked(rows: Rows) -> Rows:
    if any(layer.own_inputs or not len(layer.given) for layer in rows.layers):
        raise UsageError("rows of data", "a layer that gives no weight, or constants", "give weights of each layer")
    if len(rows.layers) != LAYERS:
        do = f"give {LAYERS}, or use a shared bank"
        raise UsageError("rows of data", f"{len(rows.layers)} layers", do)
    counts = [sum(getattr(layer, name) for layer in rows.layers) for name in ("given_count", "wanted_count")]
    if counts != [rows.shared.given_count, rows.shared.wanted_count]:
        raise UsageError("rows of data", "weights that are in both", "choose others for one of the layers")
    return rows


def _aligned(values: Sequence[Ints]) -> Ints:
    """[rows of data, values], of ascending distinct values of each."""
    common = reduce(np.intersect1d, values)
    rows = [np.concatenate([common, np.setdiff1d(row, common)]) for row in values]
    longest = max(len(row) for row in rows)
    return np.stack([np.concatenate([row, np.repeat(row[-1:], longest - len(row))]) for row in rows])


def _flat(selections: Sequence[str | Sequence[str]]) -> list[str]:
    return [text for part in selections for text in ([part] if isinstance(part, str) else part)]
