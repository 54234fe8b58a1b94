"""Product of sums: inputs that meet one shared weight are added first, and each sum is multiplied once.

A row of k shared values needs k multiplies in place of one for each input; the additions stay. The results are those
of the dense layer but for rounding. It counts and proves; on desktops it is slower than the dense product.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.core.artifact import Artifact
from lilliput.core.errors import UsageError
from lilliput.graph.trace import Graph, Node, graph_of, run

MOST_AT_ONCE = 1 << 24
"""Numbers in gathered inputs and sums; larger batches run in parts."""


def product_of_sums(net: Artifact, graph: Graph | None = None) -> "ProductOfSums":
    """The network in evaluation mode, every layer whose weight shares values as product of sums.

    Groups are read from the encodings as they are now, so pruning and quantization after the sharing are in them; the
    module is a copy, as an artifact's is: make it anew after another pass. Transposed convolutions stay dense. Raises
    `UsageError` where activations have grids: `lower(net, product_of_sums=True)` is the same in integers.
    """
    if net.activations:
        do = "use lower(net, product_of_sums=True), or quantize with activation_bits: 0"
        raise UsageError("product of sums in float", "activations have grids", do)
    module = ProductOfSums(net, graph_of(net) if graph is None else graph)
    module.eval()
    return module


def grouped_nodes(net: Artifact, graph: Graph) -> dict[str, str]:
    """{node: its weight} of the layers that product of sums can run: shared weights, not of transposed convolutions."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in ("conv", "linear") and not node.attributes.get("transposed"):
            name = net.canonical(node.state["weight"])
            if name in net.encodings and net.encodings[name].sharing is not None:
                found[node.name] = name
    return found


class GroupedSum(nn.Module):
    """The rows [outputs, weights of one output] of a layer: which inputs each sum adds, and what it is multiplied by.

    Weights of 0 are in no group. `groups` are those of a convolution: each part of the rows reads its part of the
    inputs. An input takes 1, 2 or 4 bytes, a group 8, a row 4.
    """

    inputs: Tensor
    starts: Tensor
    values: Tensor
    rows: Tensor

    def __init__(self, rows: Tensor, groups: int = 1) -> None:
        super().__init__()
        count, length = rows.shape
        values, order = rows.detach().sort(dim=1, stable=True)
        live = values != 0
        first = live.clone()
        first[:, 1:] &= values[:, 1:] != values[:, :-1]
        part = torch.arange(count, device=rows.device) // max(count // groups, 1)
        members = (order + part[:, None] * length)[live]
        per_row = first.sum(dim=1)
        self.register_buffer("inputs", members.to(_smallest(groups * length)))
        self.register_buffer("starts", torch.nonzero(first[live]).flatten().int())
        self.register_buffer("values", values[first])
        self.register_buffer("rows", (per_row.cumsum(0) - per_row).int())

    @property
    def multiplies(self) -> int:
        """For one column of inputs."""
        return len(self.values)

    def forward(self, columns: Tensor) -> Tensor:
        """[outputs, n] of `columns` [inputs, n]."""
        if not self.multiplies:
            return columns.new_zeros((len(self.rows), columns.shape[1]))
        sums = F.embedding_bag(self.inputs.int(), columns, self.starts, mode="sum")
        every = torch.arange(self.multiplies, dtype=torch.int32, device=columns.device)
        return F.embedding_bag(every, sums, self.rows, mode="sum", per_sample_weights=self.values.to(columns.dtype))


class ProductOfSums(nn.Module):
    """Runs a graph with `layers`, {node: grouped sums}; dense weights that only these read are not kept."""

    def __init__(self, net: Artifact, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        grouped = grouped_nodes(net, graph)
        nodes = [node for node in graph.nodes if node.name in grouped]
        self.layers: dict[str, GroupedSum] = {}
        for node in nodes:
            rows = net.encoding(grouped[node.name]).decode().flatten(1)
            self.layers[node.name] = GroupedSum(rows, node.attributes.get("groups", 1))
            self.add_module("sum/" + node.name.replace(".", "/"), self.layers[node.name])
        biases = {node.state["bias"] for node in nodes if "bias" in node.state}
        dense = biases.union(*(node.state.values() for node in graph.nodes if node.name not in grouped))
        self._dense = {n: "dense/" + n.replace(".", "/") for n in net.module.state_dict() if n in dense}
        for name, buffer in self._dense.items():
            self.register_buffer(buffer, net.module.state_dict()[name].clone())

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        buffers = dict(self.named_buffers(recurse=False))
        state = {name: buffers[buffer] for name, buffer in self._dense.items()}
        instead = {name: partial(self._run, self._graph[name], state) for name in self.layers}
        return run(self._graph, state, *inputs, instead=instead)

    def _run(self, node: Node, state: Mapping[str, Tensor], values: Mapping[str, Any]) -> Tensor:
        """A layer, in parts of the batch that fit into memory."""
        layer, x = self.layers[node.name], values[node.inputs[0]]
        bias = state.get(node.state.get("bias", ""))
        places = math.prod(node.shape[2:] if node.op == "conv" else node.shape[1:-1])
        most = MOST_AT_ONCE // max(1, places * sum(t.numel() for t in layer.buffers()))
        return torch.cat([_computed(node, layer, bias, part) for part in x.split(max(1, most))])


def _computed(node: Node, layer: GroupedSum, bias: Tensor | None, x: Tensor) -> Tensor:
    if node.op == "linear":
        y: Tensor = layer(x.reshape(-1, x.shape[-1]).T).T
        y = y if bias is None else y + bias
        return y.reshape(*x.shape[:-1], y.shape[-1])
    windows = _windows(x, node.attributes)
    rank = len(node.attributes["kernel"])
    places = windows.shape[2 : 2 + rank]
    columns = windows.permute(1, *range(2 + rank, 2 + 2 * rank), 0, *range(2, 2 + rank))
    y = layer(columns.reshape(-1, len(x) * math.prod(places)))
    y = y if bias is None else y + bias[:, None]
    return y.reshape(-1, len(x), *places).transpose(0, 1)


def _windows(x: Tensor, a: Mapping[str, Any]) -> Tensor:
    """[n, channels, *places, *kernel]."""
    x = F.pad(x, [n for pads in reversed(a["pads"]) for n in pads])
    for d, (kernel, stride, dilation) in enumerate(zip(a["kernel"], a["stride"], a["dilation"], strict=True)):
        x = x.unfold(2 + d, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return x


def _smallest(count: int) -> torch.dtype:
    """For numbers below `count`."""
    return torch.uint8 if count <= 1 << 8 else torch.int16 if count <= 1 << 15 else torch.int32
