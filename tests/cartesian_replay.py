"""The search over Cartesian circuits once more, in plain Python: every offspring a copy, judged from scratch."""

import math
from dataclasses import replace

import numpy as np

from cartesian_oracle import SOURCES, judged

MASK = (1 << 64) - 1
DRAWN = [*range(27), 28]


class Random:
    """xoshiro256** by its published definition; whole numbers as `ops.cartesian_random_kernels` describes."""

    def __init__(self, state):
        self.s = [int(x) for x in state]

    def word(self):
        def rotated(x, by):
            return ((x << by) | (x >> (64 - by))) & MASK

        s = self.s
        result = rotated(s[1] * 5 & MASK, 7) * 9 & MASK
        t = s[1] << 17 & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotated(s[3], 45)
        return result

    def bounded(self, half, bound):
        """Lemire: of 2^32 halves, those whose product's lower half is below 2^32 mod bound are drawn again."""
        while half * bound % 2**32 < 2**32 % bound:
            half = self.word() >> 32
        return half * bound >> 32

    def below(self, bound):
        return self.bounded(self.word() >> 32, bound)

    def skipped(self, strength):
        uniform = ((self.word() >> 11) + 0.5) * 2.0**-53
        return int(math.log(uniform) * (1.0 / math.log1p(-strength)))


def mutant(circuit, locked, settings, random):
    """A changed copy, and whether an active gene changed, the genes being changed one after the other."""
    shape = circuit.shape
    first, count = (x.tolist() for x in shape.sources())
    free = [(n, k) for n in range(shape.nodes) for k in range(3) if not locked[0][n, k]]
    free += [(shape.nodes + o, 0) for o in range(shape.outputs) if not locked[1][o]]
    nodes, outputs = circuit.nodes.copy(), circuit.outputs.copy()
    at, active = -1, False
    tries = 16 * len(free)
    if settings.mutation == "rate":
        tries = random.below(int(settings.strength * len(free)) + 1)
    for _ in range(tries):
        if settings.mutation == "probability":
            at += 1 + random.skipped(settings.strength)
            if at >= len(free):
                break
            word = random.word()
        else:
            word = random.word()
            at = random.bounded(word >> 32, len(free))
        place, k = free[at]
        if k == 2:
            value = DRAWN[random.bounded(word % 2**32, 28)]
        else:
            column = min(place // shape.rows, shape.columns) if place < shape.nodes else shape.columns
            value = first[column] + random.bounded(word % 2**32, count[column])
        now = replace(circuit, nodes=nodes.copy(), outputs=outputs.copy())
        row, index = (outputs, place - shape.nodes) if place >= shape.nodes else (nodes[place], k)
        if row[index] == value:
            continue
        row[index] = value
        if place >= shape.nodes or (reached(now)[place] and (k == 2 or k < SOURCES[now.nodes[place, 2]])):
            active = True
            if settings.mutation == "single_active":
                break
    return replace(circuit, nodes=nodes, outputs=outputs), active


def reached(circuit):
    inputs, found, todo = circuit.shape.inputs, set(), circuit.outputs.tolist()
    while todo:
        pin = todo.pop()
        if pin >= inputs and pin - inputs not in found:
            found.add(pin - inputs)
            todo += circuit.nodes[pin - inputs, : SOURCES[circuit.nodes[pin - inputs, 2]]].tolist()
    return [node in found for node in range(circuit.shape.nodes)]


def order(measures, other, threshold):
    """A key: smaller is better."""
    if max(measures["error"], other["error"]) > threshold:
        return (measures["error"],)
    return tuple(measures[key] for key in ("energy", "error", "delay", "gates"))


def evolved(goal, settings, state, generations):
    """The fields of the state that many generations later, and the circuit."""
    random, circuit, now = Random(state.random), state.circuit, judged(state.circuit, goal)
    threshold, stage, stalled, done, tried, neutral = settings.threshold, 0, 0, 0, 0, 0
    patience = settings.patience or math.inf
    while True:
        if stage == 0 and stalled >= patience:
            threshold = max(threshold, now["error"])
        if stage == 0 and now["error"] <= threshold:
            stage, stalled = (1 if settings.stages == 2 else 2), 0
        elif stage == 1 and stalled >= patience:
            stage = 2
        if done == generations or stage == 2:
            break
        best, winner = now, circuit
        for _ in range(settings.offspring):
            child, active = mutant(circuit, state.locked, settings, random)
            tried, neutral = tried + 1, neutral + (not active)
            measures = judged(child, goal)
            mine, its = order(measures, best, threshold), order(best, measures, threshold)
            if mine < its or (mine == its and (settings.drift or stage == 0)):
                best, winner = measures, child
        better = order(best, now, threshold) < order(now, best, threshold)
        now, circuit, stalled, done = best, winner, (0 if better else stalled + 1), done + 1
    found = {"generation": done, "stalled": stalled, "stage": stage, "threshold": threshold, "tried": tried}
    found |= {"neutral": neutral, "random": random.s, **now}
    return found, np.concatenate([circuit.nodes.reshape(-1), circuit.outputs]).tolist()
