"""Learned functions that compute as integer points are stored as these integers, and as floats while they train."""

from collections.abc import Callable

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.edits import Replace
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.learned_activation import LearnedActivation
from lilliput.graph.integer import grids_of
from lilliput.graph.knots import standing
from lilliput.graph.trace import Graph, Node, graph_of


def store_tables_(net: Artifact, selects: Callable[[str], bool]) -> dict[str, str]:
    """Store functions of the chosen layers on the grids of their outputs: {layer: what it has become}.

    Nothing that computes changes. Functions of other kinds become tables of their points, which is what they were in
    integers already.
    """
    graph = graph_of(net)
    stored: dict[str, str] = {}
    for name, nodes in _weights(net, graph).items():
        path = name.rpartition(".")[0]
        if not selects(path):
            continue
        module = net.module.get_submodule(path)
        if nodes[0].attributes["kind"] != "table" and isinstance(module, LearnedActivation):
            become_table_(net, path, module.table().detach())
        values = net.parameter(name).detach()
        net.encode_(name, Encoding.of(values).with_grid(_grid(net, graph, nodes[0]).to(values.device)))
        stored[path] = f"tables of {values.shape[1]} points, {net.encoding(name).describe()}"
    return stored


def free_tables_(net: Artifact, selects: Callable[[str], bool]) -> None:
    """Tables that are stored as integers become floats of the same value: what trains is not rounded twice."""
    for name in _weights(net, graph_of(net)):
        if name in net.encodings and selects(name.rpartition(".")[0]):
            net.encode_(name, Encoding.of(net.parameter(name)))


def _weights(net: Artifact, graph: Graph) -> dict[str, list[Node]]:
    """{weight: the functions that read it}, where all of these give codes of one grid from points on codes."""
    points = standing(graph, grids_of(graph, net.activations), net.module.state_dict())
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.name in points:
            found.setdefault(net.canonical(node.state["weight"]), []).append(node)
    return {name: nodes for name, nodes in found.items() if _is_storable(net, graph, name, nodes)}


def _is_storable(net: Artifact, graph: Graph, name: str, nodes: list[Node]) -> bool:
    encoding, parameter = net.encoding(name), net.parameter(name)
    if encoding.mask is not None or encoding.sharing is not None:
        return False
    tensors = dict(net.module.named_parameters(remove_duplicate=False))
    readers = [n for n in graph.nodes if any(tensors.get(held) is parameter for held in n.state.values())]
    grid = _grid(net, graph, nodes[0])
    if len(readers) > len(nodes) or any(not _grid(net, graph, n).same(grid) for n in nodes):
        return False
    holders = [m for m in net.module.modules() if any(p is parameter for p in m.parameters(recurse=False))]
    is_table = all(n.attributes["kind"] == "table" for n in nodes)
    return is_table or (len(holders) == 1 and isinstance(holders[0], LearnedActivation))


def _grid(net: Artifact, graph: Graph, node: Node) -> Grid:
    return grids_of(graph, net.activations)[node.name]


def become_table_(net: Artifact, path: str, table: Tensor, owner: Tensor | None = None) -> None:
    """Put a table of these values in the place of learned functions; with `owner` [channels] its rows are shared."""
    old = net.module.get_submodule(path)
    if not isinstance(old, LearnedActivation):
        return
    shared = {} if owner is None else {"share": "indexed", "groups": len(table)}
    edit = Replace(path=path, cls="LearnedActivation", settings={**old.structure(), "kind": "table", **shared})
    edit.replay_(net.module)
    net.edits.append(edit)
    new = net.module.get_submodule(path)
    if isinstance(new, LearnedActivation):
        new.to(old.limit.device).train(mode=old.training)
        owner = old.owner if owner is None else owner
        with torch.no_grad():
            new.weight.copy_(table)
            new.limit.copy_(old.limit)
            if new.owner is not None and owner is not None:
                new.owner.copy_(owner)
        new.weight.requires_grad_(old.weight.requires_grad)
