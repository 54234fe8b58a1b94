"""What a network is worth with the weights that circuits make: score and loss beside energy and bits."""

import csv
import io
from pathlib import Path
from typing import Any

import torch

from lilliput.bench.generation.evaluate import solutions
from lilliput.bench.generation.folder import opened
from lilliput.bench.generation.record import measures
from lilliput.bench.generation.subject import Subject
from lilliput.core.artifact import Artifact
from lilliput.core.files import write_atomically
from lilliput.core.guard import evaluate
from lilliput.core.progress import SILENT, Progress
from lilliput.core.task import Role
from lilliput.graph.integer import runnable
from lilliput.methods.weight_generation.solution import substitute_

BATCH = 256
ABOUT = ("run", "title", "solution")
MEASURES = (
    "error",
    "squared_error",
    "rms",
    "gates",
    "energy_pj",
    "delay_ns",
    "stored_bits",
    "plain_bits",
    "weights_pj",
    "verdict",
)


def metrics(
    path: Path, role: Role, *, top: int | None = None, data_root: Path | None = None, progress: Progress = SILENT
) -> list[dict[str, Any]]:
    """A row for the network as it came, one for its integers before each problem, one for each solution.

    Also writes `metrics-ROLE.csv` there.
    """
    opened(path)
    subject, loaded = solutions(path, data_root=data_root, top=top)
    score = subject.task.score.name
    rows = [{"run": "", "title": "the network as it came", "solution": "", **_scores(subject, subject.net, role)}]
    known: set[tuple[Any, ...]] = set()
    with progress.task("solutions") as advance:
        for each in loaded:
            run, found = each.run, measures(each.solution)
            key = (run.problem, run.bits)
            if key not in known:
                known.add(key)
                bits = {"stored_bits": found["plain_bits"], "weights_pj": found["plain_weights_pj"]}
                title = f"{run.problem} in {each.solution.problem.bits} bits, without circuits"
                rows.append({"run": "", "title": title, "solution": "", **_scores(subject, each.net, role), **bits})
            net = each.net.copy()
            substitute_(net, each.solution)
            about = {"run": run.index, "title": run.title, "solution": each.number}
            rows.append({**about, **_scores(subject, net, role), **{name: found[name] for name in MEASURES}})
            advance(1)
    write_atomically(path / f"metrics-{role}.csv", _text(rows, score).encode())
    return rows


def _scores(subject: Subject, net: Artifact, role: Role) -> dict[str, float]:
    """The score, by its name, and the mean loss of the samples."""
    task, data = subject.task, subject.task.data(role)
    found = evaluate(runnable(net), task, data, role, None, BATCH, torch.device("cpu"))
    outputs, start, total = found.outputs, 0, 0.0
    if outputs is not None:
        for batch in data.batches(BATCH):
            part = outputs[start : start + BATCH]
            total += float(task.loss(part, task.target(batch)).mean()) * len(part)
            start += len(part)
    return {task.score.name: task.score.value(found.rows), "loss": total / max(start, 1)}


def _text(rows: list[dict[str, Any]], score: str) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*ABOUT, score, "loss", *MEASURES], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
