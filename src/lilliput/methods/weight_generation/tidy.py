"""Circuits that make each value once: with one row of data every pin is a constant, and equal ones are one."""

from dataclasses import replace

import numpy as np

from lilliput.methods.weight_generation.solution import Solution
from lilliput.ops.netlist import Gate, Netlist, sources


def tidied(solution: Solution) -> Solution:
    """The same weights with no more gates, energy, delay and outputs.

    Whatever reads a value reads the pin where it is there first, and so do outputs; of equals the first in order.
    """
    net, delays = solution.netlist, solution.problem.gates.delay_ns
    values = net.values(solution.problem.given).tolist()
    ready = [0.0] * net.inputs
    for gate in net.gates:
        ready.append(delays[gate.function] + max((ready[pin] for pin in sources(gate)), default=0.0))
    order = sorted(range(net.pins), key=lambda pin: (ready[pin], pin))
    first: dict[int, int] = {}
    for pin in order:
        first.setdefault(values[pin], pin)
    new = {pin: pin for pin in range(net.inputs)}
    gates: list[Gate] = []
    for pin in order:  # a source is ready no later than its reader, and before it in the list if both are at once
        if pin >= net.inputs and first[values[pin]] == pin:
            gate = net.gates[pin - net.inputs]
            new[pin] = net.inputs + len(gates)
            gates.append(Gate(gate.function, *(new[first[values[source]]] for source in sources(gate))))
    pins = [new[first[values[net.outputs[output]]]] for output in solution.outputs.tolist()]
    outputs, index = np.unique(pins, return_inverse=True)
    whole = Netlist(bits=net.bits, inputs=net.inputs, gates=tuple(gates), outputs=tuple(outputs.tolist()))
    return replace(solution, netlist=whole.pruned(), outputs=index.reshape(-1).astype(np.int64))
