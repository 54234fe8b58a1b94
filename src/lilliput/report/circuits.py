"""The circuits that make weights of a network, as plain data: gates, values, and how many weights have each value."""

from collections import Counter
from typing import Any

import torch

from lilliput.core.artifact import Artifact
from lilliput.core.bank import Bank
from lilliput.core.encoding import Encoding
from lilliput.export.netlist_svg import MOST_DRAWN
from lilliput.ops.cartesian_functions import NAMES
from lilliput.ops.netlist import Netlist, sources


def groups(artifact: Artifact) -> list[tuple[Bank, dict[str, Encoding]]]:
    """Each circuit of a network once, with the tensors that are made by it."""
    found: list[tuple[Bank, dict[str, Encoding]]] = []
    for name, encoding in artifact.stored().items():
        bank = encoding.bank
        if bank is None:
            continue
        known = next((tensors for other, tensors in found if bank.same(other)), None)
        if known is None:
            found.append((bank, {name: encoding}))
        else:
            known[name] = encoding
    return found


def weights_of(tensors: dict[str, Encoding]) -> Counter[int]:
    """How many weights have each integer; those that are pruned or of channels without bits do not count."""
    counts: Counter[int] = Counter()
    for encoding in tensors.values():
        grid = encoding.grid
        if grid is not None:
            live = (grid.spread(grid.bit_width, len(encoding.shape)) > 0).expand(encoding.shape)
            live = live if encoding.mask is None else live & encoding.mask
            values, each = torch.unique(encoding.values[live], return_counts=True)
            counts.update(dict(zip(values.tolist(), each.tolist(), strict=True)))
    return counts


def circuits(artifact: Artifact) -> list[dict[str, Any]]:
    """Gates stand there only where they are few enough to be drawn; all are counted."""
    return [_circuit(bank, tensors) for bank, tensors in groups(artifact)]


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
