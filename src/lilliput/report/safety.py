"""What the page of a safety set shows, as plain data: each sample, what the network answers, and why it was chosen."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.core.device import device_of
from lilliput.core.guard import Evaluation, evaluate
from lilliput.core.task import Task
from lilliput.data.safety import Reason, SafetySet
from lilliput.report.answers import usual_kind
from lilliput.report.changed import answer_of, class_name, label_of, numbers, thumbnail

POINTS, LINES = 64, 3
"""Of an input that is no picture: so many points of a line, so many lines (the first channels)."""
FEW = 4
"""Numbers of an input that are written out."""
METHODS = {
    "grad_cam": (
        "Grad-CAM",
        "The map of the last convolution, scaled to 0..1, sums to most: much of the input speaks for the answer.",
    ),
    "margin": ("Margin", "The two largest probabilities are nearest to each other: the network is least sure."),
    "loss": ("Loss", "The loss is largest."),
    "diversity": (
        "Diversity",
        "Nearest to the centre of a cluster of embeddings: together they stand for all.",
    ),
    "random": ("Random", "Drawn, for comparison."),
}
WORDS = {"anomaly": ("label", "error"), "segmentation": ("label", "IoU"), "regression": ("target", "answer")}
"""What a sample has, and what the network gives."""


def safety_details(chosen: SafetySet, task: Task, model: nn.Module, name: str) -> dict[str, Any]:
    """Raises `DataError` where the set is for other data than the task's."""
    data = chosen.data(task)
    found = evaluate(model, task, data, "train", None, 256, device_of(model) or torch.device("cpu"))
    x, y = data.batch(torch.arange(len(data)))
    targets = task.target((x, y))
    classes = usual_kind(task) == "classification"
    samples = [
        {
            "role": role,
            "number": number,
            "method": reason.method,
            "label": label_of(task, targets, i, found, i),
            "answer": answer_of(task, found, i),
            "wrong": classes and not bool(found.ok[i]),
            "why": _why(task, reason, found, i),
            **_shown(task, x[i]),
        }
        for i, ((role, number), reason) in enumerate(zip(chosen.where, chosen.reasons, strict=True))
    ]
    ordered = [samples[i] for i in sorted(range(len(samples)), key=lambda i: _place(chosen.reasons[i]))]
    return {
        "name": name,
        "source": chosen.source,
        "seen": chosen.seen,
        "seed": chosen.seed,
        "fingerprints": dict(chosen.fingerprints),
        "notes": list(chosen.notes),
        "words": WORDS.get(usual_kind(task), ("label", "answer")),
        "counts": count_rows(chosen, task),
        "wrong": sum(s["wrong"] for s in samples) if classes else None,
        "methods": [(m, *METHODS[m], [s for s in ordered if s["method"] == m]) for m in chosen.counts()],
    }


def count_rows(chosen: SafetySet, task: Task) -> list[list[str]]:
    """How many samples of each class each method has chosen, with a header and sums."""
    counts = chosen.counts()
    labels = list(dict.fromkeys(label for own in counts.values() for label in own))
    rows = [["samples" if labels == [None] else "class", *counts, "all"]]
    for label in labels if labels != [None] else ():
        own = [counts[m].get(label, 0) for m in counts]
        rows.append([class_name(task, label or 0), *map(str, own), str(sum(own))])
    sums = [sum(own.values()) for own in counts.values()]
    return [*rows, ["all", *map(str, sums), str(len(chosen))]]


def _place(reason: Reason) -> tuple[int, float]:
    """Classes in order; in each what the method took first."""
    value = -reason.value if reason.method in ("grad_cam", "loss") else reason.value
    return (0 if reason.label is None else reason.label), value


def _why(task: Task, reason: Reason, found: Evaluation, i: int) -> str:
    value = f"{reason.value:.4g}"
    if reason.method == "margin" and found.outputs is not None:
        first, second = found.outputs[i].topk(2).indices.tolist()
        return f"margin {value}: {class_name(task, first)} or {class_name(task, second)}"
    return {
        "grad_cam": f"map sums to {value}",
        "margin": f"margin {value}",
        "diversity": f"distance {value}",
        "loss": f"loss {value}",
        "random": f"drawn as number {int(reason.value) + 1}",
    }[reason.method]


def _shown(task: Task, x: Tensor) -> dict[str, Any]:
    """A picture; or lines between 0 and 1; or the numbers themselves."""
    picture = thumbnail(x, task.spec)
    if picture is not None:
        return {"picture": picture}
    if x.numel() <= FEW:
        return {"numbers": numbers(x.reshape(-1), FEW)}
    rows = x.reshape(-1, x.shape[-1])[:LINES]
    if rows.shape[1] > POINTS:
        rows = F.adaptive_avg_pool1d(rows[None], POINTS)[0]
    low, high = rows.min(), rows.max()
    return {"lines": ((rows - low) / (high - low).clamp(min=1e-30)).tolist()}
