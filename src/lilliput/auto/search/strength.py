"""The next strength of a template: towards where its candidates just keep the limits."""

import math
from collections.abc import Sequence

from lilliput.auto.search.budget import Budget, Measured

NEAR = 0.01
"""Part of a byte limit that is left unused on purpose."""
STRIDE = 0.15
"""Of strength, where all candidates keep the score, or none does."""
SHORTEST, LONGEST = 0.04, 0.45
FURTHER = 1.2
"""Steps go a little too far: then the next one lies between two."""
Point = tuple[float, Measured]


def next_strength(points: Sequence[Point], budget: Budget, start: float, slope: float) -> float:
    """`slope`: d log(bytes) / d strength until two points tell it."""
    found = start
    if points:
        found = _by_score(points, budget) if budget.goal != "drop" else _by_bytes(points, budget, slope)
    return round(min(max(found, 0.0), 1.0), 4)


def _by_bytes(points: Sequence[Point], budget: Budget, slope: float) -> float:
    """The least strength that fits: a stronger one costs score for nothing."""
    at = sorted((s, _log_excess(m, budget)) for s, m in points)
    too_much = [p for p in at if p[1] > 0]
    low = too_much[-1] if too_much else None
    fits = [p for p in at if p[1] <= 0 and (low is None or p[0] > low[0])]
    high = fits[0] if fits else None
    aim = math.log(1 - NEAR)
    if low and high:
        share = (low[1] - aim) / max(low[1] - high[1], 1e-9)
        return low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
    s, value = low or high or at[0]
    if len(at) > 1 and at[0][0] != at[-1][0]:
        told = (at[-1][1] - at[0][1]) / (at[-1][0] - at[0][0])
        slope = min(told, slope / 4)
    step = FURTHER * (aim - value) / slope
    return s + math.copysign(min(max(abs(step), SHORTEST), LONGEST), step)


def _log_excess(measured: Measured, budget: Budget) -> float:
    ratios = [
        (measured.of(quantity) or 0.0) / limit
        for name, (quantity, limit) in budget.limits.items()
        if name != "max_drop" and limit > 0
    ]
    return math.log(max(max(ratios, default=1.0), 1e-9))


def _by_score(points: Sequence[Point], budget: Budget) -> float:
    """The greatest strength whose score is kept."""
    limit = budget.limits["max_drop"][1]
    at = sorted((s, m.drop) for s, m in points)
    bad = [p for p in at if p[1] > limit]
    good = [p for p in at if p[1] <= limit and (not bad or p[0] < bad[0][0])]
    if good and bad:
        return good[-1][0] + 0.5 * (bad[0][0] - good[-1][0])
    if good:
        return good[-1][0] + STRIDE
    return bad[0][0] - STRIDE
