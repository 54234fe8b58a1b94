"""What a network answers when some channels of one layer change: computed from there on, on what is known already.

Values of all nodes are kept for a set of samples. A change of a few channels stays within these channels through
activations, pools, BatchNorm, sums with values that stay, depthwise convolutions and flattening; the next layer that
mixes channels adds weight x change to what it gave before; only what comes after that is computed anew. Several
candidates are evaluated at once, as so many copies of the samples.

Incremental sums round differently from a plain forward: by about 1e-6 of the values. Whoever must know which side of a
border a sample is on compares with `run`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lilliput.core.errors import UsageError
from lilliput.graph.functions import rows_of
from lilliput.graph.operators import POINTWISE
from lilliput.graph.semantics import RULES
from lilliput.graph.trace import Graph, Node, evaluate

SCALARS = ("add_scalar", "sub_scalar", "mul_scalar", "div_scalar", "rsub_scalar", "pow_scalar")
ALONE = (*POINTWISE, *SCALARS, "identity")
SPATIAL = ("max_pool", "avg_pool", "upsample_nearest")
JOINING = ("add", "sub", "mul")


@dataclass(frozen=True)
class Block:
    """Entries start..stop-1 of dimension `dim` (the batch is dimension 0) may differ; all others are as before."""

    dim: int
    start: int
    stop: int


class Known(Protocol):
    """The value of a node before the change (or a part of it), once for each candidate."""

    def __call__(self, name: str, part: Block | None = None) -> Tensor: ...


class Suffix:
    """The part of `graph` after the layer `layer`, for samples whose values are `values` (of every node)."""

    def __init__(self, graph: Graph, state: Mapping[str, Tensor], layer: str, values: Mapping[str, Tensor]) -> None:
        if len(graph.outputs) != 1:
            raise UsageError(f"the network after {layer!r}", f"{len(graph.outputs)} outputs", "give it one output")
        self.state = dict(state)
        self.node = graph[layer]
        self.values = dict(values)
        self.output = graph.outputs[0]
        reached = {layer}
        self.nodes: list[Node] = []
        for node in graph.nodes:
            if node.name != layer and any(name in reached for name in node.inputs):
                reached.add(node.name)
                self.nodes.append(node)
        if self.output not in reached:
            raise UsageError(f"the network after {layer!r}", "it does not reach the output", "skip this layer")
        self.reached = reached
        needed = {self.output}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        self.nodes = [node for node in self.nodes if node.name in needed]

    @property
    def channel_dim(self) -> int:
        return 1 if self.node.op == "conv" else len(self.node.shape) - 1

    def outputs(self, block: Tensor, start: int, samples: Tensor | slice) -> Tensor:
        """[k, samples, ...]: the outputs where channels from `start` on of the layer are `block` [k, samples, ...].

        `samples` chooses among those whose values are known.
        """
        return self._run(block, start, samples)[self.output].unflatten(0, block.shape[:2])

    def commit_(self, block: Tensor, start: int) -> Tensor:
        """The channels from `start` on are `block` [samples, ...] from now on; gives the outputs."""
        outputs, change_ = self.prepared(block, start)
        change_()
        return outputs

    def prepared(self, block: Tensor, start: int) -> tuple[Tensor, Callable[[], None]]:
        """The outputs with these channels for all samples, and what makes them so from now on."""
        found = self._run(block.unsqueeze(0), start, slice(None), places := {})

        def change_() -> None:
            for name, value in found.items():
                part = places.get(name)
                if part is None:
                    self.values[name] = value
                else:
                    self.values[name].narrow(part.dim, part.start, part.stop - part.start).copy_(value)

        return found[self.output], change_

    def constant(self, channel: int) -> tuple[Node, Block, float] | None:
        """(the next layer that mixes channels, where the channel is in its input, its value), if that is a constant.

        None where the channel differs between samples or places, or goes several ways.
        """
        blocks = {self.node.name: Block(self.channel_dim, channel, channel + 1)}
        found = {self.node.name: self.values[self.node.name]}
        reader: Node | None = None
        for node in self.nodes:
            sources = [name for name in node.inputs if name in blocks]
            if not sources:
                continue
            place = self._place(node, blocks, found)
            if place is not None and not (node.op in JOINING or node.op == "conv"):
                blocks[node.name], found[node.name] = place, self.values[node.name]
                continue
            if reader is not None or node.op not in ("conv", "linear") or node.attributes.get("transposed"):
                return None
            if node.op == "conv" and node.attributes["groups"] != 1:
                return None
            reader = node
        if reader is None or self.output in blocks:
            return None
        block = blocks[reader.inputs[0]]
        part = self.values[reader.inputs[0]].narrow(block.dim, block.start, block.stop - block.start)
        value = float(part.flatten()[0])
        return (reader, block, value) if bool((part == value).all()) else None

    def _run(
        self, block: Tensor, start: int, samples: Tensor | slice, places: dict[str, Block] | None = None
    ) -> dict[str, Tensor]:
        copies = block.shape[0]
        width = block.shape[self.channel_dim + 1]
        blocks: dict[str, Block] = places if places is not None else {}
        blocks[self.node.name] = Block(self.channel_dim, start, start + width)
        found: dict[str, Tensor] = {self.node.name: block.flatten(0, 1)}

        def known(name: str, part: Block | None = None) -> Tensor:
            value = self.values[name]
            if part is not None:
                value = value.narrow(part.dim, part.start, part.stop - part.start)
            value = value[samples]
            return value if copies == 1 else value.repeat(copies, *[1] * (value.dim() - 1))

        def whole(name: str) -> Tensor:
            if name not in found:
                return known(name)
            part = blocks.get(name)
            if part is None:
                return found[name]
            value = known(name).clone() if copies == 1 else known(name)
            value.narrow(part.dim, part.start, part.stop - part.start).copy_(found[name])
            return value

        for node in self.nodes:
            place = self._place(node, blocks, found)
            if place is not None:
                found[node.name], blocks[node.name] = self._confined(node, place, found, known), place
                continue
            moved = self._mixed(node, found, blocks, known)
            if moved is None:
                operands = {name: whole(name) for name in dict.fromkeys(node.inputs)}
                moved = evaluate(node, operands, self.state)
            found[node.name] = moved
        if self.output in blocks:
            found[self.output] = whole(self.output)
            if places is not None:
                del places[self.output]
        return found

    def _place(self, node: Node, blocks: Mapping[str, Block], found: Mapping[str, Tensor]) -> Block | None:
        """Where the change stays in the output of a node, if it stays in some channels and the node is known."""
        changed = [name for name in node.inputs if name in found]
        parts = [blocks.get(name) for name in changed]
        part = parts[0]
        if part is None or any(other != part for other in parts):
            return None
        rank = len(self._shape(changed[0]))
        if node.op in ALONE and rows_of(node, self.state) > 1:
            return None
        if node.op in ALONE:
            return part
        if node.op == "batch_norm":
            return part if part.dim == 1 else None
        if node.op in SPATIAL:
            return part if part.dim == 1 else None
        if node.op == "mean":
            if part.dim in node.attributes["dims"]:
                return None
            before = 0 if node.attributes["keepdim"] else sum(d < part.dim for d in node.attributes["dims"])
            return Block(part.dim - before, part.start, part.stop)
        if node.op in JOINING:
            same = all(self._shape(name) == self._shape(changed[0]) for name in node.inputs)
            return part if same and len(node.inputs) == 2 else None
        if node.op == "reshape" and part.dim == 1 and rank > 2 and len(node.attributes["shape"]) == 1:
            area = int(torch.Size(self._shape(changed[0])[2:]).numel())
            return Block(1, part.start * area, part.stop * area)
        if node.op == "conv" and not node.attributes["transposed"] and part.dim == 1:
            weight = self.state[node.state["weight"]]
            channels = self._shape(changed[0])[1]
            if node.attributes["groups"] == channels:
                each = weight.shape[0] // channels
                return Block(1, part.start * each, part.stop * each)
        return None

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def _confined(self, node: Node, place: Block, found: Mapping[str, Tensor], known: Known) -> Tensor:
        operands = [found[name] if name in found else known(name, place) for name in node.inputs]
        if node.op == "reshape":
            return operands[0].flatten(1)
        state = {role: self.state[name] for role, name in node.state.items()}
        attributes = node.attributes
        if node.op in ("batch_norm", "conv"):
            state = {role: t[place.start : place.stop] for role, t in state.items()}
            attributes = {**attributes, "groups": operands[0].shape[1]}
        return RULES[node.op](operands, state, attributes)

    def _mixed(
        self, node: Node, found: Mapping[str, Tensor], blocks: Mapping[str, Block], known: Known
    ) -> Tensor | None:
        """A layer that mixes channels, of a change in some of them: what it gave plus weight x change."""
        if node.op not in ("conv", "linear") or node.attributes.get("transposed"):
            return None
        (name,) = node.inputs
        part = blocks.get(name)
        if part is None:
            return None
        linear = node.op == "linear"
        if part.dim != (len(self._shape(name)) - 1 if linear else 1) or (not linear and node.attributes["groups"] > 1):
            return None
        change = found[name] - known(name, part)
        weight = {"weight": self.state[node.state["weight"]][:, part.start : part.stop]}
        return known(node.name) + RULES[node.op]([change], weight, node.attributes)
