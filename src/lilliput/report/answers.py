"""What the answers of two networks look like, as plain data by kind of task: classes, residuals, errors, IoU."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.guard import Evaluation
from lilliput.core.score import mean_iou, reconstruction_auc
from lilliput.core.task import Role, Task
from lilliput.report.compare import Column

MOST_CLASSES, MOST_CHANGES = 20, 30
"""A matrix of more classes is not shown whole: only where most has changed."""
BINS, MOST_POINTS = 30, 250
NORMAL_SHARE = 0.95
"""The threshold of anomalies: at least this part of the normal samples does not exceed it."""
USUAL_SCORES = {"anomaly": reconstruction_auc().name, "segmentation": mean_iou(1).name}
"""Kinds whose panels read what the score notes for each sample."""


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two networks' answers to the samples of one role."""

    first: Evaluation
    last: Evaluation
    task: Task

    @property
    def both(self) -> tuple[Evaluation, Evaluation]:
        return self.first, self.last

    def names(self, count: int) -> list[str]:
        """Of the classes."""
        labels = self.task.labels
        return [labels[c] if c < len(labels) else str(c) for c in range(count)]


def answers(columns: list[Column], task: Task, role: Role) -> dict[str, Any] | None:
    """Of the first and the last network; None for tasks of another kind, or with other outputs or scores."""
    first, last = columns[0].evaluation, columns[-1].evaluation
    make = _MAKERS.get(usual_kind(task))
    if make is None or first is None or last is None:
        return None
    made = make(_Pair(first=first, last=last, task=task))
    names = [columns[0].name, columns[-1].name]
    return None if made is None else {"kind": task.kind, "role": role, "names": names, **made}


def usual_kind(task: Task) -> str:
    """The kind of the task; "custom" where what the score notes for a sample is not what its kind usually notes."""
    usual = USUAL_SCORES.get(task.kind, task.score.name)
    return task.kind if task.score.name == usual else "custom"


def _classification(pair: _Pair) -> dict[str, Any] | None:
    a, b = (e.outputs for e in pair.both)
    targets = pair.first.targets
    if a is None or b is None or targets is None or a.dim() != 2 or targets.is_floating_point():
        return None
    classes, targets = a.shape[1], targets.reshape(-1)
    if len(targets) != len(a) or not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        return None
    before, now = (torch.bincount(targets * classes + o.argmax(1), minlength=classes**2) for o in (a, b))
    before, now = before.reshape(classes, classes), now.reshape(classes, classes)
    names = pair.names(classes)
    found: dict[str, Any] = {"changes": _changes(before, now, names)}
    if classes <= MOST_CLASSES:
        found |= {"labels": names, "before": before.tolist(), "after": now.tolist()}
    return found


def _changes(before: Tensor, now: Tensor, names: list[str]) -> list[dict[str, Any]]:
    """The cells that changed most: label, answer, how often before and now."""
    moved = (now - before).abs().reshape(-1)
    order = torch.argsort(moved, descending=True, stable=True)[:MOST_CHANGES]
    return [
        {"label": names[r], "answer": names[c], "before": int(before[r, c]), "after": int(now[r, c])}
        for r, c in (divmod(int(i), len(names)) for i in order if moved[i] > 0)
    ]


def _regression(pair: _Pair) -> dict[str, Any] | None:
    outputs, targets = [e.outputs for e in pair.both if e.outputs is not None], pair.first.targets
    if len(outputs) != 2 or targets is None or any(o.numel() != targets.numel() for o in outputs):
        return None
    wanted = targets.reshape(-1).double()
    residuals = [o.reshape(-1).double() - wanted for o in outputs]
    picks = torch.linspace(0, len(wanted) - 1, min(MOST_POINTS, len(wanted))).long()
    points = zip(wanted[picks].tolist(), *(r[picks].tolist() for r in residuals), strict=True)
    return {"unit": pair.task.score.unit, "points": [list(p) for p in points], **_histogram(residuals)}


def _anomaly(pair: _Pair) -> dict[str, Any] | None:
    groups = [e.rows[(e.rows[:, 1] > 0.5) == bad, 0].double() for e in pair.both for bad in (False, True)]
    limits = [_limit(groups[0]), _limit(groups[2])]
    above = [[int((g > limits[i // 2]).sum()), len(g)] for i, g in enumerate(groups)]
    return {"thresholds": limits, "above": above, **_histogram(groups, widely=True)}


def _limit(normal: Tensor) -> float:
    """The least error that `NORMAL_SHARE` of the normal samples do not exceed; a score needs at least one of them."""
    return float(normal.sort().values[math.ceil(NORMAL_SHARE * len(normal)) - 1])


def _segmentation(pair: _Pair) -> dict[str, Any] | None:
    rows = [e.rows.sum(0) for e in pair.both]
    shares = [[_share(float(m), float(e)) for m, e in zip(r[0::2], r[1::2], strict=True)] for r in rows]
    return {"labels": pair.names(len(shares[0])), "before": shares[0], "after": shares[1]}


def _share(meets: float, either: float) -> float | None:
    """None for a class that is neither there nor found."""
    return meets / either if either else None


def _histogram(groups: list[Tensor], *, widely: bool = False) -> dict[str, Any]:
    """Counts of each group in `BINS` common bins; `widely`: on a logarithmic axis if values differ much."""
    together = torch.cat(groups)
    low, high = float(together.min()), float(together.max())
    log = widely and low > 0 and high / low > 50
    if high <= low:
        high = low + (abs(low) or 1.0) * 1e-3
    ends = (math.log(low), math.log(high)) if log else (low, high)
    edges = torch.linspace(*ends, BINS + 1, dtype=torch.float64)
    places = [(g.log() if log else g).clamp(*ends) for g in groups]
    counts = [torch.histogram(p, edges).hist.long().tolist() for p in places]
    return {"edges": (edges.exp() if log else edges).tolist(), "counts": counts, "log": log}


_MAKERS: Mapping[str, Callable[[_Pair], dict[str, Any] | None]] = {
    "classification": _classification,
    "regression": _regression,
    "anomaly": _anomaly,
    "segmentation": _segmentation,
}
