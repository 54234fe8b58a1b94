"""The loop of optimal brain surgery; `ops.elimination` says what it computes.

Imports numba: import this file inside the function that needs the kernel.
"""

from typing import Any

import numpy as np

from lilliput.ops.jit import kernel


@kernel
def eliminate(
    weights: Any,  # float64 [n, f]
    inverse: Any,  # float64 [f, f], symmetric
    gone: Any,  # bool [n, f]: goes first
    most: Any,  # entries of a row that go
    order: Any,  # int64 [n, most]: written
    costs: Any,  # float64 [n, most]: written
) -> None:
    """Only the upper half of the inverse is kept; what is gone is swapped behind the entries that are left."""
    n, f = weights.shape
    work, row = np.empty((f, f)), np.empty(f)
    column, names = np.empty(f), np.empty(f, np.int64)
    for o in range(n):
        for a in range(f):
            names[a] = a
            row[a] = weights[o, a]
            for b in range(a, f):
                work[a, b] = inverse[a, b]
        for turn in range(most):
            m = f - turn
            best, least = 0, np.inf
            for a in range(m):
                cost = -1.0 if gone[o, names[a]] else row[a] * row[a] / work[a, a]
                if cost < least or (cost == least and names[a] < names[best]):
                    best, least = a, cost
            pivot = work[best, best]
            for a in range(best):
                column[a] = work[a, best]
            for a in range(best, m):
                column[a] = work[best, a]
            order[o, turn] = names[best]
            costs[o, turn] = 0.5 * row[best] * row[best] / pivot
            share = row[best] / pivot
            for a in range(m):
                row[a] -= share * column[a]
                factor = column[a] / pivot
                for b in range(a, m):
                    work[a, b] -= factor * column[b]
            last = m - 1
            if best != last:  # the last entry takes its place
                names[best], row[best] = names[last], row[last]
                for a in range(best):
                    work[a, best] = work[a, last]
                for b in range(best + 1, last):
                    work[best, b] = work[b, last]
                work[best, best] = work[last, last]
