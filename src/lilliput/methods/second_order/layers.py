"""What the second-order methods share: which layers they change, on which samples, and least squares for weights."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult
from lilliput.core.task import Role
from lilliput.graph.trace import Graph, Node, graph_of
from lilliput.training.layer_targets import Inputs, Products
from lilliput.training.lockstep import LAYERS, calls_of
from lilliput.training.moments import FEWEST

WIDEST = 8192
"""Inputs of one output: beyond, their products take too much memory."""
BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Layers:
    """`nodes` are the calls of the layers to change, in order; `names` their weights by path."""

    graph: Graph
    nodes: tuple[Node, ...]
    names: Mapping[str, str]
    skipped: dict[str, str]

    @staticmethod
    def of(method: Pass, net: Artifact) -> "Layers":
        graph = graph_of(net)
        chosen, skipped = method.pick(net)
        nodes: list[Node] = []
        for path, weight in chosen.items():
            calls = [n for n in graph.nodes if n.op in LAYERS and n.module == path]
            reason = _refused(net, graph, calls, weight)
            if reason:
                skipped[path] = reason
            else:
                nodes += calls
        order = {node.name: i for i, node in enumerate(graph.nodes)}
        nodes.sort(key=lambda n: order[n.name])
        return Layers(
            graph=graph, nodes=tuple(nodes), names={n.module: chosen[n.module] for n in nodes}, skipped=skipped
        )

    def free_bias(self, net: Artifact, node: Node) -> str | None:
        """The name of the layer's bias if it is plain, and this layer's alone."""
        name = node.state.get("bias")
        if name is None or net.canonical(name) in net.encodings or len(self.graph.users_of(name)) > 1:
            return None
        return net.canonical(name)


def _refused(net: Artifact, graph: Graph, calls: list[Node], weight: str) -> str:
    if not calls:
        return "it is not run"
    if len(calls) > 1 or len(graph.users_of(calls[0].state["weight"])) > 1:
        return "it is called more than once, or shares its weight"
    if calls[0].attributes.get("transposed"):
        return "it is a transposed convolution"
    if net.encoding(weight).grid is not None:
        return f"its weight is on a grid already ({net.encoding(weight).describe()})"
    if net.encoding(weight).decode()[0].numel() > WIDEST:
        return f"its outputs read more than {WIDEST:,} inputs each"
    return ""


@dataclass(frozen=True, kw_only=True)
class SecondOrder(Pass):
    """A method that changes `Layers`, whose weights have values of their own, by `samples` of train."""

    samples: int = 256

    def requires(self, net: Artifact) -> list[str]:
        if any(e.sharing is not None for e in net.encodings.values()):
            return [f"weights share values already; put {self.name} before weight_clustering and sic"]
        if any(e.bank is not None for e in net.encodings.values()):
            return [f"a circuit makes weights; put {self.name} before weight_generation"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        found = Layers.of(self, net)
        if not found.nodes:
            return PassResult(skipped=found.skipped)
        role = role_of(context)
        seen = min(self.samples, len(context.task.data(role)))
        if seen < FEWEST:
            raise RecipeError(self.name, f"{seen} samples of {role} to fit weights to", f"give at least {FEWEST}")
        return self.change_(net, context, found)

    @abstractmethod
    def change_(self, net: Artifact, context: Context, layers: Layers) -> PassResult:
        """Changes at least some of `layers`, which are not empty."""


def role_of(context: Context) -> Role:
    return "train" if context.task.train is not None else "validation"


def samples_of(net: Artifact, context: Context, count: int, further: int = 0) -> tuple[Inputs, Tensor]:
    """What the network is called with for `count` samples drawn from train, and the numbers of `further` ones.

    Without labels; from validation where there is no train. Of few samples a quarter is left for `further` ones.
    """
    task = context.task
    data = task.data(role_of(context))
    order = torch.randperm(len(data), generator=context.generator)
    first = min(count, len(data) if not further else max(1, 3 * len(data) // 4))
    module, cpu = copy.deepcopy(net.module).cpu(), torch.device("cpu")
    inputs = calls_of(module, task, data.batches(BATCH, order[:first]), cpu)
    return inputs, order[first : first + further]


def damped(inner: Tensor, damping: float) -> Tensor:
    """Products [..., f, f] with a share of their mean square added to each input's own; never singular."""
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    more = damping * diagonal.mean(-1, keepdim=True)
    floor = torch.finfo(torch.float32).tiny
    return inner + torch.diag_embed((more + 1e-9 * diagonal).clamp(min=floor).expand_as(diagonal))


def wanted_cross(products: Products, bias: Tensor | None) -> Tensor:
    """Products of inputs with what the weights should give: without the bias, which is `None` if it is free."""
    if products.centred or bias is None:
        return products.cross
    return products.cross - bias.double()[:, None] * products.of_channels(products.mean)


def refitted(weight: Tensor, products: Products, cross: Tensor, system: Tensor) -> Tensor:
    """float64 [channels, f]: ridge regression from `weight` [channels, f] towards what the layer should give."""
    groups, each = len(system), len(weight) // len(system)
    rows = weight.double().reshape(groups, each, -1)
    miss = cross.reshape(groups, each, -1) - rows @ products.inner
    return (rows + torch.linalg.solve(system, miss.mT).mT).reshape(len(weight), -1)
