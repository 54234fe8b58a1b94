"""How many values each circuit makes: the fewest stored bits at which the loss is estimated to grow by no more."""

import math
from collections.abc import Callable, Sequence

from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import Solution
from lilliput.ops import knapsack

COUNTS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)
"""Of values that are tried: each bit of an index, and half a bit."""
UNITS = 1 << 16
"""The loss that is allowed, in units: parts are rounded up, so that their sum stays below it."""


def least_bits(
    problems: Sequence[Problem],
    solvers: Sequence[Callable[[Problem, int], Solution]],
    *,
    most: Sequence[int],
    max_loss: float,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Solution] | None:
    """The solution of each problem, with at most `most` values; None if even these lose more than `max_loss` together.

    The growth of the loss is estimated as half of the sum of importance x squared error: importance must be Fisher
    information. Layers whose errors matter more get more values.
    """
    bits, parts, found = list[list[float]](), list[list[int]](), list[list[Solution]]()
    for problem, solve, limit in zip(problems, solvers, most, strict=True):
        solved = [solve(problem, count) for count in (*(c for c in COUNTS if c < limit), limit)]
        losses = [problem.error(solution.made) / 2 for solution in solved]
        bits.append([float(solution.cost().stored.total) for solution in solved])
        parts.append([_units(loss, max_loss) for loss in losses])
        found.append(solved)
        advance(1)
    try:
        chosen = knapsack.choose(parts, bits, UNITS)
    except ValueError:
        return None
    return [solved[option] for solved, option in zip(found, chosen, strict=True)]


def _units(loss: float, max_loss: float) -> int:
    """Of a loss above the limit one more than all."""
    return 0 if loss == 0 else UNITS + 1 if loss > max_loss else math.ceil(UNITS * loss / max_loss)
