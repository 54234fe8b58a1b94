"""A network as a chain of blocks: parts that hand one value on.

A residual block is such a part, and so is a layer with its activation where nothing leads around it. The unit of block
reconstruction: Li et al. (2021), "BRECQ", https://arxiv.org/abs/2102.05426, section 3.2.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lilliput.graph.trace import Graph, Node

NUMBERS = ("size", "scalar")
"""Operations that give numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """`graph` runs the block alone; `layers` are its nodes among those asked for.

    Its inputs are the outputs of the block before, in order: one tensor, and numbers that later blocks need, such as
    the size of the batch.
    """

    graph: Graph
    layers: tuple[Node, ...]


def blocks_of(graph: Graph, layers: Iterable[Node]) -> list[Block]:
    """The blocks in order, each with at least one of `layers`, as small as they can be.

    Nodes before the first layer and behind a layer that are not part of a block with layers belong to the block before.
    """
    wanted = {node.name for node in layers}
    alive = _alive(graph)
    ends = [i for i, names in enumerate(alive) if _ends(graph, i, names)]
    starts = [0]
    for i, node in enumerate(graph.nodes):
        if node.name in wanted and any(n.name in wanted for n in graph.nodes[starts[-1] : i]):
            cut = max((e + 1 for e in ends if e < i), default=0)
            if cut > starts[-1] and any(n.name in wanted for n in graph.nodes[starts[-1] : cut]):
                starts.append(cut)
    stops = [*starts[1:], len(graph.nodes)]
    return [_block(graph, a, b, alive, wanted) for a, b in zip(starts, stops, strict=True)]


def _ends(graph: Graph, i: int, alive: list[str]) -> bool:
    """Is the value of node i all that is handed on, but for numbers?"""
    tensors = [name for name in alive if graph[name].op not in NUMBERS]
    return tensors == [graph.nodes[i].name] and graph.nodes[i].op != "several"


def _alive(graph: Graph) -> list[list[str]]:
    """After each node, the values that later nodes or the outputs read."""
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    last |= dict.fromkeys(graph.outputs, len(graph.nodes))
    now, found = list[str](), list[list[str]]()
    for i, node in enumerate(graph.nodes):
        now = [name for name in [*now, node.name] if last.get(name, -1) > i]
        found.append(now)
    return found


def _block(graph: Graph, start: int, stop: int, alive: list[list[str]], wanted: set[str]) -> Block:
    part, read = graph.nodes[start:stop], alive[start - 1] if start else []
    end = stop == len(graph.nodes)
    own = Graph(
        nodes=(*(replace(graph[name], op="input", inputs=()) for name in read), *part),
        inputs=tuple(read) if start else graph.inputs,
        outputs=graph.outputs if end else tuple(alive[stop - 1]),
        **({"result": graph.result} if end else {}),
    )
    return Block(graph=own, layers=tuple(node for node in part if node.name in wanted))
