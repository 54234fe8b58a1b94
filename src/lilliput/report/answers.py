"""What the answers of two networks look like, as plain data by kind of task: classes, residuals, errors, IoU."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lilliput.core.guard import Evaluation
from lilliput.core.task import Role, Task
from lilliput.report.compare import Column

MOST_CLASSES, MOST_CHANGES = 20, 30
"""A matrix of more classes is not shown whole: only where most has changed."""
BINS, MOST_POINTS = 30, 250
NORMAL_SHARE = 0.95
"""The threshold of anomalies: at least so many of the normal samples do not exceed it."""
BATCH = 512


def answers(columns: list[Column], task: Task, role: Role, validation: Evaluation | None) -> dict[str, Any] | None:
    """Of the first and the last network; None for tasks of another kind, or with other outputs or scores than theirs."""
    first, last = columns[0].evaluation, columns[-1].evaluation
    make = _MAKERS.get(task.kind)
    if make is None or first is None or last is None:
        return None
    made = make(first, last, task, role, validation)
    names = [columns[0].name, columns[-1].name]
    return None if made is None else {"kind": task.kind, "role": role, "names": names, **made}


def _classification(
    first: Evaluation, last: Evaluation, task: Task, role: Role, validation: Evaluation | None
) -> dict[str, Any] | None:
    a, b = first.outputs, last.outputs
    if a is None or b is None or a.dim() != 2:
        return None
    targets, classes = _targets(task, role), a.shape[1]
    if len(targets) != len(a) or targets.is_floating_point() or int(targets.max()) >= classes or int(targets.min()) < 0:
        return None
    before, now = (torch.bincount(targets * classes + o.argmax(1), minlength=classes**2) for o in (a, b))
    before, now = before.reshape(classes, classes), now.reshape(classes, classes)
    names = [task.labels[c] if c < len(task.labels) else str(c) for c in range(classes)]
    found: dict[str, Any] = {"classes": classes, "changes": _changes(before, now, names)}
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


def _regression(
    first: Evaluation, last: Evaluation, task: Task, role: Role, validation: Evaluation | None
) -> dict[str, Any] | None:
    if first.outputs is None or last.outputs is None:
        return None
    wanted = _targets(task, role).reshape(-1).double()
    residuals = [e.outputs.reshape(-1).double() - wanted for e in (first, last) if e.outputs is not None]
    picks = torch.linspace(0, len(wanted) - 1, min(MOST_POINTS, len(wanted))).long()
    points = zip(wanted[picks].tolist(), *(r[picks].tolist() for r in residuals), strict=True)
    return {"unit": task.score.unit, "points": [list(p) for p in points], **_histogram(residuals)}


def _anomaly(
    first: Evaluation, last: Evaluation, task: Task, role: Role, validation: Evaluation | None
) -> dict[str, Any] | None:
    if first.rows.shape[1] != 2:
        return None
    groups = [e.rows[(e.rows[:, 1] > 0.5) == bad, 0].double() for e in (first, last) for bad in (False, True)]
    source = first if validation is None else validation
    normal = source.rows[source.rows[:, 1] <= 0.5, 0].double().sort().values
    limit = float(normal[math.ceil(NORMAL_SHARE * len(normal)) - 1]) if len(normal) else None
    above = None if limit is None else [[int((g > limit).sum()), len(g)] for g in groups]
    return {"threshold": limit, "chosen_on": source.role, "above": above, **_histogram(groups, widely=True)}


def _segmentation(
    first: Evaluation, last: Evaluation, task: Task, role: Role, validation: Evaluation | None
) -> dict[str, Any] | None:
    rows = [e.rows.sum(0) for e in (first, last)]
    if len(rows[0]) % 2:
        return None
    shares = [[_share(float(m), float(e)) for m, e in zip(r[0::2], r[1::2], strict=True)] for r in rows]
    names = [task.labels[c] if c < len(task.labels) else str(c) for c in range(len(shares[0]))]
    return {"labels": names, "before": shares[0], "after": shares[1]}


def _share(meets: float, either: float) -> float | None:
    """None for a class that is neither there nor found."""
    return meets / either if either else None


def _histogram(groups: list[Tensor], *, widely: bool = False) -> dict[str, Any]:
    """Counts of each group in `BINS` common bins; with `widely` they are equal on a logarithmic axis if values differ much."""
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


def _targets(task: Task, role: Role) -> Tensor:
    """[n, ...]: what the loss and the score get, for every sample in order."""
    parts = [torch.as_tensor(task.target(batch)) for batch in task.data(role).batches(BATCH)]
    targets = torch.cat(parts)
    return targets if targets.dim() == 1 or task.kind != "classification" else targets.reshape(-1)


_MAKERS: Mapping[str, Callable[[Evaluation, Evaluation, Task, Role, Evaluation | None], dict[str, Any] | None]] = {
    "classification": _classification,
    "regression": _regression,
    "anomaly": _anomaly,
    "segmentation": _segmentation,
}
