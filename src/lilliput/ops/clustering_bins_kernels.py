"""A first look at few points, for lines much longer than k.

Moving the cuts of the best clustering to ends of the bins they fall in costs at most R max(weight * width of a bin), R
being the range: between clusters whose centres are d apart, a point x that changes sides loses 2 d |x - cut|; of the
two ends take the better one; and all d sum up to at most R. So the rounded cuts are a clustering of bins that is worse
than the best one of bins by no more than that. Cut c can only be at ends where the best c clusters before it and the
best k - c after it are together that good, and, not rounded, in a bin beside such an end. Points elsewhere need not be
looked at.

Imports numba: import this file inside the function that needs it.
"""

from typing import Any

import numpy as np

from lilliput.ops.clustering_kernels import rounding, run, slot
from lilliput.ops.clustering_vector import LANES
from lilliput.ops.jit import part


@part
def bins_for(n: Any, first_k: Any, last_k: Any) -> Any:
    """How many bins make the whole cheapest, for a uniform line; 0 if no number does."""
    target = np.sqrt(3.0 * n * last_k) if first_k == last_k else np.sqrt(n) * last_k
    return int(target) if 3.0 * target < n else 0


@part
def cut_into_bins(merged: Any, line: Any, target: Any) -> Any:
    """Where bins of points begin, with n at the end, and R max(weight * width).

    The product of weight and width is bounded, so that there are at most about `target` bins, and at least half of it.
    """
    x, masses, n = merged.points, line.masses, merged.n
    spread = (x[n - 1] - x[0]) * line.scale
    bound = spread * masses[n] / (target * target)
    edges = np.empty(n + 1, np.int64)
    count = 0
    most = 0.0
    for _ in range(8):
        count, begin, most, before = 0, 0, 0.0, 0.0
        edges[0] = 0
        for p in range(1, n):
            product = (masses[p + 1] - masses[begin]) * ((x[p] - x[begin]) * line.scale)
            if product > bound:
                most = max(most, before)
                count += 1
                edges[count] = p
                begin = p
                product = 0.0
            before = product
        most = max(most, before)
        count += 1
        edges[count] = n
        if 2 * count >= min(target, n):
            break
        bound *= (count / target) ** 2
    return edges[: count + 1], 1.01 * spread * most


@part
def narrow(merged: Any, line: Any, first_k: Any, last_k: Any, limit: Any, lows: Any, highs: Any) -> Any:
    """Windows of points for k = first_k..last_k, placed by `slot`; False where they would save nothing."""
    n = merged.n
    target = bins_for(n, first_k, last_k)
    if target == 0 or line.error < 0.0:
        return False
    edges, slack = cut_into_bins(merged, line, target)
    count = len(edges) - 1
    if 3 * count > n or 4 * count * last_k > limit:
        return False
    ends = np.empty(last_k + 1, np.int64), np.empty(last_k + 1, np.int64)
    for c in range(last_k + 1):
        ends[0][c], ends[1][c] = 0, count
    ends[0][last_k] = count
    near = rounding(line)
    size = count + 1 + LANES
    moments, masses, values = np.empty((2, size)), np.empty((2, size)), np.empty((2, last_k + 1, size))
    for e in range(count + 1):
        moments[0, e], masses[0, e] = line.moments[edges[e]], line.masses[edges[e]]
        moments[1, count - e], masses[1, count - e] = -moments[0, e], -masses[0, e]
    for side in range(2):
        run(moments[side], masses[side], ends[0], ends[1], near, values[side])
    before, after = values[0], values[1]
    cells = 0
    for k in range(first_k, last_k + 1):
        at = slot(k + 1, first_k + 1)
        own_lows, own_highs = lows[at : at + k + 1], highs[at : at + k + 1]
        enough = before[k, count] - slack - near[0] - k * near[1]
        e = 0
        for c in range(1, k):
            while e < count and before[c, e] + after[k - c, count - e] < enough:
                e += 1
            own_lows[c] = e
        e = count
        for c in range(k - 1, 0, -1):
            while e > 0 and before[c, e] + after[k - c, count - e] < enough:
                e -= 1
            own_highs[c] = edges[min(e + 1, count)]
        own_lows[0] = own_highs[0] = 0
        own_lows[k] = own_highs[k] = n
        for c in range(1, k):
            own_lows[c] = max(edges[max(own_lows[c] - 1, 0)], own_lows[c - 1] + 1)
        for c in range(k - 1, 0, -1):
            own_highs[c] = min(own_highs[c], own_highs[c + 1] - 1)
            cells += own_highs[c] - own_lows[c] + 1
    return 2 * cells < n * last_k and cells <= limit
