"""The functions of Cartesian circuits that compute integer weights: of one or two numbers of 2 to 16 bits.

Numbers are two's complement and every result wraps. MIN and MAX are the ends of the range: -128 and 127 in 8 bits.
Shifts to the right are arithmetic, to the left they lose the upper bits. Functions 0 to 27 are numbered as in published
circuits (cnn-cgp-compressor), whose identity is 100.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

NAMES = (
    "MAX - a",
    "a + b",
    "a - b",
    "a * b",
    "-a",
    "MIN + a",
    "a >> 2",
    "a >> 1",
    "a & b",
    "a | b",
    "a ^ b",
    "~a",
    "a << 1",
    "a + 1",
    "a - 1",
    "a >> 3",
    "a >> 4",
    "a >> 5",
    "a << 2",
    "a << 3",
    "a << 4",
    "a << 5",
    "1",
    "-1",
    "0",
    "MIN",
    "MAX",
    "row ? b : a",
    "a",
)
FLIP_LOWER, ADD, SUBTRACT, MULTIPLY, NEGATE, FLIP_SIGN, RIGHT_2, RIGHT_1, AND, OR = range(10)
XOR, NOT, LEFT_1, INCREMENT, DECREMENT, RIGHT_3, RIGHT_4, RIGHT_5, LEFT_2, LEFT_3 = range(10, 20)
LEFT_4, LEFT_5, ONE, MINUS_ONE, ZERO, MIN, MAX, MULTIPLEXER, IDENTITY = range(20, 29)
COUNT = len(NAMES)
"""Costs of functions are arrays of this length."""
CONSTANTS = (ONE, MINUS_ONE, ZERO, MIN, MAX)
"""Functions that read neither source."""
BINARY = (ADD, SUBTRACT, MULTIPLY, AND, OR, XOR, MULTIPLEXER)
"""Functions that read both sources; all others but the constants read a alone."""
DRAWN = tuple(function for function in range(COUNT) if function != MULTIPLEXER)
"""What a mutation may choose. Multiplexers (b in odd rows of data, a in even ones) are there only if given."""
SHIFTS = {RIGHT_1: 1, RIGHT_2: 2, RIGHT_3: 3, RIGHT_4: 4, RIGHT_5: 5}
LEFT_SHIFTS = {LEFT_1: 1, LEFT_2: 2, LEFT_3: 3, LEFT_4: 4, LEFT_5: 5}
READS = tuple(0 if f in CONSTANTS else 2 if f in BINARY else 1 for f in range(COUNT))
"""How many of its sources each function reads."""
Operation = Callable[[Any, Any, int, int], Any]
OPERATIONS: dict[int, Operation] = {
    FLIP_LOWER: lambda a, b, low, high: high - a,
    ADD: lambda a, b, low, high: a + b,
    SUBTRACT: lambda a, b, low, high: a - b,
    MULTIPLY: lambda a, b, low, high: a * b,
    NEGATE: lambda a, b, low, high: -a,
    FLIP_SIGN: lambda a, b, low, high: low + a,
    AND: lambda a, b, low, high: a & b,
    OR: lambda a, b, low, high: a | b,
    XOR: lambda a, b, low, high: a ^ b,
    NOT: lambda a, b, low, high: ~a,
    INCREMENT: lambda a, b, low, high: a + 1,
    DECREMENT: lambda a, b, low, high: a - 1,
    ONE: lambda a, b, low, high: 1,
    MINUS_ONE: lambda a, b, low, high: -1,
    ZERO: lambda a, b, low, high: 0,
    MIN: lambda a, b, low, high: low,
    MAX: lambda a, b, low, high: high,
    MULTIPLEXER: lambda a, b, low, high: a,
    IDENTITY: lambda a, b, low, high: a,
}
OPERATIONS |= {function: (lambda a, b, low, high, n=n: a >> n) for function, n in SHIFTS.items()}
OPERATIONS |= {function: (lambda a, b, low, high, n=n: a << n) for function, n in LEFT_SHIFTS.items()}
"""What each function makes of numbers or arrays, before it wraps; multiplexers as in even rows."""

Ints = npt.NDArray[np.int64]


def limits(bits: int) -> tuple[int, int]:
    """The ends of the range. ValueError where there are not 2 to 16 bits."""
    if not 2 <= bits <= 16:
        raise ValueError(f"numbers have 2 to 16 bits, not {bits}")
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def wrap(values: npt.ArrayLike, bits: int) -> Ints:
    """The numbers of `bits` bits that are equal to `values` modulo 2^bits.

    >>> wrap([127, 128, 255, -129], 8)
    array([ 127, -128,   -1,  127])
    """
    low, _ = limits(bits)
    return ((np.asarray(values, dtype=np.int64) - low) & ((1 << bits) - 1)) + low


def evaluate(function: int, a: npt.ArrayLike, b: npt.ArrayLike, bits: int, row: npt.ArrayLike = 0) -> Ints:
    """What a function makes of numbers in range; shapes broadcast. `row` counts only for multiplexers.

    >>> evaluate(ADD, [100, 1], 100, bits=8)
    array([-56, 101])
    """
    low, high = limits(bits)
    if not 0 <= function < COUNT:
        raise ValueError(f"functions are 0 to {COUNT - 1}, not {function}")
    a, b, row = np.broadcast_arrays(*(np.asarray(x, dtype=np.int64) for x in (a, b, row)))
    if function == MULTIPLEXER:
        return wrap(np.where(row & 1, b, a), bits)
    if function in CONSTANTS:
        return np.full(a.shape, OPERATIONS[function](0, 0, low, high), dtype=np.int64)
    return wrap(OPERATIONS[function](a, b, low, high), bits)
