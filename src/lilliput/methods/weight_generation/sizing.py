"""How many values each circuit makes: the fewest stored bits at which the loss grows by no more than is allowed.

Layers are told apart by an estimate, half of the sum of Fisher information x squared error; how much of it is allowed
follows from losses that are measured, as the estimate holds for small errors alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import Solution
from lilliput.ops import knapsack

COUNTS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)
"""Of values that are tried: each bit of an index, and half a bit."""
UNITS = 1 << 16
"""The estimate that is allowed, in units: parts are rounded up, so that their sum stays below it."""
TRIALS = 12
"""Networks that are measured."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """For each problem its solutions with more and more values, how much the loss may grow with each, their bits."""

    solutions: tuple[tuple[Solution, ...], ...]
    losses: tuple[tuple[float, ...], ...]
    bits: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(
        problems: Sequence[Problem],
        solvers: Sequence[Callable[[Problem, int], Solution]],
        *,
        most: Sequence[int],
        advance: Callable[[int], None] = lambda _: None,
    ) -> "Sizes":
        """With at most `most` values each. The importance of problems must be Fisher information."""
        found = list[tuple[Solution, ...]]()
        for problem, solve, limit in zip(problems, solvers, most, strict=True):
            found.append(tuple(solve(problem, count) for count in (*(c for c in COUNTS if c < limit), limit)))
            advance(1)
        return Sizes(
            solutions=tuple(found),
            losses=tuple(tuple(s.problem.error(s.made) / 2 for s in solved) for solved in found),
            bits=tuple(tuple(float(s.cost().stored.total) for s in solved) for solved in found),
        )

    def within(self, estimate: float) -> list[Solution] | None:
        """The fewest bits of all together at this estimate: layers whose errors matter more get more values."""
        parts = [[_units(loss, estimate) for loss in row] for row in self.losses]
        try:
            chosen = knapsack.choose(parts, self.bits, UNITS)
        except ValueError:
            return None
        return [solved[option] for solved, option in zip(self.solutions, chosen, strict=True)]

    def keeping(self, grows: Callable[[Sequence[Solution]], float], max_loss: float) -> list[Solution] | None:
        """The fewest bits found at which the loss, as `grows` measures it, grows by at most `max_loss`.

        None if even the most values lose more.
        """
        best = [solved[-1] for solved in self.solutions]
        if not grows(best) <= max_loss:  # NaN keeps nothing
            return None
        low = math.log(max(1e-12, sum(row[-1] for row in self.losses)))
        high = math.log(max(1e-12, sum(row[0] for row in self.losses)))
        fewest = _bits(best)
        for _ in range(TRIALS):
            middle = (low + high) / 2
            found = self.within(math.exp(middle))
            if found is not None and not grows(found) <= max_loss:
                high = middle
                continue
            low = middle
            if found is not None and _bits(found) < fewest:
                best, fewest = found, _bits(found)
        return best


def _bits(solutions: Sequence[Solution]) -> float:
    return sum(solution.cost().stored.total for solution in solutions)


def _units(loss: float, most: float) -> int:
    """Of a loss above the limit one more than all."""
    return 0 if loss == 0 else UNITS + 1 if loss > most else math.ceil(UNITS * loss / most)
