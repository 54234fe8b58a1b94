"""The price of a bit (gamma in the paper): it stands, rises to its value, or is moved by a size or a score.

Csefalvay and Imber (2023), https://arxiv.org/abs/2301.13142, train once for each price, and take the size it gives.
"""

import math
from dataclasses import dataclass
from typing import Any

AHEAD = 20
"""Steps: bits go on falling for some time after the price has fallen, so it follows the size that is to be expected."""
MEMORY = 0.5
"""Of the trend that was known, when a new one is seen."""
GAIN, MOVE = 0.25, 0.3
"""The log of the price moves by this share of the log of the excess at a count, and by at most so much."""
STRIDE = math.log(3)
"""The most that the log of the price moves after a look at the score."""
LEAST, MOST = 1e-9, 1e9
"""What the price may be multiplied with in all."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """From `start` to `goal` bytes at the same rate for each step, by the step `arrive`; then it stays."""

    start: float
    goal: float
    arrive: int

    def at(self, step: int) -> float:
        return self.start * (self.goal / self.start) ** min(1.0, step / max(1, self.arrive))


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A score that shall be kept: `reference`, and by how much (`limit`) it may be missed."""

    reference: float
    limit: float
    higher_is_better: bool

    def drop(self, score: float) -> float:
        return self.reference - score if self.higher_is_better else score - self.reference

    def keeps(self, score: float) -> bool:
        return self.drop(score) <= self.limit + 1e-9


class Price:
    """Stands at `gamma`, but for what a lost safety set takes off."""

    def __init__(self, gamma: float) -> None:
        self.gamma, self.factor, self.calm_until = gamma, 1.0, 0

    @property
    def now(self) -> float:
        return self.gamma * self.factor

    def calm_(self, factor: float, until: int) -> None:
        """A lower price, which does not rise before the step `until`."""
        self.factor *= factor
        self.calm_until = until

    def begin_(self) -> None:
        """Between two rounds: the network may have changed."""

    def count_(self, step: int, size: float) -> None:
        """At this step of the rounds the file has so many bytes."""

    def judge_(self, step: float, score: float) -> None:
        """After this step the network has this score."""

    def multiply_(self, step: float, log: float) -> None:
        log = min(log, 0.0) if step < self.calm_until else log
        self.factor = min(max(self.factor * math.exp(log), LEAST), MOST)

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "calm_until": self.calm_until}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor, self.calm_until = state["factor"], state["calm_until"]

    def describe(self) -> str:
        return f"{type(self).__name__} {vars(self)}"


class RampedPrice(Price):
    """Rises from 0, in a line, until the step `steps`."""

    def __init__(self, gamma: float, steps: int) -> None:
        super().__init__(gamma)
        self.steps, self.risen = steps, 0.0

    @property
    def now(self) -> float:
        return super().now * self.risen

    def count_(self, step: int, size: float) -> None:
        if step >= self.calm_until:
            self.risen = min(1.0, step / self.steps)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"risen": self.risen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.risen = state["risen"]


class PriceForSize(Price):
    """Rises where the size will be above its course, and falls where it will be below.

    A size that falls at a rate for its price cannot be steered by its excess alone: the price swings around.
    """

    def __init__(self, gamma: float, course: Course) -> None:
        super().__init__(gamma)
        self.course = course
        self.trend = 0.0
        self.seen: tuple[int, float] | None = None

    def begin_(self) -> None:
        self.seen = None

    def count_(self, step: int, size: float) -> None:
        now = math.log(size)
        if self.seen is not None and self.seen[0] < step:
            fall = (now - self.seen[1]) / (step - self.seen[0])
            self.trend = MEMORY * self.trend + (1 - MEMORY) * fall
        self.seen = (step, now)
        excess = now + AHEAD * self.trend - math.log(self.course.at(step + AHEAD))
        self.multiply_(step, min(max(GAIN * excess, -MOVE), MOVE))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"trend": self.trend, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.trend, self.seen = state["trend"], None if state["seen"] is None else tuple(state["seen"])


class PriceForScore(Price):
    """Rises after a look at a score that is kept with room to spare, and falls after one that is lost."""

    def __init__(self, gamma: float, bound: Bound) -> None:
        super().__init__(gamma)
        self.bound = bound

    def judge_(self, step: float, score: float) -> None:
        room = self.bound.limit - self.bound.drop(score)
        share = room / self.bound.limit if self.bound.limit > 0 else math.copysign(1.0, room + 1e-9)
        self.multiply_(step, STRIDE * min(max(share, -1.0), 1.0))
