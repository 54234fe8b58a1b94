"""Learned functions in place of activations, in a network of any code.

A table of points with lines between them is a spline of degree 1 (Bohra et al., 2020, https://arxiv.org/abs/2001.01987);
PSA is a mixture of lines (PSA-Compress, ACM TRETS, https://doi.org/10.1145/3705926). Both start as the function that
was there: drawn anew, they would undo what the network has learned.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.learned_activation import INITS, KINDS, SHARES, LearnedActivation
from lilliput.core.method import Context, Pass, PassResult, check_choice, check_names, check_range, layers
from lilliput.graph.layers import channel_dim
from lilliput.graph.semantics import RULES
from lilliput.graph.trace import Graph, Node, StoredNetwork, graph_of
from lilliput.methods.learned_functions.limits import LIMITS, limits_of
from lilliput.methods.learned_functions.places import WORDS, replaced
from lilliput.ops.function_fitting import fitted
from lilliput.ops.learned_function import POINTS


@dataclass(frozen=True, kw_only=True)
class ReplaceActivations(Pass):
    """Every ReLU, GELU, SiLU and Hardswish becomes a learned function, which computes the same until it is trained.

    Main arguments: `kind` ("table", "bspline", "cubic", "lerp_psa", "psa"), `points`, `share` ("layer", "group" or
    "channel": how many functions there are; with "group" so many `groups`). A grid reaches `deviations` root mean
    squares of the layer's inputs to both sides of 0, as calibration samples have them ("observed") or the BatchNorm
    before it says ("batch_norm"); or `limit` is a number. `init` "paper" starts from what is published instead: to
    train from scratch.

    Patterns name activations: the path of a module ("features.1"), or a call in the network's own code
    ("layer1.0/relu", "relu_1"), as the pass reports them.
    """

    name: ClassVar[str] = "replace_activations"
    summary: ClassVar[str] = "put functions that learn where ReLU, GELU, SiLU and Hardswish are"
    citations: ClassVar[tuple[str, ...]] = ("https://doi.org/10.1145/3705926", "https://arxiv.org/abs/2001.01987")
    names_layers: ClassVar[bool] = False

    kind: str = "lerp_psa"
    points: int = POINTS
    share: str = "channel"
    groups: int = 1
    limit: float | str = "observed"
    deviations: float = 4.0
    init: str = "keep"

    def __post_init__(self) -> None:
        check_choice("replace_activations kind", self.kind, tuple(KINDS))
        check_choice("replace_activations share", self.share, SHARES[:3])
        check_choice("replace_activations init", self.init, INITS[:2])
        check_range("replace_activations points", self.points, 3, 1 << 10)
        check_range("replace_activations groups", self.groups, 1, 1 << 16)
        check_range("replace_activations deviations", self.deviations, 0.5, 100.0)
        if isinstance(self.limit, str):
            check_choice("replace_activations limit", self.limit, LIMITS)
        else:
            check_range("replace_activations limit", self.limit, 1e-6, 1e6)
        super().__post_init__()

    def requires(self, net: Artifact) -> list[str]:
        if isinstance(net.module, StoredNetwork):
            return ["the network was loaded without its code; load the file into the model's class"]
        if net.activations:
            return ["activations are already on integer grids; put replace_activations before quantization"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        graph = graph_of(net)
        found = {node.name: node for node in graph.nodes if node.op in WORDS}
        check_names(self, [*found, *layers(net)], "activation")
        skipped = dict.fromkeys(layers(net), "no activation of this kind")
        skipped |= {name: why for name, node in found.items() if (why := self._why_not(graph, node))}
        chosen = [node for name, node in found.items() if name not in skipped]
        if not chosen:
            return PassResult(skipped=skipped)
        methods = {node.name: self.for_layer(node.name) for node in chosen}
        limits = limits_of(net, graph, {n.name: (m.limit, m.deviations) for n, m in _pairs(chosen, methods)}, context)
        structures = {node.name: methods[node.name]._module(graph, node).structure() for node in chosen}
        candidate, modules = replaced(net, graph, structures)
        weights: dict[object, Tensor] = {}
        with torch.no_grad():
            for node, method in _pairs(chosen, methods):
                module = modules[node.name]
                module.limit.fill_(limits[node.name])
                module.weight.copy_(method._weight(node, module, limits[node.name], weights, context.generator))
        net.restore_(candidate)
        return PassResult(changed={n.name: _told(modules[n.name], limits[n.name]) for n in chosen}, skipped=skipped)

    def _why_not(self, graph: Graph, node: Node) -> str:
        mine = self.for_layer(node.name)
        if not self.selects(node.name):
            return "not selected by include and skip"
        if len(node.shape) < 2:
            return "its values have no channels"
        channels = node.shape[channel_dim(graph, node)]
        if mine.share == "group" and channels % mine.groups:
            return f"{channels} channels do not make {mine.groups} equal groups"
        if mine.limit == "batch_norm" and graph[node.inputs[0]].op != "batch_norm":
            return "no BatchNorm is before it; use limit: observed"
        return ""

    def _module(self, graph: Graph, node: Node) -> LearnedActivation:
        """As the settings want it for this node, of zeros."""
        dim = channel_dim(graph, node)
        return LearnedActivation(
            node.shape[dim],
            kind=self.kind,
            points=self.points,
            share=self.share,
            groups=self.groups,
            dim=dim,
            init="zeros",
        )

    def _weight(
        self,
        node: Node,
        module: LearnedActivation,
        limit: float,
        known: dict[object, Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        if self.init == "paper":
            made = LearnedActivation(**{**module.structure(), "init": "paper", "limit": limit}, generator=generator)
            return made.weight.detach()
        key = (node.op, *node.attributes.items(), module.form, module.points, limit)
        if key not in known:
            known[key] = fitted(_function(node), module.form, limit, module.points, module.terms)
        return known[key]


def _pairs(nodes: list[Node], methods: Mapping[str, ReplaceActivations]) -> list[tuple[Node, ReplaceActivations]]:
    return [(node, methods[node.name]) for node in nodes]


def _function(node: Node) -> Callable[[Tensor], Tensor]:
    return lambda x: RULES[node.op]([x], {}, node.attributes)


def _told(module: LearnedActivation, limit: float) -> str:
    count = len(module.weight)
    return f"{count} {module.kind} function{'s' if count > 1 else ''} of {module.points} points over +-{limit:.3g}"
