"""What every word computes: one function for traced and for stored graphs, from operands, tensors and attributes alone.

`RULES` has a function for each word of `core.wiring.OPERATIONS`: of the operands, the tensors by role, and the
attributes as `graph.operators` reads them. Results are those of the recorded calls, bit by bit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lilliput.ops.learned_function import learned_function

Operands = Sequence[Tensor]
State = Mapping[str, Tensor]
Attributes = Mapping[str, Any]
Rule = Callable[[Operands, State, Attributes], Tensor]

CONV = {1: F.conv1d, 2: F.conv2d}
CONV_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d}
MAX_POOL = {1: torch.max_pool1d, 2: torch.max_pool2d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d}
ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}


def _conv(x: Operands, s: State, a: Attributes) -> Tensor:
    """Where pads differ, the larger part is put before the convolution: so does torch with padding="same"."""
    spatial = len(a["kernel"])
    both = tuple(min(p) for p in a["pads"])
    if a["transposed"]:
        run = CONV_TRANSPOSED[spatial]
        return run(x[0], s["weight"], s.get("bias"), a["stride"], both, a["output_padding"], a["groups"], a["dilation"])
    rest = [(p[0] - m, p[1] - m) for p, m in zip(a["pads"], both, strict=True)]
    wide = F.pad(x[0], _reversed(rest)) if any(map(any, rest)) else x[0]
    return CONV[spatial](wide, s["weight"], s.get("bias"), a["stride"], both, a["dilation"], a["groups"])


def _reversed(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As torch wants pads: from the last dimension on."""
    return [n for p in reversed(pads) for n in p]


def _batch_norm(x: Operands, s: State, a: Attributes) -> Tensor:
    mean, variance = s.get("mean"), s.get("variance")
    return F.batch_norm(x[0], mean, variance, s.get("weight"), s.get("bias"), mean is None, 0.0, a["eps"])


def _layer_norm(x: Operands, s: State, a: Attributes) -> Tensor:
    return F.layer_norm(x[0], x[0].shape[-a["dims"] :], s.get("weight"), s.get("bias"), a["eps"])


def _max_pool(x: Operands, _s: State, a: Attributes) -> Tensor:
    before = tuple(p for p, _ in a["pads"])
    return MAX_POOL[len(a["kernel"])](x[0], a["kernel"], a["stride"], before, a["dilation"], a["ceil"])


def _avg_pool(x: Operands, _s: State, a: Attributes) -> Tensor:
    spatial = len(a["kernel"])
    if a.get("adaptive"):  # torch adds up in another order
        return ADAPTIVE[spatial](x[0], tuple(n // k for n, k in zip(x[0].shape[2:], a["kernel"], strict=True)))
    before = tuple(p for p, _ in a["pads"])
    return AVG_POOL[spatial](x[0], a["kernel"], a["stride"], before, a["ceil"], a["count_pad"])


def _slice(x: Operands, _s: State, a: Attributes) -> Tensor:
    return x[0][(*[slice(None)] * a["dim"], slice(a["start"], a["stop"], a["step"]))]


def _upsample(x: Operands, _s: State, a: Attributes) -> Tensor:
    size = [n * f for n, f in zip(x[0].shape[2:], a["factors"], strict=True)]
    return F.interpolate(x[0], size=size, mode="nearest")


def _clamp(x: Operands, _s: State, a: Attributes) -> Tensor:
    return x[0] if a["low"] is None and a["high"] is None else torch.clamp(x[0], a["low"], a["high"])


def _of(function: Callable[..., Tensor], *names: str) -> Rule:
    """A torch function of the operands, and of these attributes."""
    return lambda x, _s, a: function(*x, *(a[name] for name in names))


RULES: dict[str, Rule] = {
    "conv": _conv,
    "linear": lambda x, s, _a: F.linear(x[0], s["weight"], s.get("bias")),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "mean": lambda x, _s, a: torch.mean(x[0], a["dims"], keepdim=a["keepdim"]),
    "add": _of(torch.add),
    "sub": _of(torch.sub),
    "mul": _of(torch.mul),
    "add_scalar": _of(torch.add, "value"),
    "sub_scalar": _of(torch.sub, "value"),
    "mul_scalar": _of(torch.mul, "value"),
    "div_scalar": _of(torch.div, "value"),
    "rsub_scalar": _of(torch.rsub, "value"),
    "pow_scalar": _of(torch.pow, "value"),
    "amax": lambda x, _s, a: torch.amax(x[0], a["dims"], keepdim=a["keepdim"]),
    "argmax": lambda x, _s, a: torch.argmax(x[0], a["dim"], keepdim=a["keepdim"]),
    "concat": lambda x, _s, a: torch.cat(list(x), a["dim"]),
    "slice": _slice,
    "select": _of(torch.select, "dim", "index"),
    "pad": lambda x, _s, a: F.pad(x[0], _reversed(a["pads"]), value=a["value"]),
    "reshape": lambda x, _s, a: x[0].reshape(x[0].shape[0], *a["shape"]),
    "permute": _of(torch.permute, "order"),
    "identity": lambda x, _s, a: x[0].contiguous() if a.get("contiguous") else x[0],
    "upsample_nearest": _upsample,
    "relu": _of(torch.relu),
    "clamp": _clamp,
    "sigmoid": _of(torch.sigmoid),
    "tanh": _of(torch.tanh),
    "elu": _of(F.elu, "alpha"),
    "gelu": lambda x, _s, a: F.gelu(x[0], approximate=a["approximate"]),
    "silu": _of(F.silu),
    "hard_swish": _of(F.hardswish),
    "hard_sigmoid": _of(F.hardsigmoid),
    "leaky_relu": _of(F.leaky_relu, "slope"),
    "prelu": lambda x, s, _a: F.prelu(x[0], s["weight"]),
    "learned_function": lambda x, s, a: learned_function(
        x[0], s["weight"], s["limit"], a["kind"], a["points"], a["dim"], s.get("owner")
    ),
    "selu": _of(F.selu),
    "celu": _of(F.celu, "alpha"),
    "softplus": _of(F.softplus, "beta", "threshold"),
    "mish": _of(F.mish),
    "log_sigmoid": _of(F.logsigmoid),
    "hard_shrink": _of(F.hardshrink, "lambd"),
    "soft_shrink": _of(F.softshrink, "lambd"),
    "threshold": _of(F.threshold, "threshold", "value"),
    "abs": _of(torch.abs),
    "neg": _of(torch.neg),
    "square": _of(torch.square),
    "sqrt": _of(torch.sqrt),
    "rsqrt": _of(torch.rsqrt),
    "reciprocal": _of(torch.reciprocal),
    "exp": _of(torch.exp),
    "expm1": _of(torch.expm1),
    "log": _of(torch.log),
    "log1p": _of(torch.log1p),
    "sin": _of(torch.sin),
    "cos": _of(torch.cos),
    "erf": _of(torch.erf),
    "softmax": _of(torch.softmax, "dim"),
    "log_softmax": _of(torch.log_softmax, "dim"),
}
