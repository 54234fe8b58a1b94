"""Where torch computes, and in what precision: names that are checked, and batches that go there."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import UsageError


def as_device(device: str | torch.device) -> torch.device:
    """Raises `UsageError` for a device that torch does not know, does not have here, or that holds no numbers."""
    asked, do = f"device {str(device)!r}", "use cpu, or cuda where torch has it"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ImportError, TypeError, NotImplementedError) as error:
        raise UsageError(asked, " ".join(str(error).split())[:160], do) from error
    if place.type == "meta":
        raise UsageError(asked, "its tensors hold no numbers", do)
    return place


def device_of(module: nn.Module) -> torch.device | None:
    """Where its parameters and buffers are; None if it has none."""
    return next((t.device for t in module.state_dict().values()), None)


def moved(value: Any, device: torch.device) -> Any:
    """The same with every tensor on the device: tensors, and tuples, lists and dictionaries of them."""
    return each_tensor(value, lambda tensor: tensor.to(device))


def in_float32(value: Any) -> Any:
    """The same with every tensor of floating-point numbers in float32."""
    return each_tensor(value, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with every tensor changed: of tuples, lists and dictionaries too."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: each_tensor(v, change) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(each_tensor(v, change) for v in value)
    return value
