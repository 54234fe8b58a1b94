"""What may be set of self-compression, and the errors of what may not."""

from abc import ABC
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError, UsageError
from lilliput.core.method import check_choice, check_range
from lilliput.core.score import accuracy, parse_drop
from lilliput.graph.trace import StoredNetwork
from lilliput.training.learned_bits import BITS, EXPONENT, EXPONENTS
from lilliput.training.settings import Factors, FitSettings
from lilliput.training.trained import TrainingPass

SIZES, RULES = ("coded", "bits"), ("best", "previous")


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingPass, ABC):
    """Of `SelfCompression`, which says what they do."""

    gamma: float = 0.05
    ramp: float = 0.0
    max_bytes: int | None = None
    max_drop: str | float | None = None
    size: str = "coded"
    per: str | int = "channel"
    start_bits: float = 6.0
    bit_rate: float = 0.1
    steps: int | None = None
    rounds: int = 8
    settle: float = 0.3
    step_rate: float = 0.02
    exponents: str = "whole"
    schedule: str = "constant"
    safety: int = 0
    safety_methods: tuple[str, ...] | None = None
    safety_rule: str = "best"
    tolerance: float = 0.02
    restore: float = 0.1

    def __post_init__(self) -> None:
        self._check_price()
        check_choice(f"{self.name} size", self.size, SIZES)
        check_choice(f"{self.name} exponents", self.exponents, EXPONENTS[1:])
        if isinstance(self.per, str):
            check_choice(f"{self.name} per", self.per, ("channel", "tensor"))
        else:
            check_range(f"{self.name} per", self.per, 1, 1_000_000)
        check_range(f"{self.name} start_bits", self.start_bits, 1.0, 16.0)
        check_range(f"{self.name} bit_rate", self.bit_rate, 0.0, 100.0)
        if self.steps is not None:
            check_range(f"{self.name} steps", self.steps, 2, 1_000_000_000)
        check_range(f"{self.name} rounds", self.rounds, 1, 10_000)
        check_range(f"{self.name} learning_rate", self.learning_rate, 1e-12, 1e6)
        check_range(f"{self.name} step_rate", self.step_rate, 1e-9, 1e3)
        check_range(f"{self.name} safety", self.safety, 0, 1_000_000)
        if self.safety_methods is not None:
            object.__setattr__(self, "safety_methods", tuple(self.safety_methods))
        check_choice(f"{self.name} safety_rule", self.safety_rule, RULES)
        check_range(f"{self.name} tolerance", self.tolerance, 0.0, 1.0)
        check_range(f"{self.name} restore", self.restore, 0.0, 1.0)
        super().__post_init__()

    def _check_price(self) -> None:
        """Also that what moves it is one thing, which has room for it."""
        check_range(f"{self.name} gamma", self.gamma, 0.0, 1e6)
        check_range(f"{self.name} ramp", self.ramp, 0.0, 1.0)
        check_range(f"{self.name} settle", self.settle, 0.0, 1.0, below=True)
        if self.max_bytes is not None:
            check_range(f"{self.name} max_bytes", self.max_bytes, 1, 1 << 40)
        if self.max_drop is not None:
            try:
                parse_drop(self.max_drop, accuracy(), 0.0)
            except UsageError as error:
                raise RecipeError(f"{self.name} {error.asked}", error.found, error.do) from error
        goals = [goal for goal in ("max_bytes", "max_drop") if getattr(self, goal) is not None]
        if len(goals) == 2:
            do = "leave one out; a guard can hold the score beside max_bytes"
            raise RecipeError(f"{self.name} max_bytes and max_drop", "one price cannot serve both", do)
        for goal in goals:
            if self.gamma == 0:
                raise RecipeError(f"{self.name} gamma", f"0 with {goal}", "give a first price")
            if self.ramp > 0:
                raise RecipeError(
                    f"{self.name} ramp", f"{self.ramp} with {goal}", f"leave it out: {goal} moves the price"
                )
            if self.settle == 0:
                do = "give it a share of the steps: what is still too much goes there"
                raise RecipeError(f"{self.name} settle", f"0 with {goal}", do)
        if self.max_drop is not None and self.keep == "last":
            raise RecipeError(
                f"{self.name} keep", "last with max_drop", "use best: the last epoch may have lost the score"
            )

    def requires(self, net: Artifact) -> list[str]:
        if isinstance(net.module, StoredNetwork):
            return ["the network was loaded without its code; load the file into the model's class"]
        if net.activations:
            return [f"activations are already on integer grids; put {self.name} before quantization"]
        shared = [n for n, e in net.encodings.items() if e.sharing is not None]
        if shared:
            return [f"{shared[0]} has shared values, which bit widths would undo; leave that pass out"]
        made = [n for n, e in net.encodings.items() if e.bank is not None]
        if made:
            return [f"a circuit makes {made[0]}, which bit widths would undo; put {self.name} before weight_generation"]
        return []

    @property
    def counted(self) -> str:
        """The exponents that sizes are counted with in the rounds.

        Real ones for whole ones: three bytes for each channel more than the file will have, room that the tuning needs.
        """
        return "short" if self.exponents == "short" else "real"

    def owner(self, channels: int) -> Tensor:
        """int64 [channels]: which width each has."""
        size = channels if self.per == "tensor" else 1 if self.per == "channel" else int(self.per)
        return torch.arange(channels) // size

    def learning(self, net: Artifact, part: int, steps: int, in_steps: Iterable[str]) -> FitSettings:
        """Of one round, in which bits are learned; weights `in_steps` count in steps of the grids that they had."""
        pace = self.bit_rate / self.learning_rate
        own = Factors(learning_rate=pace, weight_decay=0.0, epsilon=1e-3)
        paced = Factors(learning_rate=self.step_rate / self.learning_rate, weight_decay=0.0)
        groups = {**dict.fromkeys(in_steps, paced), f"*{BITS}": own, f"*{EXPONENT}": own, **self.frozen(net)}
        settings = replace(self.fit_settings(groups), epochs=1, epoch_steps=steps, keep="last")
        if self.max_drop is not None:  # each round comes to rest, so that its score tells what a training can keep
            return replace(settings, schedule="cosine")
        return replace(settings, part=(part, self.rounds))

    def tuning(self, net: Artifact, epochs: int, steps: int) -> FitSettings:
        """Of the training of the integers, with so many steps in each epoch."""
        groups = self.frozen(net)
        return replace(
            self.fit_settings(groups), epochs=epochs, epoch_steps=steps, step_rate=self.step_rate, schedule="cosine"
        )
