"""The (1 + lambda) search over circuits: mutate, settle, compare, and take back what was not better.

Genes that mutate: `free` [n, 3], the gene and what values it may take: the first, and how many from there on (for
functions: places in DRAWN). `rng` is the state of the random numbers, `counters` what a search remembers beside.

Imports numba: import this file inside the function that needs it.
"""

from typing import Any

import numpy as np

from lilliput.ops.cartesian_functions import IDENTITY, MULTIPLEXER
from lilliput.ops.cartesian_kernels import (
    DELAY,
    ENERGY,
    ERROR,
    FUNCTION,
    build_,
    latest,
    matters,
    set_active_,
    settle_,
    unmark_,
)
from lilliput.ops.cartesian_random_kernels import HALF, LOWER, below_, bounded_, skipped_, word_
from lilliput.ops.jit import kernel, part

GENERATION, STALLED, STAGE, THRESHOLD, OFFSPRING, NEUTRAL = range(6)
"""STALLED: generations since the last that was better. NEUTRAL: offspring in which no active gene changed."""
ERROR_STAGE, ENERGY_STAGE, READY = range(3)
RATE, PROBABILITY, SINGLE_ACTIVE = range(3)
MUTATION, MOST, CHILDREN, DRIFT, STAGES, PATIENCE = range(6)
"""Places in `how`; MOST: how many genes a RATE changes at most, and how many a SINGLE_ACTIVE tries."""


@part
def new_value_(rng: Any, half: Any, gene: Any, first: Any, count: Any) -> Any:
    """Multiplexers are not drawn: identity, one above, takes their place."""
    drawn = first + bounded_(rng, half, count)
    if gene & 7 == FUNCTION and drawn == MULTIPLEXER:
        return np.int64(IDENTITY)
    return drawn


@part
def mutate_(
    pins: Any, free: Any, rng: Any, how: Any, scale: Any, inputs: Any, costs: Any, stack: Any, pending: Any,
    totals: Any, undo: Any,
) -> Any:  # fmt: skip
    """How many genes changed, which `undo` has with their old values, and whether one of them was active."""
    mutation, genes, changed, active = how[MUTATION], len(free), 0, False
    tries, at = how[MOST], np.int64(-1)
    if mutation == RATE:
        tries = below_(rng, how[MOST] + 1)
    elif mutation == PROBABILITY:
        tries = genes
    for _ in range(tries):
        if mutation == PROBABILITY:
            at += 1 + skipped_(rng, scale)
            if at >= genes:
                break
            word = word_(rng)
        else:
            word = word_(rng)
            at = bounded_(rng, word >> HALF, genes)
        gene = np.int64(free[at, 0])
        value = new_value_(rng, word & LOWER, gene, np.int64(free[at, 1]), free[at, 2])
        old = pins[gene >> 3, gene & 7]
        if value != old:
            undo[changed, 0], undo[changed, 1] = gene, old
            changed += 1
            if matters(pins, gene, costs):
                set_active_(pins, gene, value, inputs, costs, stack, pending, totals)
                active = True
                if mutation == SINGLE_ACTIVE:
                    break
            else:
                pins[gene >> 3, gene & 7] = value
    return changed, active


@part
def copy_(totals: Any, to: Any) -> None:
    for measure in range(4):
        to[measure] = totals[measure]


@part
def compared(child: Any, other: Any, threshold: Any) -> Any:
    """1 if the child is better, 0 if as good: by error if that of one is above the threshold, else by energy first."""
    if child[ERROR] > threshold or other[ERROR] > threshold:
        return np.sign(other[ERROR] - child[ERROR])
    for measure in (ENERGY, ERROR, DELAY, 2):
        if child[measure] != other[measure]:
            return np.sign(other[measure] - child[measure])
    return np.int64(0)


@kernel
def evolve_(
    pins: Any, values: Any, inputs: Any, free: Any, costs: Any, shift: Any, targets: Any, weights: Any, absolute: Any,
    how: Any, scale: Any, rng: Any, counters: Any, totals: Any, last_generation: Any,
) -> None:  # fmt: skip
    """Generations until `last_generation`, or until the search is READY. `totals` become those of the circuit."""
    size, rows, outputs = len(pins), values.shape[1], len(targets)
    arrival, stack, pending = (
        np.zeros(size, np.int64),
        np.empty(size, np.int32),
        np.zeros((2, size // 64 + 1), np.uint64),
    )
    changed_pins, old_values, old_arrival = (
        np.empty(size + 1, np.int32),
        np.empty((size + 1, rows), np.int16),
        np.empty(size + 1, np.int64),
    )
    most = how[MOST] if how[MUTATION] != PROBABILITY else len(free)
    undo, winner = np.empty((most, 2), np.int32), np.empty((most, 2), np.int32)
    parent, best = np.empty(4, np.int64), np.empty(4, np.int64)
    timed = counters[STAGE] == ENERGY_STAGE
    build_(
        pins, values, arrival, timed, inputs, costs, shift, targets, weights, absolute, stack, pending,
        changed_pins, old_values, old_arrival, totals,
    )  # fmt: skip
    while True:
        if counters[STAGE] == ERROR_STAGE:
            if counters[STALLED] >= how[PATIENCE]:
                counters[THRESHOLD] = max(counters[THRESHOLD], totals[ERROR])
            if totals[ERROR] <= counters[THRESHOLD]:
                counters[STAGE] = ENERGY_STAGE if how[STAGES] == 2 else READY
                counters[STALLED] = 0
                timed = True
                build_(
                    pins, values, arrival, timed, inputs, costs, shift, targets, weights, absolute, stack, pending,
                    changed_pins, old_values, old_arrival, totals,
                )  # fmt: skip
        elif counters[STALLED] >= how[PATIENCE]:
            counters[STAGE] = READY
        if counters[GENERATION] >= last_generation or counters[STAGE] == READY:
            break
        threshold = counters[THRESHOLD]
        copy_(totals, parent)
        copy_(totals, best)
        won, kept = -1, False
        for child in range(how[CHILDREN]):
            changed, active = mutate_(pins, free, rng, how, scale, inputs, costs, stack, pending, totals, undo)
            counters[OFFSPRING] += 1
            counters[NEUTRAL] += not active
            logged = 0
            if active:
                logged = settle_(
                    pins, values, arrival, timed, costs, shift, targets, weights, absolute, pending, changed_pins,
                    old_values, old_arrival, totals,
                )  # fmt: skip
                if timed and totals[ERROR] <= threshold and totals[ENERGY] <= best[ENERGY]:
                    totals[DELAY] = latest(pins, arrival, outputs)
            comparison = compared(totals, best, threshold)
            if comparison > 0 or (comparison == 0 and (how[DRIFT] or not timed)):
                copy_(totals, best)
                won, kept = changed, child == how[CHILDREN] - 1
                if kept:
                    break
                for i in range(changed):
                    gene = np.int64(undo[i, 0])
                    winner[i, 0], winner[i, 1] = gene, pins[gene >> 3, gene & 7]
            for i in range(logged):
                pin = changed_pins[i]
                arrival[pin] = old_arrival[i]
                for row in range(rows):
                    values[pin, row] = old_values[i, row]
            for i in range(changed - 1, -1, -1):
                gene = np.int64(undo[i, 0])
                if matters(pins, gene, costs):
                    set_active_(pins, gene, undo[i, 1], inputs, costs, stack, pending, totals)
                else:
                    pins[gene >> 3, gene & 7] = undo[i, 1]
            unmark_(pending)
            copy_(parent, totals)
        if won >= 0 and not kept:
            for i in range(won):
                gene = np.int64(winner[i, 0])
                if pins[gene >> 3, gene & 7] != winner[i, 1] and matters(pins, gene, costs):
                    set_active_(pins, gene, winner[i, 1], inputs, costs, stack, pending, totals)
                else:
                    pins[gene >> 3, gene & 7] = winner[i, 1]
            settle_(
                pins, values, arrival, timed, costs, shift, targets, weights, absolute, pending, changed_pins,
                old_values, old_arrival, totals,
            )  # fmt: skip
            totals[DELAY] = best[DELAY]
        counters[STALLED] = 0 if compared(best, parent, threshold) > 0 else counters[STALLED] + 1
        counters[GENERATION] += 1
    build_(
        pins, values, arrival, True, inputs, costs, shift, targets, weights, absolute, stack, pending,
        changed_pins, old_values, old_arrival, totals,
    )  # fmt: skip
