"""A network for each operation of the integer program that `lowered.Operations` does not have."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core.program import Operation, Program, Value
from lilliput.graph.operators import POINTWISE
from lilliput.ops.fixed_point import integer_range
from lowered import quantized, task_of
from onnx_cases import learned

SHAPE = (2, 6, 6)

FUNCTIONS = {
    "relu": F.relu,
    "clamp": lambda x: x.clamp(-0.5, 0.75),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
    "leaky_relu": F.leaky_relu,
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.5),
    "softplus": F.softplus,
    "mish": F.mish,
    "log_sigmoid": F.logsigmoid,
    "hard_shrink": F.hardshrink,
    "soft_shrink": F.softshrink,
    "threshold": lambda x: F.threshold(x, 0.1, -0.3),
    "abs": torch.abs,
    "neg": torch.neg,
    "square": torch.square,
    "sqrt": lambda x: (x.abs() + 0.1).sqrt(),
    "rsqrt": lambda x: (x.abs() + 0.5).rsqrt(),
    "reciprocal": lambda x: 1 / (x.abs() + 0.5),
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda x: (x.abs() + 0.1).log(),
    "log1p": lambda x: x.abs().log1p(),
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "pow_scalar": lambda x: x.abs() ** 1.5,
    "div_scalar": lambda x: x / 3,
    "rsub_scalar": lambda x: 1 - x,
}
"""All of `POINTWISE` but those that have a weight."""
assert {*FUNCTIONS, "prelu", "learned_function"} == {*POINTWISE}


class Code(nn.Module):
    """Layers by name, and functional code around them."""

    def __init__(self, code, **layers):
        super().__init__()
        self.code = code
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.code(self, x)


def every_function():
    """Each function of one value reads the same value; average pooling keeps relu and clamp apart from the layer."""

    def code(m, x):
        x = F.avg_pool2d(m.a(x), 2, 1)
        return m.head(torch.cat([f(x) for f in FUNCTIONS.values()], 1).mean((2, 3)))

    return Code(code, a=nn.Conv2d(2, 4, 3, padding=1), head=nn.Linear(4 * len(FUNCTIONS), 3))


def prelu(channels):
    layer = nn.PReLU(channels)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.5, 2, channels) if channels > 1 else torch.tensor([0.3]))
    return layer


def sequence(*layers):
    return Code(lambda m, x: m.layers(x), layers=nn.Sequential(*layers))


NETS = {
    "prelu": lambda: sequence(nn.Conv2d(2, 4, 3), prelu(1), nn.Flatten(), nn.Linear(64, 3)),
    "prelu per channel": lambda: sequence(
        nn.Conv2d(2, 4, 3), prelu(4), nn.Flatten(), nn.Linear(64, 8), prelu(8), nn.Linear(8, 3)
    ),
    "functions": every_function,
    "learned functions": lambda: sequence(
        nn.Conv2d(2, 4, 3),
        learned(4, kind="table", points=9),
        nn.Conv2d(4, 4, 1),
        learned(4, kind="lerp_psa", share="group", groups=2, limit=2.0),
        nn.Flatten(),
        nn.Linear(64, 8),
        learned(8, kind="psa", share="layer"),
        nn.Linear(8, 3),
    ),
    "learned functions of tokens": lambda: Code(
        lambda m, x: m.h(m.f(m.a(x.flatten(2))).mean(1)),
        a=nn.Linear(36, 6),
        f=learned(6, kind="cubic", dim=-1, points=17),
        h=nn.Linear(6, 3),
    ),
    "amax": lambda: Code(lambda m, x: m.h(m.a(x).amax((2, 3))), a=nn.Conv2d(2, 4, 3), h=nn.Linear(4, 3)),
    "inner dimensions": lambda: Code(
        lambda m, x: m.h(torch.cat([m.a(x).amax(1).mean(1), m.a(x).mean(1).max(1)[0]], 1)),
        a=nn.Conv2d(2, 4, 3),
        h=nn.Linear(8, 3),
    ),
    "adaptive max": lambda: sequence(nn.Conv2d(2, 4, 3), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
    "argmax": lambda: Code(lambda m, x: m.h(m.a(x).flatten(1)).argmax(1), a=nn.Conv2d(2, 4, 3), h=nn.Linear(64, 5)),
    "argmax of places": lambda: Code(
        lambda m, x: m.h(F.relu(m.a(x))).argmax(1, keepdim=True), a=nn.Conv2d(2, 4, 3), h=nn.Conv2d(4, 3, 1)
    ),
    "argmax of codes": lambda: Code(
        lambda m, x: F.max_pool2d(m.a(x) + m.a(x).tanh(), 2).flatten(1).argmax(-1), a=nn.Conv2d(2, 3, 3)
    ),
    "padding": lambda: sequence(
        nn.ZeroPad2d((1, 0, 2, 1)),
        nn.Conv2d(2, 4, 3),
        nn.ConstantPad2d(1, 0.3),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(48, 3),
    ),
    "called twice": lambda: Code(
        lambda m, x: m.h(F.relu(m.a(F.relu(m.a(m.e(x.flatten(1))))))),
        e=nn.Linear(72, 6),
        a=nn.Linear(6, 6),
        h=nn.Linear(6, 3),
    ),
}
"""{name: a network for inputs of `SHAPE`}."""


def network(name, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETS[name]().eval()


def quantized_network(name, *passes):
    return quantized(network(name), task_of(SHAPE), *passes)


def chain_of_functions(*, signed, channel=None, seed=0):
    """A program of lines between 2^3 + 1 to 2^8 + 1 points on 16 and 12 bits, and a table at the end; no network."""
    rng = np.random.default_rng(seed)
    shape, rows = (2, 3, 4), () if channel is None else ((2, 3, 4)[channel],)
    steps = [(16, k) for k in range(3, 9)] + [(12, 4), (9, 8), (8, None)]
    values, operations = {}, []
    for i, (bits, _) in enumerate([*steps, (8, None)]):
        low, high = integer_range(bits, signed=signed)
        values[f"v{i}"] = Value(name=f"v{i}", shape=shape, low=low, high=high, scale=(1.0,))
    for i, (bits, k) in enumerate(steps):
        x, y = values[f"v{i}"], values[f"v{i + 1}"]
        count = 1 << bits if k is None else (1 << k) + 1
        table = rng.integers(y.low, y.high + 1, (*rows, count))
        table[..., :2] = y.low, y.high  # the steepest line
        attributes = {"first": x.low} | ({} if k is None else {"shift": bits - k})
        attributes |= {} if channel is None else {"channel": channel}
        kind = "table" if k is None else "interpolate"
        operations.append(Operation(kind=kind, inputs=(x.name,), output=y.name, table=table, attributes=attributes))
    return Program(values=values, operations=tuple(operations), input="v0", outputs=(f"v{len(steps)}",), tensors={})
