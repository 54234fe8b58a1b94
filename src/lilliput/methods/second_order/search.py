"""The price of a bit at which a limit is just kept, with few tries."""

import math
from collections.abc import Callable

TRIES, CLOSE = 9, 0.015
"""Prices that are tried at most; the share of the limit that may be left unused."""
SLOPE, FARTHEST = 0.45, 4.0
"""d log(value) / d log(price) until two tries tell it; the largest step of log(price) before that."""


def best_price(
    measure: Callable[[float], float], limit: float, start: float, *, rising: bool, close: float = CLOSE
) -> float | None:
    """The price at the limit: `measure(price)` is at most `limit` there; None if it was so for no price that was tried.

    `close`: the share of the limit that may be left unused.
    `rising`: a higher price gives a higher value, so the highest one that fits is wanted; otherwise the lowest.
    """
    sign = 1.0 if rising else -1.0  # along x = sign log(price) values rise: the largest x that fits is wanted
    low: tuple[float, float] | None = None  # fits
    high: tuple[float, float] | None = None  # does not
    aim = math.log(limit * (1 - close / 2))
    x = sign * math.log(start)
    for _ in range(TRIES):
        value = measure(math.exp(sign * x))
        point = (x, math.log(max(value, limit * 1e-6)))
        if value <= limit:
            low = point
            if value >= (1 - close) * limit:
                break
        else:
            high = point
        if low and high:
            if high[0] - low[0] < close / 2:
                break
            share = (aim - low[1]) / max(high[1] - low[1], 1e-12)
            x = low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
        else:
            step = (aim - point[1]) / SLOPE
            x += min(max(step, -FARTHEST), FARTHEST)
    return None if low is None else math.exp(sign * low[0])
