"""The float64 program of `ops.clustering`: windows that provably hold the boundaries of the best clusterings.

With prefix sums S and W of weight * value and weight, k clusters of the first j points leave the least squared error
where they explain the most: G_k[j] = max_i G_{k-1}[i] + (S_j - S_i)^2 / (W_j - W_i). The best i grows with j, so it is
found by halving strides, and with k. One such value is wrong by at most `error` (`Line`), G_k by at most k times that.
Therefore the first and the last i whose value is within 2 k error of the most enclose every best i of exact
arithmetic, and bound the search for others. Where they are one, that is proven to be the boundary; where not,
`ops.clustering_ties_kernels` decides between them.

Imports numba: import this file inside the function that needs it.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from lilliput.ops.clustering_vector import LANES, best_of_eight
from lilliput.ops.jit import part

ONE = np.uint64(1)
EIGHT = np.uint64(LANES)
ROUNDING = 2.0**-53
TIE = 2.0**-49
"""Clusterings whose errors differ by less than this part are equally good: the leftmost is taken."""


class Points(NamedTuple):
    """`n` distinct points in ascending order, and their weights times `unit`, a power of two.

    `exact`: the weights are integers whose sum is exact too.
    """

    points: Any
    weights: Any
    n: Any
    unit: Any
    exact: Any


class Line(NamedTuple):
    """Prefix sums [n + 1] of weight * (point - origin) * scale, and of the weights.

    `total` is the sum of all weight * square. `error` bounds the rounding error of one candidate; -1 if unbounded.
    """

    moments: Any
    masses: Any
    scale: Any
    error: Any
    total: Any


@part
def power_of_two(x: Any) -> Any:
    """2^-e with x * 2^-e in [0.5, 1), as far as that is an ordinary float."""
    return math.ldexp(1.0, min(max(-math.frexp(x)[1], -1000), 1000))


@part
def merge(ordered: Any, mass: Any) -> Any:
    """The `Points` of ascending values and their weights, at least 1e-300 of the sum; no weights are ones."""
    count = len(ordered)
    points, weights = np.empty(count), np.empty(count)
    total, exact = float(count), True
    if len(mass):
        total = 0.0
        for p in range(count):
            total += mass[p]
            exact = exact and math.floor(mass[p]) == mass[p]
        exact = exact and total < 2.0**53
    unit = power_of_two(total)
    n = 0
    for p in range(count):
        x = ordered[p]
        w = max(mass[p] * unit, 1e-300) if len(mass) else unit
        if n == 0 or x != points[n - 1]:
            points[n] = x + 0.0
            weights[n] = w
            n += 1
        else:
            weights[n - 1] += w
    return Points(points, weights, n, unit, exact)


@part
def prefix_sums(merged: Any) -> Any:
    """The `Line` of `Points`. The sums carry what rounding loses (Dekker, 1971; Knuth)."""
    x, weights, n = merged.points, merged.weights, merged.n
    first = x[0]
    moment, mass, least = 0.0, 0.0, weights[0]
    for p in range(n):
        moment += weights[p] * (x[p] - first)
        mass += weights[p]
        least = min(least, weights[p])
    origin = first + moment / mass
    reach = max(x[n - 1] - origin, origin - first)
    scale = power_of_two(reach)
    reach *= scale
    moments, masses = np.empty(n + 1 + LANES), np.empty(n + 1 + LANES)
    moments[0] = masses[0] = 0.0
    s, s_low, w, w_low, total, peak = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for p in range(n):
        m = weights[p]
        d = x[p] - origin
        z = d - x[p]
        y, low = d * scale, m * (((x[p] - (d - z)) - (origin + z)) * scale)
        term = m * y
        if m != merged.unit:  # a power of two: its product is exact
            t = 134217729.0 * m
            m_high = t - (t - m)
            t = 134217729.0 * y
            y_high = t - (t - y)
            m_low, y_low = m - m_high, y - y_high
            low += m_low * y_low - (((term - m_high * y_high) - m_low * y_high) - m_high * y_low)
        t = s + term
        z = t - s
        s_low += ((s - (t - z)) + (term - z)) + low
        s = t
        t = w + m
        z = t - w
        w_low += (w - (t - z)) + (m - z)
        w = t
        total += term * y
        moments[p + 1] = s + s_low
        masses[p + 1] = w + w_low
        peak = max(peak, abs(s))
    error = -1.0
    if merged.exact or least > 2.0**-40 * mass:
        error = 5.0 * total + 4.0 * reach * peak + 9.0 * ROUNDING * peak * peak / least
        if not merged.exact:
            error += 6.3 * reach * reach * mass
        error *= 1.05 * ROUNDING
    return Line(moments, masses, scale, error, total)


@part
def run(S: Any, W: Any, lows: Any, highs: Any, near: Any, values: Any) -> Any:  # noqa: N803
    """All layers with boundary c in lows[c]..highs[c], for all rows of these windows.

    low [base[c] + j] and high [base[c] + j]: the first and the last start of the last of c clusters over j points whose
    value is within near[0] + c near[1] of the most. G_c is left in row c of `values`, modulo its rows. Where windows
    exclude nothing, the starts of c - 1 clusters bound those of c. If boundary 1 may be 0, clusters may be empty.
    """
    last = len(lows) - 1
    base = np.empty(last + 1, np.int64)
    size = 0
    for c in range(1, last + 1):
        base[c] = size - lows[c]
        size += highs[c] - lows[c] + 1
    low, high = np.empty(size, np.uint32), np.empty(size, np.uint32)
    keep = len(values)
    for j in range(lows[1], highs[1] + 1):
        values[1, j] = (S[j] - S[0]) * (S[j] - S[0]) / (W[j] - W[0]) if j > 0 else 0.0
        low[base[1] + j] = 0
        high[base[1] + j] = 0
    nested, empty = highs[1] == highs[last], lows[1] == 0
    for c in range(2, last + 1):
        before, after = values[(c - 1) % keep], values[c % keep]
        here, above = np.uint64(base[c]), np.uint64(base[c - 1])
        first_column, last_column = np.uint64(lows[c - 1]), np.uint64(highs[c - 1])
        first_row, last_row = np.uint64(lows[c]), np.uint64(highs[c])
        slack = near[0] + c * near[1]
        if first_row == 0:
            after[first_row] = 0.0
            low[here] = 0
            high[here] = 0
            first_row += ONE
        offset = first_row - ONE
        stride = ONE
        while stride + stride + offset <= last_row:
            stride += stride
        while stride:  # odd multiples of the stride lie between multiples that are solved
            j = offset + stride
            left = first_column
            while j <= last_row:
                begin = left
                if nested:
                    begin = max(begin, np.uint64(low[above + j]))
                end = min(last_column, j - ONE)
                following = j + stride
                if following <= last_row:
                    end = min(end, np.uint64(high[here + following]))
                    left = np.uint64(low[here + following])
                begin = min(begin, end)
                s, w = S[j], W[j]
                most, a, b = best_of_eight(before, S, W, begin, end - begin, s, w, slack)
                a += begin
                b += begin
                begin += EIGHT
                while begin <= end:
                    value, a_new, b_new = best_of_eight(before, S, W, begin, end - begin, s, w, slack)
                    if value >= most - slack:
                        b = begin + b_new
                        if most < value - slack:
                            a = begin + a_new
                        most = max(most, value)
                    begin += EIGHT
                if empty and j <= last_column:
                    value = before[j]
                    if value >= most - slack:
                        b = j
                        if most < value - slack:
                            a = j
                        most = max(most, value)
                after[j] = most
                low[here + j] = np.uint32(a)
                high[here + j] = np.uint32(b)
                j = following + stride
            stride >>= ONE
    return low, high, base


@part
def trace(low: Any, high: Any, base: Any, lows: Any, highs: Any) -> Any:
    """Windows of the boundaries below the last, and the sum of their widths."""
    k = len(lows) - 1
    a, b, doubt = lows[k], highs[k], 0
    for c in range(k, 0, -1):
        a, b = np.int64(low[base[c] + a]), np.int64(high[base[c] + b])
        lows[c - 1], highs[c - 1] = a, b
        doubt += b - a
    return doubt


@part
def rounding(line: Any) -> Any:
    """What `run` must call near, so that nothing best is lost; 2 c error for both sides of a comparison."""
    return TIE * line.total, 2.0 * line.error


@part
def slot(k: Any, first_k: Any) -> Any:
    """Where the k numbers of k are, if first_k numbers of first_k, first_k + 1 of the next, ... follow each other."""
    return (k * (k - 1) - first_k * (first_k - 1)) // 2
