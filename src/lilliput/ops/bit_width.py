"""Rounding to a learned number of levels: q(x, b, e) = 2^e clip(round(x / 2^e)), with b bits of levels.

Csefalvay and Imber (2023), "Self-compressing neural networks", https://arxiv.org/abs/2301.13142, equations 1 to 4.
There the bounds of the clip are real numbers, -2^(b-1) and 2^(b-1) - 1, so a level comes or goes where one of them
crosses a half, and b sticks there: at log2(5) it is charged 2.32 bits while 2 would do. Here the number of levels is
2^b rounded, one level (the zero) at b = 0; gradients pass straight through both roundings.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LN2 = math.log(2.0)
MOST_BITS = 16.0
"""Bit widths above this are held at it."""


def levels(bits: Tensor) -> Tensor:
    """int64: 2^b to the nearest, halves up; 1 where b is 0 or less."""
    return torch.floor(torch.exp2(bits.detach().double().clamp(0.0, MOST_BITS)) + 0.5).long()


def bounds(bits: Tensor) -> tuple[Tensor, Tensor]:
    """int64: the lowest and the highest integer of so many levels: -1 and 0 of 2, -1 and 1 of 3, -2 and 1 of 4."""
    count = levels(bits)
    return -(count // 2), (count - 1) // 2


def width(low: Tensor, high: Tensor) -> Tensor:
    """int64: the least bits of two's complement that hold `low..high`; 0 where both are 0."""
    magnitude = torch.maximum(-low, high + 1).double()
    needed = 1 + torch.ceil(torch.log2(magnitude.clamp(min=1.0))).long()
    return torch.where((low == 0) & (high == 0), 0, needed)


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """`integers` (as floats) and where x is `below` or `above` the clip, all of the shape of x."""

    integers: Tensor
    below: Tensor
    above: Tensor


def rounded(x: Tensor, bits: Tensor, exponent: Tensor) -> Rounded:
    """`bits` and `exponent` broadcast over x. Halves round up."""
    low, high = bounds(bits)
    near = torch.floor(x / torch.exp2(exponent) + 0.5)
    integers = torch.minimum(torch.maximum(near, low.to(x.dtype)), high.to(x.dtype))
    return Rounded(integers=integers, below=near < low, above=near > high)


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """dq/dx, dq/db and dq/de of every entry: the first is 1 inside of the clip and 0 outside."""

    x: Tensor
    bits: Tensor
    exponent: Tensor


def slopes(x: Tensor, bits: Tensor, exponent: Tensor, at: Rounded) -> Slopes:
    """Straight through the roundings.

    Inside of the clip 1, 0 and ln2 (q - x); outside 0, ln2 2^(b-1) 2^e with the sign of the bound, and ln2 q.
    """
    step = torch.exp2(exponent)
    value = at.integers * step
    inside = ~(at.below | at.above)
    reach = LN2 * torch.exp2(bits - 1.0) * step
    return Slopes(
        x=inside.to(x.dtype),
        bits=reach * (at.above.to(x.dtype) - at.below.to(x.dtype)),
        exponent=LN2 * torch.where(inside, value - x, value),
    )
