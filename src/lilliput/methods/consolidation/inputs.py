"""What the weights of a layer meet: moments of its inputs, over samples and places; padding counts as zero."""

import torch
from torch import Tensor

from lilliput.graph.trace import Node

MOMENT_SAMPLES = 2048
PLACES = 40_000
"""Patches from which products are summed: more do not change them."""


def neuron_axis(node: Node) -> int:
    """The dimension of a layer's weight whose slices are neurons: what makes one output channel."""
    return 1 if node.attributes.get("transposed") else 0


def second_moments(x: Tensor, node: Node, weight: Tensor) -> Tensor:
    """E[x^2] of what each weight meets, of the weight's shape."""
    if node.op == "linear":
        flat = x.reshape(-1, x.shape[-1])
        return (torch.linalg.vector_norm(flat, dim=0).square() / len(flat)).expand_as(weight)
    a = node.attributes
    squares = x[:: max(1, len(x) // MOMENT_SAMPLES)].square().mean(0, keepdim=True)
    if a["transposed"]:  # at its borders it meets less: not counted
        return squares.flatten(2).mean(2).reshape(-1, *[1] * (weight.dim() - 1)).expand_as(weight)
    mean = _windows(squares, node).flatten(2 + len(a["kernel"])).mean(-1)[0]  # [channels, *kernel]
    each = len(weight) // a["groups"]
    return (
        mean.reshape(a["groups"], 1, -1, *a["kernel"])
        .expand(-1, each, *[-1] * (weight.dim() - 1))
        .reshape(weight.shape)
    )


def patches(x: Tensor, node: Node) -> Tensor:
    """[groups, places, fan-in]: what the neurons of each group of channels are multiplied with; not of transposed."""
    if node.op == "linear":
        return x.reshape(1, -1, x.shape[-1])
    groups, rank = node.attributes["groups"], len(node.attributes["kernel"])
    windows = _windows(x, node)  # [samples, channels, *kernel, *places]
    wide = windows.unflatten(1, (groups, -1))
    order = (1, 0, *range(3 + rank, 3 + 2 * rank), *range(2, 3 + rank))
    return wide.permute(order).flatten(1 + 1 + rank).flatten(1, 1 + rank)


def sparse_places(x: Tensor, node: Node) -> Tensor:
    """As many of the samples as have `PLACES` places, at least 64."""
    shape = node.shape[1:-1] if node.op == "linear" else node.shape[2:]
    places = max(1, int(torch.Size(shape).numel()))
    return x[: max(64, PLACES // places)]


def _windows(x: Tensor, node: Node) -> Tensor:
    """[samples, channels, *kernel, *places]."""
    a = node.attributes
    rank = len(a["kernel"])
    wide = torch.nn.functional.pad(x, [n for p in reversed(a["pads"]) for n in p])
    for d, (k, s, step) in enumerate(zip(a["kernel"], a["stride"], a["dilation"], strict=True)):
        wide = wide.unfold(d + 2, step * (k - 1) + 1, s)[..., ::step]
    return wide.permute(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
