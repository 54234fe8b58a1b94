"""The loop of optimal brain surgery; `ops.elimination` says what it computes.

Imports numba: import this file inside the function that needs the kernel.
"""

from typing import Any

import numpy as np

from lilliput.ops.jit import kernel, part

PENDING = 16
"""Eliminations whose effect on the inverse is added up together: one pass over it takes as long as many do."""


@part
def _column(work: Any, pending: Any, waiting: Any, best: Any, m: Any, column: Any) -> None:
    """Column `best` of the inverse as it is now."""
    for a in range(best):
        column[a] = work[a, best]
    for a in range(best, m):
        column[a] = work[best, a]
    for k in range(waiting):
        share = pending[k, best]
        for a in range(m):
            column[a] -= share * pending[k, a]


@part
def _apply(work: Any, pending: Any, m: Any) -> None:
    """Two rows at a time with four eliminations: what was loaded serves several times, in the same order of sums."""
    for a in range(0, m - 1, 2):
        upper, lower = work[a, a:m], work[a + 1, a:m]  # views from 0 on: loops over them are vectorized
        for k in range(0, PENDING, 4):
            p, q, r, s = pending[k, a:m], pending[k + 1, a:m], pending[k + 2, a:m], pending[k + 3, a:m]
            p0, q0, r0, s0, p1, q1, r1, s1 = p[0], q[0], r[0], s[0], p[1], q[1], r[1], s[1]
            for b in range(m - a):
                upper[b] = upper[b] - p0 * p[b] - q0 * q[b] - r0 * r[b] - s0 * s[b]
                lower[b] = lower[b] - p1 * p[b] - q1 * q[b] - r1 * r[b] - s1 * s[b]
    if m % 2:
        for k in range(PENDING):
            work[m - 1, m - 1] -= pending[k, m - 1] * pending[k, m - 1]


@kernel
def eliminate(
    weights: Any,  # float64 [n, f]
    inverse: Any,  # float64 [f, f], symmetric
    gone: Any,  # bool [n, f]: goes first
    most: Any,  # entries of a row that go
    order: Any,  # int64 [n, most]: written
    costs: Any,  # float64 [n, most]: written
) -> None:
    """Only the upper half of the inverse is kept; the last entry takes the place of what goes."""
    n, f = weights.shape
    work, row, diagonal = np.empty((f, f)), np.empty(f), np.empty(f)
    pending, column, names = np.empty((PENDING, f)), np.empty(f), np.empty(f, np.int64)
    for o in range(n):
        waiting = 0
        for a in range(f):
            names[a] = a
            row[a] = weights[o, a]
            diagonal[a] = inverse[a, a]
            for b in range(a, f):
                work[a, b] = inverse[a, b]
        for turn in range(most):
            m = f - turn
            best, least = 0, np.inf
            for a in range(m):
                cost = -1.0 if gone[o, names[a]] else row[a] * row[a] / diagonal[a]
                if cost < least or (cost == least and names[a] < names[best]):
                    best, least = a, cost
            _column(work, pending, waiting, best, m, column)
            pivot = column[best]
            order[o, turn] = names[best]
            costs[o, turn] = 0.5 * row[best] * row[best] / pivot
            share, unit = row[best] / pivot, 1.0 / np.sqrt(pivot)
            for a in range(m):
                row[a] -= share * column[a]
                pending[waiting, a] = unit * column[a]
                diagonal[a] -= pending[waiting, a] * pending[waiting, a]
            waiting += 1
            last = m - 1
            if best != last:
                names[best], row[best], diagonal[best] = names[last], row[last], diagonal[last]
                for k in range(waiting):
                    pending[k, best] = pending[k, last]
                for a in range(best):
                    work[a, best] = work[a, last]
                for b in range(best + 1, last):
                    work[best, b] = work[b, last]
                work[best, best] = work[last, last]
            if waiting == PENDING:
                _apply(work, pending, last)
                waiting = 0
