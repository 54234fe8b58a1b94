"""One option of each group under a budget: the multiple-choice knapsack, solved exactly.

Dynamic programming over the cheapest ways to each loss, as in Dyer, Kayal and Walker (1984), "A branch and bound
algorithm for solving the multiple-choice knapsack problem": after each group only (cost, loss) pairs that no other pair
beats are kept, and of these only those whose bound can still be below the best whole choice known. The bound is the
linear relaxation: on the lower convex hulls of the groups it is a sum of slopes, cheapest loss first.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Group = tuple[Ints, Floats]


def choose(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int]:
    """The option of each group with the least sum of losses whose costs sum to at most `budget`.

    Costs are whole numbers >= 0. Of choices of equal loss the cheapest, up to rounding. Raises ValueError if even the
    cheapest options are above the budget.
    """
    groups = [
        (np.asarray(c, dtype=np.int64), np.asarray(v, dtype=np.float64)) for c, v in zip(costs, losses, strict=True)
    ]
    for cost, loss in groups:
        if cost.ndim != 1 or cost.shape != loss.shape or len(cost) == 0 or (cost < 0).any():
            raise ValueError("each group needs options, each with a cost of at least 0 and a loss")
        if not np.isfinite(loss).all():
            raise ValueError("losses must be finite")
    least = sum(int(cost.min()) for cost, _ in groups)
    if least > budget:
        raise ValueError(f"the cheapest options cost {least}, more than {budget}")
    bounds = _bounds(groups)
    best = _greedy(groups, budget) + 1e-12
    cost, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail: list[tuple[Ints, Ints]] = []  # for each group: the pair that it came from, and the option
    for i, group in enumerate(groups):
        every = cost[:, None] + group[0]
        value = loss[:, None] + group[1]
        spare = budget - every
        inside = np.flatnonzero(bounds[i + 1](spare.reshape(-1).astype(np.float64)) + value.reshape(-1) <= best)
        flat_cost, flat_loss = every.reshape(-1)[inside], value.reshape(-1)[inside]
        order = np.lexsort((flat_loss, flat_cost))
        flat_loss = flat_loss[order]
        below = np.append(np.inf, np.minimum.accumulate(flat_loss)[:-1])
        kept = inside[order[flat_loss < below]]
        trail.append((kept // len(group[0]), kept % len(group[0])))
        cost, loss = every.reshape(-1)[kept], value.reshape(-1)[kept]
    at = int(loss.argmin())
    choice: list[int] = []
    for came_from, option in reversed(trail):
        choice.append(int(option[at]))
        at = int(came_from[at])
    return choice[::-1]


class _Bound:
    """Least loss of some groups for a budget, options divisible; infinite below their cheapest."""

    def __init__(self, base_cost: int, base_loss: float, steps: list[tuple[float, int, float]]) -> None:
        ordered = sorted(steps)  # slope (negative: loss per cost), cost, loss
        self.cost = base_cost + np.cumsum([0, *(c for _, c, _ in ordered)])
        self.loss = base_loss + np.cumsum([0.0, *(v for _, _, v in ordered)])

    def __call__(self, spare: Floats) -> Floats:
        found = np.interp(spare, self.cost, self.loss)
        found -= 1e-12 * np.abs(self.loss).max()  # rounding must not cut the optimum
        return np.where(spare < self.cost[0], np.inf, found)


def _bounds(groups: list[Group]) -> list[_Bound]:
    """For each i the bound of the groups from i on."""
    base_cost, base_loss = 0, 0.0
    steps: list[tuple[float, int, float]] = []
    found = [_Bound(0, 0.0, [])]
    for cost, loss in reversed(groups):
        hull = _hull(cost, loss)
        base_cost += int(cost[hull[0]])
        base_loss += float(loss[hull[0]])
        for a, b in pairwise(hull):
            gain, price = float(loss[b] - loss[a]), int(cost[b] - cost[a])
            steps.append((gain / price, price, gain))
        found.append(_Bound(base_cost, base_loss, steps))
    return found[::-1]


def _hull(cost: Ints, loss: Floats) -> list[int]:
    """Options on the lower left convex hull, by rising cost and falling loss."""
    hull: list[int] = []
    for i in np.lexsort((loss, cost)).tolist():
        if hull and loss[i] >= loss[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(cost, loss, hull[-2], i) <= _slope(cost, loss, hull[-2], hull[-1]):
            hull.pop()
        hull.append(i)
    return hull


def _slope(cost: Ints, loss: Floats, a: int, b: int) -> float:
    return float(loss[b] - loss[a]) / float(cost[b] - cost[a])


def _greedy(groups: list[Group], budget: int) -> float:
    """The loss of a choice that fits: along the hulls, steepest step first, steps that do not fit left out."""
    hulls = [_hull(*group) for group in groups]
    at = [0] * len(groups)
    spent = sum(int(cost[hull[0]]) for (cost, _), hull in zip(groups, hulls, strict=True))
    steps = sorted(
        (_slope(cost, loss, hull[j], hull[j + 1]), i, j)
        for i, ((cost, loss), hull) in enumerate(zip(groups, hulls, strict=True))
        for j in range(len(hull) - 1)
    )
    for _, i, j in steps:
        cost, hull = groups[i][0], hulls[i]
        price = int(cost[hull[j + 1]] - cost[hull[j]])
        if at[i] == j and spent + price <= budget:
            at[i], spent = j + 1, spent + price
    total = sum(float(loss[hull[a]]) for (_, loss), hull, a in zip(groups, hulls, at, strict=True))
    return total + 1e-9 * abs(total)
