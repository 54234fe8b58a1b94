"""A circuit that changes gene by gene, and computes again only what a change can reach.

Each pin, input, node or output, has a record of eight int32 in `pins`: sources a and b, its function, then lists of
who reads it. An edge is 2 pin + side, the pin that reads through its source a (side 0) or b (side 1). FIRST is the
first edge that reads the pin, -1 where nothing does: then the pin is inactive, and its sources do not know about it.
NEXT and PREVIOUS continue the list of the source that a side reads. Outputs are pins that read their a; the last record
is a hand that holds a source while another reader lets go of it.

`pending` has a bit for each pin to be computed, and above one for each word of these; pins are computed in order, so
each at most once. `totals` are exact
integers, so nothing drifts. Arrays come one by one: a tuple of them would count references at each call.

Imports numba: import this file inside the function that needs it.
"""

from typing import Any

import numpy as np

from lilliput.ops import cartesian_functions as functions
from lilliput.ops.cartesian_vector import lowest_bit
from lilliput.ops.jit import part

FUNCTION, FIRST, NEXT, PREVIOUS, WIDTH = 2, 3, 4, 6, 8
ERROR, ENERGY, GATES, DELAY = range(4)
OUTPUT = functions.COUNT
"""The function of outputs: an identity that costs nothing and is no gate."""
ENERGY_COST, DELAY_COST, READS = range(3)
"""Columns of `costs` [COUNT + 1, 3]; READS: how many sources a function reads."""
ONE = np.uint64(1)


@part
def result(f: Any, a: Any, b: Any, row: Any, shift: Any) -> Any:
    """Function f of two int64, wrapped to 64 - shift bits."""
    low = np.int64(-(1 << 63)) >> shift
    x = a
    if f == functions.FLIP_LOWER:
        x = ~low - a
    elif f == functions.ADD:
        x = a + b
    elif f == functions.SUBTRACT:
        x = a - b
    elif f == functions.MULTIPLY:
        x = a * b
    elif f == functions.NEGATE:
        x = -a
    elif f == functions.FLIP_SIGN:
        x = low + a
    elif f == functions.RIGHT_2:
        x = a >> 2
    elif f == functions.RIGHT_1:
        x = a >> 1
    elif f == functions.AND:
        x = a & b
    elif f == functions.OR:
        x = a | b
    elif f == functions.XOR:
        x = a ^ b
    elif f == functions.NOT:
        x = ~a
    elif f == functions.LEFT_1:
        x = a << 1
    elif f == functions.INCREMENT:
        x = a + 1
    elif f == functions.DECREMENT:
        x = a - 1
    elif f == functions.RIGHT_3:
        x = a >> 3
    elif f == functions.RIGHT_4:
        x = a >> 4
    elif f == functions.RIGHT_5:
        x = a >> 5
    elif f == functions.LEFT_2:
        x = a << 2
    elif f == functions.LEFT_3:
        x = a << 3
    elif f == functions.LEFT_4:
        x = a << 4
    elif f == functions.LEFT_5:
        x = a << 5
    elif f == functions.ONE:
        x = np.int64(1)
    elif f == functions.MINUS_ONE:
        x = np.int64(-1)
    elif f == functions.ZERO:
        x = np.int64(0)
    elif f == functions.MIN:
        x = low
    elif f == functions.MAX:
        x = ~low
    elif f == functions.MULTIPLEXER:
        x = b if row & 1 else a
    return (x << shift) >> shift


@part
def mark_(pending: Any, pin: Any) -> None:
    pending[0, pin >> 6] |= ONE << np.uint64(pin & 63)
    pending[1, pin >> 12] |= ONE << np.uint64((pin >> 6) & 63)


@part
def take_(pending: Any) -> Any:
    """The lowest pin that is marked, without its mark; -1 if none is."""
    for above in range((pending.shape[1] + 63) >> 6):
        while pending[1, above]:
            word = (above << 6) + lowest_bit(pending[1, above])
            bits = pending[0, word]
            if bits:
                pending[0, word] = bits & (bits - ONE)
                return (word << 6) + lowest_bit(bits)
            pending[1, above] &= pending[1, above] - ONE
    return np.int64(-1)


@part
def unmark_(pending: Any) -> None:
    for above in range((pending.shape[1] + 63) >> 6):
        while pending[1, above]:
            pending[0, (above << 6) + lowest_bit(pending[1, above])] = 0
            pending[1, above] &= pending[1, above] - ONE


@part
def link_(pins: Any, pin: Any, side: Any) -> Any:
    """`pin` reads its source; true if nothing did before."""
    source = pins[pin, side]
    first = pins[source, FIRST]
    pins[pin, NEXT + side] = first
    pins[pin, PREVIOUS + side] = -1
    if first >= 0:
        pins[first >> 1, PREVIOUS + (first & 1)] = 2 * pin + side
    pins[source, FIRST] = 2 * pin + side
    return first < 0


@part
def unlink_(pins: Any, pin: Any, side: Any) -> Any:
    """`pin` lets go of its source; true if nothing reads that any more."""
    following, before = pins[pin, NEXT + side], pins[pin, PREVIOUS + side]
    if following >= 0:
        pins[following >> 1, PREVIOUS + (following & 1)] = before
    if before >= 0:
        pins[before >> 1, NEXT + (before & 1)] = following
        return False
    pins[pins[pin, side], FIRST] = following
    return following < 0


@part
def wake_(pins: Any, pin: Any, inputs: Any, costs: Any, stack: Any, pending: Any, totals: Any) -> None:
    """`pin` has got its first reader, so all that it depends on is active."""
    stack[0], top = pin, 1
    while top:
        top -= 1
        node = stack[top]
        if node >= inputs:
            mark_(pending, node)
            f = pins[node, FUNCTION]
            totals[ENERGY] += costs[f, ENERGY_COST]
            totals[GATES] += f != functions.IDENTITY
            for side in range(costs[f, READS]):
                if link_(pins, node, side):
                    stack[top] = pins[node, side]
                    top += 1


@part
def sleep_(pins: Any, pin: Any, inputs: Any, costs: Any, stack: Any, totals: Any) -> None:
    """`pin` has lost its last reader."""
    stack[0], top = pin, 1
    while top:
        top -= 1
        node = stack[top]
        if node >= inputs:
            f = pins[node, FUNCTION]
            totals[ENERGY] -= costs[f, ENERGY_COST]
            totals[GATES] -= f != functions.IDENTITY
            for side in range(costs[f, READS]):
                if unlink_(pins, node, side):
                    stack[top] = pins[node, side]
                    top += 1


@part
def matters(pins: Any, gene: Any, costs: Any) -> Any:
    """Is the gene, 8 pin + (0: a, 1: b, 2: function), active?"""
    pin, field = gene >> 3, gene & 7
    return pins[pin, FIRST] >= 0 and (field == FUNCTION or field < costs[pins[pin, FUNCTION], READS])


@part
def set_function_(
    pins: Any, pin: Any, value: Any, inputs: Any, costs: Any, stack: Any, pending: Any, totals: Any
) -> None:
    """An active pin gets another function."""
    f = pins[pin, FUNCTION]
    before, after = costs[f, READS], costs[value, READS]
    pins[pin, FUNCTION] = value
    totals[ENERGY] += costs[value, ENERGY_COST] - costs[f, ENERGY_COST]
    totals[GATES] += np.int64(value != functions.IDENTITY) - np.int64(f != functions.IDENTITY)
    for side in range(before, after):
        if link_(pins, pin, side):
            wake_(pins, pins[pin, side], inputs, costs, stack, pending, totals)
    for side in range(after, before):
        if unlink_(pins, pin, side):
            sleep_(pins, pins[pin, side], inputs, costs, stack, totals)
    mark_(pending, pin)


@part
def set_source_(
    pins: Any, pin: Any, side: Any, value: Any, inputs: Any, costs: Any, stack: Any, pending: Any, totals: Any
) -> None:
    """An active pin reads another source. The hand holds the old one until the new one is awake, which may need it."""
    hand, source = len(pins) - 1, pins[pin, side]
    pins[hand, 0] = source
    link_(pins, hand, 0)
    unlink_(pins, pin, side)
    pins[pin, side] = value
    if link_(pins, pin, side):
        wake_(pins, value, inputs, costs, stack, pending, totals)
    if unlink_(pins, hand, 0):
        sleep_(pins, source, inputs, costs, stack, totals)
    mark_(pending, pin)


@part
def set_active_(
    pins: Any, gene: Any, value: Any, inputs: Any, costs: Any, stack: Any, pending: Any, totals: Any
) -> None:
    """A gene that matters becomes `value`, which it was not."""
    pin, field = gene >> 3, gene & 7
    if field == FUNCTION:
        set_function_(pins, pin, value, inputs, costs, stack, pending, totals)
    else:
        set_source_(pins, pin, field, value, inputs, costs, stack, pending, totals)


@part
def deviation(got: Any, wanted: Any, absolute: Any) -> Any:
    difference = np.int64(got) - np.int64(wanted)
    return abs(difference) if absolute else difference * difference


@part
def settle_(
    pins: Any, values: Any, arrival: Any, timed: Any, costs: Any, shift: Any, targets: Any, weights: Any,
    absolute: Any, pending: Any, changed_pins: Any, old_values: Any, old_arrival: Any, totals: Any,
) -> Any:  # fmt: skip
    """Computes what is pending and whatever that changes; how many pins changed.

    `values` [pins, rows of data]; `arrival` [pins]: the longest path to a pin, followed only if `timed`. The pins that
    changed go to `changed_pins`, their values and arrivals to `old_values` and `old_arrival`.
    """
    rows = values.shape[1]
    first_output = len(pins) - 1 - len(targets)
    count = 0
    while True:
        pin = take_(pending)
        if pin < 0:
            break
        if pins[pin, FIRST] < 0:
            continue
        a, b, f = pins[pin, 0], pins[pin, 1], np.int64(pins[pin, FUNCTION])
        reads = costs[f, READS]
        changed = False
        for row in range(rows):
            x, y = np.int64(values[a, row]), np.int64(values[b, row])
            value = result(f, x, y, row, shift)
            old = values[pin, row]
            old_values[count, row] = old
            values[pin, row] = value
            changed |= value != old
            if pin >= first_output and value != old:
                output = pin - first_output
                wanted = targets[output, row]
                totals[ERROR] += weights[output, row] * (
                    deviation(value, wanted, absolute) - deviation(old, wanted, absolute)
                )
        if timed:
            late = np.int64(0)
            if reads > 0:
                late = arrival[a]
            if reads > 1:
                late = max(late, arrival[b])
            late += costs[f, DELAY_COST]
            old_arrival[count] = arrival[pin]
            changed |= late != arrival[pin]
            arrival[pin] = late
        if changed:
            changed_pins[count] = pin
            count += 1
            edge = pins[pin, FIRST] if pin < first_output else np.int32(-1)
            while edge >= 0:
                mark_(pending, edge >> 1)
                edge = pins[edge >> 1, NEXT + (edge & 1)]
    return count


@part
def latest(pins: Any, arrival: Any, outputs: Any) -> Any:
    """The longest path to an output."""
    last = np.int64(0)
    for pin in range(len(pins) - 1 - outputs, len(pins) - 1):
        last = max(last, arrival[pin])
    return last


@part
def build_(
    pins: Any, values: Any, arrival: Any, timed: Any, inputs: Any, costs: Any, shift: Any, targets: Any,
    weights: Any, absolute: Any, stack: Any, pending: Any, changed_pins: Any, old_values: Any, old_arrival: Any,
    totals: Any,
) -> None:  # fmt: skip
    """Everything from the genes and the values of the inputs."""
    outputs, rows = targets.shape
    first_output = len(pins) - 1 - outputs
    totals[:4] = 0
    pins[:, FIRST] = -1
    pending[:, :] = 0
    arrival[:] = 0
    values[inputs:] = 0
    for output in range(outputs):
        for row in range(rows):
            totals[ERROR] += weights[output, row] * deviation(0, targets[output, row], absolute)
        pin = first_output + output
        pins[pin, FIRST] = 0
        mark_(pending, pin)
        if link_(pins, pin, 0):
            wake_(pins, pins[pin, 0], inputs, costs, stack, pending, totals)
    settle_(
        pins, values, arrival, timed, costs, shift, targets, weights, absolute, pending, changed_pins, old_values,
        old_arrival, totals,
    )  # fmt: skip
    totals[DELAY] = latest(pins, arrival, outputs) if timed else 0
