"""The program of `ops.clustering` inside of windows, with errors that are accurate relative to themselves.

No running sums of the whole line are subtracted: that loses every digit when the data are tight modes far apart. A
cluster is two stretches of points that meet in a middle, joined by the formula of Chan, Golub and LeVeque (1979). Only
terms of one sign are added. If the windows of two boundaries are apart, all clusters between them share one middle;
otherwise the line is cut into blocks for each power of two, and each point keeps the stretch from itself to the middle
of its block.

Imports numba: import this file inside the function that needs it.
"""

from typing import Any

import numpy as np

from lilliput.ops.clustering_kernels import TIE
from lilliput.ops.jit import part


@part
def stretch(x: Any, weights: Any, scale: Any, start: Any, last: Any, gap: Any, table: Any, to: Any) -> None:
    """Of the first 1, 2, ... points from `start` to `last`: one over the weight, mean and squared error.

    The mean is the distance from `start`, plus `gap`. Point p goes to column `to` + p of `table`. Partial means stay
    well below the next offset; the sums carry what rounding loses.
    """
    total, moment, moment_low, error, error_low, mean = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    step = 1 if last > start else -1
    p = start
    while True:
        offset, w = abs(x[p] - x[start]) * scale, weights[p]
        before = total
        total += w
        term = w * offset
        s = moment + term
        moment_low += term - (s - moment)
        moment = s
        term = (offset - mean) * (offset - mean) * (w * (before / total))
        s = error + term
        error_low += term - (s - error)
        error = s
        mean = (moment + moment_low) / total
        table[0, to + p] = 1.0 / total
        table[1, to + p] = mean + gap
        table[2, to + p] = error + error_low
        if p == last:
            break
        p += step


@part
def blocks(x: Any, weights: Any, scale: Any, first: Any, count: Any) -> Any:
    """Tables of the stretches of points `first`.. to the middle of each block of 2, 4, 8, ... points."""
    levels = 0
    while (1 << levels) < count:
        levels += 1
    table = np.empty((3, max(levels, 1) * count))
    for level in range(levels):
        half = 1 << level
        to = level * count - first
        m = first + half
        while m < first + count:
            stretch(x, weights, scale, m - 1, m - half, 0.0, table, to)
            stretch(x, weights, scale, m, min(m + half, first + count) - 1, (x[m] - x[m - 1]) * scale, table, to)
            m += 2 * half
    return table


@part
def cells(lows: Any, highs: Any) -> Any:
    """How many floats the largest of the tables takes that `settle` makes for these windows."""
    most = 0
    for c in range(1, len(lows)):
        if highs[c - 1] + 1 >= lows[c]:
            count = highs[c] - lows[c - 1]
            size = 3 * count
            while count > 2:
                count = (count + 1) // 2
                size += 3 * (highs[c] - lows[c - 1])
            most = max(most, size)
    return most


@part
def cost(table: Any, left: Any, right: Any) -> Any:
    distance = table[1, left] + table[1, right]
    return distance * distance / (table[0, left] + table[0, right]) + table[2, left] + table[2, right]


@part
def settle(x: Any, weights: Any, scale: Any, lows: Any, highs: Any) -> Any:
    """back [base[c] + j] = where the last of c clusters of the first j points starts, and `base`."""
    last = len(lows) - 1
    n = highs[last]
    base = np.zeros(last + 1, np.int64)
    size = 0
    for c in range(1, last + 1):
        base[c] = size - lows[c]
        size += highs[c] - lows[c] + 1
    back = np.zeros(size, np.uint32)
    before, after = np.zeros(n + 1), np.zeros(n + 1)
    values = np.empty(n + 1)
    level_of = np.zeros(1, np.int64)
    first, end, table = 0, 0, np.empty((3, 1))
    for c in range(1, last + 1):
        columns, rows = (lows[c - 1], highs[c - 1]), (lows[c], highs[c])
        apart = columns[1] + 1 < rows[0]
        if apart:
            first, end = columns[0], rows[1]
            middle = columns[1] + 1
            table = np.empty((3, end - first))
            stretch(x, weights, scale, middle - 1, first, 0.0, table, -first)
            stretch(x, weights, scale, middle, end - 1, (x[middle] - x[middle - 1]) * scale, table, -first)
        elif not (len(level_of) > 1 and first <= columns[0] and rows[1] <= end):
            first, end = columns[0], rows[1]
            table = blocks(x, weights, scale, first, end - first)
            level_of = np.zeros(2 * (end - first) + 2, np.int64)
            for bits in range(1, len(level_of)):
                level_of[bits] = level_of[bits >> 1] + (end - first if bits > 1 else 0)
        before, after = after, before
        count = rows[1] - rows[0] + 1
        stride = 1
        while 2 * stride <= count:
            stride *= 2
        while stride:
            j = rows[0] - 1 + stride
            while j <= rows[1]:
                a, b = columns[0], min(columns[1], j - 1)
                if j - stride >= rows[0]:
                    a = max(a, np.int64(back[base[c] + j - stride]))
                if j + stride <= rows[1]:
                    b = min(b, np.int64(back[base[c] + j + stride]))
                a = min(a, b)
                least = np.inf
                right = j - 1 - first
                for i in range(a, b + 1):
                    left = i - first
                    value = before[i]
                    if apart:
                        value += cost(table, left, right)
                    elif left < right:
                        level = level_of[left ^ right]
                        value += cost(table, level + left, level + right)
                    values[i] = value
                    least = min(least, value)
                i = a
                while values[i] > least * (1.0 + TIE):
                    i += 1
                back[base[c] + j] = i
                after[j] = values[i]
                j += 2 * stride
            stride //= 2
        if apart:
            level_of = np.zeros(1, np.int64)
    return back, base


@part
def follow(back: Any, base: Any, n: Any, starts: Any) -> None:
    """The starts of the best k clusters, k = len(starts)."""
    j = n
    for c in range(len(starts), 0, -1):
        j = np.int64(back[base[c] + j])
        starts[c - 1] = j
