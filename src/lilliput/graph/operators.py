"""The operations that Lilliput knows by name, read from the calls that `torch.export` records.

`OPERATORS` maps an overload ("aten.conv2d.default") to a reader; a reader gives the word ("conv"), the roles of state
tensors ({"weight": Ref, "bias": Ref}) and the attributes. What is not in the table is "other": it runs, it is kept in
float, and `check` names it.
"""

from collections.abc import Callable
from typing import Any

import torch

Reading = tuple[str, dict[str, Any], dict[str, Any]]
Reader = Callable[[Any, tuple[Any, ...], dict[str, Any]], Reading]

POINTWISE = (
    "relu", "clamp", "sigmoid", "tanh", "elu", "gelu", "silu", "hard_swish", "hard_sigmoid", "leaky_relu", "prelu",
    "selu", "celu", "softplus", "mish", "log_sigmoid", "hard_shrink", "soft_shrink", "threshold",
    "abs", "neg", "square", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p", "sin", "cos", "erf",
    "pow_scalar", "div_scalar", "rsub_scalar", "learned_function",
)  # fmt: skip
"""Functions of one value that an integer back-end can hold as a table, or as points with lines between them."""

MOVES = ("flatten", "reshape", "permute", "slice", "select", "pad", "identity", "max_pool", "upsample_nearest", "amax")
"""Operations that move or choose values without computing new ones: the grid goes through unchanged."""


def functional_form(target: Any) -> Any:
    """The overload that does not write into its argument: `aten.relu_.default` -> `aten.relu.default`."""
    name = str(target)
    if not name.startswith("aten.") or not name.split(".")[1].endswith("_") or name.split(".")[1].endswith("__"):
        return target
    packet = getattr(torch.ops.aten, name.split(".")[1][:-1], None)
    return getattr(packet, name.split(".")[2], target) if packet is not None else target


def is_view(target: Any) -> bool:
    """May the result share memory with an input? By the overload's schema."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return any(a.alias_info is not None and not a.alias_info.is_write for a in target._schema.arguments)


def _arg(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str, default: Any = None) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)


def _pair(value: Any, n: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * n if len(values) == 1 else values)


def _rank(n: Any) -> int:
    return n.args[0].meta["val"].dim()


def _conv(spatial: int) -> Reader:
    def read(n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
        stride = _pair(_arg(a, k, 3, "stride", 1), spatial)
        dilation = _pair(_arg(a, k, 5, "dilation", 1), spatial)
        kernel = tuple(n.args[1].meta["val"].shape[2:])
        padding = _arg(a, k, 4, "padding", 0)
        if padding == "valid":
            pads = ((0, 0),) * spatial
        elif padding == "same":
            total = [d * (s - 1) for d, s in zip(dilation, kernel, strict=True)]
            pads = tuple((t // 2, t - t // 2) for t in total)
        else:
            pads = tuple((p, p) for p in _pair(padding, spatial))
        attributes = {
            "stride": stride,
            "dilation": dilation,
            "pads": pads,
            "kernel": kernel,
            "groups": _arg(a, k, 6, "groups", 1),
            "transposed": False,
        }
        return "conv", {"weight": a[1], "bias": _arg(a, k, 2, "bias")}, attributes

    return read


def _conv_transpose(spatial: int) -> Reader:
    def read(n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
        attributes = {
            "stride": _pair(_arg(a, k, 3, "stride", 1), spatial),
            "pads": tuple((p, p) for p in _pair(_arg(a, k, 4, "padding", 0), spatial)),
            "output_padding": _pair(_arg(a, k, 5, "output_padding", 0), spatial),
            "groups": _arg(a, k, 6, "groups", 1),
            "dilation": _pair(_arg(a, k, 7, "dilation", 1), spatial),
            "kernel": tuple(n.args[1].meta["val"].shape[2:]),
            "transposed": True,
        }
        return "conv", {"weight": a[1], "bias": _arg(a, k, 2, "bias")}, attributes

    return read


def _linear(_n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    return "linear", {"weight": a[1], "bias": _arg(a, k, 2, "bias")}, {}


def _batch_norm(_n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    roles = {"weight": _arg(a, k, 1, "weight"), "bias": _arg(a, k, 2, "bias"), "mean": a[3], "variance": a[4]}
    if _arg(a, k, 5, "training") and roles["mean"] is not None:
        return "other", {}, {}  # statistics of the batch, kept for later
    return "batch_norm", roles, {"eps": _arg(a, k, 7, "eps", 1e-5)}


def _pool(word: str, spatial: int) -> Reader:
    def read(n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
        kernel = _pair(a[1], spatial)
        stride = _arg(a, k, 2, "stride") or kernel
        attributes: dict[str, Any] = {
            "kernel": kernel,
            "stride": _pair(stride, spatial),
            "pads": tuple((p, p) for p in _pair(_arg(a, k, 3, "padding", 0), spatial)),
        }
        if word == "max_pool":
            attributes["dilation"] = _pair(_arg(a, k, 4, "dilation", 1), spatial)
            attributes["ceil"] = bool(_arg(a, k, 5, "ceil_mode", False))
        else:
            if _arg(a, k, 6, "divisor_override") is not None:
                return "other", {}, {}
            ceil = bool(_arg(a, k, 4, "ceil_mode", False))
            attributes["ceil"] = ceil and _overhangs(
                n.args[0].meta["val"].shape[2:], n.meta["val"].shape[2:], attributes
            )
            attributes["count_pad"] = bool(_arg(a, k, 5, "count_include_pad", True))
        return word, {}, attributes

    return read


def _overhangs(size: Any, out: Any, a: dict[str, Any]) -> bool:
    """Does a window reach over the padding at the end? Only then does `ceil_mode` change what an average is."""
    windows = zip(size, out, a["kernel"], a["stride"], a["pads"], strict=True)
    return any((o - 1) * stride + kernel > s + before + after for s, o, kernel, stride, (before, after) in windows)


def _adaptive(word: str) -> Reader:
    def read(n: Any, a: tuple[Any, ...], _k: dict[str, Any]) -> Reading:
        shape = n.args[0].meta["val"].shape
        out: tuple[int | None, ...] = (a[1],) if isinstance(a[1], int) else tuple(a[1])
        size = tuple(shape[len(shape) - len(out) :])
        if len(out) == 1 and len(shape) == 4:  # of a square
            size, out = tuple(shape[2:]), out * 2
        whole = tuple(s if o is None else o for s, o in zip(size, out, strict=True))
        if any(s % o for s, o in zip(size, whole, strict=True)):
            return "other", {}, {}
        kernel = tuple(s // o for s, o in zip(size, whole, strict=True))
        attributes: dict[str, Any] = {"kernel": kernel, "stride": kernel, "pads": ((0, 0),) * len(size), "ceil": False}
        more = {"count_pad": True, "adaptive": True} if word == "avg_pool" else {"dilation": (1,) * len(size)}
        return word, {}, attributes | more

    return read


def _reduction(word: str) -> Reader:
    def read(n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
        rank, dim = _rank(n), _arg(a, k, 1, "dim")
        dims = sorted(d % rank for d in _pair(() if dim is None else dim, 1))
        if not dims or 0 in dims or k.get("dtype") is not None:
            return "other", {}, {}
        return word, {}, {"dims": tuple(dims), "keepdim": bool(_arg(a, k, 2, "keepdim", False))}

    return read


def _argmax(n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    dim = _arg(a, k, 1, "dim")
    if dim is None or dim % _rank(n) == 0:
        return "other", {}, {}
    return "argmax", {}, {"dim": dim % _rank(n), "keepdim": bool(_arg(a, k, 2, "keepdim", False))}


def _binary(word: str) -> Reader:
    def read(_n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
        if k.get("alpha", 1) != 1:
            return "other", {}, {}
        other = a[1]
        if isinstance(other, (int, float)):
            return word + "_scalar", {}, {"value": float(other)}
        return word, {}, {}

    return read


def _with_number(word: str) -> Reader:
    """A tensor and a number; of two tensors, or with a factor, "other"."""

    def read(_n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
        plain = isinstance(a[1], (int, float)) and k.get("rounding_mode") is None and _arg(a, k, 2, "alpha", 1) == 1
        return (word, {}, {"value": float(a[1])}) if plain else ("other", {}, {})

    return read


def _cat(n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    return "concat", {}, {"dim": _arg(a, k, 1, "dim", 0) % n.args[0][0].meta["val"].dim()}


def _slice(n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    rank = _rank(n)
    dim = _arg(a, k, 1, "dim", 0) % rank
    size = n.args[0].meta["val"].shape[dim]
    start, stop = _arg(a, k, 2, "start") or 0, _arg(a, k, 3, "end")
    step = _arg(a, k, 4, "step", 1)
    if dim == 0:
        whole = start == 0 and (stop is None or stop >= 2**62) and step == 1
        return ("identity", {}, {}) if whole else ("other", {}, {})
    if not isinstance(size, int) or not isinstance(start, int) or not (stop is None or isinstance(stop, int)):
        return "other", {}, {}
    start, stop, step = slice(start, stop, step).indices(size)
    return "slice", {}, {"dim": dim, "start": start, "stop": stop, "step": step}


def _select(n: Any, a: tuple[Any, ...], _k: dict[str, Any]) -> Reading:
    dim = a[1] % _rank(n)
    if dim == 0 or not isinstance(a[2], int):
        return "other", {}, {}
    return "select", {}, {"dim": dim, "index": a[2] % n.args[0].meta["val"].shape[dim]}


def _pad(n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    if _arg(a, k, 2, "mode", "constant") != "constant" or any(p < 0 for p in a[1]):
        return "other", {}, {}
    rank = _rank(n)
    pads = [(0, 0)] * rank
    for i in range(len(a[1]) // 2):
        pads[rank - 1 - i] = (a[1][2 * i], a[1][2 * i + 1])
    return "pad", {}, {"pads": tuple(pads), "value": float(_arg(a, k, 3, "value", 0.0) or 0.0)}


def _reshape(n: Any, _a: tuple[Any, ...], _k: dict[str, Any]) -> Reading:
    before, after = n.args[0].meta["val"].shape, n.meta["val"].shape
    keeps_batch = len(after) > 0 and str(before[0]) == str(after[0])
    if not keeps_batch or not all(isinstance(s, int) for s in after[1:]):
        return "other", {}, {}
    return "reshape", {}, {"shape": tuple(int(s) for s in after[1:])}


def _permute(n: Any, a: tuple[Any, ...], _k: dict[str, Any]) -> Reading:
    rank = _rank(n)
    if str(n.target).startswith("aten.transpose"):
        order = list(range(rank))
        i, j = a[1] % rank, a[2] % rank
        order[i], order[j] = j, i
    else:
        order = [d % rank for d in a[1]]
    return ("permute", {}, {"order": tuple(order)}) if order[0] == 0 else ("other", {}, {})


def _upsample(n: Any, _a: tuple[Any, ...], _k: dict[str, Any]) -> Reading:
    before, after = n.args[0].meta["val"].shape[2:], n.meta["val"].shape[2:]
    if any(x % y for y, x in zip(before, after, strict=True)):
        return "other", {}, {}
    return "upsample_nearest", {}, {"factors": tuple(x // y for y, x in zip(before, after, strict=True))}


def _clamp(_n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    low, high = _arg(a, k, 1, "min"), _arg(a, k, 2, "max")
    return "clamp", {}, {"low": None if low is None else float(low), "high": None if high is None else float(high)}


def _hardtanh(_n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    return "clamp", {}, {"low": float(_arg(a, k, 1, "min_val", -1)), "high": float(_arg(a, k, 2, "max_val", 1))}


def _elu(_n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    if _arg(a, k, 2, "scale", 1) != 1 or _arg(a, k, 3, "input_scale", 1) != 1:
        return "other", {}, {}
    return "elu", {}, {"alpha": float(_arg(a, k, 1, "alpha", 1.0))}


def _softmax(word: str) -> Reader:
    def read(n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
        if _arg(a, k, 2, "dtype") is not None:
            return "other", {}, {}
        return word, {}, {"dim": a[1] % _rank(n)}

    return read


def _layer_norm(_n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    roles = {"weight": _arg(a, k, 2, "weight"), "bias": _arg(a, k, 3, "bias")}
    return "layer_norm", roles, {"dims": len(a[1]), "eps": float(_arg(a, k, 4, "eps", 1e-5))}


def _bound(low: bool) -> Reader:  # noqa: FBT001 - which of the two
    def read(_n: Any, a: tuple[Any, ...], _k: dict[str, Any]) -> Reading:
        return "clamp", {}, {"low": float(a[1]) if low else None, "high": None if low else float(a[1])}

    return read


def _settings(word: str, **defaults: float) -> Reader:
    """A function of one value with numbers, in the order of the call."""

    def read(_n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
        values = {name: _arg(a, k, i, name, default) for i, (name, default) in enumerate(defaults.items(), 1)}
        return word, {}, {name: float(value) for name, value in values.items()}

    return read


def _prelu(_n: Any, a: tuple[Any, ...], _k: dict[str, Any]) -> Reading:
    return "prelu", {"weight": a[1]}, {}


def _learned_function(_n: Any, a: tuple[Any, ...], _k: dict[str, Any]) -> Reading:
    kind, points, dim, *owner = a[3:]
    if dim == 0:
        return "other", {}, {}
    roles = {"weight": a[1], "limit": a[2]}
    if owner and owner[0] is not None:
        roles["owner"] = owner[0]
    return "learned_function", roles, {"kind": kind, "points": points, "dim": dim}


def _plain(word: str, **fixed: Any) -> Reader:
    def read(_n: Any, _a: tuple[Any, ...], _k: dict[str, Any]) -> Reading:
        return word, {}, dict(fixed)

    return read


def _dropout(_n: Any, a: tuple[Any, ...], k: dict[str, Any]) -> Reading:
    return ("other", {}, {}) if _arg(a, k, 2, "train", False) else ("identity", {}, {})


OPERATORS: dict[str, Reader] = {
    "aten.conv1d.default": _conv(1),
    "aten.conv1d.padding": _conv(1),
    "aten.conv2d.default": _conv(2),
    "aten.conv2d.padding": _conv(2),
    "aten.conv_transpose1d.default": _conv_transpose(1),
    "aten.conv_transpose2d.input": _conv_transpose(2),
    "aten.linear.default": _linear,
    "aten.batch_norm.default": _batch_norm,
    "aten.layer_norm.default": _layer_norm,
    "aten.max_pool1d.default": _pool("max_pool", 1),
    "aten.max_pool2d.default": _pool("max_pool", 2),
    "aten.avg_pool1d.default": _pool("avg_pool", 1),
    "aten.avg_pool2d.default": _pool("avg_pool", 2),
    "aten.adaptive_avg_pool1d.default": _adaptive("avg_pool"),
    "aten.adaptive_avg_pool2d.default": _adaptive("avg_pool"),
    "aten.mean.dim": _reduction("mean"),
    "aten.amax.default": _reduction("amax"),
    "aten.argmax.default": _argmax,
    "aten.add.Tensor": _binary("add"),
    "aten.mul.Tensor": _binary("mul"),
    "aten.sub.Tensor": _binary("sub"),
    "aten.div.Tensor": _with_number("div_scalar"),
    "aten.rsub.Scalar": _with_number("rsub_scalar"),
    "aten.pow.Tensor_Scalar": _with_number("pow_scalar"),
    "aten.cat.default": _cat,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": lambda n, a, k: _pad(n, (a[0], a[1], "constant", _arg(a, k, 2, "value", 0.0)), {}),
    "aten.flatten.using_ints": _reshape,
    "aten.view.default": _reshape,
    "aten.reshape.default": _reshape,
    "aten.unflatten.int": _reshape,
    "aten.squeeze.dim": _reshape,
    "aten.squeeze.dims": _reshape,
    "aten.unsqueeze.default": _reshape,
    "aten.permute.default": _permute,
    "aten.transpose.int": _permute,
    "aten.upsample_nearest2d.vec": _upsample,
    "aten.upsample_nearest2d.default": _upsample,
    "aten.upsample_nearest1d.vec": _upsample,
    "aten.upsample_nearest1d.default": _upsample,
    "aten.relu.default": _plain("relu"),
    "aten.relu6.default": _plain("clamp", low=0.0, high=6.0),
    "aten.hardtanh.default": _hardtanh,
    "aten.clamp.default": _clamp,
    "aten.clamp_min.default": _bound(low=True),
    "aten.clamp_max.default": _bound(low=False),
    "aten.sigmoid.default": _plain("sigmoid"),
    "aten.tanh.default": _plain("tanh"),
    "aten.elu.default": _elu,
    "aten.gelu.default": lambda _n, a, k: ("gelu", {}, {"approximate": k.get("approximate", "none")}),
    "aten.silu.default": _plain("silu"),
    "aten.hardswish.default": _plain("hard_swish"),
    "aten.hardsigmoid.default": _plain("hard_sigmoid"),
    "aten.leaky_relu.default": lambda _n, a, k: (
        "leaky_relu",
        {},
        {"slope": float(_arg(a, k, 1, "negative_slope", 0.01))},
    ),
    "aten.prelu.default": _prelu,
    "lilliput.learned_function.default": _learned_function,
    "aten.selu.default": _plain("selu"),
    "aten.celu.default": _settings("celu", alpha=1.0),
    "aten.softplus.default": _settings("softplus", beta=1.0, threshold=20.0),
    "aten.mish.default": _plain("mish"),
    "aten.log_sigmoid.default": _plain("log_sigmoid"),
    "aten.hardshrink.default": _settings("hard_shrink", lambd=0.5),
    "aten.softshrink.default": _settings("soft_shrink", lambd=0.5),
    "aten.threshold.default": _settings("threshold", threshold=0.0, value=0.0),
    **{
        f"aten.{name}.default": _plain(name)
        for name in (
            "abs",
            "neg",
            "square",
            "sqrt",
            "rsqrt",
            "reciprocal",
            "exp",
            "expm1",
            "log",
            "log1p",
            "sin",
            "cos",
            "erf",
        )
    },
    "aten.softmax.int": _softmax("softmax"),
    "aten.log_softmax.int": _softmax("log_softmax"),
    "aten.dropout.default": _dropout,
    "aten.clone.default": _plain("identity"),
    "aten.contiguous.default": _plain("identity", contiguous=True),
    "aten.alias.default": _plain("identity"),
    "aten.detach.default": _plain("identity"),
    "aten.sym_size.int": lambda _n, a, k: ("size", {}, {"dim": a[1]}),
}

FIRST: dict[str, Reader] = {
    "aten.adaptive_max_pool1d.default": _adaptive("max_pool"),
    "aten.adaptive_max_pool2d.default": _adaptive("max_pool"),
    "aten.max.dim": _reduction("amax"),
}
"""Overloads with several results, of which the first is a value that Lilliput knows: the maximum, not its place."""
