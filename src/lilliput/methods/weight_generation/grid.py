"""A problem as a grid of functions to evolve, constructive circuits laid into it, and its circuits as solutions.

The last column of the grid is made of identities, one for each wanted value. A grid needs an input: where no value is
given, it reads a constant 0, which the netlist has as a gate if anything reads it.
"""

import numpy as np
import numpy.typing as npt

from lilliput.core.errors import UsageError
from lilliput.methods.weight_generation.evolution_settings import EvolutionSettings
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import Solution
from lilliput.ops.cartesian import Circuit
from lilliput.ops.cartesian_functions import IDENTITY, READS, ZERO
from lilliput.ops.cartesian_goal import whole
from lilliput.ops.cartesian_multiplexed import Multiplexed, multiplexed
from lilliput.ops.netlist import Gate, Netlist, sources

Ints = npt.NDArray[np.int64]
MOST_COST, MOST_SUM = 1 << 40, 1 << 62


def grid_of(problem: Problem, settings: EvolutionSettings, seed: int) -> Multiplexed:
    """A random circuit of the grid, its goal, and the genes that stay."""
    if len(problem.wanted) > settings.rows:
        found = f"{len(problem.wanted)} wanted values, one in each row"
        raise UsageError(f"a grid of {settings.rows} rows", found, f"use at least {len(problem.wanted)} rows")
    gates, nodes = problem.gates, settings.rows * settings.columns
    most = min(MOST_COST, MOST_SUM // nodes)
    try:
        return multiplexed(
            problem.given if len(problem.given) else [0],
            problem.wanted,
            rows=settings.rows,
            columns=settings.columns,
            levels_back=settings.looks_back,
            seed=seed,
            bits=problem.bits,
            weights=problem.importance,
            costs=(whole(gates.energy_pj, most)[0], whole(gates.delay_ns, most)[0]),
        )
    except ValueError as error:
        found = f"{settings.rows} rows and {settings.columns} columns: {error}"
        raise UsageError("a grid for weights", found, "use a smaller grid") from error


def laid_out(grid: Multiplexed, solution: Solution) -> Circuit:
    """The grid's circuit with the gates of a solution in place of random ones, and the last column reading them.

    Gates go as far to the front as they can, those with the longest way behind them first.
    """
    shape, net = grid.circuit.shape, solution.netlist
    columns = _columns(net, shape.rows, shape.columns - 1)
    pins: list[int] = list(range(net.inputs)) + [0] * len(net.gates)
    filled, nodes = [0] * shape.columns, grid.circuit.nodes.copy()
    for k in sorted(range(len(net.gates)), key=lambda k: (columns[k], k)):
        node = columns[k] * shape.rows + filled[columns[k]]
        filled[columns[k]] += 1
        pins[net.inputs + k] = shape.inputs + node
        gate = net.gates[k]
        nodes[node, : READS[gate.function]] = [pins[pin] for pin in sources(gate)]
        nodes[node, 2] = gate.function
    ports = shape.nodes - shape.rows + np.arange(len(grid.values))
    for port, output in zip(ports, solution.outputs, strict=True):
        if not grid.locked[0][port, 0]:
            nodes[port, 0] = pins[net.outputs[output]]
    return Circuit(shape=shape, nodes=nodes, outputs=grid.circuit.outputs)


def _columns(net: Netlist, rows: int, columns: int) -> list[int]:
    """A column for each gate, behind those that it reads and at most `rows` in one. `UsageError` if it does not fit."""
    first = net.inputs
    readers: list[list[int]] = [[] for _ in net.gates]
    waiting = [0] * len(net.gates)
    for k, gate in enumerate(net.gates):
        for pin in {pin for pin in sources(gate) if pin >= first}:
            readers[pin - first].append(k)
            waiting[k] += 1
    height = [0] * len(net.gates)
    for k in range(len(net.gates) - 1, -1, -1):
        height[k] = 1 + max((height[r] for r in readers[k]), default=0)
    ready = [k for k, count in enumerate(waiting) if count == 0]
    place, column = [0] * len(net.gates), 0
    while ready:
        ready.sort(key=lambda k: (-height[k], k))
        now, ready = ready[:rows], ready[rows:]
        for k in now:
            place[k] = column
            for reader in readers[k]:
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    ready.append(reader)
        column += 1
    if column > columns:
        found = f"{len(net.gates)} gates in {column} columns, and one for the values"
        do = f"use {column + 1} columns or more rows, or start='random'"
        raise UsageError(f"a constructive start in {columns + 1} columns of {rows} rows", found, do)
    return place


def solution_of(problem: Problem, circuit: Circuit) -> Solution:
    """The active gates of a circuit of the problem's grid; identities are wires."""
    shape, given = circuit.shape, len(problem.given)
    nodes, active = circuit.nodes.tolist(), np.flatnonzero(circuit.active()).tolist()
    gates: list[Gate] = []
    new = dict(enumerate(range(given)))
    read = {int(pin) for node in active for pin in nodes[node][: READS[nodes[node][2]]]}
    if not given and 0 in read | set(circuit.outputs.tolist()):
        new[0] = 0
        gates.append(Gate(ZERO))
    for node in active:
        a, b, function = nodes[node]
        pins = [new[pin] for pin in (a, b)[: READS[function]]]
        if function == IDENTITY:
            new[shape.inputs + node] = pins[0]
        else:
            new[shape.inputs + node] = given + len(gates)
            gates.append(Gate(function, *pins))
    pins, outputs = np.unique([new[pin] for pin in circuit.outputs.tolist()], return_inverse=True)
    net = Netlist(bits=shape.bits, inputs=given, gates=tuple(gates), outputs=tuple(pins.tolist()))
    return Solution(problem=problem, netlist=net, outputs=outputs.reshape(-1).astype(np.int64))
