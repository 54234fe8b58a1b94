"""Functions of one value that learn: one for each channel, for groups of channels, or for all of them.

Points on a uniform grid over [-limit, limit] with lines between them, and beyond the ends the lines of the ends:
`piecewise_linear`. On the CPU in float32 forward and backward are one loop each (`learned_function_kernels`); anything
else, and gradients of gradients, take the same in torch (`piecewise_linear_torch`).

Where the points come from is the `kind` (`table_of`), a row of `weight` for each function:

- "table": they are the weight [points]; this is also a spline of degree 1 (Bohra et al., 2020,
  https://arxiv.org/abs/2001.01987);
- "cubic": coefficients [points + 2] of a uniform cubic B-spline, taken at the grid;
- "lerp_psa": of `psa` below, taken at the grid (PSA-Compress, https://doi.org/10.1145/3705926);
- "psa": `psa` itself, without a grid.

PSA is a mixture of lines through the origin: with z = 4 x / limit, f(x) = limit / 4 (s z sum_e a_e(z) v_e + o), where
a(z) is the softmax over e of -(z - b_e)^2 / (w_e^2 + 1). A weight is [v, w, b, s, o]: 3 terms + 2 numbers. At limit 4
that is the published function.
"""

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

KINDS = ("table", "lerp_psa", "psa", "cubic")
SOFTNESS = 1.0
"""What PSA adds to w^2."""
PSA_LIMIT = 4.0
POINTS = 33
"""Of a grid, unless told otherwise."""
MOST_POINTS, MOST_ENTRIES = 1 << 12, 1 << 25
"""Of one grid; of all points, and of all their terms."""
SMALL_PLANE = 64
"""Places of a channel that are worth a loop of their own."""


def learned_function(
    x: Tensor, weight: Tensor, limit: Tensor, kind: str, points: int, dim: int = 1, owner: Tensor | None = None
) -> Tensor:
    """`weight` [rows, n], `limit` [1] or [rows]; channel c of dimension `dim` has row c // (channels / rows).

    With `owner`, integers [channels], it has row owner[c] instead.
    """
    if kind == "psa":
        return _psa_of_channels(x, of_channels(weight, owner), _limits(limit, owner), dim)
    return piecewise_linear(x, of_channels(table_of(weight, limit, kind, points), owner), _limits(limit, owner), dim)


def of_channels(rows: Tensor, owner: Tensor | None) -> Tensor:
    """What each channel has of `rows`; they themselves where no channel owns one."""
    return rows if owner is None else rows.index_select(0, owner.long())


def _limits(limit: Tensor, owner: Tensor | None) -> Tensor:
    return limit if len(limit) == 1 else of_channels(limit, owner)


def recorded(
    x: Tensor, weight: Tensor, limit: Tensor, kind: str, points: int, dim: int, owner: Tensor | None = None
) -> Tensor:
    """`learned_function` as one operation: what a trace records."""
    return _operation()(x, weight, limit, kind, points, dim, owner)


@functools.cache
def _operation() -> Any:
    def learned(
        x: Tensor, weight: Tensor, limit: Tensor, kind: str, points: int, dim: int, owner: Tensor | None = None
    ) -> Tensor:
        return learned_function(x, weight, limit, kind, points, dim, owner)

    def shape(
        x: Tensor, weight: Tensor, limit: Tensor, kind: str, points: int, dim: int, owner: Tensor | None = None
    ) -> Tensor:
        del weight, limit, kind, points, dim, owner
        return torch.empty_like(x)

    operation = torch.library.custom_op("lilliput::learned_function", learned, mutates_args=())
    operation.register_fake(shape)
    return torch.ops.lilliput.learned_function.default


# --- from weights to points ------------------------------------------------------------------------------------------


def grid_of(limit: Tensor, points: int) -> Tensor:
    """[len(limit), points]: from -limit to limit."""
    steps = torch.arange(points, dtype=limit.dtype, device=limit.device)
    return limit[:, None] * (2 * steps - (points - 1)) / (points - 1)


def table_of(weight: Tensor, limit: Tensor, kind: str, points: int) -> Tensor:
    """[rows, points]: the values at the points of the grid."""
    if kind == "table":
        return weight
    if kind == "cubic":
        return (weight[:, :-2] + 4 * weight[:, 1:-1] + weight[:, 2:]) / 6
    return psa(grid_of(limit, points).expand(len(weight), points), weight, limit)


def psa(x: Tensor, weight: Tensor, limit: Tensor) -> Tensor:
    """x [rows, n]: each row with its own function."""
    terms = (weight.shape[1] - 2) // 3
    v, w, b, scale, offset = weight.split([terms, terms, terms, 1, 1], dim=1)
    factor = limit[:, None] / PSA_LIMIT
    z = x / factor
    scores = -((z[:, :, None] - b[:, None]) ** 2) / (w[:, None] ** 2 + SOFTNESS)
    mixed = (torch.softmax(scores, 2) * v[:, None]).sum(2)
    return factor * (scale * z * mixed + offset)


def _psa_of_channels(x: Tensor, weight: Tensor, limit: Tensor, dim: int) -> Tensor:
    wide = x.movedim(dim, 0)
    return psa(wide.reshape(len(weight), -1), weight, limit).reshape(wide.shape).movedim(0, dim)


def weight_size(kind: str, points: int, terms: int) -> int:
    """How many numbers a function has."""
    return {"table": points, "cubic": points + 2}.get(kind, 3 * terms + 2)


def points_of(kind: str, rows: int, size: int, points: int) -> int:
    """The points of `rows` functions of so many numbers; `points` where they do not say it.

    Raises ValueError for sizes that make no function, and for what would take more than `MOST_ENTRIES` to evaluate.
    """
    found = {"table": size, "cubic": size - 2}.get(kind, points)
    mixed = kind in ("psa", "lerp_psa")
    if kind not in KINDS or not 2 <= found <= MOST_POINTS or (mixed and (size < 5 or (size - 2) % 3)):
        raise ValueError(f"{size} numbers for a function of kind {kind!r} with {found} points")
    if rows * (found * (size - 2) // 3 if mixed else size) > MOST_ENTRIES:
        raise ValueError(f"{rows} functions of kind {kind!r} with {found} points")
    return found


# --- lines between points --------------------------------------------------------------------------------------------


def piecewise_linear(x: Tensor, table: Tensor, limit: Tensor, dim: int = 1) -> Tensor:
    """`table` [rows, points], on a grid over [-limit, limit]; `limit` [1] or [rows] gets no gradient."""
    if x.dtype in (torch.bfloat16, torch.float16) and table.dtype == torch.float32:  # autocast
        return piecewise_linear(x.float(), table, limit, dim).to(x.dtype)
    tensors = (x, table, limit)
    if torch.compiler.is_compiling() or not all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors):
        return piecewise_linear_torch(x, table, limit, dim)
    return _Kernel.apply(x, table, limit, dim % x.dim())  # pyright: ignore[reportReturnType]


def piecewise_linear_torch(x: Tensor, table: Tensor, limit: Tensor, dim: int = 1) -> Tensor:
    """The same in torch: any device, any precision, gradients of any order."""
    rows, points = table.shape
    channels = x.shape[dim]
    along = [-1 if d == dim % x.dim() else 1 for d in range(x.dim())]
    row = torch.arange(channels, device=x.device) // (channels // rows)
    scale = ((points - 1) / (2 * limit.detach())).expand(rows)[row].reshape(along)
    u = x * scale + (points - 1) / 2
    index = u.detach().nan_to_num(0.0).floor().clamp(0, points - 2)
    first = index.long() + (row * points).reshape(along)
    flat = table.reshape(-1)
    left, right = flat[first], flat[first + 1]
    return (left + (u - index) * (right - left)).to(x.dtype)


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, limit: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(x, table, limit)
        ctx.dim = dim
        y = np.empty_like(_folded(x, dim))
        loops = _Loops(x, table, limit, dim)
        if x.numel():
            loops.forward(_folded(x, dim), y)
        return torch.from_numpy(y.reshape(x.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, table, limit = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants gradients of these gradients
            y = piecewise_linear_torch(x, table, limit, ctx.dim)
            wanted = [t for t, needed in zip((x, table), ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(y, wanted, gradients[0], create_graph=True))
            return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:2]), None, None)
        source = _folded(x, ctx.dim)
        dx = np.empty_like(source)
        loops = _Loops(x, table, limit, ctx.dim)
        sums = np.zeros((table.numel(), 2))
        if x.numel():
            loops.backward(source, _folded(gradients[0], ctx.dim), dx, sums)
        sums = sums.reshape(*table.shape, 2)
        dtable = sums[..., 0] - sums[..., 1]
        dtable[:, 1:] += sums[:, :-1, 1]
        return torch.from_numpy(dx.reshape(x.shape)), torch.from_numpy(dtable.astype(np.float32)), None, None


def _folded(x: Tensor, dim: int) -> Any:
    """[n, channels, inner]; [n, channels x inner] where little follows the channels."""
    array = x.detach().contiguous().numpy()
    inner = math.prod(x.shape[dim + 1 :])
    return array.reshape(-1, x.shape[dim], inner) if inner > SMALL_PLANE else array.reshape(-1, x.shape[dim] * inner)


class _Loops:
    """What the kernels need besides values and gradients."""

    def __init__(self, x: Tensor, table: Tensor, limit: Tensor, dim: int) -> None:
        rows, points = table.shape
        channels, inner = x.shape[dim], math.prod(x.shape[dim + 1 :])
        values = table.detach().contiguous().numpy()
        self.lines = np.zeros((rows, points, 2), np.float32)
        self.lines[..., 0] = values
        self.lines[:, :-1, 1] = values[:, 1:] - values[:, :-1]
        row = np.arange(channels) // (channels // rows)
        scale = ((points - 1) / (2 * limit.detach())).expand(rows).numpy()[row]
        base = (row * points).astype(np.int32)
        room = inner
        if inner <= SMALL_PLANE:
            base, scale, room = base.repeat(inner), scale.repeat(inner), channels * inner
        half, last = np.float32((points - 1) / 2), np.float32(points - 2)
        self.places = (self.lines.reshape(-1, 2), base, np.ascontiguousarray(scale), half, last)
        self.room = (np.empty(room, np.int32), np.empty(room, np.float32))

    def forward(self, x: Any, y: Any) -> None:
        from lilliput.ops.learned_function_kernels import planes_forward, rows_forward

        (rows_forward if x.ndim == 2 else planes_forward)(x, *self.places, *self.room, y)

    def backward(self, x: Any, g: Any, dx: Any, sums: Any) -> None:
        from lilliput.ops.learned_function_kernels import LANES, planes_backward, rows_backward

        parts = np.zeros((1 if x.ndim == 2 else LANES, self.lines.size // 2, 2), np.float32)
        (rows_backward if x.ndim == 2 else planes_backward)(x, g, *self.places, *self.room, dx, parts, sums)


# --- how bent functions are ------------------------------------------------------------------------------------------


def bends(table: Tensor, limit: Tensor) -> Tensor:
    """[rows, points - 2]: by how much the slope changes at each inner point."""
    step = 2 * limit[:, None] / (table.shape[1] - 1)
    return (table[:, 2:] - 2 * table[:, 1:-1] + table[:, :-2]) / step


def second_variation(table: Tensor, limit: Tensor) -> Tensor:
    """The second-order total variation of all functions: the sum of the sizes of their bends."""
    return bends(table, limit).abs().sum()


def without_small_bends(table: Tensor, limit: Tensor, threshold: float) -> Tensor:
    """The same functions with bends of at most `threshold` straightened: fewer different lines.

    What a bend had turned is made up for by a straight line, the best for the points (least squares).
    """
    rows, points = table.shape
    found, grid = bends(table.double(), limit.double()), grid_of(limit.double(), points).expand(rows, points)
    kept = torch.where(found.abs() > threshold, found, 0.0)
    bent = (kept[:, None] * (grid[:, :, None] - grid[:, None, 1:-1]).clamp(min=0)).sum(2)
    left = table.double() - bent
    slope = (grid * left).mean(1, keepdim=True) / (grid**2).mean(1, keepdim=True)  # the grid's mean is 0
    return (bent + left.mean(1, keepdim=True) + slope * grid).to(table.dtype)
