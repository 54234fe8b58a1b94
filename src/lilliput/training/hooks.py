"""What may look on while a network trains, and what adds the size of its file to what it minimizes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lilliput.training.attach import Attached


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The end of an epoch, for hooks: to be read, not to be changed. `row` is the epoch's line of the history."""

    epoch: int
    module: nn.Module
    optimizer: torch.optim.Optimizer
    row: dict[str, float]


class Hook(ABC):
    """Called at the end of every epoch, before the checkpoint is written.

    What it remembers must be in `state_dict` (tensors, numbers, texts, lists, dicts): a resumed training gets it back.
    """

    @abstractmethod
    def on_epoch(self, moment: Moment) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Become what `state_dict` told."""


class SizeTerm(ABC):
    """Adds the slopes of a size to the gradients at every step, and says by how much the network is too large."""

    @abstractmethod
    def add_(self, attached: Attached, step: int) -> None: ...

    def over(self, attached: Attached, score: float) -> float:
        """What is too much: of two epochs the one with less is better. `score` is that on validation, now."""
        return 0.0

    def shave_(self, attached: Attached) -> None:  # noqa: B027
        """Make the network small enough in the end, if no epoch was."""

    @abstractmethod
    def describe(self) -> str:
        """What tells this training from others of the same network and settings."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
