"""Learned rounding, block by block: each is rounded, then learned, and the better one on held-out batches stays."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lilliput.graph.blocks import Block, blocks_of
from lilliput.graph.trace import Node, run
from lilliput.methods.second_order.layer_rounding import Rounding, Work
from lilliput.methods.second_order.learned_rounding import Examples, coded_bits, learned
from lilliput.training.layer_targets import Inputs, Wanted, importance, walk
from lilliput.training.lockstep import channel_dim

WIDEST_END = 4096
"""Values of a block's output of which each pair counts: where there are more, the block is not learned."""


class Learning:
    """Of the whole network; `kept` says in how many of `blocks` it helped."""

    def __init__(
        self, rounding: Rounding, inputs: Inputs, price: float, *, steps: int, generator: torch.Generator
    ) -> None:
        graph = rounding.layers.graph
        self.work, self.inputs, self.steps, self.generator = Work(rounding, price), inputs, steps, generator
        self.blocks, self.kept = blocks_of(graph, rounding.layers.nodes), 0
        ends = {b.graph.outputs[-1]: _channels(b) for b in self.blocks[:-1]}
        ends = {name: dim for name, dim in ends.items() if graph[name].shape[dim] <= WIDEST_END}
        nodes = [graph[name] for name in ends]
        self.slopes = importance(graph, inputs, rounding.before, nodes, generator, ends) if nodes else {}

    def run(self, advance: Callable[[int], None]) -> Work:
        """The whole network, rounded and learned."""
        now = then = self.inputs
        for block in self.blocks:
            self._walk(block, now, then, self.work.visit)
            wanted = _after(block, self.work.rounding.before, then)
            if block is self.blocks[-1] or block.graph.outputs[-1] in self.slopes:
                self._learn_(block, now, then, wanted)
            now, then = _after(block, self.work.state, now), wanted
            advance(1)
        return self.work

    def _learn_(self, block: Block, now: Inputs, then: Inputs, wanted: Inputs) -> None:
        work = self.work
        slopes = self.slopes.get(block.graph.outputs[-1])
        outputs = None if slopes is None else slopes.float()
        examples = Examples(inputs=now, wanted=wanted, outputs=outputs, dim=_channels(block))
        if not examples.split()[1]:
            return
        cost, state, found = self._cost(block, examples), dict(work.state), dict(work.found)
        new = learned(
            block,
            [work.rounded[node.name] for node in block.layers],
            examples,
            work.state,
            biases=[n.state["bias"] for n in block.layers if work.free_bias(n) is not None],
            price=work.price,
            steps=self.steps,
            generator=self.generator,
        )
        for node, encoding in zip(block.layers, new, strict=True):
            work.put_(node, encoding)
        self._walk(block, now, then, work.correct)
        if self._cost(block, examples) < cost:
            self.kept += 1
        else:
            work.state, work.found = state, found

    def _cost(self, block: Block, examples: Examples) -> float:
        """Of one sample of the batches that judge, with the bits."""
        work = self.work
        names = [work.rounding.net.canonical(node.state["weight"]) for node in block.layers]
        bits = sum(coded_bits(work.found[name]) for name in names) if work.price else 0.0
        return examples.judged(block, work.state) / len(examples.split()[1]) + work.price * bits

    def _walk(self, block: Block, now: Inputs, then: Inputs, visit: Callable[[Node, Wanted], None]) -> None:
        names = {node.name for node in block.layers}
        walk(block.graph, now, self.work.rounding.before, self.work.state, names, visit, unchanged=then)


def _after(block: Block, state: Mapping[str, Tensor], inputs: Inputs) -> Inputs:
    with torch.no_grad():
        return [_as_tuple(run(block.graph, state, *args)) for args in inputs]


def _channels(block: Block) -> int:
    """The dimension of a block's output that counts channels."""
    layer, end = block.layers[-1], block.graph[block.graph.outputs[-1]]
    return channel_dim(layer) if len(end.shape) == len(layer.shape) else -1


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
