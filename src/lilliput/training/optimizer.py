"""The optimizer of a training, and surgery on it."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.edits import Edit, Slice
from lilliput.core.errors import UsageError
from lilliput.core.method import nearest
from lilliput.training.settings import Factors, FitSettings

Memory = Mapping[str, Mapping[str, Any]]
"""What an optimizer remembers (momentum, moments, numbers of steps), by the first names of parameters."""


def make_optimizer(
    trainable: Mapping[str, Tensor],
    aliases: Mapping[str, list[str]],
    settings: FitSettings,
    in_steps: Collection[str] = (),
) -> torch.optim.Optimizer:
    """One group of parameters for each pair of factors; a group's "factor" is what its learning rate is scaled with.

    Those named `in_steps` count in steps of their grids, and have the settings' `step_rate`.

    `aliases` lists all names of a tied parameter. Raises `UsageError` for a pattern that matches nothing, or if
    nothing is left to train.
    """
    groups: dict[Factors, list[Tensor]] = {}
    known = {alias for names in aliases.values() for alias in names}
    for pattern in settings.parameter_groups:
        if not fnmatch.filter(known, pattern):
            raise UsageError(f"parameter group {pattern!r}", "no parameter has such a name", nearest(pattern, known))
    for name, tensor in trainable.items():
        factors = Factors()
        for pattern, own in settings.parameter_groups.items():
            if fnmatch.filter(aliases[name], pattern):
                factors = own
        if name in in_steps and settings.step_rate is not None:
            pace = settings.step_rate / settings.learning_rate
            factors = replace(factors, learning_rate=factors.learning_rate * pace, weight_decay=0.0)
        if factors.learning_rate > 0:
            groups.setdefault(factors, []).append(tensor)
    if not groups:
        raise UsageError(
            "fit",
            "no parameter that can be trained",
            "set requires_grad on some, and leave some a learning rate above 0",
        )
    rows = [
        {"params": tensors, "weight_decay": settings.weight_decay * f.weight_decay, "factor": f.learning_rate}
        | ({} if f.epsilon is None or settings.optimizer == "sgd" else {"eps": f.epsilon})
        for f, tensors in groups.items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(rows, lr=settings.learning_rate, momentum=settings.momentum)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(rows, lr=settings.learning_rate)


def names_of(module: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter, by its first."""
    first: dict[int, str] = {}
    result: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        result.setdefault(first.setdefault(id(parameter), name), []).append(name)
    return result


def replace_parameter_(optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor, *, dim: int, index: Tensor) -> None:
    """Train `new` in the place of `old`, of which it is the slices `index` of dimension `dim`.

    Moments and momentum of those slices move along, so training goes on as if the others had never been there.
    Raises `UsageError` if the optimizer does not hold `old`, or if the shapes do not fit.
    """
    expected = tuple(len(index) if d == dim else size for d, size in enumerate(old.shape))
    if tuple(new.shape) != expected:
        raise UsageError(
            "replace a parameter",
            f"shape {tuple(new.shape)} for slices of shape {expected}",
            "slice the parameter with the same dimension and index",
        )
    for group in optimizer.param_groups:
        at = [i for i, p in enumerate(group["params"]) if p is old]
        if at:
            group["params"][at[0]] = new
            break
    else:
        raise UsageError(
            "replace a parameter", "the optimizer does not train the old one", "give the parameter that it holds"
        )
    if old in optimizer.state:
        optimizer.state[new] = _sliced(optimizer.state.pop(old), old.dim(), dim, index)


def memory_of(optimizer: torch.optim.Optimizer, trainable: Mapping[str, Tensor]) -> Memory:
    """Copies of what the optimizer remembers of each parameter, by name."""
    return {
        name: {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[tensor].items()}
        for name, tensor in trainable.items()
        if tensor in optimizer.state
    }


def recall_(optimizer: torch.optim.Optimizer, trainable: Mapping[str, Tensor], memory: Memory) -> None:
    """Let a fresh optimizer remember this, of the parameters that it trains. Raises `UsageError` for other shapes."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, tensor in trainable.items():
        if name not in memory or id(tensor) not in held:
            continue
        for value in memory[name].values():
            if isinstance(value, Tensor) and value.dim() and value.shape != tensor.shape:
                found = f"shape {tuple(value.shape)} for {tuple(tensor.shape)}"
                raise UsageError(f"memory of {name!r}", found, "slice it with the edits of the network")
        optimizer.state[tensor] = {
            k: v.to(tensor.device if v.dim() else v.device, copy=True) if isinstance(v, Tensor) else v
            for k, v in memory[name].items()
        }


def sliced(memory: Memory, edits: Iterable[Edit]) -> Memory:
    """What is left of it after these edits of the network: training goes on as if what is gone had never been there."""
    left = dict(memory)
    for edit in edits:
        if isinstance(edit, Slice) and edit.path in left:
            index = torch.tensor(edit.index, dtype=torch.int64)
            rank = max((v.dim() for v in left[edit.path].values() if isinstance(v, Tensor)), default=0)
            left[edit.path] = _sliced(left[edit.path], rank, edit.dim, index)
    return left


def _sliced(state: Mapping[str, Any], rank: int, dim: int, index: Tensor) -> dict[str, Any]:
    """Numbers that count steps have no dimensions, and stay."""
    return {
        k: v.index_select(dim, index.to(v.device)) if isinstance(v, Tensor) and v.dim() == rank > 0 else v
        for k, v in state.items()
    }
