"""Where the points of learned functions stand on codes of the values that they read, and which values can have that.

A function of 2^k + 1 points over [-limit, limit] has its points on codes of b bits, 2^(b - k) apart, where these are
signed, count from 0 and have the scale limit / 2^(b - 1). The last point stands one step beyond the highest code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lilliput.core.encoding import Grid
from lilliput.graph.functions import point_bits, shift_of
from lilliput.graph.shared_bias import owners_of_grids
from lilliput.graph.trace import Graph, Node


@dataclass(frozen=True, kw_only=True)
class Knots:
    """`grids` {value: the grid whose codes the points stand on}; `others` {node: why its points cannot}.

    `readers` {value: the functions that alone read it}.
    """

    grids: dict[str, Grid] = field(default_factory=dict[str, Grid])
    readers: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    others: dict[str, str] = field(default_factory=dict[str, str])


def grid_of_limit(limit: float, bits: int) -> Grid:
    return Grid.per_tensor(limit / (1 << (bits - 1)), 0, bits, signed=True)


def possible(graph: Graph, state: Mapping[str, Tensor], bits: int) -> Knots:
    """For all learned functions of the graph, if their inputs are to have so many bits."""
    found = Knots()
    owners = owners_of_grids(graph)
    for node in graph.nodes:
        if node.op == "learned_function":
            owner = owners[node.inputs[0]]
            reason = _why_not(graph, owners, node, state, bits)
            if reason:
                found.others[node.name] = reason
            else:
                found.grids[owner] = grid_of_limit(float(state[node.state["limit"]]), bits)
                found.readers.setdefault(owner, []).append(node.name)
    return found


def standing(graph: Graph, grids: Mapping[str, Grid], state: Mapping[str, Tensor]) -> dict[str, int]:
    """{learned function: how many codes its points are apart, as a power of two} for those that stand on codes."""
    found = {
        node.name: shift_of(node, grids[node.inputs[0]], state[node.state["limit"]])
        for node in graph.nodes
        if node.op == "learned_function" and node.inputs[0] in grids and node.name in grids
    }
    return {name: shift for name, shift in found.items() if shift is not None}


def _why_not(graph: Graph, owners: Mapping[str, str], node: Node, state: Mapping[str, Tensor], bits: int) -> str:
    if node.attributes["kind"] == "psa":
        return "psa has no points"
    if point_bits(node, bits) is None:
        return f"{node.attributes['points']} points are not 2^k + 1 with k from 3 to {min(8, bits)}"
    owner, limit = owners[node.inputs[0]], state[node.state["limit"]]
    if any(owners[name] == owner for name in graph.outputs):
        return "its input is an output of the network"
    known = graph.consumers()
    inside = [n.name for n in graph.nodes if owners[n.name] == owner]
    readers = [r for name in inside for r in known[name] if owners[r.name] != owner and r.op != "size"]
    for other in readers:
        if other.op != "learned_function" or point_bits(other, bits) is None:
            return f"{other.name} reads its input too"
        if not torch.equal(state[other.state["limit"]], limit) or limit.numel() != 1:
            return "functions of several limits read its input"
    return ""
