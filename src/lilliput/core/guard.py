"""Guards: may a changed network stay? A pure rule on outputs, and an injected way to get the outputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lilliput.core.errors import DataError
from lilliput.core.progress import SILENT, Progress
from lilliput.core.score import parse_drop
from lilliput.core.task import Data, Role, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What a network did on the samples of a role: statistics of the score [n, d], ok [n], outputs if kept."""

    role: Role
    rows: Tensor
    ok: Tensor
    outputs: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    accepted: bool
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict[str, Any])


class Evaluator(Protocol):
    """An injected way to get outputs: a full forward here; a cached suffix or running statistics elsewhere."""

    def __call__(self, model: nn.Module, role: Role) -> Evaluation: ...


@dataclass(frozen=True, kw_only=True)
class MaxDrop:
    """The score on `role` may be at most `max_drop` worse than the original's ("0.5pt", "1%", or a number)."""

    max_drop: str | float
    role: Role = "validation"

    def judge(self, task: Task, candidate: Evaluation, original: Evaluation) -> Verdict:
        score = task.score
        before, now = score.value(original.rows), score.value(candidate.rows)
        limit = parse_drop(self.max_drop, score, before)
        drop = before - now if score.higher_is_better else now - before
        _, interval = score.difference(candidate.rows, original.rows)
        bound = before - limit if score.higher_is_better else before + limit
        words = "at least" if score.higher_is_better else "at most"
        accepted = drop <= limit + 1e-9
        reason = f"{score.name} {score.format(before)} -> {score.format(now)}, {words} {score.format(bound)} wanted"
        evidence = {
            "score": now,
            "original": before,
            "drop": drop,
            "limit": limit,
            "interval": list(interval),
            "samples": len(candidate.rows),
            "role": self.role,
        }
        return Verdict(accepted=accepted, reason=reason, evidence=evidence)


class FullForward:
    """Evaluator: every sample through the whole network; the original's outputs are computed once and kept.

    `uses` counts how often each role was looked at: the test role should end at one.
    """

    def __init__(
        self,
        task: Task,
        original: nn.Module,
        *,
        batch_size: int = 256,
        device: str | torch.device = "cpu",
        progress: Progress = SILENT,
    ) -> None:
        self.task, self.original, self.batch_size, self.device = task, original, batch_size, torch.device(device)
        self.progress = progress
        self.uses: dict[str, int] = {}
        self._kept: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module, role: Role) -> Evaluation:
        self.uses[role] = self.uses.get(role, 0) + 1
        data = self.task.data(role)
        if role not in self._kept:
            self._kept[role] = outputs_of(self.original, self.task, data, self.batch_size, self.device)
        return evaluate(model, self.task, data, role, self._kept[role], self.batch_size, self.device, self.progress)

    def reference(self, role: Role) -> Evaluation:
        """The original network on a role (not counted as a use)."""
        data = self.task.data(role)
        if role not in self._kept:
            self._kept[role] = outputs_of(self.original, self.task, data, self.batch_size, self.device)
        outputs = self._kept[role]
        return _judge(self.task, data, role, outputs, outputs, self.batch_size)


def outputs_of(
    model: nn.Module,
    task: Task,
    data: Data,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """float32 [n, ...] on the CPU: the outputs for every sample, in order, in evaluation mode."""
    parts: list[Tensor] = []
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            for x, y in data.batches(batch_size):
                out: Any = task.forward(model, (x.to(device), y))
                if not isinstance(out, Tensor) or len(out) != len(x):
                    found = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
                    raise DataError(
                        "outputs of the model",
                        f"{found} for {len(x)} inputs",
                        "let forward(model, batch) of the task return a tensor with one row a sample",
                    )
                parts.append(out.detach().float().cpu())
                advance(len(x))
    finally:
        for module, training in modes.items():
            module.training = training
    result = torch.cat(parts)
    if not bool(torch.isfinite(result).all()):
        raise DataError("outputs of the model", "NaN or infinity", "look for broken weights or a range that overflows")
    return result


def evaluate(
    model: nn.Module,
    task: Task,
    data: Data,
    role: Role,
    original: Tensor,
    batch_size: int,
    device: torch.device,
    progress: Progress = SILENT,
) -> Evaluation:
    with progress.task(f"evaluate on {role}", len(data)) as advance:
        outputs = outputs_of(model, task, data, batch_size, device, advance)
    return _judge(task, data, role, outputs, original, batch_size)


def _judge(task: Task, data: Data, role: Role, outputs: Tensor, original: Tensor, batch_size: int) -> Evaluation:
    rows: list[Tensor] = []
    ok: list[Tensor] = []
    for i, (x, y) in enumerate(data.batches(batch_size)):
        here = slice(i * batch_size, i * batch_size + len(x))
        targets = task.target((x, y))
        try:
            rows.append(task.score.statistics(outputs[here], targets))
            ok.append(task.ok(outputs[here], targets, original[here]).bool().reshape(-1))
        except (RuntimeError, IndexError, AttributeError) as error:
            raise DataError(
                f"score {task.score.name} on {role}",
                f"outputs {tuple(outputs[here].shape)} do not fit the targets ({error})",
                "check the targets' shape and type against the task",
            ) from error
    return Evaluation(role=role, rows=torch.cat(rows), ok=torch.cat(ok), outputs=outputs)
