"""One cell of a grid: compress under the limits, write the file, read it back, score it once."""

import copy
import hashlib
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from lilliput.bench.grid import Limits, ModelSource, is_search
from lilliput.bench.samples import pack
from lilliput.bench.searched import find
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.container import Contents
from lilliput.core.errors import UsageError
from lilliput.core.guard import evaluate
from lilliput.core.task import Role, Task
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.measure.size import file_sizes, overhead
from lilliput.pipeline.recipe import from_data
from lilliput.pipeline.run import Outcome, run, weights_hash
from lilliput.zoo.registry import open_model

BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with its task. `identity` tells apart other weights and other data."""

    model: nn.Module
    task: Task
    identity: dict[str, Any]


def open_subject(source: ModelSource, role: Role, data_root: str | None) -> Subject:
    """Torch's generator is seeded first: a model of the user's own comes out the same in every process.

    The model is traced and written once, so that no cell pays for what is loaded at that.
    """
    torch.manual_seed(0)
    model, task = open_model(source.source, weights=source.weights, data=source.data, data_root=data_root)
    roles: tuple[Role, ...] = ("train", "validation", role)
    data = {r: task.data(r).fingerprint() for r in dict.fromkeys(roles) if task.has(r) or r == role}
    stored.dumps(Artifact.of(model, task.spec))
    return Subject(model=model, task=task, identity={"weights": weights_hash(model), "data": data})


def measure(subject: Subject, recipe: Mapping[str, Any], limits: Limits, role: Role) -> dict[str, Any]:
    """What is kept of a cell. The method sees no test data; `role` is read once, by the network of the file."""
    torch.manual_seed(0)
    task = subject.task
    hidden = task.without("test") if role == "test" else task
    started, cpu = time.perf_counter(), time.process_time()
    with counted_steps(limits.steps) as steps, cpu_limit(limits.seconds):
        outcome = made(subject.model, hidden, recipe, limits)
        steps.check()
        cpu = time.process_time() - cpu
    data = stored.dumps(outcome.artifact)
    contents = container.loads(data)
    fresh = contents.replay(copy.deepcopy(subject.model))
    score = task.score
    rows = evaluate(runnable(fresh), task, task.data(role), role, None, BATCH, torch.device("cpu")).rows
    return {
        "score": score.value(rows),
        "scored": {
            "name": score.name,
            "unit": score.unit,
            "higher_is_better": score.higher_is_better,
            "role": role,
            "samples": len(rows),
        },
        "rows": pack(rows[:, 0] * score.factor, binary=score.binary) if score.reduce is None else None,
        "bytes": len(data),
        "raw_bytes": raw_bytes(contents),
        "file": hashlib.blake2b(data, digest_size=16).hexdigest(),
        "steps": steps.count,
        "cpu_seconds": round(cpu, 3),
        "seconds": round(time.perf_counter() - started, 3),
        "refused": [entry["name"] for entry in outcome.trail if not entry["verdict"]["accepted"]],
        "looks": dict(outcome.context.evaluator.uses),
        "torch": torch.__version__,
    }


def made(model: nn.Module, task: Task, recipe: Mapping[str, Any], limits: Limits) -> Outcome:
    """By a recipe, or by a search."""
    if is_search(recipe):
        return find(model, task, dict(recipe), limits.epochs, BATCH)
    return run(model, task, from_data(recipe), batch_size=BATCH)


def raw_bytes(contents: Contents) -> int:
    """What the file would take with its streams packed, and not coded."""
    return overhead(contents) + round(file_sizes(contents).total("packed").value)


class Steps:
    """Optimizer steps that have been taken."""

    def __init__(self, most: int | None) -> None:
        self.count, self.most = 0, most

    def __call__(self, *_: Any) -> None:
        self.count += 1
        self.check()

    def check(self) -> None:
        """Raises after too many, also where somebody between has caught what was raised at the step."""
        if self.most is not None and self.count > self.most:
            raise UsageError(
                "cell", f"more than {self.most:,} training steps", "train less, or raise limits: {steps: ...}"
            )


@contextmanager
def counted_steps(most: int | None) -> Iterator[Steps]:
    """Counts the steps of every optimizer of torch in here, whoever made it; raises after more than `most`."""
    steps = Steps(most)
    hook = register_optimizer_step_post_hook(steps)
    try:
        yield steps
    finally:
        hook.remove()


@contextmanager
def cpu_limit(seconds: float | None) -> Iterator[None]:
    """The kernel ends the process with SIGPROF after so many CPU seconds: nothing in it can outlast that."""
    signal.setitimer(signal.ITIMER_PROF, seconds or 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
