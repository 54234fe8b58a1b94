"""Compiled loops of `rate_clustering`.

Imports numba: import this file inside the function that needs it.
"""

from typing import Any

import numpy as np

from lilliput.ops.jit import kernel, part


@part
def _runs(values: Any, most: Any) -> Any:
    """Runs of ascending `values` that stay together: (how many, where each starts).

    Equal values do; and neighbours, where there are more than `most`: half of the cuts are equal in width, half in
    number.
    """
    count = len(values)
    starts = np.empty(count + 1, dtype=np.int64)
    found = 0
    for i in range(count):
        if i == 0 or values[i] != values[i - 1]:
            starts[found] = i
            found += 1
    if found > most:
        half = most // 2 + 1
        width = (values[count - 1] - values[0]) / half
        found, last, rank = 0, -1, -1
        for i in range(count):
            place, here = int((values[i] - values[0]) / width), i * half // count
            if place != last or here != rank or (values[i] > 0) != (values[i - 1] > 0):
                if values[i] != values[i - 1] or i == 0:
                    starts[found] = i
                    found += 1
                last, rank = place, here
    starts[found] = count
    return found, starts


@part
def _sums(values: Any, mass: Any, count: Any, starts: Any) -> Any:
    """Of the runs before each: entries, mass, mass x value, mass x value^2."""
    members = np.zeros(count + 1, dtype=np.int64)
    sums = np.zeros((count + 1, 3))
    for a in range(count):
        one, two, three = sums[a, 0], sums[a, 1], sums[a, 2]
        for i in range(starts[a], starts[a + 1]):
            one += mass[i]
            two += mass[i] * values[i]
            three += mass[i] * values[i] * values[i]
        members[a + 1] = starts[a + 1]
        sums[a + 1, 0], sums[a + 1, 1], sums[a + 1, 2] = one, two, three
    return members, sums


@part
def _price(a: Any, b: Any, members: Any, sums: Any, code: Any, zeros: Any, rate: Any, table_bits: Any) -> Any:
    """(cost of the runs a..b-1 as one cluster, is that cluster zero?)."""
    entries = members[b] - members[a]
    mass = sums[b, 0] - sums[a, 0]
    first = sums[b, 1] - sums[a, 1]
    energy = sums[b, 2] - sums[a, 2]
    shared = max(energy - first * first / mass, 0.0) + rate * (code[entries] + table_bits)
    gone = energy + rate * (code[entries + zeros] - code[zeros])
    if gone <= shared:
        return gone, True
    return shared, False


@part
def _free(count: Any, members: Any, sums: Any, code: Any, zeros: Any, rate: Any, table_bits: Any) -> Any:
    """Where the last cluster of the best partition of the first 0..count runs starts."""
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    start = np.zeros(count + 1, dtype=np.int64)
    for b in range(1, count + 1):
        for a in range(b - 1, -1, -1):
            cost, _ = _price(a, b, members, sums, code, zeros, rate, table_bits)
            if best[a] + cost < best[b]:
                best[b] = best[a] + cost
                start[b] = a
    return start


@part
def _limited(
    count: Any, most_k: Any, members: Any, sums: Any, code: Any, zeros: Any, rate: Any, table_bits: Any
) -> Any:
    """As `_free`, [k, count + 1], of partitions with at most k clusters that are not zero."""
    best = np.full((most_k + 1, count + 1), np.inf)
    best[:, 0] = 0.0
    start = np.zeros((most_k + 1, count + 1), dtype=np.int64)
    for b in range(1, count + 1):
        for a in range(b - 1, -1, -1):
            cost, gone = _price(a, b, members, sums, code, zeros, rate, table_bits)
            energy = sums[b, 2] - sums[a, 2] + rate * (code[members[b] - members[a] + zeros] - code[zeros])
            for k in range(most_k + 1):
                if k > 0 and not gone and best[k - 1, a] + cost < best[k, b]:
                    best[k, b] = best[k - 1, a] + cost
                    start[k, b] = a + 1
                if best[k, a] + energy < best[k, b]:
                    best[k, b] = best[k, a] + energy
                    start[k, b] = -a - 1
    return start


@kernel
def rate_rows(rows: Any, weights: Any, rate: Any, table_bits: Any, most_k: Any, most_runs: Any) -> Any:
    """`rate_clustering.rate_clusters` of each row: (values [n, m], bits [n])."""
    wide = rows.shape[1]
    out = np.zeros(rows.shape)
    bits = np.zeros(len(rows))
    code = np.zeros(wide + 1)
    for i in range(1, wide + 1):
        code[i] = i * np.log2(wide / i)
    for r in range(len(rows)):
        live = np.nonzero(rows[r])[0]
        zeros = wide - len(live)
        if len(live) == 0:
            continue
        order = live[np.argsort(rows[r][live], kind="mergesort")]
        values, mass = rows[r][order], weights[r][order]
        count, starts = _runs(values, most_runs)
        members, sums = _sums(values, mass, count, starts)
        start = _free(count, members, sums, code, zeros, rate, table_bits)
        edges = np.empty(count + 1, dtype=np.int64)
        kind = np.empty(count, dtype=np.bool_)
        cells, shared, b = 0, 0, count
        while b > 0:
            a = start[b]
            _, kind[cells] = _price(a, b, members, sums, code, zeros, rate, table_bits)
            edges[cells], edges[cells + 1] = b, a
            shared += not kind[cells]
            cells, b = cells + 1, a
        if shared > most_k:
            table = _limited(count, most_k, members, sums, code, zeros, rate, table_bits)
            cells, k, b = 0, most_k, count
            while b > 0:
                a = abs(table[k, b]) - 1
                kind[cells] = table[k, b] < 0
                k -= not kind[cells]
                edges[cells], edges[cells + 1] = b, a
                cells, b = cells + 1, a
        gone = zeros
        for c in range(cells):
            a, b = edges[c + 1], edges[c]
            if kind[c]:
                gone += members[b] - members[a]
                continue
            centroid = (sums[b, 1] - sums[a, 1]) / (sums[b, 0] - sums[a, 0])
            bits[r] += code[members[b] - members[a]] + table_bits
            for i in range(starts[a], starts[b]):
                out[r, order[i]] = centroid
        bits[r] += code[gone]
    return out, bits
