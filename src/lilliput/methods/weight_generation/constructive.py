"""Circuits that make every wanted value exactly, gate by gate: the cheapest derivation of a missing value comes next.

A value is derived from available ones by one gate or by several; what comes on the way is available from then on. The
cheapest derivation is found by Knuth's generalization of Dijkstra's algorithm (1977): the price of a value is that of
its gate and of its operands, and available values are free. It may count an operand twice that two branches share,
and the order is greedy, so the sum is not always the least that is possible. Nothing is drawn: equal inputs give
equal circuits.
"""

import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lilliput.core.errors import UsageError
from lilliput.ops.cartesian_functions import (
    ADD,
    AND,
    CONSTANTS,
    COUNT,
    IDENTITY,
    MULTIPLY,
    OR,
    READS,
    SUBTRACT,
    XOR,
    evaluate,
    limits,
)
from lilliput.ops.netlist import Gate, Netlist

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
UNARY = tuple(f for f in range(COUNT) if READS[f] == 1 and f != IDENTITY)
PAIRED = {
    ADD: operator.add,
    SUBTRACT: operator.sub,
    MULTIPLY: operator.mul,
    AND: operator.and_,
    OR: operator.or_,
    XOR: operator.xor,
}
"""A result is taken modulo 2^bits afterwards."""
MOST_BITS = 12
"""All values of the width are looked at for each that is missing."""
GATE_SHARE, DEPTH_SHARE = 1e-3, 1e-6
"""Of the smallest price above 0: what a gate and a level of depth add. Of equal energy the smaller circuit wins."""


def generate(given: Sequence[int], wanted: Sequence[int], *, bits: int, prices: npt.ArrayLike) -> Netlist:
    """A circuit with an output for each of `wanted`, in this order, from the inputs `given`.

    `prices` [28] are those of functions, at least 0; a function of infinite price is not used, nor are multiplexers.
    Raises `UsageError` for values out of range, and where the functions allowed cannot make a value.
    """
    low, high = limits(bits)
    if bits > MOST_BITS:
        raise UsageError("a circuit for values", f"{bits} bits", f"use at most {MOST_BITS}")
    for what, values in (("given", given), ("wanted", wanted)):
        outside = [v for v in values if not low <= v <= high]
        if outside:
            raise UsageError(f"values that are {what}", f"{outside[0]} does not fit in {bits} bits", "use more bits")
    builder = _Builder(bits, check_prices(prices))
    for pin, value in enumerate(given):
        builder.available(int(value) - low, pin)
    missing = {int(value) - low for value in wanted} - set(builder.pin)
    while missing:
        missing -= builder.reach(missing)
    gates = tuple(builder.gates(len(given)))
    outputs = tuple(builder.pin[int(value) - low] for value in wanted)
    return Netlist(bits=bits, inputs=len(given), gates=gates, outputs=outputs).pruned()


def reachable(given: Sequence[int], *, bits: int, prices: npt.ArrayLike, most: float = 0.0) -> Ints:
    """Ascending: the values for each of which a single derivation from `given` costs at most `most`, these included."""
    low, _ = limits(bits)
    builder = _Builder(bits, check_prices(prices), ties=False)
    for pin, value in enumerate(given):
        builder.available(int(value) - low, pin)
    found = builder.within(most)
    return np.sort(np.asarray(found, dtype=np.int64)) + low


def check_prices(prices: npt.ArrayLike) -> Floats:
    found = np.asarray(prices, dtype=np.float64)
    if found.shape != (COUNT,) or not bool((found >= 0).all()):
        raise UsageError("prices of functions", f"{found.shape} numbers", f"give {COUNT}, none of them negative or NaN")
    return found


class _Builder:
    """What is available, and the cheapest derivation of everything else. Values are counted from the lowest one."""

    def __init__(self, bits: int, prices: Floats, *, ties: bool = True) -> None:
        self.bits, self.low, self.size = bits, limits(bits)[0], 1 << bits
        positive = prices[np.isfinite(prices) & (prices > 0)]
        unit = float(positive.min()) if len(positive) else 1.0
        self.level = unit * DEPTH_SHARE if ties else 0.0
        self.prices = prices + (unit * GATE_SHARE if ties else 0.0) + self.level
        everything = np.arange(self.size) + self.low
        self.unary = [(f, evaluate(f, everything, 0, bits) - self.low) for f in UNARY if np.isfinite(self.prices[f])]
        self.paired = [f for f in PAIRED if np.isfinite(self.prices[f])]
        self.pin: dict[int, int] = {}
        self.order: list[int] = []
        """Values that gates make, in the order of their making."""
        self.recipe: dict[int, tuple[int, int, int]] = {}
        """value: (function, a, b) as values."""
        self.base = np.zeros(self.size)
        """Of available values: what their depth adds."""
        self.cost = np.full(self.size, np.inf)
        self.how = np.zeros((self.size, 3), dtype=np.int64)
        """The best single gate on available values."""
        for f in CONSTANTS:
            if np.isfinite(self.prices[f]):
                self._offer(self.cost, self.how, evaluate(f, [0], 0, bits) - self.low, f, 0, 0, 0.0)

    def available(self, value: int, pin: int) -> None:
        if value in self.pin:
            return
        self.pin[value] = pin
        self.cost[value] = -1.0
        self._relax(self.cost, self.how, value, self.base, list(self.pin))

    def reach(self, missing: set[int]) -> set[int]:
        """Make the cheapest of the missing values available, with all that it needs; all values that this gives."""
        value, how = self._search(missing, np.inf, list(self.pin))
        if value is None:
            found = "the functions allowed do not reach it"
            raise UsageError(f"a circuit for {min(missing) + self.low}", found, "allow more functions")
        return self._make(value, how)

    def within(self, most: float) -> list[int]:
        settled = list(self.pin)
        self._search(set(), most, settled)
        return settled

    def _search(self, missing: set[int], most: float, settled: list[int]) -> tuple[int | None, Ints]:
        """Settle values in the order of their cost until one is missing, or above `most`; how each is made."""
        cost, how, total = self.cost.copy(), self.how.copy(), self.base.copy()
        wanted = np.fromiter(missing, np.int64)
        while True:
            still_open = np.where(cost < 0, np.inf, cost)
            value = int(np.argmin(still_open))  # the lowest of equally cheap ones
            if not np.isfinite(still_open[value]) or cost[value] > most:
                return None, how
            if value in missing:
                return value, how
            total[value], cost[value] = cost[value], -1.0
            settled.append(value)
            self._relax(cost, how, value, total, settled, cost[wanted].min(initial=np.inf))

    def gates(self, inputs: int) -> list[Gate]:
        """In the order of making, with pins for values."""
        pins = self.pin
        for k, value in enumerate(self.order):
            pins[value] = inputs + k
        return [
            Gate(f, *(pins[v] for v in (a, b)[: READS[f]])) for f, a, b in (self.recipe[value] for value in self.order)
        ]

    def _relax(
        self, cost: Floats, how: Ints, value: int, total: Floats, settled: list[int], bound: float = np.inf
    ) -> None:
        """What `value` gives alone and with each settled one, itself among them, for less than `bound`."""
        spent = float(total[value])
        for f, result in self.unary:
            if spent + self.prices[f] < min(bound, cost[result[value]]):
                self._offer(cost, how, result[value : value + 1], f, value, value, spent)
        paired = [f for f in self.paired if spent + self.prices[f] < bound]
        if not paired:
            return
        others = np.asarray(settled, dtype=np.int64)
        together = spent + np.where(others == value, 0.0, total[others])
        numbers, number = others + self.low, value + self.low
        for f in paired:
            results = (PAIRED[f](number, numbers) - self.low) & (self.size - 1)
            self._offer(cost, how, results, f, value, others, together)
            if f == SUBTRACT:
                results = (numbers - number - self.low) & (self.size - 1)
                self._offer(cost, how, results, f, others, value, together)

    def _offer(
        self, cost: Floats, how: Ints, results: Ints, f: int, a: int | Ints, b: int | Ints, spent: float | Floats
    ) -> None:
        """Keep what is cheaper than what is known; of equal offers the first."""
        price = np.broadcast_to(np.asarray(spent + self.prices[f]), results.shape)
        better = np.flatnonzero(price < cost[results])
        if len(better) == 0:
            return
        better = better[np.argsort(price[better], kind="stable")[::-1]]  # the cheapest is written last
        places = results[better]
        cost[places] = price[better]
        how[places, 0] = f
        how[places, 1] = np.broadcast_to(np.asarray(a), results.shape)[better]
        how[places, 2] = np.broadcast_to(np.asarray(b), results.shape)[better]

    def _make(self, value: int, how: Ints) -> set[int]:
        made: set[int] = set()
        pending = [value]
        while pending:
            here = pending[-1]
            function, a, b = (int(x) for x in how[here])
            lacking = [v for v in (a, b)[: READS[function]] if v not in self.pin]
            if here in self.pin:
                pending.pop()
            elif lacking:
                pending += lacking
            else:
                pending.pop()
                self.recipe[here] = (function, a, b)
                depth = max((self.base[v] for v in (a, b)[: READS[function]]), default=0.0) + self.level
                self.base[here] = depth
                self.order.append(here)
                self.available(here, -1)
                made.add(here)
        return made
