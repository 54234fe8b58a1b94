"""Runs an integer program in numpy, for many samples at once: what C and every other back-end is compared with.

Each operation is written once, plainly. `fast` changes one thing: sums of products go through float BLAS where the
program proves that every partial sum is exact there, float32 below 2^24 and else float64. Products of sums, too, are
then sums of products, which are equal.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from lilliput.core.errors import UsageError
from lilliput.core.program import Ints, Operation, Program, Value

EXACT_FLOAT32 = 1 << 24


def quantize_input(program: Program, x: npt.NDArray[np.floating[Any]]) -> Ints:
    """Codes of real inputs [n, ...]: saturate(floor(x / scale + 1/2) + zero_point), in float64."""
    value = program.values[program.input]
    codes = np.floor(x.astype(np.float64) / value.scale[0] + 0.5) + value.zero_point
    return np.clip(codes, value.low, value.high).astype(np.int64)


def decode(value: Value, q: Ints) -> npt.NDArray[np.float32]:
    """What integers [n, ...] of a value are worth."""
    return ((q - value.zero_point) * value.scales()).astype(np.float32)


def run(
    program: Program, codes: Ints, *, fast: bool = True, visit: Callable[[Operation, Ints], None] | None = None
) -> tuple[Ints, ...]:
    """The outputs for `codes` [n, ...] of the input. `visit` sees the result of each operation."""
    expected = program.values[program.input]
    if codes.ndim != len(expected.shape) + 1 or codes.shape[1:] != expected.shape:
        raise UsageError(
            "run a program", f"input of shape {codes.shape}", f"give [n, {', '.join(map(str, expected.shape))}]"
        )
    if codes.size and (codes.min() < expected.low or codes.max() > expected.high):
        found = f"codes from {codes.min()} to {codes.max()}"
        raise UsageError("run a program", found, f"give integers from {expected.low} to {expected.high}")
    left = {name: len(readers) for name, readers in program.readers().items()}
    values: dict[str, Ints] = {program.input: codes.astype(np.int64)}
    for operation in program:
        result = _compute(program, operation, values, fast=fast)
        if visit is not None:
            visit(operation, result)
        values[operation.output] = result
        for name in dict.fromkeys(operation.inputs):
            left[name] -= 1
            if not left[name] and name not in program.outputs:
                del values[name]
    return tuple(values[name] for name in program.outputs)


def _compute(program: Program, o: Operation, values: Mapping[str, Ints], *, fast: bool) -> Ints:
    x, value = values[o.inputs[0]], program.values[o.inputs[0]]
    a = o.attributes
    if o.kind in ("conv", "conv_transposed", "linear", "grouped_sum"):
        reach = max(abs(value.low - value.zero_point), abs(value.high - value.zero_point))
        return _layer(program, o, x - value.zero_point, reach, fast=fast)
    if o.kind == "add":
        parts = [values[n] - program.values[n].zero_point for n in o.inputs]
        return o.rescale[0](parts[0] * a["multipliers"][0] + parts[1] * a["multipliers"][1], None)
    if o.kind == "mul":
        parts = [values[n] - program.values[n].zero_point for n in o.inputs]
        return _finish(o, parts[0] * parts[1], None)
    if o.kind == "concat":
        parts = [r(values[n] - program.values[n].zero_point, None) for n, r in zip(o.inputs, o.rescale, strict=True)]
        return np.concatenate(parts, axis=a["dim"] + 1)
    if o.kind == "sum":
        sums = (x - value.zero_point).sum(axis=tuple(d + 1 for d in a["dims"]))
        return _finish(o, sums.reshape((len(x), *program.values[o.output].shape)), None)
    if o.kind == "sum_pool":
        windows = _windows(x - value.zero_point, a["kernel"], a["stride"], (1,) * len(a["kernel"]), a["pads"], 0)
        return _finish(o, _over_taps(np.add, windows, a["kernel"]), None)
    if o.kind == "max_pool":
        windows = _windows(x, a["kernel"], a["stride"], a["dilation"], a["pads"], value.low)
        return _over_taps(np.maximum, windows, a["kernel"])
    if o.kind == "max":
        most = x.max(axis=tuple(d + 1 for d in a["dims"]))
        return most.reshape((len(x), *program.values[o.output].shape))
    if o.kind == "rescale":
        return o.rescale[0](x - value.zero_point, None)
    if o.kind in ("table", "interpolate") and o.table is not None:
        return _function(o, o.table, x - a["first"])
    if o.kind == "argmax":
        by = np.array(a.get("multipliers", (1,)))
        wide = [1] * x.ndim
        wide[a["dim"] + 1] = -1
        best = np.argmax(x * by.reshape(wide), axis=a["dim"] + 1, keepdims=True)  # of equal ones the first
        return best.reshape((len(x), *program.values[o.output].shape))
    return _move(program, o, x)


def _function(o: Operation, table: Ints, index: Ints) -> Ints:
    """A table, or points 2^shift apart with lines between them; one for all, or one for each channel."""

    def entry(at: Ints) -> Ints:
        if "channel" not in o.attributes:
            return table[at]
        wide = [1] * at.ndim
        wide[o.attributes["channel"] + 1] = -1
        return table[np.array(o.attributes.get("owner", range(len(table)))).reshape(wide), at]

    if o.kind == "table":
        return entry(index)
    shift = o.attributes["shift"]
    place, rest = index >> shift, index % (1 << shift)
    left, right = entry(place), entry(place + 1)
    return left + (((right - left) * rest + (1 << shift >> 1)) >> shift)


def _over_taps(function: np.ufunc, windows: Ints, kernel: tuple[int, ...]) -> Ints:
    """`function` over the last dimensions, one place of the kernel after the other: long runs instead of short ones."""
    taps = [windows[(..., *at)] for at in np.ndindex(*kernel)]
    result = taps[0].copy()
    for tap in taps[1:]:
        function(result, tap, out=result)
    return result


def _move(program: Program, o: Operation, x: Ints) -> Ints:
    a = o.attributes
    shape = (len(x), *program.values[o.output].shape)
    if o.kind == "reshape":
        return x.reshape(shape)
    if o.kind == "transpose":
        return x.transpose(0, *(d + 1 for d in a["order"]))
    if o.kind == "slice":
        at = [slice(None)] * x.ndim
        at[a["dim"] + 1] = slice(a["start"], a["stop"], a["step"])
        return x[tuple(at)].reshape(shape)
    if o.kind == "pad":
        return np.pad(x, ((0, 0), *a["pads"]), constant_values=a["code"])
    if o.kind == "upsample":
        for d, factor in enumerate(a["factors"]):
            x = x.repeat(factor, axis=d + 2)
        return x
    raise UsageError("run a program", f"an operation {o.kind!r}", "use the kinds of docs/program.md")


def _finish(o: Operation, sums: Ints, channel: int | None) -> Ints:
    return o.rescale[0](sums, channel) if o.rescale else sums


def _layer(program: Program, o: Operation, x: Ints, reach: int, *, fast: bool) -> Ints:
    weight = program.tensors[o.weight or ""]
    if "kernel" not in o.attributes:
        grouped = o.kind == "grouped_sum" and not fast
        sums = _product_of_sums(x, weight) if grouped else _product(x, weight.T, reach, fast=fast)
        channel = sums.ndim - 1
    else:
        sums = _convolution(o, x, weight, reach, fast=fast)
        channel = 1
    if o.bias is not None:
        wide = [1] * sums.ndim
        wide[channel] = -1
        sums = sums + program.tensors[o.bias].reshape(wide)
    return _finish(o, sums, channel)


def _convolution(o: Operation, x: Ints, weight: Ints, reach: int, *, fast: bool) -> Ints:
    a = o.attributes
    rank, groups = len(a["kernel"]), a["groups"]
    pads, stride = a["pads"], a["stride"]
    if o.kind == "conv_transposed":  # the convolution of the input with zeros between, with turned kernels
        weight = np.concatenate([part.swapaxes(0, 1) for part in np.split(weight, groups)])
        weight = np.flip(weight, axis=tuple(range(-rank, 0)))
        spread = np.zeros(
            (*x.shape[:2], *((s - 1) * t + 1 for s, t in zip(x.shape[2:], stride, strict=True))), np.int64
        )
        spread[(slice(None), slice(None), *(slice(None, None, t) for t in stride))] = x
        span = [d * (k - 1) for k, d in zip(a["kernel"], a["dilation"], strict=True)]
        pads = tuple((r - p[0], r - p[1] + more) for r, p, more in zip(span, pads, a["output_padding"], strict=True))
        x, stride = spread, (1,) * rank
    kind = _kind(reach, weight.reshape(len(weight), -1).T, fast=fast)
    picture: Any = np.moveaxis(x, 1, -1).astype(kind, order="C")  # channels last: windows are long runs to copy
    weights: Any = np.moveaxis(weight, 1, -1).astype(kind)  # [out channels, *kernel, channels / groups]
    windows: Any = _windows(np.moveaxis(picture, -1, 1), a["kernel"], stride, a["dilation"], pads, 0)
    windows = np.moveaxis(windows, 1, -1)  # [n, *out, *kernel, channels]
    n, channels, out = len(x), x.shape[1], windows.shape[1 : 1 + rank]
    grouped = o.kind == "grouped_sum" and not fast
    if groups == channels == len(weight) > 1 and not grouped:  # depthwise: no products of matrices
        sums: Any = np.zeros((n, *out, channels), kind)
        for at in np.ndindex(*a["kernel"]):
            sums += windows[(slice(None),) * (1 + rank) + at] * weights[(slice(None), *at, 0)]
    else:
        parts: list[Any] = []
        for g, rows in enumerate(np.split(weights, groups)):
            own = windows[..., g * channels // groups : (g + 1) * channels // groups]
            columns, flat = own.reshape(n * math.prod(out), -1), rows.reshape(len(rows), -1)
            own_sums = _product_of_sums(columns, flat) if grouped else columns @ flat.T
            parts.append(own_sums.reshape(n, *out, -1))
        sums = np.concatenate(parts, axis=-1)
    return np.moveaxis(sums.astype(np.int64), -1, 1)


def _kind(reach: int, w: Ints, *, fast: bool) -> type[np.int64 | np.float32 | np.float64]:
    """In which x @ w is exact for |x| <= reach. No partial sum is larger than all products together without signs."""
    if not fast:
        return np.int64
    return np.float32 if reach * int(np.abs(w).sum(axis=0).max()) < EXACT_FLOAT32 else np.float64


def _product(x: Ints, w: Ints, reach: int, *, fast: bool) -> Ints:
    kind = _kind(reach, w, fast=fast)
    return (x.astype(kind) @ w.astype(kind)).astype(np.int64)


def _product_of_sums(x: Ints, rows: Ints) -> Ints:
    """x @ rows.T with a multiply for each of the different numbers of a row that are not 0."""
    sums = np.zeros((*x.shape[:-1], len(rows)), np.int64)
    for o, row in enumerate(rows):
        for weight in np.unique(row[row != 0]):
            sums[..., o] += weight * x[..., row == weight].sum(axis=-1)
    return sums


def _windows(
    x: Ints, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], pads: Any, fill: int
) -> Ints:
    """[n, c, *out, *kernel]; negative pads cut."""
    rank = len(kernel)
    x = np.pad(x, ((0, 0), (0, 0), *((max(0, p), max(0, q)) for p, q in pads)), constant_values=fill)
    cut = tuple(slice(max(0, -p), x.shape[2 + d] - max(0, -q)) for d, (p, q) in enumerate(pads))
    x = x[(slice(None), slice(None), *cut)]
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    windows = sliding_window_view(x, reach, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in stride)
    inner = tuple(slice(None, None, d) for d in dilation)
    return windows[(slice(None), slice(None), *steps, *inner)]
