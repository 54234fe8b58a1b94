"""Cross-layer equalization: neighbouring layers share their ranges, channel by channel, and compute the same function.

Nagel et al. (2019), "Data-free quantization through weight equalization and bias correction",
https://arxiv.org/abs/1906.04721, section 4.1. For a positively homogeneous function f, f(s x) = s f(x) with s > 0: what
the outputs of one layer are divided by, the inputs of the next are multiplied with. With s = sqrt(r1 / r2) both layers'
ranges of a channel become sqrt(r1 r2), so no channel is lost on a grid that all channels share.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import WEIGHTED, Context, Pass, PassResult, check_range, layers
from lilliput.graph.trace import Graph, Node, graph_of

POINTWISE = ("relu", "leaky_relu", "identity")
POOLING = ("max_pool", "avg_pool", "upsample_nearest")
"""Operations that keep channels apart and give s f(x) for s x, s > 0; the second kind where channels come first."""
CONVERGED = 1e-4
LIMIT = 1e8
"""Factors stay within 1 / LIMIT and LIMIT."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers in a row. Each channel of `first` is `repeat` neighbouring inputs of `second`."""

    first: Node
    second: Node
    repeat: int


@dataclass(frozen=True, kw_only=True)
class CrossLayerEqualization(Pass):
    """Balance weights between neighbouring layers; at most `sweeps` times through all pairs, until nothing moves.

    For weights with one grid for a whole tensor, or activations whose channels differ much; with weights on a grid for
    each channel it changes little. Fold BatchNorm first; comes before every method that encodes weights.
    """

    name: ClassVar[str] = "cross_layer_equalization"
    summary: ClassVar[str] = "balance the ranges of neighbouring layers (same function, kinder to integers)"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/1906.04721",)

    sweeps: int = 50

    def __post_init__(self) -> None:
        check_range("cross_layer_equalization sweeps", self.sweeps, 1, 10_000)
        super().__post_init__()
        if self.overrides:
            raise RecipeError(
                "cross_layer_equalization overrides", "all pairs are balanced together", "use include and skip"
            )

    def requires(self, net: Artifact) -> list[str]:
        if net.activations:
            return ["activations are on grids already; put cross_layer_equalization before quantization"]
        return []

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        graph = graph_of(net)
        pairs, refused = pairs_of(net, graph)
        skipped = {
            path: refused.get(path, "it is the second of no pair and the first of none")
            if isinstance(module, WEIGHTED)
            else f"{type(module).__name__} has no weight to balance"
            for path, module in layers(net).items()
        }
        chosen: list[Pair] = []
        for pair in pairs:
            paths = (pair.first.module, pair.second.module)
            if all(self.selects(path) for path in paths):
                chosen.append(pair)
            else:
                skipped[paths[0]] = "not selected by include and skip"
        factors = [torch.ones(_channels(pair.first, net), dtype=torch.float64) for pair in chosen]
        for _ in range(self.sweeps if chosen else 0):
            moved = 0.0
            for i, pair in enumerate(chosen):
                factor = balance_(net, pair)
                factors[i] = factors[i] * factor
                moved = max(moved, float(factor.log().abs().max()))
            if moved < CONVERGED:
                break
        changed: dict[str, str] = {}
        for pair, factor in zip(chosen, factors, strict=True):
            if bool((factor == 1).all()):
                skipped[pair.first.module] = "its ranges are balanced already"
                continue
            words = f"{float(factor.min()):.3g}..{float(factor.max()):.3g}"
            changed[pair.first.module] = f"outputs / {words}"
            changed.setdefault(pair.second.module, f"inputs x {words}")
        return PassResult(changed=changed, skipped={p: r for p, r in skipped.items() if p not in changed})


def pairs_of(net: Artifact, graph: Graph) -> tuple[list[Pair], dict[str, str]]:
    """The pairs that can be balanced, in order, and for every other layer why it is not the first of one."""
    readers = graph.consumers()
    pairs: list[Pair] = []
    refused: dict[str, str] = {}
    for node in graph.nodes:
        if node.op not in ("conv", "linear"):
            continue
        reason = _unfit(net, graph, node)
        value, repeat = node, 1
        while not reason:
            if len(readers[value.name]) != 1 or value.name in graph.outputs:
                reason = (
                    "its output is the network's" if value.name in graph.outputs else "several nodes read its output"
                )
                break
            following = readers[value.name][0]
            if following.op in ("conv", "linear"):
                reason = _unfit(net, graph, following) or _mismatch(net, node, following, value, repeat)
                if not reason:
                    pairs.append(Pair(first=node, second=following, repeat=repeat))
                break
            more = _passes(node, value, following)
            if more == 0:
                reason = f"its output goes to {following.op}, which does not keep factors"
                if following.op == "batch_norm":
                    reason = "a BatchNorm reads its output: put fold_batchnorm first"
            value, repeat = following, repeat * max(more, 1)
        if reason:
            refused[node.module] = reason
    return pairs, refused


def balance_(net: Artifact, pair: Pair) -> Tensor:
    """Move a factor for each channel from `first` to `second`; returns what the outputs were divided by, float64."""
    first, second = pair.first, pair.second
    weight, following = net.parameter(first.state["weight"]), net.parameter(second.state["weight"])
    by_output = weight.detach().double().abs().flatten(1).amax(1)
    view = _by_input(following.detach().double(), second)
    by_input = view.abs().amax(1).reshape(-1, pair.repeat).amax(1)
    usable = (by_output > 0) & (by_input > 0)
    factor = torch.where(usable, (by_output / by_input.clamp(min=1e-300)).sqrt(), 1.0).clamp(1 / LIMIT, LIMIT)
    factor = torch.where((factor.log().abs() < CONVERGED / 10), 1.0, factor)
    shape = [-1] + [1] * (weight.dim() - 1)
    net.write_(first.state["weight"], (weight.detach().double() / factor.reshape(shape)).float())
    if "bias" in first.state:
        net.write_(first.state["bias"], (net.parameter(first.state["bias"]).detach().double() / factor).float())
    scaled = view * factor.repeat_interleave(pair.repeat)[:, None]
    net.write_(second.state["weight"], _from_input(scaled, following, second).float())
    return factor.cpu()


def _by_input(weight: Tensor, node: Node) -> Tensor:
    """[inputs, rest] of a weight [outputs, inputs / groups, ...]: input i belongs to group i // (inputs / groups)."""
    groups = int(node.attributes.get("groups", 1))
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split.permute(0, 2, 1, 3).reshape(groups * weight.shape[1], -1)


def _from_input(view: Tensor, weight: Tensor, node: Node) -> Tensor:
    groups = int(node.attributes.get("groups", 1))
    split = view.reshape(groups, weight.shape[1], weight.shape[0] // groups, -1)
    return split.permute(0, 2, 1, 3).reshape(weight.shape)


def _passes(layer: Node, before: Node, node: Node) -> int:
    """Into how many neighbours of dimension 1 (the last, of linear layers) a channel goes; 0 if it does not pass."""
    if node.op in POINTWISE:
        return 1
    rank = len(before.shape)
    if node.op in POOLING:
        return 1 if layer.op == "conv" and rank > 2 else 0
    if node.op == "mean":
        kept = layer.op == "conv" and all(d % rank >= 2 for d in node.attributes["dims"])
        return 1 if kept else 0
    if node.op == "pad":
        space = layer.op == "conv" and rank > 2 and node.shape[:2] == before.shape[:2]
        return 1 if space and not node.attributes["value"] else 0
    if node.op in ("flatten", "reshape"):
        after, channels = node.shape, before.shape[1] if rank > 1 else 0
        merged = rank > 2 and len(after) == 2 and after == (before.shape[0], math.prod(before.shape[1:]))
        if after == before.shape:
            return 1
        return math.prod(before.shape[2:]) if merged and layer.op == "conv" and channels else 0
    return 0


def _unfit(net: Artifact, graph: Graph, node: Node) -> str:
    module = dict(net.module.named_modules()).get(node.module)
    if not isinstance(module, nn.Module) or not isinstance(module, WEIGHTED):
        return "a weight next to it belongs to functional code"
    if node.attributes.get("transposed"):
        return f"{node.layer} is a transposed convolution"
    if any(len(graph.users_of(name)) > 1 for name in node.state.values()):
        return f"{node.layer} is called more than once, or shares its weight"
    if any(net.canonical(name) in net.encodings for name in node.state.values()):
        return f"{node.layer} is stored in an encoding: put cross_layer_equalization first"
    return ""


def _mismatch(net: Artifact, first: Node, second: Node, value: Node, repeat: int) -> str:
    """Why the channels of `first` are not, `repeat` neighbours each, the inputs of `second`."""
    inputs = net.parameter(second.state["weight"]).shape[1] * int(second.attributes.get("groups", 1))
    flat = len(value.shape) == 2 or first.op == second.op == "linear"
    if second.op == "linear" and not flat:
        return f"{second.layer} reads another dimension than its channels"
    if second.op == "conv" and first.op == "linear":
        return f"{second.layer} reads another dimension than its channels"
    if inputs != _channels(first, net) * repeat:
        return f"{second.layer} has {inputs} inputs, not {_channels(first, net)} x {repeat}"
    return ""


def _channels(node: Node, net: Artifact) -> int:
    return net.parameter(node.state["weight"]).shape[0]
