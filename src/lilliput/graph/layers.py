"""Facts about layers that several methods need."""

from torch import nn

from lilliput.graph.operators import POINTWISE
from lilliput.graph.trace import Graph, Node


def output_axis(layer: nn.Module) -> int | None:
    """The dimension of the weight that counts output channels: 1 for transposed convolutions, else 0.

    None for grouped transposed convolutions, where each slice serves a channel of every group.
    """
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return None if layer.groups > 1 else 1
    return 0


def channel_dim(graph: Graph, node: Node) -> int:
    """The dimension of a node's value that counts channels: where the layer before it writes its outputs."""
    if node.op in ("linear", "layer_norm"):
        return len(node.shape) - 1
    if node.op == "permute":
        return node.attributes["order"].index(channel_dim(graph, graph[node.inputs[0]]))
    if node.op in (*POINTWISE, *KEEPING) and graph[node.inputs[0]].shape == node.shape:
        return channel_dim(graph, graph[node.inputs[0]])
    return 1


KEEPING = ("add", "sub", "mul", "add_scalar", "sub_scalar", "mul_scalar", "identity", "concat", "softmax")
