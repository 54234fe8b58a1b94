"""Values inside a network that say how it sees a sample: the last convolution's output, what the classifier reads.

Found in the graph, so that a network from a file, whose layers are no modules, is looked into as one of the user's
classes is. Of a network with integer activations these are the float values that its weights give.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lilliput.core.artifact import InputSpec
from lilliput.graph.integer import LAYERS, IntegerNet
from lilliput.graph.trace import Graph, Node, StoredNetwork, operands, run, trace

VIEWS = ("flatten", "reshape", "identity")


class Inside(nn.Module):
    """The network of a graph in evaluation mode; the value `name` goes through the module `place`, for hooks."""

    def __init__(self, graph: Graph, state: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        self.place = nn.Identity()
        self._graph, self._state, self._name = graph, state, name
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return run(self._graph, self._state, *inputs, visit=self._visit)

    def _visit(self, node: Node, value: Any) -> Any:
        return self.place(value) if node.name == self._name else value


def structure(model: nn.Module, spec: InputSpec) -> tuple[Graph, Mapping[str, Tensor]]:
    """Graph and tensors of a model, or of what `ll.load` gives. Raises `UnsupportedError` for what has no graph."""
    if isinstance(model, IntegerNet):
        return model.graph, model.module.state_dict()
    if isinstance(model, StoredNetwork):
        return model.graph, model.state_dict(keep_vars=True)
    return trace(model, spec.example(2)), model.state_dict(keep_vars=True)


def last_convolution(graph: Graph) -> str | None:
    """The last one whose output has more than one place; None if there is none."""
    found = [node.name for node in graph.nodes if node.op == "conv" and math.prod(node.shape[2:]) > 1]
    return found[-1] if found else None


def embedding(graph: Graph) -> tuple[str, int] | None:
    """The value that the last layer reads, and its axis of channels; None where the network has no layer.

    A flattened value is named as it was before, but not the network's own input: its mean over places says little.
    """
    layers = [node for node in graph.nodes if node.op in LAYERS]
    if not layers:
        return None
    read = name = operands(layers[-1])[0].name
    if layers[-1].op == "linear" and len(graph[read].shape) > 2:
        return read, -1
    while len(graph[name].shape) == 2 and graph[name].op in VIEWS:
        name = operands(graph[name])[0].name
    return (read if graph[name].op == "input" else name), 1


def pooled(value: Tensor, axis: int) -> Tensor:
    """[n, channels]: the mean over all places of [n, ...] with this axis of channels."""
    value = value.reshape(len(value), -1) if value.dim() < 2 else value.movedim(axis, 1)
    return value.flatten(2).mean(2) if value.dim() > 2 else value
