"""Limits, and what is to be least or most within them: constraints, not weights."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lilliput.core.errors import UsageError
from lilliput.core.score import Score, parse_drop
from lilliput.core.target import Target, parse_bytes, parse_seconds

ROWS = {
    "max_bytes": ("bytes", "bytes"),
    "max_flash": ("flash", "bytes of flash"),
    "max_ram": ("ram", "bytes of RAM"),
    "max_latency": ("ratio", "x the float network's latency"),
    "max_drop": ("drop", "lost"),
}
"""Of each limit: the quantity of `Measured` that it bounds (latency: or "milliseconds"), and a word for it."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A limit: of the ratio to the float network ("0.5x"), or of milliseconds ("2ms")."""

    quantity: str
    limit: float

    @staticmethod
    def of(text: str | float) -> "Latency":
        ratio = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*x\s*", text) if isinstance(text, str) else None
        if ratio is not None or not isinstance(text, str):
            value = float(ratio[1]) if ratio is not None else float(text)
            if not 0 < value < math.inf:
                raise UsageError(f"max_latency {text}", "not a number above 0", 'write "0.5x", or "2ms"')
            return Latency(quantity="ratio", limit=value)
        return Latency(quantity="milliseconds", limit=1000 * parse_seconds(text))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Those that are not of the target, as they were asked for. `max_drop` None: the best score within the others."""

    max_drop: str | float | None = None
    max_bytes: int | None = None
    latency: Latency | None = None

    @staticmethod
    def of(
        score: Score, *, max_drop: str | float | None, max_bytes: str | int | None, max_latency: str | float | None
    ) -> "Limits":
        """What cannot be read is found now, not after hours."""
        if max_drop is not None:
            parse_drop(max_drop, score, 0.0)
        return Limits(
            max_drop=max_drop,
            max_bytes=None if max_bytes is None else parse_bytes(max_bytes),
            latency=None if max_latency is None else Latency.of(max_latency),
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a candidate. `drop` and `score` are those of validation; None = not measured."""

    bytes: float
    flash: float
    ram: float
    score: float
    drop: float
    ratio: float | None = None
    milliseconds: float | None = None

    def of(self, quantity: str) -> float | None:
        return getattr(self, quantity)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """`limits` by name of the argument: (quantity of `Measured`, limit). `goal` is the quantity to make least.

    With `max_drop` that is the target's cost: the bytes of the file, the flash of a microcontroller, or the latency if
    it has a limit. Without, it is the drop itself.
    """

    limits: Mapping[str, tuple[str, float]] = field(default_factory=dict[str, tuple[str, float]])
    goal: str = "bytes"

    @staticmethod
    def of(target: Target, score: Score, reference: float, asked: Limits) -> "Budget":
        """`reference`: the original's score on validation."""
        limits: dict[str, tuple[str, float]] = {}
        if asked.max_bytes is not None:
            limits["max_bytes"] = ("bytes", asked.max_bytes)
        for name in ("flash", "ram"):
            value = getattr(target, name)
            if value is not None:
                limits[f"max_{name}"] = (name, float(value))
        cost = "flash" if target.preset.file == "flash" else "bytes"
        if asked.latency is not None:
            limits["max_latency"] = (asked.latency.quantity, asked.latency.limit)
            cost = asked.latency.quantity
        if asked.max_drop is not None:
            limits["max_drop"] = ("drop", parse_drop(asked.max_drop, score, reference))
        return Budget(limits=limits, goal="drop" if asked.max_drop is None else cost)

    @property
    def times(self) -> bool:
        """Whether candidates must be timed."""
        return "max_latency" in self.limits

    def excess(self, measured: Measured) -> dict[str, float]:
        """By limit: how far it is missed, as a share of it (of the score's limit: in its own unit); at most 0 if kept.

        What was not measured is left out.
        """
        found: dict[str, float] = {}
        for name, (quantity, limit) in self.limits.items():
            value = measured.of(quantity)
            if value is not None:
                over = value - limit
                found[name] = over - 1e-9 if name == "max_drop" else over / max(abs(limit), 1e-12)
        return found

    def missed(self, measured: Measured) -> dict[str, float]:
        return {name: over for name, over in self.excess(measured).items() if over > 0}

    def cost(self, measured: Measured) -> float:
        """What is to be least; infinity if it was not measured."""
        value = measured.of(self.goal)
        return math.inf if value is None else value

    def words(self) -> str:
        """The plan in one line."""
        goals = {"drop": "the best score", "ratio": "the least latency", "milliseconds": "the least latency"}
        goal = goals.get(self.goal, f"the least {'flash' if self.goal == 'flash' else 'bytes'}")
        limits = [f"{name} {limit:,.6g}" for name, (_, limit) in self.limits.items()]
        return f"{goal} within {', '.join(limits)}" if limits else goal
