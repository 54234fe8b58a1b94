"""What may look on while a network trains."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


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
