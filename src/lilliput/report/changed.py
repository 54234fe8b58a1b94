"""The samples whose answer is another than the original network's, with small pictures where inputs are images."""

import base64
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lilliput.core.artifact import InputSpec
from lilliput.core.guard import Evaluation
from lilliput.core.task import Role, Task
from lilliput.report.answers import usual_kind
from lilliput.report.png import png

SHOWN, SIDE = 24, 32
"""So many samples are shown, lost ones first; pictures have at most so many pixels a side."""


def changed_samples(before: Evaluation, now: Evaluation, task: Task, role: Role) -> dict[str, Any]:
    """How many were lost and gained, and the first of them: number, label, answers, picture."""
    lost, gained = before.ok & ~now.ok, ~before.ok & now.ok
    other = ~lost & ~gained & _differ(before, now, task)
    states = [("lost", lost), ("gained", gained), ("both wrong", other)]
    order = [(state, int(i)) for state, mask in states for i in torch.nonzero(mask).reshape(-1)]
    shown = order[:SHOWN]
    found: dict[str, Any] = {
        "role": role,
        "samples": len(now.ok),
        **{name.replace(" ", "_"): int(mask.sum()) for name, mask in states},
        "shown": list[dict[str, Any]](),
    }
    if not shown:
        return found
    index = torch.tensor([i for _, i in shown])
    batch = task.data(role).batch(index)
    targets = task.target(batch)
    for place, (state, i) in enumerate(shown):
        found["shown"].append(
            {
                "index": i,
                "state": state,
                "label": label_of(task, targets, place, before, i),
                "before": answer_of(task, before, i),
                "after": answer_of(task, now, i),
                "picture": thumbnail(batch[0][place], task.spec),
            }
        )
    return found


def thumbnail(x: Tensor, spec: InputSpec) -> str | None:
    """A PNG in base64 of one input [1 or 3, height, width]; None if it is no image."""
    if x.dim() != 3 or x.shape[0] not in (1, 3) or min(x.shape[1:]) < 2:
        return None
    if spec.mean and spec.std:
        x = x * torch.tensor(spec.std).reshape(-1, 1, 1) + torch.tensor(spec.mean).reshape(-1, 1, 1)
    low, high = (0.0, 1.0) if x.min() >= 0 and x.max() <= 1 else (float(x.min()), float(x.max()))
    x = (x - low) / (high - low if high > low else 1.0)
    scale = max(math.ceil(x.shape[1] / SIDE), math.ceil(x.shape[2] / SIDE))
    if scale > 1:
        size = (max(1, x.shape[1] // scale), max(1, x.shape[2] // scale))
        x = F.adaptive_avg_pool2d(x[None], size)[0]
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).contiguous().numpy()
    return base64.b64encode(png(pixels)).decode()


def _differ(before: Evaluation, now: Evaluation, task: Task) -> Tensor:
    """bool [n]: another class; where there are no classes, what `ok` says is all."""
    a, b = before.outputs, now.outputs
    if task.kind != "classification" or a is None or b is None or a.dim() != 2:
        return torch.zeros_like(now.ok)
    return a.argmax(1) != b.argmax(1)


def label_of(task: Task, targets: Any, place: int, before: Evaluation, index: int) -> str:
    """Of the sample at `place` of the targets, which is `index` of the evaluation; "" where nothing short says it."""
    kind = usual_kind(task)
    if kind == "anomaly":
        return "anomaly" if float(before.rows[index, 1]) > 0.5 else "normal"
    if kind not in ("classification", "regression") or not isinstance(targets, Tensor):
        return ""
    row = targets[place].reshape(-1)
    return class_name(task, int(row[0])) if kind == "classification" else numbers(row)


def answer_of(task: Task, evaluation: Evaluation, index: int) -> str:
    kind, rows, outputs = usual_kind(task), evaluation.rows, evaluation.outputs
    if kind == "classification" and outputs is not None and outputs.dim() == 2:
        return class_name(task, int(outputs[index].argmax()))
    if kind == "anomaly":
        return f"{float(rows[index, 0]):.4g}"
    if kind == "segmentation":
        meets, either = float(rows[index, 0::2].sum()), float(rows[index, 1::2].sum())
        return f"{100 * meets / either:.1f}%" if either else ""
    if kind == "regression" and outputs is not None:
        return numbers(outputs[index].reshape(-1))
    return "acceptable" if bool(evaluation.ok[index]) else "not acceptable"


def class_name(task: Task, number: int) -> str:
    return task.labels[number] if 0 <= number < len(task.labels) else str(number)


def numbers(row: Tensor, most: int = 3) -> str:
    return ", ".join(f"{float(v):.4g}" for v in row[:most]) + (", ..." if len(row) > most else "")
