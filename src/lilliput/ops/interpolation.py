"""Functions of one value on integers: a table with an entry for each code, or lines between points for wide codes.

A table of 16 bits would take 65,536 entries. Codes of b = k + s bits read 2^k + 1 points instead, 2^s codes apart from
the lowest code on; the last one stands one step beyond the highest code. A value between two points lies on their line,
rounded to nearest, halves up. With points of at most 16 bits every product here fits into 32 bits.

Tables and points are int64 [n], or [channels, n]: then `channel` is the dimension of the codes that chooses the row.
With `owner`, int64 [channels], they are [rows, n], and channel c reads row owner[c].
"""

import torch
from torch import Tensor

from lilliput.ops.fixed_point import rounding_shift

WIDEST_TABLE = 8
"""Codes of more bits are interpolated."""
POINT_BITS = 8
FEWEST_POINT_BITS = 3


def point_codes(low: int, bit_width: int, point_bits: int = POINT_BITS) -> Tensor:
    """int64 [2^point_bits + 1]: where the points of codes of `bit_width` bits stand; `low` is the lowest code."""
    if not FEWEST_POINT_BITS <= point_bits <= min(POINT_BITS, bit_width):
        raise ValueError(f"point_bits must be in {FEWEST_POINT_BITS}..{min(POINT_BITS, bit_width)}, not {point_bits}")
    return low + (torch.arange((1 << point_bits) + 1) << (bit_width - point_bits))


def look_up(codes: Tensor, table: Tensor, low: int, channel: int = 1, owner: Tensor | None = None) -> Tensor:
    """`table[codes - low]`."""
    return _entries(codes - low, table, channel, owner)


def interpolate(
    codes: Tensor, points: Tensor, low: int, shift: int, channel: int = 1, owner: Tensor | None = None
) -> Tensor:
    """With i = codes - low, m = i >> shift and l the low `shift` bits of i: T[m] + ((T[m+1] - T[m]) l / 2^shift).

    The quotient is rounded to nearest, halves up. The result lies between T[m] and T[m+1].
    """
    index = codes - low
    place, rest = index >> shift, index & ((1 << shift) - 1)
    first = _entries(place, points, channel, owner)
    return first + rounding_shift((_entries(place + 1, points, channel, owner) - first) * rest, shift)


def _entries(index: Tensor, table: Tensor, channel: int, owner: Tensor | None) -> Tensor:
    if table.dim() == 1:
        return table[index]
    channels, count = table.shape
    rows = (torch.arange(channels, device=index.device) if owner is None else owner.to(index.device)) * count
    return table.reshape(-1)[index + rows.reshape([-1 if d == channel else 1 for d in range(index.dim())])]
