"""The guard inside of self-compression: samples that must stay right, and channels that come back where they do not.

"Irreversible forgetting" is what Csefalvay and Imber (2023), section 5, call bits that vanish with a rare feature. The
answer of Zbeeb et al. (2025), https://arxiv.org/abs/2505.00350, is a safety set: where its accuracy falls between two
checks, random dead channels return with 2 bits (rule "previous" here). Rule "best" compares with the best so far, by
accuracy and by the recall of the worst class, and brings those channels back that gain most, to first order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.device import moved
from lilliput.core.guard import evaluate, outputs_of
from lilliput.core.task import Data, Task
from lilliput.training.learned_bits import BITS, EXPONENT, Widths
from lilliput.training.optimizer import Memory

BATCH = 256
REVIVED_BITS = 2.0
"""Of channels that come back by the rule "previous"."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Shares of the samples that are right: of all, and of the worst class (of all, without classes); the mean loss."""

    accuracy: float
    worst: float
    worst_class: int | None
    loss: float = 0.0


class Safety:
    """Samples that are looked at after each round; `original` is the network that answers count against."""

    def __init__(
        self, task: Task, data: Data, original: nn.Module, *, rule: str, tolerance: float, share: float
    ) -> None:
        self.task, self.data, self.rule, self.tolerance, self.share = task, data, rule, tolerance, share
        self.place = torch.device("cpu")
        self.reference = outputs_of(original, task, data, BATCH, self.place)
        targets = task.target(data.batch(torch.arange(len(data))))
        classes = isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
        self.labels: Tensor | None = targets if classes else None
        self.best = Check(accuracy=0.0, worst=0.0, worst_class=None)
        self.last: Check | None = None

    def look(self, net: Artifact) -> Check:
        found = evaluate(net.module, self.task, self.data, "train", self.reference, BATCH, self.place)
        accuracy, loss = float(found.ok.double().mean()), self._loss(net)
        if self.labels is None:
            return Check(accuracy=accuracy, worst=accuracy, worst_class=None, loss=loss)
        recalls = {int(c): float(found.ok[self.labels == c].double().mean()) for c in self.labels.unique()}
        worst = min(recalls, key=lambda c: recalls[c])
        return Check(accuracy=accuracy, worst=recalls[worst], worst_class=worst, loss=loss)

    def _loss(self, net: Artifact) -> float:
        outputs = outputs_of(net.module, self.task, self.data, BATCH, self.place)
        return float(self.task.loss(outputs, self.task.target(self.data.batch(torch.arange(len(self.data))))))

    def broken(self, check: Check) -> str:
        """Why the network has forgotten too much; "" if it has not. Remembers what it has seen."""
        before, self.last = self.last, check
        if self.rule == "previous":
            fallen = 0.0 if before is None else before.accuracy - check.accuracy
            return f"accuracy fell by {fallen:.3f} since the check before" if fallen > self.tolerance else ""
        fallen, lost = self.best.accuracy - check.accuracy, self.best.worst - check.worst
        self.best = replace(
            self.best,
            accuracy=max(self.best.accuracy, check.accuracy),
            worst=max(self.best.worst, check.worst),
        )
        if fallen > self.tolerance:
            return f"accuracy {check.accuracy:.3f}, the best was {self.best.accuracy:.3f}"
        if lost > max(self.tolerance, self._sample(check.worst_class)):
            return f"recall {check.worst:.3f} of class {check.worst_class}, the worst was {self.best.worst:.3f} at best"
        return ""

    def _sample(self, label: int | None) -> float:
        """What one sample of the class counts, and a little more."""
        return 0.0 if label is None or self.labels is None else 1.01 / float((self.labels == label).sum())

    def repaired(
        self, net: Artifact, widths: Mapping[str, Widths], snapshot: Mapping[str, Widths], generator: torch.Generator
    ) -> tuple[dict[str, Widths], dict[str, list[int]]]:
        """The widths with some channels as they were in `snapshot`, and which (numbers of widths of each weight)."""
        if self.rule == "previous":
            return self._revived(widths, generator)
        gains = self._gains(net, widths, snapshot)
        candidates = [(float(g), name, i) for name, gain in gains.items() for i, g in enumerate(gain) if g > 0]
        candidates.sort(key=lambda c: (-c[0], c[1], c[2]))
        changed = sum(int((gain != 0).sum()) for gain in gains.values())
        chosen = candidates[: max(1, round(self.share * changed))]
        back: dict[str, list[int]] = {}
        for _, name, i in chosen:
            back.setdefault(name, []).append(i)
        return {n: _mixed(w, snapshot[n], back[n]) if n in back else w for n, w in widths.items()}, back

    def _revived(
        self, widths: Mapping[str, Widths], generator: torch.Generator
    ) -> tuple[dict[str, Widths], dict[str, list[int]]]:
        result, back = dict(widths), dict[str, list[int]]()
        for name, w in widths.items():
            rows = w.rounded(w.exponent).integers.abs()
            dead = torch.nonzero(w.gathered(rows) == 0).reshape(-1)
            if len(dead):
                order = torch.randperm(len(dead), generator=generator)[: max(1, round(self.share * len(dead)))]
                back[name] = sorted(dead[order].tolist())
                bits = w.bits.clone()
                bits[back[name]] = REVIVED_BITS
                result[name] = replace(w, bits=bits)
        return result, back

    def _gains(self, net: Artifact, widths: Mapping[str, Widths], snapshot: Mapping[str, Widths]) -> dict[str, Tensor]:
        """For each width: how much of the loss on the set would go, to first order, with its channels as they were."""
        module = net.module
        module.zero_grad()
        for part in torch.arange(len(self.data)).split(BATCH):
            batch = moved(self.data.batch(part), self.place)
            loss = self.task.loss(self.task.forward(module, batch), self.task.target(batch))
            (loss * len(part) / len(self.data)).backward()
        gains: dict[str, Tensor] = {}
        for name, w in widths.items():
            gradient, old = net.parameter(name).grad, snapshot[name]
            then = old.rounded(old.exponent).integers * torch.exp2(old.spread(old.exponent))
            change = then - net.parameter(name).detach()
            gains[name] = w.gathered(torch.zeros_like(change) if gradient is None else -gradient * change)
        module.zero_grad()
        return gains


def _mixed(now: Widths, old: Widths, back: Sequence[int]) -> Widths:
    chosen = torch.zeros(len(now.bits), dtype=torch.bool)
    chosen[list(back)] = True
    return replace(
        now,
        raw=torch.where(now.spread(chosen), old.raw, now.raw),
        bits=torch.where(chosen, old.bits, now.bits),
        exponent=torch.where(chosen, old.exponent, now.exponent),
    )


def forgotten(memory: Memory, widths: Mapping[str, Widths], back: Mapping[str, Sequence[int]]) -> Memory:
    """The optimizer's memory without what it knew of these widths and of their channels."""
    left: dict[str, Mapping[str, Any]] = dict(memory)
    for name, numbers in back.items():
        chosen = torch.zeros(len(widths[name].bits), dtype=torch.bool)
        chosen[list(numbers)] = True
        for key, gone in ((name, widths[name].spread(chosen)), (name + BITS, chosen), (name + EXPONENT, chosen)):
            if key in left:
                left[key] = {
                    k: torch.where(gone, 0.0, v) if isinstance(v, Tensor) and v.dim() else v
                    for k, v in left[key].items()
                }
    return left
