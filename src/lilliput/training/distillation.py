"""Learning from a teacher: how far outputs are from its outputs, or what a block gives from what its block gives."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lilliput.core.errors import DataError

CLASSES = ("classification", "segmentation")


def distillation_loss(outputs: Tensor, taught: Tensor, *, kind: str, temperature: float) -> Tensor:
    """Mean over samples of T^2 KL(softmax(taught / T) || softmax(outputs / T)); without classes, of the squared error.

    Classes are dimension 1. The factor T^2 keeps the size of the gradients when T changes.
    For segmentation the mean is over pixels too.
    Source: Hinton, Vinyals and Dean (2015), "Distilling the knowledge in a neural network".
    """
    if outputs.shape != taught.shape:
        raise DataError(
            "distillation",
            f"outputs {tuple(outputs.shape)}, the teacher's {tuple(taught.shape)}",
            "give a teacher with the same outputs",
        )
    if kind not in CLASSES:
        return F.mse_loss(outputs, taught)
    ours, theirs = (F.log_softmax(v / temperature, 1) for v in (outputs, taught))
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    return divergence.mean() * temperature**2


class _ReachedError(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def _stop(_module: nn.Module, _inputs: Any, output: Any) -> NoReturn:
    raise _ReachedError(output)


def _apart(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs)


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """Learn what the teacher's module at `path` gives, with the network's module there.

    Nothing behind it is computed, and nothing before it gets a gradient. A module that is called several times is
    judged by its first call.
    """

    path: str

    def loss(self, network: nn.Module, teacher: nn.Module, run: Callable[[nn.Module], Any]) -> Tensor:
        """Mean squared error. `run` calls a network on the batch."""
        with torch.no_grad():
            wanted = self._reached(teacher, run, "the teacher", [])
        found = self._reached(network, run, "the network", [_apart])
        if found.shape != wanted.shape:
            raise DataError(
                f"block {self.path!r}",
                f"{tuple(found.shape)}, the teacher's {tuple(wanted.shape)}",
                "choose blocks whose outputs have one shape in both",
            )
        return F.mse_loss(found, wanted)

    def _reached(self, module: nn.Module, run: Callable[[nn.Module], Any], whose: str, before: list[Any]) -> Tensor:
        try:
            block = module.get_submodule(self.path)
        except AttributeError:
            raise DataError(f"block {self.path!r}", f"{whose} has none", "name a module that both have") from None
        with ExitStack() as hooks:
            for hook in before:
                hooks.callback(block.register_forward_pre_hook(hook).remove)
            hooks.callback(block.register_forward_hook(_stop).remove)
            try:
                run(module)
            except _ReachedError as reached:
                if isinstance(reached.value, Tensor):
                    return reached.value.float()
                raise DataError(
                    f"block {self.path!r}", f"{whose} gives {type(reached.value).__name__}", "name one with one tensor"
                ) from None
        raise DataError(f"block {self.path!r}", f"{whose} does not call it", "name a module that its forward calls")
