"""BatchNorm moved into the layer before it: the same function with fewer operations.

Jacob et al. (2018), "Quantization and training of neural networks", section 3.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.edits import Fold
from lilliput.graph.layers import output_axis
from lilliput.graph.trace import Graph


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A layer and the BatchNorm that alone reads it, by the paths of their modules."""

    layer: str
    norm: str


def foldable(net: Artifact, graph: Graph) -> tuple[list[Pair], dict[str, str]]:
    """The pairs that can be folded, and for every other BatchNorm why not."""
    readers = graph.consumers()
    pairs: list[Pair] = []
    refused: dict[str, str] = {}
    norms = [n for n in graph.nodes if n.op == "batch_norm"]
    uses: dict[str, int] = {}
    for node in graph.nodes:
        uses[node.module] = uses.get(node.module, 0) + 1
    modules = dict(net.module.named_modules())
    for norm in norms:
        before = graph[norm.inputs[0]]
        module, layer = modules.get(norm.module), modules.get(before.module)
        if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) or module.running_mean is None:
            refused[norm.layer] = "it has no running statistics"
        elif uses[norm.module] > 1:
            refused[norm.layer] = "it is called more than once"
        elif before.op not in ("conv", "linear") or not isinstance(layer, nn.Module):
            refused[norm.layer] = f"it follows {before.op}, not a convolution or linear layer"
        elif not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)):
            refused[norm.layer] = "the weight before it belongs to functional code"
        elif len(readers[before.name]) > 1 or before.name in graph.outputs:
            refused[norm.layer] = f"the output of {before.layer} is read elsewhere too"
        elif uses[before.module] > 1 or len(graph.users_of(before.state["weight"])) > 1:
            refused[norm.layer] = f"{before.layer} is called more than once or shares its weight"
        elif before.attributes.get("transposed") and before.attributes.get("groups", 1) > 1:
            refused[norm.layer] = f"{before.layer} is a grouped transposed convolution"
        elif any(net.canonical(name) in net.encodings for name in before.state.values()):
            refused[norm.layer] = f"the weight of {before.layer} is already encoded"
        elif before.op == "linear" and len(before.shape) != 2:
            refused[norm.layer] = f"the channels of {before.layer} are not its normalized dimension"
        else:
            pairs.append(Pair(layer=before.module, norm=norm.module))
    return pairs, refused


def fold_(net: Artifact, pair: Pair) -> None:
    """Give the layer the BatchNorm's scale and shift, computed in float64, and record the edit."""
    layer, norm = net.module.get_submodule(pair.layer), net.module.get_submodule(pair.norm)
    state = {**dict(norm.named_parameters(recurse=False)), **dict(norm.named_buffers(recurse=False))}
    eps = float(getattr(norm, "eps", 0.0))
    mean, variance = state["running_mean"].double(), state["running_var"].double()
    gamma = state["weight"].double() if "weight" in state else torch.ones_like(mean)
    beta = state["bias"].double() if "bias" in state else torch.zeros_like(mean)
    factor = gamma / torch.sqrt(variance + eps)
    weight = layer.get_parameter("weight")
    bias = dict(layer.named_parameters(recurse=False)).get("bias")
    old = torch.zeros_like(mean) if bias is None else bias.detach().double()
    axis = output_axis(layer) or 0  # foldable() has refused grouped transposed convolutions
    new_weight: Tensor = weight.detach().double() * factor.reshape(
        [-1 if d == axis else 1 for d in range(weight.dim())]
    )
    edit = Fold(layer=pair.layer, norm=pair.norm)
    edit.replay_(net.module)
    net.edits.append(edit)
    net.write_(f"{pair.layer}.weight", new_weight.float())
    net.write_(f"{pair.layer}.bias", ((old - mean) * factor + beta).float())
