"""What bits cost in self-compression: slopes of the size, at a price.

Csefalvay and Imber (2023), https://arxiv.org/abs/2301.13142, equation 5: a channel pays for the weights that make it
and for those that read it, so that the loss knows what a channel which vanishes takes along. There the size is that of
bits before coding; here it may be what the coder makes of the integers (`training.coded_rate`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.graph.coupling import Coupling
from lilliput.methods.self_compression.price import Price
from lilliput.training.attach import Attached
from lilliput.training.coded_rate import Counted, counted
from lilliput.training.hooks import SizeTerm
from lilliput.training.learned_bits import LearnedBits

EVERY = 5
"""Steps between two counts of the coder's bits."""


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
    """Adds price x bits / weights to the loss; `price` is told the size at each count.

    `paid` [channels] of each weight is what `entries` says, for `coded` False. `other` are the bytes of the file that
    are not weights.
    """

    def __init__(self, price: Price, *, weights: int, coded: bool) -> None:
        self.price, self.weights, self.coded = price, weights, coded
        self.first, self.other = 0, 0.0
        self.paid: dict[str, Tensor] = {}
        self._slopes: dict[str, Tensor] = {}

    def begin_(self, first: int, paid: Mapping[str, Tensor], other: float) -> None:
        """The network may have changed: training goes on at the step `first`."""
        self.first, self.other, self.paid = first, other, dict(paid)
        self.price.begin_()
        self._slopes = {}

    @property
    def of_a_bit(self) -> float:
        """What a bit adds to the loss now."""
        return self.price.now / self.weights

    def add_(self, attached: Attached, step: int) -> None:
        if not isinstance(attached, LearnedBits):
            raise TypeError(f"learned bits wanted, not {type(attached).__name__}")
        if step % EVERY == 0 or not self._slopes:
            found = counts_of(attached)
            self._slopes = {name: c.slopes.to(attached.widths[name].raw.device) for name, c in found.items()}
            self.price.count_(self.first + step, sum(c.bits for c in found.values()) / 8 + self.other)
        price = self.of_a_bit
        for name, w in attached.widths.items():
            if self.coded:
                attached.charge_(name, price * self._slopes[name])
            elif w.bits.grad is not None:
                paid = self.paid[name].to(w.bits.device)
                w.bits.grad += price * torch.zeros_like(w.bits.grad).index_add(0, w.owner, paid)

    def describe(self) -> str:
        paid = [float(p.sum()) for p in self.paid.values()]
        return f"{self.price.describe()} {self.weights} {self.coded} {self.first} {self.other} {paid}"

    def state_dict(self) -> dict[str, Any]:
        return self.price.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.price.load_state_dict(state)
        self._slopes = {}
