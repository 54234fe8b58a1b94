"""The end of self-compression: integers on grids whose scales take few bytes, and their training."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.task import Data
from lilliput.methods.self_compression.price import PriceForScore
from lilliput.methods.self_compression.settings import Settings
from lilliput.methods.self_compression.vanishing import remove_dead_
from lilliput.training.attach import Attached
from lilliput.training.coded_rate import CodedTerm
from lilliput.training.hooks import Hook, Moment
from lilliput.training.learned_bits import LearnedBits, Widths

BIAS_BITS = 8
ZERO = Grid.per_tensor(1.0, 0, 1, signed=True)
LOST = float(1 << 50)
"""More bytes than any file has: what a network counts that has lost the score."""


class CheapestKept(CodedTerm, Hook):
    """Of the epochs that keep the score, the one with the smallest file; without any, the one that loses least.

    The price of the rounds stands, or rises while the score is kept.
    """

    def __init__(self, net: Artifact, law: PriceForScore, weights: int) -> None:
        super().__init__(net, price=law.now / weights)
        self.law, self.weights = law, weights

    def over(self, attached: Attached, score: float) -> float:
        if self.law.bound.keeps(score):
            return float(self.bytes_of(attached))
        return LOST * (1 + self.law.bound.drop(score))

    def on_epoch(self, moment: Moment) -> None:
        score = moment.row["validation_score"]
        if self.law.bound.keeps(score):  # one that is lost may come back by itself, as the learning rate falls
            self.law.judge_(float("inf"), score)
        self.price = self.law.now / self.weights

    def describe(self) -> str:
        return f"{super().describe()} {self.law.describe()}"

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"law": self.law.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.law.load_state_dict(state["law"])


def store_(net: Artifact, widths: Mapping[str, Widths], exponents: str) -> None:
    """The integers that the widths make, and the biases of these layers on grids of their own."""
    LearnedBits(net, widths=widths, exponents=exponents).bake_(net)
    store_biases_(net, widths)


def store_biases_(net: Artifact, weights: Iterable[str]) -> None:
    """Biases of the layers with these weights; what has an encoding keeps it."""
    parameters = dict(net.module.named_parameters())
    for weight in weights:
        name = net.canonical(f"{weight.removesuffix('weight')}bias")
        if name in parameters and name not in net.encodings:
            net.encode_(name, Encoding.on_one_grid(parameters[name].detach(), BIAS_BITS))


def file_bytes(net: Artifact, widths: Mapping[str, Widths], exponents: str) -> int:
    """Of the file (without recipe and graph), with biases as they will be."""
    trial = net.copy()
    store_(trial, widths, exponents)
    return len(container.dumps(trial, strip=True))


def least_bytes(net: Artifact, weights: Iterable[str], data: Data, settings: Settings) -> int:
    """Of the file if every channel that can go went, and all integers were 0."""
    trial, weights = net.copy(), list(weights)
    for name in weights:
        trial.encode_(name, Encoding.of(torch.zeros_like(trial.parameter(name))))
    remove_dead_(trial, data, settings.selects)
    for name in weights:
        trial.encode_(name, Encoding.of(torch.zeros_like(trial.parameter(name))).with_grid(ZERO))
    store_biases_(trial, weights)
    return len(container.dumps(trial, strip=True))
