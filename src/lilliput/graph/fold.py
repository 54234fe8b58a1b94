"""BatchNorm moved into a layer: the same function with fewer operations.

Into the layer before it: Jacob et al. (2018), "Quantization and training of neural networks", section 3.2. Where
something else is before it, into the layer that reads it (`graph.affine`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.edits import Edit, Fold, Separate
from lilliput.graph.affine import StaysError, between, reader_of
from lilliput.graph.layers import output_axis
from lilliput.graph.trace import Graph, Node

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
TAKERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A layer and the BatchNorm that goes into it, by the paths of their modules.

    `channels` is empty where the layer is before the norm. Where it reads the norm: for each of its input channels or
    features the channel of the norm.
    """

    layer: str
    norm: str
    channels: tuple[int, ...] = ()


def foldable(net: Artifact, graph: Graph) -> tuple[list[Pair], dict[str, str]]:
    """The pairs that can be folded, and for every other BatchNorm why not."""
    pairs: list[Pair] = []
    refused: dict[str, str] = {}
    modules = dict(net.module.named_modules())
    for norm in graph.nodes:
        if norm.op != "batch_norm":
            continue
        module = modules.get(norm.module)
        if not isinstance(module, NORMS) or module.running_mean is None:
            refused[norm.layer] = "it has no running statistics"
            continue
        if _calls(graph, norm) > 1:
            refused[norm.layer] = "it is called more than once"
            continue
        back = _why_not_back(net, graph, norm)
        if not back:
            pairs.append(Pair(layer=graph[norm.inputs[0]].module, norm=norm.module))
            continue
        mean, factor, beta = _constants(module)
        try:
            layer, channels = reader_of(graph, norm, factor, beta - mean * factor)
        except StaysError as ahead:
            refused[norm.layer] = f"{back}; forward: {ahead}"
            continue
        taken = _why_not(net, graph, layer)
        if taken:
            refused[norm.layer] = f"{back}; forward: {taken}"
        else:
            pairs.append(Pair(layer=layer.module, norm=norm.module, channels=tuple(channels.tolist())))
    return pairs, refused


def _why_not_back(net: Artifact, graph: Graph, norm: Node) -> str:
    """Why the BatchNorm cannot go into the layer before it; empty where it can."""
    before = graph[norm.inputs[0]]
    if before.op not in ("conv", "linear"):
        return f"it follows {before.op}, not a convolution or linear layer"
    if len(graph.consumers()[before.name]) > 1 or before.name in graph.outputs:
        return f"the output of {before.layer} is read elsewhere too"
    if before.attributes.get("transposed") and before.attributes.get("groups", 1) > 1:
        return f"{before.layer} is a grouped transposed convolution"
    if before.op == "linear" and len(before.shape) != 2:
        return f"the channels of {before.layer} are not its normalized dimension"
    return _why_not(net, graph, before)


def _why_not(net: Artifact, graph: Graph, layer: Node) -> str:
    """Why other weights would change more than this layer; empty where it can take something in."""
    if not isinstance(dict(net.module.named_modules()).get(layer.module), TAKERS):
        return f"the weight of {layer.name} belongs to functional code"
    if _calls(graph, layer) > 1 or any(len(graph.users_of(name)) > 1 for name in layer.state.values()):
        return f"{layer.layer} is called more than once or shares its weight"
    if any(net.canonical(name) in net.encodings for name in layer.state.values()):
        return f"the weight of {layer.layer} is already encoded"
    return ""


def _calls(graph: Graph, node: Node) -> int:
    return sum(other.module == node.module for other in graph.nodes)


def fold_(net: Artifact, pair: Pair) -> None:
    """Give the layer the BatchNorm's scale and shift, computed in float64, and record the edit."""
    layer = net.module.get_submodule(pair.layer)
    mean, factor, beta = _constants(net.module.get_submodule(pair.norm))
    weight = layer.get_parameter("weight").detach().double()
    bias = dict(layer.named_parameters(recurse=False)).get("bias")
    old = torch.zeros((), dtype=torch.float64, device=weight.device) if bias is None else bias.detach().double()
    if pair.channels:
        channels = torch.tensor(pair.channels, device=weight.device)
        scale, shift = (_of_inputs(t[channels], weight) for t in (factor, beta - mean * factor))
        new_weight, new_bias = weight * scale, old + (weight * shift).flatten(1).sum(1)
    else:
        axis = output_axis(layer) or 0  # foldable() has refused grouped transposed convolutions
        new_weight = weight * factor.reshape([-1 if d == axis else 1 for d in range(weight.dim())])
        new_bias = (old - mean) * factor + beta
    edit = Fold(layer=pair.layer, norm=pair.norm)
    edit.replay_(net.module)
    net.edits.append(edit)
    net.write_(f"{pair.layer}.weight", new_weight.float())
    net.write_(f"{pair.layer}.bias", new_bias.float())


def separable(net: Artifact, graph: Graph) -> list[str]:
    """BatchNorms with running statistics that are called once, on channels with places."""
    modules = dict(net.module.named_modules())
    found: list[str] = []
    for node in graph.nodes:
        module = modules.get(node.module)
        if node.op == "batch_norm" and isinstance(module, NORMS) and module.running_mean is not None:
            places = {nn.BatchNorm1d: 3, nn.BatchNorm2d: 4}[type(module)]
            if len(node.shape) == places and _calls(graph, node) == 1:
                found.append(node.module)
    return found


def separate_(net: Artifact, path: str) -> None:
    """Make the BatchNorm a convolution of one tap for each channel, and record the edit."""
    mean, factor, beta = _constants(net.module.get_submodule(path))
    edit = Separate(path=path)
    edit.replay_(net.module)
    net.edits.append(edit)
    weight = net.parameter(f"{path}.weight")
    net.write_(f"{path}.weight", factor.float().reshape(weight.shape))
    net.write_(f"{path}.bias", (beta - mean * factor).float())


def _constants(norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """The norm is (x - mean) * factor + beta, float64 each."""
    state = {**dict(norm.named_parameters(recurse=False)), **dict(norm.named_buffers(recurse=False))}
    eps = float(getattr(norm, "eps", 0.0))
    mean, variance = state["running_mean"].double(), state["running_var"].double()
    gamma = state["weight"].detach().double() if "weight" in state else torch.ones_like(mean)
    beta = state["bias"].detach().double() if "bias" in state else torch.zeros_like(mean)
    return mean, gamma / torch.sqrt(variance + eps), beta


def _of_inputs(values: Tensor, weight: Tensor) -> Tensor:
    """Numbers of all input channels as factors of a weight [out, in / groups, ...]: each group has its part of them."""
    rows = values.reshape(-1, weight.shape[1])
    rows = rows.repeat_interleave(weight.shape[0] // len(rows), 0)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))


def values_after(graph: Graph, edits: Iterable[Edit]) -> dict[str, str]:
    """{value of the network before `edits`: the value of that network which stands in its place after them}.

    The output of a layer that took in the BatchNorm behind it becomes that norm's. Between a BatchNorm and the layer
    that it went forward into, no value is what it was: "". All others stay, and are left out.
    """
    norms = {node.module: node for node in graph.nodes if node.op == "batch_norm"}
    found: dict[str, str] = {}
    for edit in edits:
        if not isinstance(edit, Fold) or edit.norm not in norms:
            continue
        norm = norms[edit.norm]
        before = graph[norm.inputs[0]]
        if before.module == edit.layer:
            found[before.name] = norm.name
        else:
            found |= dict.fromkeys(between(graph, norm, edit.layer), "")
    return found
