"""The functions that a network has learned, as plain data: before the run, after it, and as tables of integers.

Where the original has another function of one value at the same place (a ReLU that was replaced), that is the one
before. A function has changed by the root mean square of the difference on the inputs that it reads, as a share of what
it was on them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Grid
from lilliput.graph.functions import function, rows_of, values_at
from lilliput.graph.integer import IntegerNet, Value, grids_of
from lilliput.graph.operators import POINTWISE
from lilliput.graph.trace import Graph, Node, graph_of

SHOWN, MOST_PLACES = 4, 16
"""So many functions of a place are drawn, those that changed most, at so many places; all are counted."""
LEAST_POINTS, MOST_POINTS = 33, 65
BINS = 24
TABLE = 65
"""Entries of a table that are drawn, at most; of longer ones every second, third, ..."""
DIGITS = 5


def learned_functions(first: Artifact, last: Artifact, graph: Graph, x: Tensor) -> list[dict[str, Any]]:
    """Of the last network, whose graph is given, beside the first; `x` are inputs of both."""
    nodes = [node for node in graph.nodes if node.op == "learned_function"]
    if not nodes:
        return []
    before = _before(graph_of(first), graph)
    old, new = first.module.state_dict(), last.module.state_dict()
    grids = grids_of(graph, last.activations)
    read = _inputs_of(nodes, last, x)
    found = [_place(node, before.get(node.name), (old, new), grids, read[node.name]) for node in nodes]
    drawn = sorted(found, key=lambda place: -max(place["changed"] or [0.0]))[:MOST_PLACES]
    for place in found:
        if not any(place is other for other in drawn):
            place["shown"] = []
    return found


def _before(first: Graph, last: Graph) -> dict[str, Node]:
    """For each node of one value the first network's: by order, as passes take none away; else by name."""
    ours, theirs = ([n for n in graph.nodes if n.op in POINTWISE] for graph in (last, first))
    if len(ours) == len(theirs):
        return {new.name: old for new, old in zip(ours, theirs, strict=True)}
    return {node.name: node for node in theirs}


def _inputs_of(nodes: list[Node], network: Artifact, x: Tensor) -> dict[str, Tensor]:
    """[functions, values] of each node: what it reads in the network as it runs, in integers where it has grids."""
    wanted = {node.inputs[0] for node in nodes}
    values: dict[str, Tensor] = {}

    def keep(node: Node, value: Value) -> None:
        if node.name in wanted:
            values[node.name] = (value if isinstance(value, Tensor) else value.decode()).float().cpu()

    IntegerNet(network).values((x.to(network.device),), keep)
    state = network.module.state_dict()
    return {n.name: values[n.inputs[0]].movedim(n.attributes["dim"], 0).reshape(_rows(n, state), -1) for n in nodes}


def _rows(node: Node, state: dict[str, Tensor]) -> int:
    """How many functions are counted: those that channels share by an index, once for each channel."""
    return state[node.state["owner"]].numel() if "owner" in node.state else rows_of(node, state)


def _values(node: Node, state: dict[str, Tensor], x: Tensor) -> Tensor:
    found = values_at(node, state, x)
    return found[state[node.state["owner"]].cpu().long()] if "owner" in node.state else found


def _place(
    node: Node,
    before: Node | None,
    states: tuple[dict[str, Tensor], dict[str, Tensor]],
    grids: dict[str, Grid],
    x: Tensor,
) -> dict[str, Any]:
    """`changed` is None where there is nothing to compare with: channels went, so functions have no partner."""
    old, new = states
    limit, points = float(new[node.state["limit"]].max()), int(node.attributes["points"])
    rows = len(x)
    if before is not None and _rows(before, old) not in (1, rows):
        before = None
    count = points if LEAST_POINTS <= points <= MOST_POINTS else MOST_POINTS
    grid = torch.linspace(-limit, limit, count)
    after = _values(node, new, grid)
    was = None if before is None else _values(before, old, grid).expand_as(after)
    counts = torch.stack([torch.histc(row, BINS, -limit, limit) for row in x])
    changed = None if before is None else _changed(node, before, states, limit, counts)
    order = range(rows) if changed is None else torch.argsort(changed, descending=True, stable=True).tolist()
    table = _table(node, new, grids, limit)
    return {
        "name": node.layer,
        "kind": node.attributes["kind"],
        "was": None if before is None else before.op,
        "points": points,
        "functions": rows,
        "limit": _short(limit),
        "beyond": float((x.abs() > limit).double().mean()) if x.numel() else 0.0,
        "changed": None if changed is None else [_short(v) for v in changed.tolist()],
        "shown": [
            {
                "function": row,
                "before": None if was is None else _numbers(was[row]),
                "after": _numbers(after[row]),
                "inputs": counts[row].long().tolist(),
                "table": None if table is None else table(row),
            }
            for row in order[:SHOWN]
        ],
    }


def _changed(
    node: Node, before: Node, states: tuple[dict[str, Tensor], dict[str, Tensor]], limit: float, counts: Tensor
) -> Tensor:
    """[functions]: on the middles of the bins, each as often as it was read; everywhere alike where nothing was."""
    step = 2 * limit / BINS
    middles = torch.linspace(-limit + step / 2, limit - step / 2, BINS)
    was, now = (_values(n, state, middles).double() for n, state in zip((before, node), states, strict=True))
    weight = torch.where(counts.sum(1, keepdim=True) > 0, counts, torch.ones_like(counts)).double()
    moved, size = ((weight * v.square()).sum(1) for v in (now - was, was.expand_as(now)))
    return (moved / torch.where(size > 0, size, weight.sum(1) * limit**2)).sqrt()


def _table(
    node: Node, state: dict[str, Tensor], grids: dict[str, Grid], limit: float
) -> Callable[[int], dict[str, Any]] | None:
    """For a function: inputs inside the limit, what its integers are worth there, and whether lines are between."""
    source, grid = grids.get(node.inputs[0]), grids.get(node.name)
    if source is None or grid is None:
        return None
    made = function(node, source, grid, state)
    table = made.table.reshape(-1, made.table.shape[-1])
    if "owner" in node.state:
        table = table[state[node.state["owner"]].cpu().long()]
    codes = made.low + (torch.arange(table.shape[-1]) << (made.shift or 0))
    inputs = source.to(torch.device("cpu")).dequantize(codes)
    inside = torch.nonzero(inputs.abs() <= limit * (1 + 1e-6)).reshape(-1)
    inside = inside[:: max(1, -(-len(inside) // TABLE))]
    outputs = grid.to(torch.device("cpu")).dequantize(table[:, inside])
    places, lines = _numbers(inputs[inside]), made.shift is not None
    return lambda row: {"inputs": places, "outputs": _numbers(outputs[row]), "lines": lines}


def _numbers(values: Tensor) -> list[float]:
    return [_short(v) for v in values.tolist()]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
