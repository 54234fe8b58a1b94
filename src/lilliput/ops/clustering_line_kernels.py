"""From one sorted line to the boundaries of its best clusterings, and from these to centroids, errors and labels.

Imports numba: import this file inside the function that needs it.
"""

from typing import Any

import numpy as np

from lilliput.ops.clustering_bins_kernels import cut_into_bins, narrow
from lilliput.ops.clustering_kernels import merge, prefix_sums, rounding, run, slot, trace
from lilliput.ops.clustering_ties_kernels import cells, follow, settle
from lilliput.ops.clustering_vector import LANES
from lilliput.ops.jit import kernel, part

SOLVED, DOUBTFUL, TOO_LARGE = 0, 1, 2
NO_WEIGHTS = np.empty(0)
FEW = 10_000


@part
def full_windows(n: Any, line: Any, first_k: Any, last_k: Any, limit: Any, lows: Any, highs: Any) -> Any:
    """Windows of the boundaries 0..k for k = first_k..last_k, placed by `slot`, from a look at all points; a status."""
    doubt = 0
    if n * last_k > limit:
        return TOO_LARGE
    all_lows, all_highs = np.empty(last_k + 1, np.int64), np.empty(last_k + 1, np.int64)
    for c in range(last_k + 1):
        all_lows[c], all_highs[c] = c, n
    all_lows[last_k] = n
    bounded = line.error >= 0.0
    low, high, base = np.empty(0, np.uint32), np.empty(0, np.uint32), all_lows
    if bounded:
        values = np.empty((2, n + 1 + LANES))
        low, high, base = run(line.moments, line.masses, all_lows, all_highs, rounding(line), values)
    for k in range(first_k, last_k + 1):
        at = slot(k + 1, first_k + 1)
        own_lows, own_highs = lows[at : at + k + 1], highs[at : at + k + 1]
        for c in range(k + 1):
            own_lows[c], own_highs[c] = c, n - k + c
        own_lows[k], own_highs[0] = n, 0
        doubt += trace(low, high, base, own_lows, own_highs) if bounded else n - k
    return DOUBTFUL if doubt else SOLVED


@part
def find_windows(merged: Any, line: Any, first_k: Any, last_k: Any, limit: Any, lows: Any, highs: Any) -> Any:
    """`full_windows`, without a look at all points where bins can save it."""
    if not narrow(merged, line, first_k, last_k, limit, lows, highs):
        return full_windows(merged.n, line, first_k, last_k, limit, lows, highs)
    doubt = 0
    values = np.empty((2, merged.n + 1 + LANES))
    for k in range(first_k, last_k + 1):
        at = slot(k + 1, first_k + 1)
        own_lows, own_highs = lows[at : at + k + 1], highs[at : at + k + 1]
        low, high, base = run(line.moments, line.masses, own_lows, own_highs, rounding(line), values)
        doubt += trace(low, high, base, own_lows, own_highs)
    return DOUBTFUL if doubt else SOLVED


@part
def describe(merged: Any, starts: Any, centroids: Any) -> Any:
    """Writes the means of the clusters; returns their squared error in two passes."""
    x, weights = merged.points, merged.weights
    k = len(starts)
    e0, e1, e2, e3 = 0.0, 0.0, 0.0, 0.0
    for c in range(k):
        begin = starts[c]
        end = starts[c + 1] if c + 1 < k else merged.n
        moment, mass = 0.0, 0.0
        for p in range(begin, end):
            moment += weights[p] * (x[p] - x[begin])
            mass += weights[p]
        mean = min(x[begin] + moment / mass, x[end - 1])
        centroids[c] = mean
        p = begin
        while p + 3 < end:
            d0, d1, d2, d3 = x[p] - mean, x[p + 1] - mean, x[p + 2] - mean, x[p + 3] - mean
            e0 += weights[p] * d0 * d0
            e1 += weights[p + 1] * d1 * d1
            e2 += weights[p + 2] * d2 * d2
            e3 += weights[p + 3] * d3 * d3
            p += 4
        while p < end:
            d0 = x[p] - mean
            e0 += weights[p] * d0 * d0
            p += 1
    return ((e0 + e1) + (e2 + e3)) / merged.unit


@part
def rank(values: Any, thresholds: Any, count: Any, ranks: Any) -> None:
    """ranks[p] = how many of thresholds[1..count - 1] are at most values[p]; thresholds ascend."""
    top = 1
    while 2 * top < count:
        top *= 2
    for p in range(len(values)):
        x = values[p]
        at = 0
        step = top
        while step:
            ahead = at + step
            at = ahead if ahead < count and thresholds[ahead] <= x else at
            step >>= 1
        ranks[p] = at


@kernel
def cluster_line(values: Any, ordered: Any, mass: Any, first_k: Any, last_k: Any, limit: Any, known: Any) -> Any:
    """(status, centroids, labels [ks, n], errors [ks]) for k = first_k..last_k clusters, for a line that is not long.

    Where there are fewer distinct values, their number takes the place of k. `known` holds the starts of clusters, or
    nothing. Centroids are placed by `slot`.
    """
    merged = merge(ordered, mass)
    last_k = min(last_k, merged.n)
    first_k = min(first_k, last_k)
    count = last_k - first_k + 1
    starts, centroids, errors = known, np.empty(slot(last_k + 1, first_k)), np.empty(count)
    if len(known) == 0:
        windows = np.empty((2, slot(last_k + 2, first_k + 1)), np.int64)
        status = full_windows(merged.n, prefix_sums(merged), first_k, last_k, limit, windows[0], windows[1])
        if status != SOLVED:
            return status, centroids, np.empty((0, 0), np.int64), errors
        starts = np.empty(len(centroids), np.int64)
        for k in range(first_k, last_k + 1):
            for c in range(k):
                starts[slot(k, first_k) + c] = windows[0, slot(k + 1, first_k + 1) + c]
    labels = np.empty((count, len(values)), np.int64)
    share = count > 1 and merged.n < FEW  # one search for all k, then look-ups that stay in the cache
    ranks = np.empty(len(values) if share else 0, np.int64)
    thresholds, cluster_of = np.empty(last_k), np.empty(merged.n, np.int64)
    if share:
        rank(values, merged.points, merged.n, ranks)
    for k in range(first_k, last_k + 1):
        at = slot(k, first_k)
        own = starts[at : at + k]
        errors[k - first_k] = describe(merged, own, centroids[at : at + k])
        if share:
            c = 0
            for p in range(merged.n):
                if c + 1 < k and own[c + 1] == p:
                    c += 1
                cluster_of[p] = c
            for p in range(len(values)):
                labels[k - first_k, p] = cluster_of[ranks[p]]
        else:
            for c in range(k):
                thresholds[c] = merged.points[own[c]]
            rank(values, thresholds, k, labels[k - first_k])
    return SOLVED, centroids, labels, errors


@kernel
def bin_means(ordered: Any, mass: Any, target: Any) -> Any:
    """Edges of at most about `target` bins of distinct values, the means of the bins, and their weights."""
    merged = merge(ordered, mass)
    edges, _ = cut_into_bins(merged, prefix_sums(merged), target)
    means, masses = np.empty(len(edges) - 1), np.zeros(len(edges) - 1)
    describe(merged, edges[:-1], means)
    for b in range(len(means)):
        for p in range(edges[b], edges[b + 1]):
            masses[b] += merged.weights[p] / merged.unit
    return edges, means, masses


@kernel
def settle_line(ordered: Any, mass: Any, first_k: Any, last_k: Any, limit: Any) -> Any:
    """A status, and the starts that `cluster_line` wants to know: of a long line, or of one that it left in doubt."""
    merged = merge(ordered, mass)
    n = merged.n
    last_k = min(last_k, n)
    first_k = min(first_k, last_k)
    windows = np.empty((2, slot(last_k + 2, first_k + 1)), np.int64)
    starts = np.empty(slot(last_k + 1, first_k), np.int64)
    line = prefix_sums(merged)
    status = find_windows(merged, line, first_k, last_k, limit, windows[0], windows[1])
    if status == TOO_LARGE:
        return status, starts
    apart = 0
    for k in range(first_k, last_k + 1):
        doubt = 0
        for at in range(slot(k + 1, first_k + 1), slot(k + 2, first_k + 1)):
            doubt += windows[1, at] - windows[0, at]
        apart += doubt + n if doubt else 0
    together = apart > 2 * n * last_k
    lows, highs = np.empty(last_k + 1, np.int64), np.empty(last_k + 1, np.int64)
    for c in range(last_k + 1):
        lows[c], highs[c] = c, n
    lows[last_k] = n
    highs[0] = 0
    back, base = np.empty(0, np.uint32), np.empty(0, np.int64)
    if together:
        if cells(lows, highs) > limit:
            return TOO_LARGE, starts
        back, base = settle(merged.points, merged.weights, line.scale, lows, highs)
    for k in range(first_k, last_k + 1):
        at = slot(k + 1, first_k + 1)
        own_lows, own_highs = windows[0, at : at + k + 1], windows[1, at : at + k + 1]
        own = starts[slot(k, first_k) : slot(k + 1, first_k)]
        doubt = 0
        for c in range(k):
            own[c] = own_lows[c]
            doubt += own_highs[c] - own_lows[c]
        if doubt:
            if not together:
                if cells(own_lows, own_highs) > limit:
                    return TOO_LARGE, starts
                back, base = settle(merged.points, merged.weights, line.scale, own_lows, own_highs)
            follow(back, base, n, own)
    return SOLVED, starts


@kernel
def solve_rows(ordered: Any, lengths: Any, first_k: Any, last_k: Any, limit: Any, outputs: Any) -> None:
    """For each row, ascending up to lengths[r], what `cluster_line` finds: starts, errors and a status.

    Both are as wanted where the status is SOLVED. Errors beyond the number of distinct values are zero.
    """
    starts, errors, status = outputs
    centroids = np.empty(last_k)
    windows = np.empty((2, slot(last_k + 2, first_k + 1)), np.int64)
    for r in range(len(ordered)):
        status[r] = SOLVED
        for k in range(errors.shape[1]):
            errors[r, k] = 0.0
        if lengths[r] == 0:
            continue
        merged = merge(ordered[r, : lengths[r]], NO_WEIGHTS)
        last = min(last_k, merged.n)
        first = min(first_k, last)
        status[r] = full_windows(merged.n, prefix_sums(merged), first, last, limit, windows[0], windows[1])
        for k in range(first, last + 1):
            own = starts[r, slot(k, first) : slot(k + 1, first)]
            for c in range(k):
                own[c] = windows[0, slot(k + 1, first + 1) + c]
            if status[r] == SOLVED:
                errors[r, k - first] = describe(merged, own, centroids)


@kernel
def describe_rows(values: Any, ordered: Any, lengths: Any, first_k: Any, ks: Any, starts: Any, outputs: Any) -> None:
    """Writes centroids [rows, k], sizes [rows], labels [rows, n] and errors [rows] of ks[r] clusters in row r.

    Where `labels` has no columns, no labels are wanted. Values that do not count are infinite; their label is 0.
    """
    centroids, sizes, labels, errors = outputs
    for r in range(len(values)):
        sizes[r] = 0
        errors[r] = 0.0
        for p in range(labels.shape[1]):
            labels[r, p] = 0
        if lengths[r] == 0:
            continue
        merged = merge(ordered[r, : lengths[r]], NO_WEIGHTS)
        k = min(ks[r], merged.n)
        at = slot(k, min(first_k, k))
        own = starts[r, at : at + k]
        sizes[r] = k
        errors[r] = describe(merged, own, centroids[r])
        if labels.shape[1]:
            for c in range(k):
                merged.points[c] = merged.points[own[c]]
            rank(values[r], merged.points, k, labels[r])
            for p in range(labels.shape[1]):
                if values[r, p] == np.inf:
                    labels[r, p] = 0
