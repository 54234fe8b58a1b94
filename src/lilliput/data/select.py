"""Samples that must stay right: which ones, in which order.

An acceptance set is made of samples that the original network answers acceptably, from train, validation or both. A
"filtered" one has every class (or every part of the score's range) alike and, for the rest, those with the smallest
margins: the first to be lost.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.errors import DataError
from lilliput.core.guard import FullForward
from lilliput.core.task import Role, Task

SOURCES: dict[str, tuple[Role, ...]] = {
    "train": ("train",),
    "validation": ("validation",),
    "val": ("validation",),
    "train+validation": ("train", "validation"),
    "train+val": ("train", "validation"),
}
BALANCED_SHARE = 0.5
"""Of a filtered set: what is drawn evenly over the classes; the rest are the hardest."""
SCORE_BINS = 10


@dataclass(frozen=True, kw_only=True)
class AcceptanceSet:
    """`inputs` [n, ...], `targets` and the `original` outputs [n, ...] of samples that the original gets right.

    `margins` [n] say how far each is from being lost (NaN where the task has no classes); `where` are (role, number).
    `seen` counts the samples that were looked at for it.
    """

    inputs: Tensor
    targets: Any
    original: Tensor
    margins: Tensor
    where: tuple[tuple[str, int], ...]
    seen: int

    def __len__(self) -> int:
        return len(self.inputs)


def runs_of(chosen: AcceptanceSet) -> dict[str, list[list[int]]]:
    """Which samples of each role: [first, last] of runs of neighbours."""
    runs: dict[str, list[list[int]]] = {}
    for role, number in chosen.where:
        own = runs.setdefault(role, [])
        if own and own[-1][1] == number - 1:
            own[-1][1] = number
        else:
            own.append([number, number])
    return runs


def margins(outputs: Tensor, targets: Any) -> Tensor:
    """float32 [n]: the right class's output less the largest other; NaN where targets are no classes."""
    classes = isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
    if outputs.dim() != 2 or outputs.shape[1] < 2 or not classes:
        return torch.full((len(outputs),), torch.nan)
    right = outputs.gather(1, targets[:, None])[:, 0]
    others = outputs.scatter(1, targets[:, None], -torch.inf).amax(1)
    return right - others


def acceptance_set(
    task: Task, evaluator: FullForward, *, source: str = "train", size: int | None = None, filtered: bool = False
) -> AcceptanceSet:
    """The samples of `source` (a key of `SOURCES`) that the original gets right, at most `size`.

    The first in order, or, if `filtered`, balanced over classes and topped up with the hardest. Raises `DataError` if
    there are none.
    """
    parts: list[tuple[Tensor, Any, Tensor]] = []
    where: list[tuple[str, int]] = []
    seen = 0
    for role in SOURCES[source]:
        left = None if filtered or size is None else size - len(where)
        if left == 0:
            break
        found = evaluator.reference(role) if left is None else evaluator.first_ok(role, left)
        right = torch.nonzero(found.ok).reshape(-1)[:left]
        seen += len(found.ok)
        if len(right):
            x, y = task.data(role).batch(right)
            outputs = found.outputs if found.outputs is not None else torch.empty((len(found.ok), 0))
            parts.append((x, task.target((x, y)), outputs[right]))
            where += [(role, i) for i in right.tolist()]
    if not where:
        raise DataError(f"an acceptance set from {source}", "the network gets no sample right", "train it first")
    targets = _joined([p[1] for p in parts])
    inputs, original = torch.cat([p[0] for p in parts]), torch.cat([p[2] for p in parts])
    distance = margins(original, targets)
    whole = AcceptanceSet(
        inputs=inputs, targets=targets, original=original, margins=distance, where=tuple(where), seen=seen
    )
    if not filtered or size is None or size >= len(where):
        return whole
    return subset(whole, choose(distance, groups_of(whole), size))


def subset(chosen: AcceptanceSet, index: Tensor) -> AcceptanceSet:
    """The samples of these numbers, in this order."""
    return AcceptanceSet(
        inputs=chosen.inputs[index],
        targets=_taken(chosen.targets, index),
        original=chosen.original[index],
        margins=chosen.margins[index],
        where=tuple(chosen.where[i] for i in index.tolist()),
        seen=chosen.seen,
    )


def groups_of(chosen: AcceptanceSet) -> Tensor:
    """int64 [n]: the class of each sample, or which tenth of the outputs' range it is in."""
    if isinstance(chosen.targets, Tensor) and chosen.targets.dim() == 1 and not chosen.targets.is_floating_point():
        return chosen.targets.long()
    level = chosen.original.reshape(len(chosen), -1).mean(1)
    return torch.argsort(torch.argsort(level)) * SCORE_BINS // len(level)


def choose(distance: Tensor, groups: Tensor, size: int) -> Tensor:
    """Numbers of `size` samples in order: half evenly over groups, the first of each; then the smallest margins."""
    share = int(size * BALANCED_SHARE) if not bool(distance.isnan().any()) else size
    names = groups.unique()
    taken = torch.zeros(len(groups), dtype=torch.bool)
    for i, name in enumerate(names):
        quota = share // len(names) + int(i < share % len(names))
        taken[torch.nonzero(groups == name).reshape(-1)[:quota]] = True
    rest = torch.nonzero(~taken).reshape(-1)
    hardest = rest[torch.argsort(distance[rest].nan_to_num(0.0), stable=True)]
    taken[hardest[: size - int(taken.sum())]] = True
    return torch.nonzero(taken).reshape(-1)


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    return type(first)(torch.cat([p[i] for p in parts]) for i in range(len(first)))


def _taken(targets: Any, index: Tensor) -> Any:
    return targets[index] if isinstance(targets, Tensor) else type(targets)(t[index] for t in targets)
