"""Circuits that make each value once: on fixed inputs every pin is a constant, and equal ones are one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lilliput.methods.weight_generation.solution import Solution
from lilliput.ops.netlist import Gate, Netlist, sources

Ints = npt.NDArray[np.int64]


def tidied(solution: Solution) -> Solution:
    """The same weights with no more gates, energy, delay and outputs."""
    problem = solution.problem
    net, outputs = once(solution.netlist, problem.given[None], solution.outputs, problem.gates.delay_ns)
    return replace(solution, netlist=net, outputs=outputs)


def once(net: Netlist, given: Ints, outputs: Ints, delays: Sequence[float]) -> tuple[Netlist, Ints]:
    """`outputs`: of the netlist, any of them; the circuit that gives these for `given` [rows of data, inputs] alone.

    Whatever reads a value (one for each row) reads the pin where it is there first, and so do outputs; of equals the
    first in order.
    """
    values = [tuple(column) for column in net.values(given).T.tolist()]
    ready = [0.0] * net.inputs
    for gate in net.gates:
        ready.append(delays[gate.function] + max((ready[pin] for pin in sources(gate)), default=0.0))
    order = sorted(range(net.pins), key=lambda pin: (ready[pin], pin))
    first: dict[tuple[int, ...], int] = {}
    for pin in order:
        first.setdefault(values[pin], pin)
    new = {pin: pin for pin in range(net.inputs)}
    gates: list[Gate] = []
    for pin in order:  # a source is ready no later than its reader, and before it in the list if both are at once
        if pin >= net.inputs and first[values[pin]] == pin:
            gate = net.gates[pin - net.inputs]
            new[pin] = net.inputs + len(gates)
            gates.append(Gate(gate.function, *(new[first[values[source]]] for source in sources(gate))))
    pins, index = np.unique([new[first[values[net.outputs[k]]]] for k in outputs.tolist()], return_inverse=True)
    whole = Netlist(bits=net.bits, inputs=net.inputs, gates=tuple(gates), outputs=tuple(pins.tolist()))
    return whole.pruned(), index.reshape(-1).astype(np.int64)
