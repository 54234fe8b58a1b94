"""Rescalings as hardware likes them: a multiplier that is a power of two is no multiplier, but a shorter shift.

With m = 2^a, ((sum x m + (2^s >> 1)) >> s) is ((sum + (2^k >> 1)) >> k) for k = s - a >= 0, exactly.
"""

import numpy as np

from lilliput.core.program import Ints, Operation, Rescale

LONGEST = 32
"""A rounding shift of 32 makes 0 of every sum of 32 bits, as longer ones do, and as the multiplier 0."""


def right_shifts(rescale: Rescale) -> Ints | None:
    """One for all, or one for each channel; None if a multiplier is no power of two, or one that shifts left."""
    multiplier, shift = np.broadcast_arrays(rescale.multiplier, rescale.shift)
    mantissa, exponent = np.frexp(multiplier.astype(np.float64))
    left = shift - (exponent - 1)
    dead = multiplier == 0
    if bool((~dead & ((mantissa != 0.5) | (left < 0))).any()):
        return None
    return np.where(dead, LONGEST, np.minimum(left, LONGEST)).astype(np.int64)


def after_shifts(bias: Ints, shifts: Ints) -> Ints | None:
    """A bias of sums as one that is added behind the shift; None where that is another number."""
    moved = bias >> shifts
    return moved if bool((moved << shifts == bias).all()) else None


def shifts_of_addends(add: Operation) -> tuple[int, int] | None:
    """By how much each addend is shifted before they are added; None where a sum is more than that.

    One of the two is 0: where both are shifted, rounding each is not rounding their sum.
    """
    total = int(add.rescale[0].shift[0])
    exponents = [(m.bit_length() - 1, m) for m in add.attributes["multipliers"]]
    if any(m <= 0 or m != 1 << e for e, m in exponents):
        return None
    first, second = (total - e for e, _ in exponents)
    return (first, second) if min(first, second) == 0 else None


def factors_of_addends(add: Operation) -> tuple[tuple[int, int], int]:
    """Multipliers and shift, without the powers of two that they have in common."""
    first, second = add.attributes["multipliers"]
    shift = int(add.rescale[0].shift[0])
    common = min([shift, *((m & -m).bit_length() - 1 for m in (first, second) if m)])
    return (first >> common, second >> common), shift - common
