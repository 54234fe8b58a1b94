"""The loops of rate-distortion rounding; `ops.rate_rounding` says what they compute.

Imports numba: import this file inside the function that needs a kernel.
"""

from typing import Any

import numpy as np

from lilliput.ops.jit import kernel, part

LEVELS = 12
"""Tables of bits: one for each level of the sizes around an entry."""
MOST = 127
"""Largest integer that tables know."""


@part
def _size(q: Any, o: Any, j: Any, plane: Any, row: Any, slice_mean: Any, line: Any, spot: Any) -> Any:
    """The mean size of what a decoder knows around entry [o, j]; `line` and `spot` are running means."""
    total, count = 0.0, 0.0
    if j >= 1:
        total += abs(q[o, j - 1])
        count += 1.0
    if row > 0 and j >= row:
        total += abs(q[o, j - row])
        count += 1.0
    if j >= plane:
        total += abs(q[o, j - plane])
        count += 1.0
    if o >= 1:
        total += abs(q[o - 1, j])
        count += 1.0
    near = total / count if count > 0 else slice_mean
    return 0.2 * near + 0.3 * slice_mean + 0.3 * line + 0.2 * spot


@part
def _level(size: Any, bounds: Any) -> Any:
    level = 0
    for k in range(LEVELS - 1):
        if size > bounds[k]:
            level += 1
    return level


@part
def _choice(real: Any, weight: Any, price: Any, bits: Any, level: Any, most: Any) -> Any:
    """The integer c with the least weight (c - real)^2 + price bits[level, |c|], of the two around `real`, one, 0."""
    nearest = np.int64(np.floor(min(max(real, -most), most) + 0.5))
    best, least = np.int64(0), weight * real * real + price * bits[level, 0]
    for step in range(-1, 2):
        c = nearest + step
        if c > most or c < -most or c == 0:
            continue
        cost = weight * (c - real) * (c - real) + price * bits[level, abs(c)]
        if cost < least:
            best, least = c, cost
    return best


@kernel
def levels_of(q: Any, plane: Any, row: Any, typical: Any, bounds: Any, out: Any) -> None:
    """The level of every entry of q [n, f], as the other kernels see them."""
    n, f = q.shape
    planes = f // plane
    line, spot = np.full(planes, typical), np.full(plane, typical)
    slice_mean = typical
    for o in range(n):
        slice_mean = 0.5 * (slice_mean + typical)
        for j in range(f):
            i, w = j // plane, j % plane
            out[o, j] = _level(_size(q, o, j, plane, row, slice_mean, line[i], spot[w]), bounds)
            size = abs(q[o, j])
            slice_mean += (size - slice_mean) / 32
            line[i] += (size - line[i]) / 16
            spot[w] += (size - spot[w]) / 64


@kernel
def round_in_order(
    weights: Any,  # float64 [n, f]
    factor: Any,  # float64 [f, f], upper: the inverse of the inputs' products is factor' factor
    spread: Any,  # float64 [n, n], upper: the same of the outputs' products
    steps: Any,  # float64 [n]
    price: Any,
    keep: Any,  # bool [n, f]: the others become 0
    bits: Any,  # float64 [LEVELS, MOST + 1]
    bounds: Any,  # float64 [LEVELS - 1]
    typical: Any,
    plane: Any,
    row: Any,
    most: Any,  # largest integer
    q: Any,  # int64 [n, f]: written
) -> None:
    """Entries in order; the error of each goes into what the later ones of its row aim at."""
    n, f = weights.shape
    planes = f // plane
    line, spot = np.full(planes, typical), np.full(plane, typical)
    slice_mean = typical
    aim, targets = np.empty(f), weights.copy()
    for o in range(n):
        slice_mean = 0.5 * (slice_mean + typical)
        importance = 1.0 / (spread[o, o] * spread[o, o])
        for j in range(f):
            aim[j] = targets[o, j]
        for j in range(f):
            i, w = j // plane, j % plane
            level = _level(_size(q, o, j, plane, row, slice_mean, line[i], spot[w]), bounds)
            pivot = factor[j, j]
            scale = steps[o] / pivot
            if keep[o, j]:
                q[o, j] = _choice(aim[j] / steps[o], 0.5 * importance * scale * scale, price, bits, level, most)
            else:
                q[o, j] = 0
            error = (aim[j] - q[o, j] * steps[o]) / pivot
            for k in range(j + 1, f):
                aim[k] -= error * factor[j, k]
            size = abs(q[o, j])
            slice_mean += (size - slice_mean) / 32
            line[i] += (size - line[i]) / 16
            spot[w] += (size - spot[w]) / 64
        for p in range(o + 1, n):
            share = spread[o, p] / spread[o, o]
            if share != 0.0:
                for j in range(f):
                    targets[p, j] -= share * (targets[o, j] - q[o, j] * steps[o])


@kernel
def descend(
    weights: Any,
    products: Any,  # float64 [f, f]
    outputs: Any,  # float64 [n, n]
    steps: Any,
    price: Any,
    keep: Any,
    bits: Any,
    bounds: Any,
    typical: Any,
    plane: Any,
    row: Any,
    most: Any,  # largest integer
    q: Any,  # read and written
) -> Any:
    """Each entry in order becomes what costs least, the others as they are; how many changed."""
    n, f = weights.shape
    planes = f // plane
    line, spot = np.full(planes, typical), np.full(plane, typical)
    slice_mean = typical
    slope, error = np.empty(f), np.empty(f)
    changed = 0
    for o in range(n):
        slice_mean = 0.5 * (slice_mean + typical)
        for j in range(f):
            slope[j] = 0.0
            error[j] = 0.0
        for p in range(n):
            share = outputs[o, p] / outputs[o, o]
            if share != 0.0:
                for j in range(f):
                    error[j] += share * (q[p, j] * steps[p] - weights[p, j])
        for k in range(f):
            for j in range(f):
                slope[j] += error[k] * products[k, j]
        for j in range(f):
            i, w = j // plane, j % plane
            if keep[o, j]:
                level = _level(_size(q, o, j, plane, row, slice_mean, line[i], spot[w]), bounds)
                real = q[o, j] - slope[j] / (products[j, j] * steps[o])
                c = _choice(real, 0.5 * outputs[o, o] * products[j, j] * steps[o] * steps[o], price, bits, level, most)
                if c != q[o, j]:
                    move = (c - q[o, j]) * steps[o]
                    for k in range(f):
                        slope[k] += move * products[j, k]
                    q[o, j] = c
                    changed += 1
            size = abs(q[o, j])
            slice_mean += (size - slice_mean) / 32
            line[i] += (size - line[i]) / 16
            spot[w] += (size - spot[w]) / 64
    return changed
