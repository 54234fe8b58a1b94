"""Grids whose scales are powers of two, such that layers and sums of two values need no factor but right shifts.

As in the integer networks of PSA-Compress (ACM TRETS, https://doi.org/10.1145/3705926), what is added has one scale.
There every shortcut gets a factor for it; here a shortcut may be finer than the sum, by a power of two.
"""

from dataclasses import replace

import torch

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Grid
from lilliput.graph.integer import LAYERS, SUMS, fusions
from lilliput.graph.shared_bias import owners_of_grids, shared_grids
from lilliput.graph.trace import Graph, Node


def aligned(net: Artifact, graph: Graph) -> dict[str, Grid]:
    """The grids of activations, coarser where a sum is finer than what it adds, or a layer than its accumulator.

    A layer that only a sum reads has the sum's scale: it rounds once, and the sum not at all. An average has the scale
    of what it reads. Scales that layers with one bias share stay shared.
    """
    owners, leaders, readers = owners_of_grids(graph), shared_grids(graph), graph.consumers()
    fused = fusions(graph)
    grids = {leaders.get(name, name): grid for name, grid in net.activations.items()}

    def key(name: str) -> str:
        return leaders.get(owners[name], owners[name])

    def alone(name: str) -> bool:
        own = name not in fused and name not in graph.outputs and key(name) == name
        return own and graph[name].op in LAYERS and len(readers[name]) == 1

    def wanted(node: Node) -> dict[str, Grid]:
        names = [key(name) for name in (node.name, *node.inputs)]
        if node.op not in ("add", "sub", *SUMS, *LAYERS) or any(name not in grids for name in names):
            return {}
        if node.op in LAYERS:
            weight = net.encodings.get(net.canonical(node.state["weight"]))
            if weight is None or weight.grid is None:
                return {}
            unit = grids[names[1]].scale * weight.grid.scale.max()
            return {names[0]: replace(grids[names[0]], scale=torch.maximum(grids[names[0]].scale, unit))}
        if node.op in SUMS:
            return {names[0]: replace(grids[names[0]], scale=grids[names[1]].scale)}
        scale = max((grids[name].scale for name in names), key=float)
        moved = [names[0], *(key(name) for name in node.inputs if alone(name))]
        return {name: replace(grids[name], scale=scale) for name in moved}

    for _ in graph.nodes:  # scales only grow, but for averages, which follow
        before = {name: float(grid.scale) for name, grid in grids.items()}
        for node in graph.nodes:
            grids.update(wanted(node))
        if before == {name: float(grid.scale) for name, grid in grids.items()}:
            break
    return {name: grids[leaders.get(name, name)] for name in net.activations}
