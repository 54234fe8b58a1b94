"""What bits cost in self-compression: slopes of the size, and the price that holds the size to its course.

Csefalvay and Imber (2023), https://arxiv.org/abs/2301.13142, equation 5: a channel pays for the weights that make it
and for those that read it, so that the loss knows what a channel which vanishes takes along. There the price (gamma) is
fixed and the size is that of bits before coding; here the price may follow a course to a wanted size of the file, and
the size may be what the coder makes of the integers (`training.coded_rate`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.graph.coupling import Coupling
from lilliput.training.attach import Attached
from lilliput.training.coded_rate import Counted, counted
from lilliput.training.hooks import SizeTerm
from lilliput.training.learned_bits import LearnedBits

EVERY = 5
"""Steps between two counts of the coder's bits."""
PACE, RISE, FALL = 1.0, 0.1, 0.3
"""How fast the log of the price follows the relative excess, and the most it moves at a count: what is lost because the
price was too high does not come back as easily as it went."""
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


def entries(net: Artifact, coupling: Coupling, names: Mapping[str, int]) -> dict[str, Tensor]:
    """float32 [channels] for each weight of `names` (with the dimension of its channels): what a channel pays for.

    Its own entries, and those of the weights that read it, shared out among the weights that make it.
    """
    state = net.module.state_dict(keep_vars=True)
    found = {
        n: torch.full((state[n].shape[axis],), state[n].numel() / state[n].shape[axis]) for n, axis in names.items()
    }
    for group in coupling.groups:
        made = [(net.canonical(n), d) for n, d in group.made]
        made = [(n, d) for n, d in made if names.get(n) == d]
        if not made:
            continue
        for channel in group.channels:
            read = sum(
                state[name].numel() / state[name].shape[dim] * len(index)
                for (name, dim), index in channel.items()
                if (name, dim) in group.read and name in state
            )
            for name, dim in made:
                index = next(i for (n, d), i in channel.items() if net.canonical(n) == name and d == dim)
                found[name][list(index)] += read / len(made) / len(index)
    return found


def counts_of(attached: LearnedBits) -> dict[str, Counted]:
    """What the coder takes for the integers of each weight, with the slopes."""
    return {
        name: counted(attached.encoding(name, w), attached.integers(name).cpu()) for name, w in attached.widths.items()
    }


class PriceOfBits(SizeTerm):
    """Adds price x bits / weights to the loss. The price is what the paper calls gamma.

    `paid` [channels] of each weight is what `entries` says, for `coded` False. `course`, if any, is what the price
    follows; `other` are the bytes of the file that are not weights.
    """

    def __init__(self, *, gamma: float, weights: int, coded: bool, course: Course | None) -> None:
        self.gamma, self.weights, self.coded, self.course = gamma, weights, coded, course
        self.factor = 1.0
        self.first, self.other = 0, 0.0
        self.paid: dict[str, Tensor] = {}
        self.calm_until = 0
        self.bits = 0.0
        self._slopes: dict[str, Tensor] = {}

    def begin_(self, first: int, paid: Mapping[str, Tensor], other: float) -> None:
        """The network may have changed: training goes on at the step `first`."""
        self.first, self.other, self.paid = first, other, dict(paid)
        self._slopes = {}

    def calm_(self, factor: float, until: int) -> None:
        """A lower price, which does not rise before the step `until`."""
        self.factor *= factor
        self.calm_until = until

    @property
    def of_a_bit(self) -> float:
        """What a bit adds to the loss now."""
        return self.gamma * self.factor / self.weights

    @property
    def bytes(self) -> float:
        """Of the file, as of the last count."""
        return self.bits / 8 + self.other

    def add_(self, attached: Attached, step: int) -> None:
        if not isinstance(attached, LearnedBits):
            raise TypeError(f"learned bits wanted, not {type(attached).__name__}")
        if step % EVERY == 0 or not self._slopes:
            self._count_(attached)
            self._follow_(self.first + step)
        price = self.of_a_bit
        for name, w in attached.widths.items():
            if self.coded:
                attached.charge_(name, price * self._slopes[name])
            elif w.bits.grad is not None:
                paid = self.paid[name].to(w.bits.device)
                w.bits.grad += price * torch.zeros_like(w.bits.grad).index_add(0, w.owner, paid)

    def _count_(self, attached: LearnedBits) -> None:
        found = counts_of(attached)
        self.bits = sum(c.bits for c in found.values())
        self._slopes = {name: c.slopes.to(attached.widths[name].raw.device) for name, c in found.items()}

    def _follow_(self, step: int) -> None:
        if self.course is None:
            return
        excess = self.bytes / self.course.at(step) - 1
        rise = min(max(PACE * excess, -FALL), RISE)
        if step < self.calm_until:
            rise = min(rise, 0.0)
        self.factor = min(max(self.factor * math.exp(rise), LEAST), MOST)

    def describe(self) -> str:
        return f"{vars(self) | {'paid': [float(p.sum()) for p in self.paid.values()], '_slopes': 0}}"

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "calm_until": self.calm_until, "bits": self.bits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor, self.calm_until, self.bits = state["factor"], state["calm_until"], state["bits"]
        self._slopes = {}
