"""Sorting many float32 by their bits, several times faster than by comparisons.

Imports numba: import this file inside the function that needs it.
"""

from typing import Any

import numpy as np

from lilliput.ops.jit import kernel

DIGIT, DIGITS = 11, 3


@kernel
def ascending(bits: Any) -> Any:
    """The float32 whose bits are the uint32 `bits` [n], in ascending order, as float64. NaN is at one of the ends."""
    count = len(bits)
    buckets = np.zeros((DIGITS, 1 << DIGIT), np.int64)
    last = np.uint32((1 << DIGIT) - 1)
    keys, spare = np.empty(count, np.uint32), np.empty(count, np.uint32)
    shift = np.uint32(DIGIT)
    for p in range(count):
        b = bits[p]
        key = ~b if b >> np.uint32(31) else b | np.uint32(1 << 31)  # ascending like the floats
        keys[p] = key
        buckets[0, key & last] += 1
        buckets[1, (key >> shift) & last] += 1
        buckets[2, key >> (shift + shift)] += 1
    for digit in range(DIGITS):
        place = buckets[digit]
        total = 0
        for v in range(1 << DIGIT):
            total, place[v] = total + place[v], total
        down = np.uint32(digit * DIGIT)
        for p in range(count):
            key = keys[p]
            v = (key >> down) & last
            spare[place[v]] = key
            place[v] += 1
        keys, spare = spare, keys
    for p in range(count):
        key = keys[p]
        spare[p] = key ^ np.uint32(1 << 31) if key >> np.uint32(31) else ~key
    return spare.view(np.float32).astype(np.float64)
