"""Axes of charts: from values to places between 0 and 1, with round ticks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_DECADES = 6
TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Axis:
    """`ticks` are (value, text). With `log` values are placed by their logarithm, those below `low` at the edge."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def at(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            return (math.log10(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def linear(label: str, values: Iterable[float], unit: str = "", *, zero: bool = False, count: int = 5) -> Axis:
    """Over the values (and 0 with `zero`), out to the next round numbers; `count` is about how many ticks."""
    known = [v for v in values if math.isfinite(v)] + ([0.0] if zero else [])
    low, high = min(known, default=0.0), max(known, default=1.0)
    if low == high:
        low, high = (0.0, max(high, 1.0)) if low >= 0 else (low, 0.0)
    step = _step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple((i * step, _text(i * step, unit, step)) for i in range(first, last + 1))
    return Axis(label=label, low=first * step, high=last * step, ticks=ticks)


def logarithmic(label: str, values: Iterable[float]) -> Axis:
    """Whole decades around the values that are above 0 (`TINY`), at most the highest `MOST_DECADES`."""
    known = [v for v in values if math.isfinite(v) and v > TINY]
    last = math.ceil(math.log10(max(known, default=1.0)) - 1e-9)
    first = min(math.floor(math.log10(min(known, default=0.1)) + 1e-9), last - 1)
    first = max(first, last - MOST_DECADES)
    ticks = tuple((10.0**e, f"{10.0**e:g}" if -3 <= e <= 3 else f"1e{e}") for e in range(first, last + 1))
    return Axis(label=label, low=10.0**first, high=10.0**last, ticks=ticks, log=True)


def categories(label: str, names: Sequence[str], *, half: bool = True) -> Axis:
    """Names at 0, 1, 2, ...; with `half` there is half a place at both ends."""
    pad = 0.5 if half else 0.0
    ticks = tuple((float(i), name) for i, name in enumerate(names))
    return Axis(label=label, low=-pad, high=max(len(names) - 1 + pad, pad + 1e-9, 0.5), ticks=ticks)


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1.0, 2.0, 2.5, 5.0, 10.0) if rough <= power * m * (1 + 1e-9))


def _text(value: float, unit: str, step: float) -> str:
    if unit == "B":
        scale, name = next(
            ((10.0**e, name) for e, name in ((9, "GB"), (6, "MB"), (3, "kB")) if value >= 10**e), (1, "B")
        )
        return f"{value / scale:g} {name}"
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    places += 1 if round(step * 10**places, 6) % 1 else 0
    text = f"{value:.{places}f}" if places < 5 and abs(value) < 1e6 else f"{value:g}"
    return f"{text}{unit if unit == '%' else ''}"
