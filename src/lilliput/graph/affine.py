"""Where a scale and shift of each channel can go: through operations that commute with them, to the layer that reads.

Every entry of the value is labelled with its channel, and moves move the labels as they move values. An operation of
several entries must take them from one channel, with weights that add up to one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lilliput.graph.semantics import RULES
from lilliput.graph.trace import Graph, Node

MOVES = ("identity", "reshape", "permute", "slice", "select", "upsample_nearest")
POOLS, REDUCTIONS = ("max_pool", "avg_pool"), ("amax", "mean")
LAYERS = ("conv", "linear")


class StaysError(Exception):
    """Why the scale and shift cannot go on."""


def reader_of(graph: Graph, start: Node, factor: Tensor, shift: Tensor) -> tuple[Node, Tensor]:
    """The layer that alone reads factor * x + shift of channels (dimension 1), the output of `start`.

    Beside it int64 [inputs]: the channel of each input channel of a convolution, or feature of a linear layer.
    Raises `StaysError`.
    """
    readers = graph.consumers()
    labels = _spread(torch.arange(len(factor), dtype=torch.float64), start.shape)  # upsampling has no integers
    node = start
    while True:
        behind = [reader for reader in readers[node.name] if reader.op != "size"]
        if node.name in graph.outputs:
            raise StaysError("it is an output of the network" if node is start else f"{node.name} is an output")
        if len(behind) != 1:
            raise StaysError(f"{node.name} is read by {', '.join(reader.name for reader in behind)}")
        node = behind[0]
        if node.op in LAYERS:
            return node, _read(node, labels, shift).long()
        labels = _moved(node, labels, factor, shift)


def between(graph: Graph, norm: Node, layer: str) -> list[str]:
    """The values from a BatchNorm, its own included, to the layer of this path that reads them: one after the other."""
    readers = graph.consumers()
    names: list[str] = []
    node: Node | None = norm
    while node is not None and node.module != layer:
        names.append(node.name)
        node = next((reader for reader in readers[node.name] if reader.op != "size"), None)
    return names


def _moved(node: Node, labels: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """The labels of what `node` makes of a value with labels."""
    if node.op not in (*MOVES, *POOLS, *REDUCTIONS):
        word = node.target if node.op == "other" else node.op
        raise StaysError(f"{node.name} ({word}) does not commute with a scale and shift")
    if node.op in ("max_pool", "amax") and bool((factor < 0).any()):
        channel = int((factor < 0).nonzero()[0])
        raise StaysError(f"{node.name} takes maxima, and the factor of channel {channel} is negative")
    if node.op == "avg_pool" and node.attributes["count_pad"] and _pads(node) and bool(shift.any()):
        raise StaysError(f"{node.name} counts padding")
    if node.op in POOLS:
        return _spread(_images(node, labels), node.shape)
    if node.op in REDUCTIONS:
        dims, keepdim = node.attributes["dims"], node.attributes["keepdim"]
        low, high = (take(labels, dims, keepdim=keepdim) for take in (torch.amin, torch.amax))
        if not torch.equal(low, high):
            raise StaysError(f"{node.name} computes with all channels together")
        return low
    return RULES[node.op]([labels], {}, node.attributes)


def _read(node: Node, labels: Tensor, shift: Tensor) -> Tensor:
    if node.op == "linear":
        return _channels(node, labels, -1)
    if node.attributes["transposed"]:
        raise StaysError(f"{node.layer} is a transposed convolution")
    if _pads(node) and bool(shift.any()):
        raise StaysError(f"{node.layer} pads with zeros")
    return _images(node, labels)


def _images(node: Node, labels: Tensor) -> Tensor:
    if labels.dim() != 2 + len(node.attributes["kernel"]):
        raise StaysError(f"{node.layer} takes the batch for channels")
    return _channels(node, labels, 1)


def _channels(node: Node, labels: Tensor, dim: int) -> Tensor:
    """[n]: the one label of each index of a dimension."""
    rows = labels.movedim(dim, 0).flatten(1)
    if bool((rows != rows[:, :1]).any()):
        raise StaysError(f"{node.layer} takes several channels for one")
    return rows[:, 0]


def _pads(node: Node) -> bool:
    return any(before or after for before, after in node.attributes["pads"])


def _spread(channels: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels of one sample of a value that has these channels in dimension 1."""
    return channels.reshape([-1 if d == 1 else 1 for d in range(len(shape))]).expand(1, *shape[1:])
