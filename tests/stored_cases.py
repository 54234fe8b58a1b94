"""Networks for tests of words and of stored graphs: those of the other tests, and what these do not have."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import onnx_cases
import program_networks
from lilliput.testing import TINY, tiny_model
from lowered import Operations
from onnx_cases import IMAGE, SERIES, TOKENS, VECTOR, Fn

Case = tuple[Callable[[], nn.Module], tuple[int, ...]]

MORE: dict[str, Case] = {
    "conv1d same": (lambda: nn.Conv1d(4, 5, 4, padding="same", dilation=3), SERIES),
    "conv of other pads": (lambda: nn.Conv2d(3, 4, (5, 3), padding=(1, 2), stride=2), IMAGE),
    "transposed with pads": (lambda: nn.ConvTranspose2d(3, 4, (3, 2), (2, 3), (1, 0), bias=False), IMAGE),
    "adaptive 1d": (lambda: nn.AdaptiveAvgPool1d(1), SERIES),
    "adaptive max 1d": (lambda: nn.AdaptiveMaxPool1d(1), SERIES),
    "adaptive of another size": (lambda: nn.Sequential(nn.Conv2d(3, 4, (2, 1)), nn.AdaptiveAvgPool2d((4, 2))), IMAGE),
    "pool of all": (lambda: nn.AvgPool2d((9, 8)), IMAGE),
    "pool by two numbers": (lambda: nn.MaxPool2d((2, 3), (1, 2), padding=(1, 0)), IMAGE),
    "upsample by size": (lambda: nn.Sequential(nn.Upsample(size=(18, 8)), nn.Upsample(scale_factor=(1, 3))), IMAGE),
    "upsample series by size": (lambda: nn.Upsample(size=33), SERIES),
    "upsample as ATen has it": (lambda: Fn(lambda x: torch.ops.aten.upsample_nearest2d(x, [18, 8])), IMAGE),
    "upsample series as ATen has it": (lambda: Fn(lambda x: torch.ops.aten.upsample_nearest1d(x, [22])), SERIES),
    "squeezes": (lambda: Fn(lambda x: x.mean((2, 3), keepdim=True).squeeze((2, 3)).unsqueeze(2).squeeze(2)), IMAGE),
    "unflatten": (lambda: Fn(lambda x: torch.unflatten(x.flatten(1), 1, (3, 72)).view(x.shape[0], -1)), IMAGE),
    "identities": (
        lambda: Fn(
            lambda x, c: c(F.dropout(x.transpose(2, 3), 0.5, False).contiguous().clone()[:]),
            nn.Conv2d(3, 2, 3),
        ),
        IMAGE,
    ),
    "permuted conv": (lambda: Fn(lambda x, c: c(x.permute(0, 1, 3, 2)).permute(0, 2, 3, 1), nn.Conv2d(3, 4, 3)), IMAGE),
    "clamps": (lambda: Fn(lambda x: torch.clamp_max(torch.clamp_min(x, -0.5), 0.75)), VECTOR),
    "relu6 and hardtanh": (lambda: nn.Sequential(nn.ReLU6(), nn.Hardtanh(-0.5, 2.5)), VECTOR),
    "functions": (lambda: Fn(lambda x: torch.cat([f(x) for f in program_networks.FUNCTIONS.values()], 1)), IMAGE),
    "leaky and softplus": (lambda: nn.Sequential(nn.LeakyReLU(0.3), nn.Softplus(2, 5), nn.CELU(0.7)), VECTOR),
    "tokens": (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4), nn.GELU(), nn.Softmax(-1)), TOKENS),
    "batch_norm 2d plain": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, 0.01, affine=False)), IMAGE),
    "several outputs": (lambda: Fn(lambda x, a, b: (a(x), F.relu(b(x))), nn.Linear(6, 4), nn.Linear(6, 3)), VECTOR),
    "a list": (lambda: Fn(lambda x, a: [a(x)], nn.Linear(6, 4)), VECTOR),
    "one output twice": (lambda: Fn(lambda x, a: (a(x), x), nn.Linear(6, 4)), VECTOR),
    "constant pad": (lambda: Fn(lambda x: torch.constant_pad_nd(x, (1, 0, 0, 2), 0.5)), IMAGE),
    "reshape to a vector": (lambda: Fn(lambda x, a: a(x).squeeze(1), nn.Linear(6, 1)), VECTOR),
}  # fmt: skip

CASES: dict[str, Case] = {
    **{f"tiny {name}": (lambda name=name: tiny_model(name), (1, 4, 4)) for name in TINY},
    **onnx_cases.CASES,
    **{f"program {name}": (lambda name=name: program_networks.network(name), program_networks.SHAPE)
       for name in program_networks.NETS},
    "operations": (Operations, (2, 9, 8)),
    **MORE,
}  # fmt: skip
"""{name: (a function that makes the network, the shape of one sample)}."""


def example(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with weights and statistics that follow from the seed, in evaluation mode; the shape of one sample."""
    make, shape = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                state = dict(module.named_buffers())
                state["running_mean"].normal_(0, 0.3)
                state["running_var"].uniform_(0.5, 2)
    return model.eval(), shape
