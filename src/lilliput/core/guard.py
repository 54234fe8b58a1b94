"""Guards: may a changed network stay? A pure rule on outputs, and an injected way to get the outputs."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lilliput.core.device import as_device, device_of, moved
from lilliput.core.errors import DataError, RecipeError
from lilliput.core.progress import SILENT, Progress
from lilliput.core.score import parse_drop
from lilliput.core.task import Batch, Data, Role, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What a network did on the samples of a role: statistics of the score [n, d], ok [n], outputs if kept.

    `targets` are what the score was given, where that is a class or a row of numbers for each sample.
    """

    role: Role
    rows: Tensor
    ok: Tensor
    outputs: Tensor | None = None
    targets: Tensor | None = None


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

    def decide(self, evaluator: "FullForward", model: nn.Module) -> Verdict:
        return self.judge(evaluator.task, evaluator(model, self.role), evaluator.reference(self.role))

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


@dataclass(frozen=True, kw_only=True)
class MinAgreement:
    """Without labels: the answers must be the original's, in at least this part ("99%", or 0.99).

    With classes: the part of samples (segmentation: of pixels) with the same highest output. Without: the part of the
    outputs' variance that is the same, 1 - mean squared difference / variance. With `augmented` the inputs are those of
    the role after the task's augmentation, if it has one: a network that knows its data by heart is judged on others.
    """

    agreement: str | float
    role: Role = "validation"
    augmented: bool = True

    def share(self) -> float:
        """Raises `RecipeError` for what is no share."""
        text = str(self.agreement).strip()
        try:
            value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= 1.0:
            raise RecipeError("guard", f"agreement {self.agreement!r}", 'write "99%", or 0.99')
        return value

    def decide(self, evaluator: "FullForward", model: nn.Module) -> Verdict:
        task = evaluator.task
        used = self.augmented and task.augment is not None
        ours, theirs = evaluator.answers(model, self.role, augmented=used)
        wanted, found = self.share(), agreement(ours, theirs, task.kind)
        where = f"{len(ours):,} {'augmented ' if used else ''}samples of {self.role}"
        reason = f"{100 * found:.2f}% of the answers on {where} are the original's, at least {100 * wanted:g}% wanted"
        evidence = {"agreement": found, "limit": wanted, "samples": len(ours), "role": self.role, "augmented": used}
        return Verdict(accepted=found >= wanted - 1e-12, reason=reason, evidence=evidence)


Guard = MaxDrop | MinAgreement


def agreement(outputs: Tensor, original: Tensor, kind: str) -> float:
    """The part of answers that are the same, as `MinAgreement` has it."""
    if kind in ("classification", "segmentation"):
        return float((outputs.argmax(1) == original.argmax(1)).double().mean())
    variance = (original.double() - original.double().mean(0)).square().mean()
    moved = (outputs.double() - original.double()).square().mean()
    return 1.0 if float(moved) == 0 else max(0.0, 1.0 - float(moved / variance.clamp(min=1e-30)))


class FullForward:
    """Evaluator: every sample through the whole network; the original's outputs are computed once and kept.

    `uses` counts how often each role was looked at; the original's own look is kept, and not counted. The test role is
    read once for each network of the final table, so it ends at the number of networks beside the original.
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
        self.task, self.original, self.batch_size, self.device = task, original, batch_size, as_device(device)
        self.progress = progress
        self.uses: dict[str, int] = {}
        self._kept: dict[str, Evaluation] = {}

    def __call__(self, model: nn.Module, role: Role) -> Evaluation:
        self.uses[role] = self.uses.get(role, 0) + 1
        original, data = self.reference(role).outputs, self.task.data(role)
        return evaluate(model, self.task, data, role, original, self.batch_size, self.device, self.progress)

    def count(self, role: Role, looks: int) -> None:
        """For methods that look at a role in their own way: so many candidates were judged by it."""
        self.uses[role] = self.uses.get(role, 0) + looks

    def answers(self, model: nn.Module, role: Role, *, augmented: bool) -> tuple[Tensor, Tensor]:
        """Outputs of `model` and of the original on the same inputs of a role, which the task may augment (seed 0)."""
        self.count(role, 1)
        data = self.task.data(role)
        if not augmented:
            ours = outputs_of(model, self.task, data, self.batch_size, self.device)
            theirs = self.reference(role).outputs
            return ours, theirs if theirs is not None else ours
        augment, generator = self.task.augment, torch.Generator().manual_seed(0)
        batches = [data.batch(index) for index in torch.arange(len(data)).split(self.batch_size)]
        x = torch.cat([x if augment is None else augment(x, generator) for x, _ in batches])
        if len(x) != len(data):
            found = f"{len(x):,} samples for {len(data):,}"
            raise DataError("augment of the task", found, "let it give as many samples as it gets")
        moved_data = Data(x, torch.zeros(len(x), dtype=torch.int64))
        ours, theirs = (
            outputs_of(m, self.task, moved_data, self.batch_size, self.device) for m in (model, self.original)
        )
        return ours, theirs

    def reference(self, role: Role) -> Evaluation:
        """The original network on a role (not counted as a use)."""
        if role not in self._kept:
            data = self.task.data(role)
            self._kept[role] = evaluate(self.original, self.task, data, role, None, self.batch_size, self.device)
        return self._kept[role]

    def first_ok(self, role: Role, count: int) -> Evaluation:
        """The original network on the first samples of a role, on so many that `count` are ok if there are as many."""
        if role in self._kept:
            return self._kept[role]
        data = self.task.data(role)
        parts: list[Evaluation] = []
        done = 0
        while done < len(data) and sum(int(p.ok.sum()) for p in parts) < count:
            index = torch.arange(done, min(len(data), done + max(count, self.batch_size)))
            part = data.subset(index)
            parts.append(evaluate(self.original, self.task, part, role, None, self.batch_size, self.device))
            done += len(index)
        return Evaluation(
            role=role,
            rows=torch.cat([p.rows for p in parts]),
            ok=torch.cat([p.ok for p in parts]),
            outputs=torch.cat([p.outputs for p in parts if p.outputs is not None]),
        )


def outputs_of(model: nn.Module, task: Task, data: Data, batch_size: int, device: torch.device) -> Tensor:
    """float32 [n, ...] on the CPU: the outputs for every sample, in order, in evaluation mode."""
    with closing(_forward(model, task, data, batch_size, device)) as forward:
        return torch.cat([outputs for _, outputs in forward])


def evaluate(
    model: nn.Module,
    task: Task,
    data: Data,
    role: Role,
    original: Tensor | None,
    batch_size: int,
    device: torch.device,
    progress: Progress = SILENT,
) -> Evaluation:
    """Every sample once through the network. `original` are the outputs that `ok` compares with; None = these."""
    rows: list[Tensor] = []
    ok: list[Tensor] = []
    kept: list[Tensor] = []
    wanted: list[Tensor] = []
    start = 0
    forward = _forward(model, task, data, batch_size, device)
    with progress.task(f"evaluate on {role}", len(data)) as advance, closing(forward):
        for batch, outputs in forward:
            before = outputs if original is None else original[start : start + len(outputs)]
            targets = task.target(batch)
            try:
                rows.append(task.score.statistics(outputs, targets))
                ok.append(task.ok(outputs, targets, before).bool().reshape(-1))
            except (RuntimeError, IndexError, AttributeError) as error:
                raise DataError(
                    f"score {task.score.name} on {role}",
                    f"outputs {tuple(outputs.shape)} do not fit the targets ({error})",
                    "check the targets' shape and type against the task",
                ) from error
            if len(rows[-1]) != len(outputs) or len(ok[-1]) != len(outputs):
                raise DataError(
                    f"score {task.score.name} on {role}",
                    f"{len(rows[-1])} rows of the score and {len(ok[-1])} of ok for {len(outputs)} samples",
                    "let score.statistics and ok of the task give one row for each sample",
                )
            kept.append(outputs)
            if isinstance(targets, Tensor) and targets.dim() <= 2:
                wanted.append(targets)
            start += len(outputs)
            advance(len(outputs))
    return Evaluation(
        role=role,
        rows=torch.cat(rows),
        ok=torch.cat(ok),
        outputs=torch.cat(kept),
        targets=torch.cat(wanted) if wanted else None,
    )


def _forward(
    model: nn.Module, task: Task, data: Data, batch_size: int, device: torch.device
) -> Generator[tuple[Batch, Tensor]]:
    """Batches (on the CPU) with their outputs; until this is closed the model is on the device, in evaluation mode."""
    modes = {m: m.training for m in model.modules()}
    home = device_of(model)
    model.eval()
    try:
        if home is not None:
            model.to(device)
        with torch.no_grad():
            for x, y in data.batches(batch_size):
                out: Any = task.forward(model, moved((x, y), device))
                if not isinstance(out, Tensor) or out.dim() == 0 or len(out) != len(x):
                    found = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
                    raise DataError(
                        "outputs of the model",
                        f"{found} for {len(x)} inputs",
                        "let forward(model, batch) of the task return a tensor with one row a sample",
                    )
                if not bool(torch.isfinite(out).all()):
                    raise DataError(
                        "outputs of the model",
                        "NaN or infinity",
                        "look for broken weights or a range that overflows",
                    )
                yield (x, y), out.detach().float().cpu()
    finally:
        if home is not None:
            model.to(home)
        for module, training in modes.items():
            module.training = training
