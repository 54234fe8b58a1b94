"""Choosing the affine grid `(code - zero_point) * scale` for real values, and rounding to it.

Everything works on rows: a [rows, n] view with one grid per row, one row for a whole tensor (`rows_of`). First a range
is chosen (`min_max`, `percentile`, `mse`), then the grid for it (`affine_parameters`). The rounding itself is that of
`ops.fixed_point`, so what is searched for is what is stored.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lilliput.ops.fixed_point import dequantize, integer_range, quantize

FEWEST_BITS, MOST_BITS = 2, 16
SCALE_BITS = 2
"""Of the mantissa of a short step: the least error is flat around it, and short mantissas take fewer bytes."""
SHRINK_STEPS = 100
AT_ONCE = 1 << 16
"""Values that `mse` rounds in one go: for short rows, of many shares; for long ones, of one share at a time."""


class Range(NamedTuple):
    """Lowest and highest value to represent, float64 [rows] each."""

    low: Tensor
    high: Tensor


def rows_of(values: Tensor, *, per_channel: bool) -> Tensor:
    """[1, n], or [c, n] with one row for each index of dimension 0."""
    return values.reshape(values.shape[0] if per_channel else 1, -1)


def min_max(rows: Tensor) -> Range:
    """The smallest and the largest value of each row."""
    checked = _checked(rows)
    return Range(checked.amin(1), checked.amax(1))


def percentile(rows: Tensor, percent: float) -> Range:
    """The values at rank `ceil(percent / 100 * n)` from below and from above; no interpolation. 100 is `min_max`."""
    checked = _checked(rows)
    if not 50 < percent <= 100:
        raise ValueError(f"percent must be above 50 and at most 100, not {percent}")
    n = checked.shape[1]
    rank = math.ceil(percent * n / 100 - 1e-9)  # 99.9 % of 1000 is rank 999, also in floating point
    return Range(torch.kthvalue(checked, n + 1 - rank, 1).values, torch.kthvalue(checked, rank, 1).values)


def mse(
    rows: Tensor,
    *,
    bit_width: int,
    signed: bool,
    symmetric: bool,
    narrow: bool = False,
    power_of_two: bool = False,
) -> Range:
    """The share 1.00, 0.99, ... 0.01 of `min_max` with the least squared rounding error; the largest of equal ones.

    The error is never above that of `min_max`. Every share rounds all rows once: subsample long activations.
    """
    checked = _checked(rows)
    widest = min_max(checked)
    low_code, high_code = integer_range(bit_width, signed=signed, narrow=narrow)
    least = torch.full_like(widest.low, math.inf)
    best = torch.ones_like(widest.low)
    shares = torch.arange(SHRINK_STEPS, 0, -1, dtype=torch.float64, device=checked.device)[:, None] / SHRINK_STEPS
    for some in shares.split(max(1, AT_ONCE // checked.numel())):
        scale, zero_point = affine_parameters(
            (widest.low * some).flatten(),
            (widest.high * some).flatten(),
            bit_width=bit_width,
            signed=signed,
            symmetric=symmetric,
            narrow=narrow,
            power_of_two=power_of_two,
        )
        same = checked.repeat(len(some), 1)
        codes = quantize_rows(same, scale, zero_point, low_code, high_code)
        errors = (dequantize_rows(codes, scale, zero_point) - same).square().sum(1).reshape(len(some), -1)
        error = errors.amin(0)
        share = torch.where(errors == error, some, 0.0).amax(0)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, share, best)
    return Range(widest.low * best, widest.high * best)


def affine_parameters(
    low: Tensor,
    high: Tensor,
    *,
    bit_width: int,
    signed: bool,
    symmetric: bool,
    narrow: bool = False,
    power_of_two: bool = False,
) -> tuple[Tensor, Tensor]:
    """`(scale, zero_point)`, float32 and int64 of the shape of `low`, for 2 to 16 bits; `narrow` as in `integer_range`.

    The range is widened to hold 0, which is represented exactly; a range of only 0 gets scale 1. Every value of the
    range then lies within half a scale of a code. Symmetric puts 0 at the middle code: zero point 0, or 2^(bits - 1)
    unsigned. The scale is rounded up to float32, or to a power of two, and is a normal number: at least 2^-126.
    """
    if not FEWEST_BITS <= bit_width <= MOST_BITS:
        raise ValueError(f"bit width must be in {FEWEST_BITS}..{MOST_BITS}, not {bit_width}")
    low, high = low.to(torch.float64), high.to(torch.float64)
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all()):
        raise ValueError("a range must be finite, its low end not above its high end")
    low, high = low.clamp(max=0), high.clamp(min=0)
    low_code, high_code = integer_range(bit_width, signed=signed, narrow=narrow)
    if symmetric:
        middle = 0 if signed else 1 << (bit_width - 1)
        exact = torch.maximum(high / (high_code - middle), low / (low_code - middle))
        scale = _scale(exact, power_of_two=power_of_two)
        return scale, torch.full_like(scale, middle, dtype=torch.int64)
    scale = _scale((high - low) / (high_code - low_code), power_of_two=power_of_two)
    zero_point = torch.floor(-low / scale.to(torch.float64) + 0.5) + low_code
    return scale, zero_point.clamp(low_code, high_code).to(torch.int64)


def quantize_rows(rows: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Nearest codes, int64 [rows, n], for one scale and zero point per row."""
    return quantize(rows, scale[:, None], zero_point[:, None], low, high)


def dequantize_rows(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The float32 values [rows, n] that the codes stand for."""
    return dequantize(codes, scale[:, None], zero_point[:, None])


def short(steps: Tensor) -> Tensor:
    """With `SCALE_BITS` bits of mantissa after the first, rounded: a file takes a byte for each."""
    mantissa, exponent = torch.frexp(steps)
    unit = 2.0 ** (SCALE_BITS + 1)
    return torch.ldexp(torch.round(mantissa * unit) / unit, exponent)


def next_power_of_two(x: Tensor) -> Tensor:
    """The least power of two that is at least `x`, for positive numbers."""
    mantissa = torch.frexp(x).mantissa
    return torch.where(mantissa == 0.5, x, x / mantissa)  # exact


def _scale(exact: Tensor, *, power_of_two: bool) -> Tensor:
    """The smallest normal float32, or power of two, that is at least `exact`; 1 for 0."""
    exact = torch.where(exact == 0, 1.0, exact)
    if power_of_two:
        exact = next_power_of_two(exact)
    scale = exact.to(torch.float32)
    scale = torch.where(
        scale.to(torch.float64) < exact, torch.nextafter(scale, torch.full_like(scale, math.inf)), scale
    )
    if not bool(torch.isfinite(scale).all()):
        raise ValueError(f"the scale of this range is beyond float32: {float(exact.max()):g}")
    return scale.clamp(min=torch.finfo(torch.float32).tiny)


def _checked(rows: Tensor) -> Tensor:
    """`rows` as float64, if it is a non-empty matrix of finite numbers."""
    if rows.ndim != 2 or rows.numel() == 0:
        raise ValueError(f"rows must be a non-empty matrix, not of shape {tuple(rows.shape)}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("rows must be finite: found NaN or infinity")
    return rows.to(torch.float64)
