"""What a layer reads after the layers before it were changed, and what it should give: as products, layer by layer.

A layer should give what it gave in the network before. Where its output is added to something, the sum should stay: so
it also makes up for the errors of what it is added to, a shortcut that carries those of the blocks before.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lilliput.graph.trace import Graph, Node, evaluate
from lilliput.training.lockstep import LAYERS, Run, channel_dim
from lilliput.training.moments import patches_of

Inputs = Sequence[tuple[Tensor, ...]]
AT_ONCE = 2**23
"""Numbers in one block of patches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Products:
    """float64: means over places of what each group reads, x, and of that with what its channels should give, y.

    `centred`: of x and y less their means, as a bias will make up for these.
    """

    inner: Tensor  # [groups, f, f]
    cross: Tensor  # [channels, f]
    mean: Tensor  # [groups, f]
    wanted: Tensor  # [channels]
    centred: bool

    def of_channels(self, values: Tensor) -> Tensor:
        """Something of each group, for each of its channels."""
        return values.repeat_interleave(len(self.wanted) // len(self.inner), 0)


class Wanted(Protocol):
    """Computes a layer's products, of at most about `most` places."""

    def __call__(self, *, centred: bool, most: int) -> Products: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Sum:
    """`node` is the sum that a layer's output becomes a part of, `other` the other part."""

    node: str
    other: str


def sum_after(graph: Graph, node: Node) -> Sum | None:
    """The addition that alone reads the layer, of a value that does not depend on it; None if there is none."""
    readers = graph.consumers()[node.name]
    if len(readers) != 1 or readers[0].op != "add" or node.name in graph.outputs:
        return None
    add = readers[0]
    others = [name for name in add.inputs if name != node.name]
    if len(others) != 1 or graph[others[0]].shape != node.shape or add.shape != node.shape:
        return None
    return None if node.name in ancestors(graph, others[0]) else Sum(node=add.name, other=others[0])


def ancestors(graph: Graph, name: str) -> set[str]:
    """The node and all that it is computed from."""
    found = {name}
    for node in reversed(graph.nodes):
        if node.name in found:
            found.update(node.inputs)
    return found


def walk(
    graph: Graph,
    inputs: Inputs,
    before: Mapping[str, Tensor],
    now: Mapping[str, Tensor],
    layers: set[str],
    visit: Callable[[Node, Wanted], None],
    *,
    unchanged: Inputs | None = None,
) -> None:
    """`visit(node, products)` for each node of `layers` in order; it may change `now`, with which the walk goes on.

    `products(centred=, most=)` computes them when they are wanted. `unchanged`: what the network before is called
    with, where that is not `inputs`.
    """
    sums = {node.name: sum_after(graph, node) for node in graph.nodes if node.op in LAYERS and node.name in layers}
    targets = {name: found.node if found else name for name, found in sums.items()}

    reference = _run(graph, inputs if unchanged is None else unchanged, before, list(targets.values()))
    run = _run(graph, inputs, now)
    for node in graph.nodes:
        if node.name in sums:
            wanted: list[Tensor] = reference.take(targets[node.name])
            found = sums[node.name]

            def products(
                *, centred: bool, most: int, node: Node = node, wanted: list[Tensor] = wanted, found: Sum | None = found
            ) -> Products:
                parts = wanted
                if found is not None:
                    parts = [
                        w - _value(graph, found.other, values, now)
                        for w, values in zip(wanted, run.values, strict=True)
                    ]
                return products_of(node, [v[node.inputs[0]] for v in run.values], parts, centred=centred, most=most)

            with torch.no_grad():
                visit(node, products)
        with torch.no_grad():
            run.step()


def walk_inputs(
    graph: Graph,
    inputs: Inputs,
    state: Mapping[str, Tensor],
    layers: set[str],
    visit: Callable[[Node, Sequence[Tensor]], None],
) -> None:
    """`visit(node, what it reads)` for each node of `layers` in order; nothing changes."""
    with torch.no_grad():
        run = _run(graph, inputs, state)
        for node in graph.nodes:
            if node.name in layers:
                visit(node, [values[node.inputs[0]] for values in run.values])
            run.step()


def _run(graph: Graph, inputs: Inputs, state: Mapping[str, Tensor], held: Sequence[str] = ()) -> Run:
    return Run(graph, list(inputs), lambda node, values, x: evaluate(node, values, state) if x is None else x, held)


def _value(graph: Graph, name: str, values: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensor:
    """A value that may not have been computed yet."""
    if name in values:
        return values[name]
    wanted, here = ancestors(graph, name), dict(values)
    later: list[Node] = []
    needed = {name}
    for node in reversed(graph.nodes):
        if node.name in needed and node.name not in values:
            later.append(node)
            needed.update(node.inputs)
    for node in reversed(later):
        if node.name in wanted:
            here[node.name] = evaluate(node, here, state)
    return here[name]


def products_of(
    node: Node, inputs: Sequence[Tensor], wanted: Sequence[Tensor] | None, *, centred: bool, most: int
) -> Products:
    """Of at most about `most` places, every so many of them; no channels are compared where `wanted` is None."""
    groups = int(node.attributes.get("groups", 1))
    rows = [_nothing(node, x) for x in inputs] if wanted is None else [_rows(node, y) for y in wanted]
    channels = rows[0].shape[1]
    places = sum(len(outputs) for outputs in rows)
    stride = max(1, places // most)
    while stride > 1 and any(size % stride == 0 for size in node.shape[2:]):
        stride += 1  # not the same columns of each image
    inner = cross = mean = total = torch.zeros(())
    count, skip = 0, 0
    origin = patches_of(node, inputs[0][:1]).mean(1, keepdim=True) if centred else torch.zeros(())  # keeps sums small
    goal = rows[0].mean(0) if centred else torch.zeros(())
    for x, outputs in zip(inputs, rows, strict=True):
        each = max(1, len(outputs) // len(x))
        samples = max(1, AT_ONCE // max(1, x[0].numel() * 9))
        for part, given in zip(x.split(samples), outputs.split(samples * each), strict=True):
            if stride > 1:
                places = torch.arange(skip, len(given), stride)
                skip = (skip - len(given)) % stride
                found, target = _patches_at(node, part, places) - origin, given[places] - goal
            else:
                found, target = patches_of(node, part) - origin, given - goal
            inner = inner + torch.bmm(found.mT, found).double()
            split = target.reshape(len(target), groups, channels // groups).permute(1, 2, 0)
            cross = cross + torch.bmm(split, found).double().flatten(0, 1)
            mean = mean + found.sum(1).double()
            total = total + target.sum(0).double()
            count += len(target)
    n = max(1, count)
    inner, cross, mean, total = inner / n, cross / n, mean / n, total / n
    if centred:
        inner = inner - mean[:, :, None] * mean[:, None, :]
        cross = cross - total[:, None] * mean.repeat_interleave(channels // groups, 0)
        mean, total = mean + origin[:, 0].double(), total + goal.double()
    return Products(inner=inner, cross=cross, mean=mean, wanted=total, centred=centred)


def _rows(node: Node, outputs: Tensor) -> Tensor:
    """[places, channels]."""
    return outputs.movedim(channel_dim(node), -1).flatten(0, -2)


def _nothing(node: Node, x: Tensor) -> Tensor:
    """[places, 0] for the outputs of a layer that reads x."""
    each = math.prod(node.shape[2:]) * len(x) if node.op == "conv" else x[..., 0].numel()
    return x.new_zeros((each, 0))


def _patches_at(node: Node, x: Tensor, places: Tensor) -> Tensor:
    """`patches_of` these outputs alone, counted over samples and places."""
    if node.op == "linear":
        return x.reshape(1, -1, x.shape[-1])[:, places]
    a = node.attributes
    rank, sizes = len(a["kernel"]), node.shape[2:]
    wide = torch.nn.functional.pad(x, [p for pair in reversed(a["pads"]) for p in pair])
    for d, (k, s, step) in enumerate(zip(a["kernel"], a["stride"], a["dilation"], strict=True)):
        wide = wide.unfold(d + 2, step * (k - 1) + 1, s)[..., ::step]
    index: list[Tensor] = []
    for size in reversed(sizes):
        index.insert(0, places % size)
        places = places // size
    first = wide.permute(0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))[(places, *index)]
    return first.reshape(len(places), int(a["groups"]), -1).transpose(0, 1)


def importance(
    graph: Graph,
    inputs: Inputs,
    state: Mapping[str, Tensor],
    layers: Sequence[Node],
    generator: torch.Generator,
    dims: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """[c, c] for each layer: mean products of the slopes of a random sum of the network's outputs, over places.

    Of nodes that are not layers, `dims` names the dimension of the channels.

    For small independent errors of the layer's outputs, the mean squared error of the network's outputs is that of the
    layer's, weighed by it and added up. Labels do not come in.
    """
    along = {node.name: channel_dim(node) if dims is None else dims[node.name] for node in layers}
    found = {node.name: torch.zeros([node.shape[along[node.name]]] * 2, dtype=torch.float64) for node in layers}
    count = sum(len(args[0]) for args in inputs)
    for args in inputs:
        values: dict[str, Any] = dict(zip(graph.inputs, args, strict=True))
        with torch.enable_grad():
            for node in graph.nodes:
                if node.op == "input":
                    continue
                value = evaluate(node, values, state)
                if node.name in found and not value.requires_grad:
                    value.requires_grad_()
                values[node.name] = value
            total = torch.zeros(())
            for name in graph.outputs:
                outputs = values[name]
                total = total + (outputs * torch.randn(outputs.shape, generator=generator)).sum()
            slopes = torch.autograd.grad(total, [values[name] for name in found], allow_unused=True)
        for node, slope in zip(layers, slopes, strict=True):
            if slope is not None:  # pyright: ignore[reportUnnecessaryComparison]
                rows = slope.movedim(along[node.name], 0).flatten(1)
                found[node.name] += (rows @ rows.T).double() / count
    return found
