"""Layers with a bias that are called several times: the bias has one scale, so all calls read one grid."""

from collections.abc import Callable

from lilliput.graph.integer import LAYERS, fusions
from lilliput.graph.operators import MOVES
from lilliput.graph.trace import Graph


def owners_of_grids(graph: Graph) -> dict[str, str]:
    """{value: the one whose grid it is on, if that has one}: its own, its relu's, or that of what it moves."""
    fused, owners = fusions(graph), dict[str, str]()
    for node in graph.nodes:
        moved = node.op in MOVES and node.inputs
        owners[node.name] = owners[node.inputs[0]] if moved else fused.get(node.name, node.name)
    return owners


def shared_grids(graph: Graph) -> dict[str, str]:
    """{value: another one}: values that must be on one grid, because layers with one bias read them.

    The names are those that `integer_values` gives; of each group, all but the first point to the first.
    """
    owners = owners_of_grids(graph)
    leaders: dict[str, str] = {}

    def leader(name: str) -> str:
        while name in leaders:
            name = leaders[name]
        return name

    first: dict[str, str] = {}
    for node in graph.nodes:
        bias = node.state.get("bias") if node.op in LAYERS else None
        if bias is not None:
            known, own = leader(first.setdefault(bias, owners[node.inputs[0]])), leader(owners[node.inputs[0]])
            if known != own:
                leaders[own] = known
    return {name: leader(name) for name in leaders}


def bias_conflict(graph: Graph, bias: str, canonical: Callable[[str], str]) -> str:
    """Why no single scale can serve all uses of a bias; "" if one can. `canonical` names weights."""
    users = graph.users_of(bias)
    if any(n.op not in LAYERS or n.state.get("bias") != bias for n in users):
        return "its bias is used outside of layers"
    return (
        "its bias serves layers with different weights"
        if len({canonical(n.state["weight"]) for n in users}) > 1
        else ""
    )
