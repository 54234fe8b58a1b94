"""The loops of piecewise linear functions; `ops.learned_function` says what they compute.

A value x of channel c becomes u = x scale[c] + half, its place on the grid; i is u rounded down and held in the grid,
t = u - i what is left. `lines` [rows x points, 2] has the value and the difference to the next point; `base[c]` is the
first line of the channel's function. Sums of gradients are float32 for a while and then float64.

Imports numba: import this file inside the function that needs a kernel.
"""

from typing import Any

import numpy as np

from lilliput.ops.jit import kernel, part

FLUSH = 1024
"""So many values of a channel are summed in float32 at most, times four."""
LANES = 4
"""Sums side by side where neighbours share a channel: neighbours that meet one point need not wait for each other."""


@part
def _place(u: Any, last: Any) -> Any:
    """The line that u lies on: 0..last; 0 for NaN."""
    held = max(np.float32(0), u)
    return np.int32(min(last, held))


@part
def _row_places(x: Any, base: Any, scale: Any, half: Any, last: Any, index: Any, rest: Any) -> None:
    """The line of each value of a row, and what is left: a loop of its own, of which LLVM makes vector instructions."""
    for c in range(len(x)):
        u = x[c] * scale[c] + half
        k = _place(u, last)
        rest[c] = u - np.float32(k)
        index[c] = base[c] + k


@part
def _plane_places(x: Any, base: Any, scale: Any, half: Any, last: Any, index: Any, rest: Any) -> None:
    """The same for values of one channel."""
    for j in range(len(x)):
        u = x[j] * scale + half
        k = _place(u, last)
        rest[j] = u - np.float32(k)
        index[j] = base + k


@kernel
def rows_forward(
    x: Any, lines: Any, base: Any, scale: Any, half: Any, last: Any, index: Any, rest: Any, y: Any
) -> None:
    """x, y [n, channels]; base, scale, index, rest [channels]."""
    n, channels = x.shape
    for i in range(n):
        _row_places(x[i], base, scale, half, last, index, rest)
        for c in range(channels):
            k = np.uint64(index[c])
            y[i, c] = lines[k, 0] + rest[c] * lines[k, 1]


@kernel
def rows_backward(
    x: Any,
    g: Any,
    lines: Any,
    base: Any,
    scale: Any,
    half: Any,
    last: Any,
    index: Any,
    rest: Any,
    dx: Any,
    part_sums: Any,
    sums: Any,
) -> None:
    """x, g, dx [n, channels]; sums [rows x points, 2]: of g, and of g t, on each line. `part_sums` stays zero."""
    n, channels = x.shape
    count = 0
    for i in range(n):
        _row_places(x[i], base, scale, half, last, index, rest)
        for c in range(channels):
            k = np.uint64(index[c])
            slope = g[i, c]
            dx[i, c] = slope * scale[c] * lines[k, 1]
            part_sums[0, k, 0] += slope
            part_sums[0, k, 1] += slope * rest[c]
        count += 1
        if count == FLUSH or i == n - 1:
            _flush(part_sums, sums)
            count = 0


@kernel
def planes_forward(
    x: Any, lines: Any, base: Any, scale: Any, half: Any, last: Any, index: Any, rest: Any, y: Any
) -> None:
    """x, y [n, channels, inner]; index, rest [inner]."""
    n, channels, inner = x.shape
    for i in range(n):
        for c in range(channels):
            _plane_places(x[i, c], base[c], scale[c], half, last, index, rest)
            for j in range(inner):
                k = np.uint64(index[j])
                y[i, c, j] = lines[k, 0] + rest[j] * lines[k, 1]


@kernel
def planes_backward(
    x: Any,
    g: Any,
    lines: Any,
    base: Any,
    scale: Any,
    half: Any,
    last: Any,
    index: Any,
    rest: Any,
    dx: Any,
    part_sums: Any,
    sums: Any,
) -> None:
    """x, g, dx [n, channels, inner]."""
    n, channels, inner = x.shape
    count = 0
    for i in range(n):
        for c in range(channels):
            factor = scale[c]
            _plane_places(x[i, c], base[c], factor, half, last, index, rest)
            for j in range(inner):
                k, lane = np.uint64(index[j]), np.uint64(j) % np.uint64(LANES)
                slope = g[i, c, j]
                dx[i, c, j] = slope * factor * lines[k, 1]
                part_sums[lane, k, 0] += slope
                part_sums[lane, k, 1] += slope * rest[j]
        count += inner
        if count >= FLUSH or i == n - 1:
            _flush(part_sums, sums)
            count = 0


@part
def _flush(part_sums: Any, sums: Any) -> None:
    for lane in range(part_sums.shape[0]):
        for k in range(sums.shape[0]):
            for way in range(2):
                sums[k, way] += part_sums[lane, k, way]
                part_sums[lane, k, way] = 0
