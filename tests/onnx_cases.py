"""Small networks, one for each thing that an exporter can get wrong, and a plain min-max quantizer for them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.learned_activation import LearnedActivation
from lilliput.graph.fold import fold_, foldable
from lilliput.graph.integer import LAYERS, grids_of, integer_bias, integer_values, observe
from lilliput.graph.trace import Graph, graph_of
from lilliput.nn.models.resnet import PadShortcut


class Fn(nn.Module):
    """Functional code around some layers."""

    def __init__(self, forward: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.code = forward

    def forward(self, x: Tensor) -> Any:
        return self.code(x, *self.layers)


class Residual(nn.Module):
    """Slice-and-pad shortcut, addition, relu; then a mean and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.shortcut = PadShortcut(new_channels=4)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + self.shortcut(x))
        return self.fc(x.mean((2, 3)))


class Parameterized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift, self.factor = nn.Parameter(torch.randn(3, 1, 1)), nn.Parameter(torch.randn(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.shift + x) * self.factor


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def learned(channels: int, **settings: Any) -> LearnedActivation:
    """Functions that differ by channel."""
    layer = LearnedActivation(channels, **settings)
    with torch.no_grad():
        layer.weight.add_(torch.linspace(-0.3, 0.3, layer.weight.numel()).reshape(layer.weight.shape))
    return layer


IMAGE, SERIES, VECTOR, TOKENS = (3, 9, 8), (4, 11), (6,), (5, 6)


def _pointwise(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Fn(lambda x, conv: function(conv(x)), nn.Conv2d(3, 4, 3))


def _convs(kernel: int, *channels: int) -> list[nn.Module]:
    return [nn.Conv2d(3, n, kernel) for n in channels]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)), IMAGE),
    "conv same": (lambda: nn.Conv2d(3, 5, 4, padding="same"), IMAGE),
    "conv grouped": (lambda: nn.Conv2d(3, 6, 3, groups=3, bias=False), IMAGE),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), SERIES),
    "conv depthwise 1d": (lambda: nn.Conv1d(4, 4, 3, groups=4), SERIES),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), IMAGE),
    "transposed grouped 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, dilation=2, groups=2), SERIES),
    "linear": (lambda: nn.Linear(6, 4), VECTOR),
    "linear on tokens": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)), TOKENS),
    "tied": (Tied, VECTOR),
    "shared module": (lambda: Fn(lambda x, fc: fc(F.relu(fc(x))), nn.Linear(6, 6)), VECTOR),
    "batch_norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), IMAGE),
    "batch_norm plain": (lambda: nn.BatchNorm1d(4, affine=False), SERIES),
    "layer_norm": (lambda: nn.LayerNorm(6), TOKENS),
    "layer_norm plain": (lambda: nn.LayerNorm([5, 6], elementwise_affine=False), TOKENS),
    "max_pool": (lambda: nn.MaxPool2d(3, 2, padding=1), IMAGE),
    "max_pool ceil": (lambda: nn.MaxPool2d(2, 2, ceil_mode=True), IMAGE),
    "max_pool dilated 1d": (lambda: nn.MaxPool1d(3, 1, dilation=2), SERIES),
    "avg_pool": (lambda: nn.AvgPool2d(3, 2, padding=1), IMAGE),
    "avg_pool without padding": (lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), IMAGE),
    "avg_pool ceil": (lambda: nn.AvgPool2d(2, 2, ceil_mode=True), IMAGE),
    "avg_pool 1d": (lambda: nn.AvgPool1d(2), SERIES),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d((3, 2)), IMAGE),
    "global pool": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), IMAGE),
    "mean": (lambda: Fn(lambda x: x.mean((2, 3))), IMAGE),
    "mean kept": (lambda: Fn(lambda x: x.mean((2, 3), keepdim=True)), IMAGE),
    "mean of tokens": (lambda: Fn(lambda x: x.mean(1)), TOKENS),
    "add and mul": (lambda: Fn(lambda x, a, b: F.relu(a(x) + b(x)) * b(x), *_convs(3, 4, 4)), IMAGE),
    "sub": (lambda: Fn(lambda x, a, b: a(x) - b(x), nn.Linear(6, 4), nn.Linear(6, 4)), VECTOR),
    "broadcast": (lambda: Fn(lambda x, a, b: a(x) * b(x.mean((2, 3), True)).sigmoid(), *_convs(1, 4, 4)), IMAGE),
    "twice itself": (lambda: Fn(lambda x, a: a(x) + x + x, nn.Linear(6, 6)), VECTOR),
    "parameters": (Parameterized, IMAGE),
    "scalars": (lambda: Fn(lambda x: (x + 1.5) * 0.5 - 0.25), VECTOR),
    "concat": (lambda: Fn(lambda x, a, b: torch.cat([a(x), 3 * b(x), x], 1), *_convs(1, 4, 2)), IMAGE),
    "slices": (lambda: Fn(lambda x, a: a(x)[:, 1:, ::2, -3:], nn.Conv2d(3, 4, 3)), IMAGE),
    "slices of slices": (lambda: Fn(lambda x, a: a(x)[:, :, ::2][:, :, 1:], nn.Conv2d(3, 4, 3)), IMAGE),
    "select": (lambda: Fn(lambda x, a: a(x)[:, -1], nn.Linear(6, 4)), TOKENS),
    "pad and conv": (lambda: Fn(lambda x, a: a(F.pad(x, (1, 1, 0, 2))), nn.Conv2d(3, 4, 3)), IMAGE),
    "pad and pool": (lambda: Fn(lambda x, a: F.max_pool2d(F.pad(a(x), (1, 1, 0, 2)), 2), nn.Conv2d(3, 4, 3)), IMAGE),
    "pad": (lambda: Fn(lambda x: F.pad(x, (1, 2, 0, 1), value=0.5)), IMAGE),
    "reshapes": (lambda: Fn(lambda x: x.reshape(x.size(0), 3, 72).unsqueeze(1).squeeze(1).flatten(1)), IMAGE),
    "permute": (lambda: Fn(lambda x, a: a(x.permute(0, 2, 3, 1)).transpose(1, 3), nn.Linear(3, 4)), IMAGE),
    "upsample": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "upsample 1d": (lambda: nn.Upsample(scale_factor=3), SERIES),
    "relu6": (lambda: _pointwise(F.relu6), IMAGE),
    "clamp": (lambda: _pointwise(lambda x: x.clamp(min=-0.1)), IMAGE),
    "clamp above": (lambda: _pointwise(lambda x: x.clamp(max=0.1)), IMAGE),
    "hardtanh": (lambda: _pointwise(F.hardtanh), IMAGE),
    "sigmoid": (lambda: _pointwise(torch.sigmoid), IMAGE),
    "tanh": (lambda: _pointwise(torch.tanh), IMAGE),
    "elu": (lambda: _pointwise(lambda x: F.elu(x, 0.7)), IMAGE),
    "gelu": (lambda: _pointwise(F.gelu), IMAGE),
    "gelu tanh": (lambda: _pointwise(lambda x: F.gelu(x, approximate="tanh")), IMAGE),
    "silu": (lambda: _pointwise(F.silu), IMAGE),
    "hard_swish": (lambda: _pointwise(F.hardswish), IMAGE),
    "hard_sigmoid": (lambda: _pointwise(F.hardsigmoid), IMAGE),
    "leaky_relu": (lambda: _pointwise(lambda x: F.leaky_relu(x, 0.2)), IMAGE),
    "learned table": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), learned(4, kind="table", limit=1.0)), IMAGE),
    "learned for all": (lambda: nn.Sequential(nn.Linear(6, 4), learned(4, kind="cubic", share="layer")), VECTOR),
    "learned psa": (lambda: nn.Sequential(nn.Linear(6, 4), learned(4, kind="psa", dim=2, limit=2.0)), TOKENS),
    "learned psa for all": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), learned(6, kind="psa", share="layer")), SERIES),
    "learned for groups": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), learned(4, kind="lerp_psa", share="group", groups=2, points=9)),
        IMAGE,
    ),
    "softmax": (lambda: Fn(lambda x, a: a(x).softmax(-1), nn.Linear(6, 4)), VECTOR),
    "log_softmax": (lambda: Fn(lambda x, a: a(x).log_softmax(1), nn.Linear(6, 4)), VECTOR),
    "dropout": (lambda: nn.Sequential(nn.Dropout(), nn.Linear(6, 4), nn.Identity()), VECTOR),
    "residual": (Residual, IMAGE),
}  # fmt: skip


def artifact_of(model: nn.Module, shape: tuple[int, ...]) -> Artifact:
    """Random statistics for BatchNorm, so that folding has something to do."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            state = dict(m.named_buffers())
            state["running_mean"].normal_(0, 0.3)
            state["running_var"].uniform_(0.5, 2)
    return Artifact.of(model, InputSpec(shape=shape))


def case(name: str, seed: int = 0) -> tuple[Artifact, Graph]:
    """The network, and its graph: that of all with this name."""
    torch.manual_seed(seed)
    make, shape = CASES[name]
    artifact = artifact_of(make(), shape)
    return artifact, graph_of(artifact)


def folded(artifact: Artifact) -> Graph:
    """Fold what can be folded; the graph after it."""
    for pair in foldable(artifact, graph_of(artifact))[0]:
        fold_(artifact, pair)
    return graph_of(artifact)


def weight_grid(weight: Tensor, axis: int, bits: int = 8) -> Grid:
    """Symmetric, narrow, a scale for each slice of `axis`."""
    largest = weight.abs().amax([d for d in range(weight.dim()) if d != axis])
    n = len(largest)
    return Grid(scale=(largest / (2 ** (bits - 1) - 1)).clamp(min=1e-8), zero_point=torch.zeros(n, dtype=torch.int64),
                bit_width=torch.full((n,), bits), signed=True, narrow=True, axis=axis)  # fmt: skip


def value_grid(values: Tensor, bits: int = 8, *, signed: bool = False, symmetric: bool = False) -> Grid:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0, 1e-6)
    lowest = -(2 ** (bits - 1)) if signed else 0
    if symmetric:
        return Grid.per_tensor(max(-low, high) / (2 ** (bits - 1) - 1), 0, bits, signed=True, narrow=True)
    scale = (high - low) / (2**bits - 1)
    return Grid.per_tensor(scale, round(-low / scale) + lowest, bits, signed=signed)


def encode_weights_(artifact: Artifact, graph: Graph, bits: int = 8) -> None:
    for node in graph.nodes:
        if node.op in LAYERS and artifact.canonical(node.state["weight"]) not in artifact.encodings:
            axis = 1 if node.attributes.get("transposed") else 0
            weight = artifact.parameter(node.state["weight"]).detach()
            if (
                node.attributes.get("transposed") and node.attributes["groups"] > 1
            ):  # channels share scales across groups
                continue
            artifact.encode_(node.state["weight"], Encoding.of(weight).with_grid(weight_grid(weight, axis, bits)))


def quantize_(
    artifact: Artifact, graph: Graph, samples: Tensor, *, weight_bits: int = 8, bits: int = 8, **kind: bool
) -> None:
    """Min-max grids on everything that arithmetic reads, integer weights and biases."""
    seen: dict[str, Tensor] = {}
    observe(graph, dict(artifact.module.state_dict()), samples, lambda node, x: seen.update({node.name: x}))
    for name in integer_values(graph):
        artifact.activations[name] = value_grid(seen[name], bits, **kind)
    encode_weights_(artifact, graph, weight_bits)
    grids = grids_of(graph, artifact.activations)
    for node in graph.nodes:
        source, bias = grids.get(node.inputs[0]) if node.inputs else None, node.state.get("bias")
        if node.op not in LAYERS or source is None or bias is None or artifact.canonical(bias) in artifact.encodings:
            continue
        weight = artifact.encoding(node.state["weight"]).grid
        if weight is not None:
            artifact.encode_(bias, integer_bias(artifact.parameter(bias).detach(), source, weight))
    artifact.check()


def quantized(name: str, *, seed: int = 0, **settings: Any) -> tuple[Artifact, Graph, Tensor]:
    """A case with min-max grids, and 64 samples that they were made from."""
    artifact, _ = case(name, seed)
    graph = folded(artifact)
    samples = torch.randn((64, *artifact.input.shape), generator=torch.Generator().manual_seed(seed))
    quantize_(artifact, graph, samples, **settings)
    return artifact, graph, samples
