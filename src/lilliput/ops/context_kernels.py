"""The loop of the context coder, for both directions; `ops.context_coding` says what it computes.

Imports numba: import this file inside the function that needs the kernel.
"""

from typing import Any

import numpy as np

from lilliput.ops import context_vector as vector
from lilliput.ops.context_vector import LANES, SIZE_LIMIT, SIZE_SHIFT, TAPS
from lilliput.ops.jit import kernel, part

VALUE_LEVELS, SIZE_LEVELS = 7, 6
CONTEXTS = VALUE_LEVELS * SIZE_LEVELS
WIDTHS = 9
ROWS, RESTS = WIDTHS * (CONTEXTS + 1), WIDTHS * LANES
TYPICAL = 64
"""Values are scaled so that the mean of their sizes is 64."""
LARGEST = 1024
ONE = 1 << 20
STATE = 1 << 24
SLOTS = 1 << 15
INHERITED, MOST_SEEN, COMMON = 8, 440, 4096
TRUNCATED, IMPOSSIBLE = -1, -2
"""What `code` returns for a stream that ends too early, or names a symbol that is not there."""


@part
def _start(entry: Any, spread: Any, k: Any) -> Any:
    return ((np.int64(entry) >> 5) * spread >> 15) + k


@part
def _consume(x: Any, low: Any, width: Any, words: Any, at: Any) -> Any:
    """The state and the next word after a symbol of `width` slots from `low`; position -1 if words run out."""
    x = width * (x >> 15) + (x & (SLOTS - 1)) - low
    if x < STATE:
        if at >= len(words):
            return x, np.int64(-1)
        x = (x << 16) | np.int64(words[np.uint64(at)])
        at += 1
    return x, at


@part
def _bound(x: Any, limit: Any) -> Any:
    return min(max(x, -limit), limit)


@kernel
def code(
    decoding: Any,
    symbols: Any,  # int32 [n]: read, or written when decoding
    widths: Any,  # uint8 [n]: bits of each symbol; 0 = not there
    grid: Any,  # (slices, planes, rows, columns): n is their product
    pads: Any,  # cells before each plane, before each row, before and after the columns of each slice
    back: Any,  # int64 [8]: how many slices back each tap is
    step: Any,  # int64 [8]: and how many cells
    centre: Any,  # int32 [9], by width
    gain: Any,  # int32 [9]
    tokens: Any,  # int32 [9, 17]: first symbol of each token, for widths above 4
    words: Any,  # uint16: the stream after its state
    progress: Any,  # int64 [2], changed: the state, and how many words were read
    lows: Any,  # uint16 [3 n]: written when encoding, with `shares`: the slots of each step
    shares: Any,
    table: Any,  # int32 [ROWS, 16], changed: probabilities by width and context, the common one last
    seen: Any,  # int64 [ROWS], changed: how many symbols each has seen, -1 for none yet
    rest: Any,  # int32 [RESTS, 16] and int64 [RESTS], changed: the same for the rests of tokens
    rest_seen: Any,
    learned: Any,  # int64 [1], changed: how many symbols changed common tables
) -> Any:
    """The number of steps when encoding; 0 or a fault when decoding."""
    slices, planes, rows, columns = grid
    pad_planes, pad_rows, pad_before, pad_after = pads
    row_cells = columns + pad_before + pad_after
    plane_cells = (rows + pad_rows) * row_cells
    slice_cells = (planes + pad_planes) * plane_cells
    ring = np.int64(1)
    for j in range(TAPS):
        ring = max(ring, back[j] + 1)
    history = np.full(ring * slice_cells, TYPICAL, np.int32)  # value 0 of typical size: what lies outside
    starts = np.zeros(TAPS, np.int64)
    weights = np.zeros(2 * TAPS, np.int32)
    for j in range(TAPS, 2 * TAPS):
        weights[j] = 5958
    inputs = np.zeros(4 * TAPS, np.int32)  # of this entry and of the one before it
    weight_slice, weight_line, weight_spot = np.int64(5958), np.int64(5958), np.int64(5958)
    old_slice, old_line, old_spot = np.int64(0), np.int64(0), np.int64(0)
    value_miss, size_miss = np.int64(0), np.int64(0)

    slow = np.zeros(WIDTHS, np.int64)
    for b in range(1, WIDTHS):
        slow[b] = 6 * min(LANES, 1 << b) // 10 + 1
    rate = np.zeros(MOST_SEEN + LANES, np.int32)
    for k in range(1, len(rate)):
        rate[k] = 2048 // k

    single = pad_planes == 0  # a matrix: lines are its columns
    line = np.full(columns if single else planes, TYPICAL << 8, np.int64)
    spot = np.full(1 if single else rows * columns, TYPICAL << 8, np.int64)
    of_slice = np.int64(TYPICAL << 8)
    at_history, at_starts, at_weights = history.ctypes.data, starts.ctypes.data, weights.ctypes.data
    at_inputs, at_table, at_rest = inputs.ctypes.data, table.ctypes.data, rest.ctypes.data
    half, rounding = 4 * TAPS, 1 << (SIZE_SHIFT - 1)
    at_old = at_inputs + 2 * half
    x, at, steps = np.int64(progress[0]), np.int64(progress[1]), np.uint64(0)
    one = np.uint64(1)
    t = np.uint64(0)
    common = np.int64(learned[0])
    for o in range(slices):
        of_slice = (of_slice + (TYPICAL << 8)) >> 1
        here = (o % ring) * slice_cells
        for j in range(TAPS):
            starts[j] = ((o + ring - back[j]) % ring) * slice_cells - step[j]
        for i in range(planes):
            for h in range(rows):
                first = (i + pad_planes) * plane_cells + (h + pad_rows) * row_cells + pad_before
                for d in range(columns):
                    cell = np.uint64(here + first + d)
                    b = np.int64(widths[t])
                    if b == 0:
                        history[cell] = 0
                        t += one
                        continue
                    p, taps = vector.predict(at_history, at_starts, first + d, at_weights, at_inputs)
                    u = np.uint64(d if single else i)
                    w = np.uint64(0 if single else h * columns + d)
                    in_slice, in_line, in_spot = of_slice >> 8, line[u] >> 8, spot[w] >> 8
                    q = taps + weight_slice * in_slice + weight_line * in_line + weight_spot * in_spot
                    # The lesson of the entry before comes after this prediction: waiting for it would halve the speed.
                    vector.learn_values(at_weights, at_old, np.int32(value_miss))
                    vector.learn_sizes(at_weights + half, at_old + half, np.int32(size_miss))
                    weight_slice = _bound(weight_slice + ((size_miss * old_slice + rounding) >> SIZE_SHIFT), SIZE_LIMIT)
                    weight_line = _bound(weight_line + ((size_miss * old_line + rounding) >> SIZE_SHIFT), SIZE_LIMIT)
                    weight_spot = _bound(weight_spot + ((size_miss * old_spot + rounding) >> SIZE_SHIFT), SIZE_LIMIT)
                    at_inputs, at_old = at_old, at_inputs
                    old_slice, old_line, old_spot = in_slice, in_line, in_spot
                    level = np.int64(p > -4194304) + np.int64(p > -2097152) + np.int64(p > -629146)
                    level += np.int64(p > 629146) + np.int64(p > 2097152) + np.int64(p > 4194304)
                    scale = np.int64(q > 2516582) + np.int64(q > 3355443) + np.int64(q > 3984588)
                    scale += np.int64(q > 4613734) + np.int64(q > 5662310)
                    parent = np.uint64(b * (CONTEXTS + 1) + CONTEXTS)
                    context = np.uint64(b * (CONTEXTS + 1) + level * SIZE_LEVELS + scale)
                    if seen[context] < 0:
                        for k in range(LANES):
                            table[context, k] = table[parent, k]
                        seen[context] = min(seen[parent], INHERITED)
                    alphabet = np.int64(LANES) if b > 4 else np.int64(1) << b
                    spread = SLOTS - alphabet
                    address = at_table + np.int64(context) * (4 * LANES)
                    symbol = np.int64(0)
                    if decoding:
                        slot = np.int32(x & (SLOTS - 1))
                        token = vector.starts_up_to(address, np.int32(spread), slot) - 1
                    else:
                        symbol = np.int64(symbols[t])
                        token = symbol
                        if b > 4:
                            token = np.int64(0)
                            for k in range(1, LANES):
                                token += np.int64(tokens[b, k] <= symbol)
                    v = np.uint64(token)
                    low = _start(table[context, v], spread, token)
                    high = _start(table[context, v + one], spread, token + 1) if token + 1 < alphabet else SLOTS
                    if decoding:
                        x, at = _consume(x, low, high - low, words, at)
                        if at < 0:
                            return np.int64(TRUNCATED)
                    else:
                        lows[steps], shares[steps] = low, high - low
                        steps += one
                    n = seen[context]
                    vector.move_table(address, np.int32(token), rate[np.uint64(n + slow[b])])
                    if n < MOST_SEEN:
                        seen[context] = n + 1
                    if common < COMMON:
                        common += 1
                        n = seen[parent]
                        above = at_table + np.int64(parent) * (4 * LANES)
                        vector.move_table(above, np.int32(token), rate[np.uint64(n + slow[b])])
                        if n < MOST_SEEN:
                            seen[parent] = n + 1
                    if b <= 4:
                        symbol = token
                    else:
                        base = np.int64(tokens[b, v])
                        span = np.int64(tokens[b, v + one]) - base
                        if span == 1:
                            symbol = base
                        else:
                            piece = (span + LANES - 1) // LANES
                            pieces = (span + piece - 1) // piece
                            spread = SLOTS - pieces
                            r = np.uint64(b * LANES + token)
                            address = at_rest + np.int64(r) * (4 * LANES)
                            if decoding:
                                slot = np.int32(x & (SLOTS - 1))
                                part = vector.starts_up_to(address, np.int32(spread), slot) - 1
                            else:
                                part = (symbol - base) // piece
                            v = np.uint64(part)
                            low = _start(rest[r, v], spread, part)
                            high = _start(rest[r, v + one], spread, part + 1) if part + 1 < pieces else SLOTS
                            even = SLOTS // piece
                            if decoding:
                                x, at = _consume(x, low, high - low, words, at)
                                if at < 0:
                                    return np.int64(TRUNCATED)
                                offset = part * piece
                                if piece > 1:
                                    within = (x & (SLOTS - 1)) // even
                                    if within >= piece:
                                        return np.int64(IMPOSSIBLE)
                                    x, at = _consume(x, within * even, even, words, at)
                                    if at < 0:
                                        return np.int64(TRUNCATED)
                                    offset += within
                                if offset >= span:
                                    return np.int64(IMPOSSIBLE)
                                symbol = base + offset
                            else:
                                lows[steps], shares[steps] = low, high - low
                                steps += one
                                if piece > 1:
                                    lows[steps], shares[steps] = (symbol - base - part * piece) * even, even
                                    steps += one
                            n = rest_seen[r]
                            vector.move_table(address, np.int32(part), rate[np.uint64(n + 6 * pieces // 10 + 1)])
                            if n < MOST_SEEN:
                                rest_seen[r] = n + 1
                    if decoding:
                        symbols[t] = symbol
                    value = _bound(((2 * symbol - centre[b]) * gain[b]) >> 10, LARGEST)
                    size = abs(value)
                    history[cell] = (value << 16) | size
                    value_miss = ((value << 16) - np.int64(p)) >> 12
                    size_miss = ((size << 16) - np.int64(q)) >> 12
                    of_slice += ((size << 8) - of_slice) >> 5
                    line[u] += ((size << 8) - line[u]) >> 4
                    spot[w] += ((size << 8) - spot[w]) >> 6
                    t += one
    # The addresses do not keep the arrays alive: these uses at the end do.
    alive = history[0] + starts[0] + weights[0] + inputs[0] + table[0, 0] + rest[0, 0]
    progress[0], progress[1], learned[0] = x, at, common
    return np.int64(0 if decoding else steps) + 0 * alive


@kernel
def chain(lows: Any, shares: Any, steps: Any, words: Any) -> Any:
    """The coded steps, last first, as words from the end of `words` on: how many, and the state."""
    x, n = np.int64(STATE), len(words)
    count = 0
    for k in range(steps - 1, -1, -1):
        share = np.int64(shares[k])
        if x >= share << 25:
            count += 1
            words[n - count] = x & 65535
            x >>= 16
        x = ((x // share) << 15) + x % share + np.int64(lows[k])
    return count, x
