"""The circuits that make weights of a network, as plain data: gates, values, and how many weights have each value."""

from collections import Counter
from typing import Any

from lilliput.core.artifact import Artifact
from lilliput.core.bank import Bank
from lilliput.core.encoding import Encoding
from lilliput.export.circuit_folder import circuits_of, weights_of
from lilliput.export.netlist_svg import MOST_DRAWN
from lilliput.ops.cartesian_functions import NAMES
from lilliput.ops.netlist import Netlist, sources


def circuits(artifact: Artifact) -> list[dict[str, Any]]:
    """Gates stand there only where they are few enough to be drawn; all are counted."""
    return [_circuit(bank, tensors) for bank, tensors in circuits_of(artifact)]


def _circuit(bank: Bank, tensors: dict[str, Encoding]) -> dict[str, Any]:
    net, counts = bank.netlist, weights_of(tensors)
    drawn = len(net.gates) <= MOST_DRAWN
    depths = _depths(net)
    return {
        "layers": [name.rpartition(".")[0] or name for name in tensors],
        "weights": counts.total(),
        "bits": net.bits,
        "inputs": list(bank.inputs) if drawn else None,
        "gates": [[gate.function, *sources(gate)] for gate in net.gates] if drawn else None,
        "outputs": list(net.outputs) if drawn else None,
        "given": net.inputs,
        "made": len(net.gates),
        "values": [[value, counts[value]] for value in bank.values.tolist()],
        "depth": net.depth(),
        "functions": [[NAMES[f], n] for f, n in Counter(gate.function for gate in net.gates).most_common()],
        "depths": [depths.count(d) for d in range(1, max(depths, default=0) + 1)],
    }


def _depths(net: Netlist) -> list[int]:
    """Of each gate: the longest way to it."""
    found = [0] * net.inputs
    for gate in net.gates:
        found.append(1 + max((found[pin] for pin in sources(gate)), default=0))
    return found[net.inputs :]
