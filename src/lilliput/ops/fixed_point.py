"""The integer arithmetic of a deployed network; C, Verilog and ONNX are measured against this definition.

Integers are torch int64 tensors; numpy users convert with `torch.from_numpy`. Scales, multipliers, shifts and zero
points broadcast against the codes, so a per-channel parameter is given in a shape such as [c, 1, 1]. The rules:

- one rounding everywhere: to nearest, halves up (towards +infinity), `floor(x + 1/2)`. ONNX rounds halves to even, so
  it may differ by one code where the fraction is exactly one half;
- accumulators hold int32 values, |acc| <= 2^31; multipliers lie in [2^30, 2^31) or are 0; shifts lie in 1..62. Then
  |acc * multiplier| < 2^62, the rounding term is at most 2^61, and their sum is below 2^63: int64 never overflows;
- the zero point is added after the rounding, then the result saturates to [low, high].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MULTIPLIER_BITS = 31
LARGEST_SHIFT = 62
WIDEST_CODE = 32
DEAD_SHIFT = 31


def integer_range(bit_width: int, *, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Lowest and highest code. `narrow` drops the lowest one, so that signed codes are symmetric: 8 bits -127..127."""
    if not 1 <= bit_width <= WIDEST_CODE:
        raise ValueError(f"bit width must be in 1..{WIDEST_CODE}, not {bit_width}")
    if narrow and bit_width == 1:
        raise ValueError("a narrow range needs at least 2 bits")
    low = -(1 << (bit_width - 1)) if signed else 0
    return low + int(narrow), low + (1 << bit_width) - 1


def quantize_multiplier(real: Tensor | float) -> tuple[Tensor, Tensor]:
    """`(multiplier, shift)`, each of the shape of `real`, with `real` nearly equal to `multiplier * 2^-shift`.

    Relative error at most 2^-31; exact for powers of two. A real below 2^-32, zero included (a dead channel), gives
    multiplier 0: its exact product with an accumulator is under one half, so it would round to 0 anyway.
    """
    value = _float64(real)
    if not bool((torch.isfinite(value) & (value >= 0)).all()):
        raise ValueError("multipliers must be finite and not negative")
    mantissa, exponent = torch.frexp(value)
    multiplier = torch.floor(mantissa * 2.0**MULTIPLIER_BITS + 0.5).to(torch.int64)
    shift = MULTIPLIER_BITS - exponent.to(torch.int64)
    carried = multiplier == 1 << MULTIPLIER_BITS
    multiplier = torch.where(carried, 1 << (MULTIPLIER_BITS - 1), multiplier)
    shift = torch.where(carried, shift - 1, shift)
    dead = value < 2.0 ** (MULTIPLIER_BITS - 1 - LARGEST_SHIFT)
    if bool((~dead & (shift < 1)).any()):
        raise ValueError(f"multipliers must stay below 2^30: found {float(value.max()):g}")
    return torch.where(dead, 0, multiplier), torch.where(dead, DEAD_SHIFT, shift)


def shared_shift(reals: Tensor) -> tuple[Tensor, Tensor]:
    """`(multipliers, shift)` like `quantize_multiplier` for the largest of `reals`, the others to its precision.

    One shift [1] serves all channels of an operation. An accumulator's product is off by at most 2^-31 of what the
    largest multiplier would make of it.
    """
    value = _float64(reals)
    largest, shift = quantize_multiplier(value.max())
    multipliers = torch.floor(torch.ldexp(value, shift) + 0.5).to(torch.int64)
    return torch.where(largest == 0, 0, multipliers.clamp(max=(1 << MULTIPLIER_BITS) - 1)), shift.reshape(1)


def rounding_shift(x: Tensor, shift: Tensor | int) -> Tensor:
    """`floor(x / 2^shift + 1/2)` for int64 `x` and `shift` in 0..62; `x + 2^(shift - 1)` must fit into int64."""
    amount = torch.as_tensor(shift, dtype=torch.int64, device=x.device)
    half = (torch.ones_like(amount) << amount) >> 1
    return (x + half) >> amount


def requantize(
    accumulator: Tensor, multiplier: Tensor | int, shift: Tensor | int, zero_point: Tensor | int, low: int, high: int
) -> Tensor:
    """`saturate(rounding_shift(accumulator * multiplier, shift) + zero_point)`, for |accumulator| <= 2^31."""
    return requantize_shift(accumulator * multiplier, shift, zero_point, low, high)


def requantize_shift(accumulator: Tensor, shift: Tensor | int, zero_point: Tensor | int, low: int, high: int) -> Tensor:
    """`requantize` for a real multiplier of `2^-shift`: no multiplication, `shift` may be 0."""
    return torch.clamp(rounding_shift(accumulator, shift) + zero_point, low, high)


def add_multipliers(scales: Sequence[float], scale_out: float) -> tuple[tuple[int, ...], int]:
    """Multipliers with one common shift for an integer addition of inputs with these scales.

    The largest lies in [2^30, 2^31), the others are to its precision. All are 0 if every input is too small to count.
    """
    if not scales:
        raise ValueError("an addition needs at least one input scale")
    ratios = torch.tensor(scales, dtype=torch.float64) / scale_out
    if not bool((torch.isfinite(ratios) & (ratios > 0)).all()):
        raise ValueError(f"scales must be finite and positive: found {list(scales)} and {scale_out} for the output")
    largest, shift = (int(value) for value in quantize_multiplier(ratios.max()))
    if largest == 0:
        return (0,) * len(scales), shift
    multipliers = torch.floor(ratios * 2.0**shift + 0.5)
    return tuple(int(value) for value in multipliers), shift


def requantize_add(
    codes: Sequence[Tensor],
    zero_points: Sequence[int],
    multipliers: Sequence[int],
    shift: int,
    zero_point: int,
    low: int,
    high: int,
) -> Tensor:
    """The sum of several inputs with one rounding: `saturate(rounding_shift(sum (q - z) * m, shift) + zero_point)`.

    Codes of at most 16 bits, |q - z| < 2^16, and at most 2^14 inputs keep the sum below 2^61.
    """
    terms = [(q - z) * m for q, z, m in zip(codes, zero_points, multipliers, strict=True)]
    return requantize_shift(sum(terms[1:], terms[0]), shift, zero_point, low, high)


def quantize(
    x: Tensor, scale: Tensor | float, zero_point: Tensor | int, low: Tensor | int, high: Tensor | int
) -> Tensor:
    """`saturate(floor(x / scale + 1/2) + zero_point)` in float64: infinities saturate, NaN is refused.

    For float32 `x` and `scale` and |x / scale| < 2^26 this is the value in exact arithmetic: a quotient of two 24-bit
    numbers that is not a half keeps further from it than float64 rounds.
    """
    quotient = x.to(torch.float64) / _float64(scale)
    if bool(torch.isnan(quotient).any()):
        raise ValueError("NaN cannot be quantized")
    codes = torch.floor(quotient + 0.5) + zero_point
    bounds = (torch.as_tensor(bound, dtype=codes.dtype, device=codes.device) for bound in (low, high))
    return torch.clamp(codes, *bounds).to(torch.int64)


def dequantize(codes: Tensor, scale: Tensor | float, zero_point: Tensor | int) -> Tensor:
    """`(codes - zero_point) * scale`, computed in float64 and rounded once to float32."""
    return ((codes - zero_point).to(torch.float64) * _float64(scale)).to(torch.float32)


def _float64(number: Tensor | float) -> Tensor:
    if isinstance(number, Tensor):
        return number.to(torch.float64)
    return torch.tensor(number, dtype=torch.float64)  # as_tensor would round to float32 first
