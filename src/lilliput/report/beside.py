"""Finished `.lil` files side by side: other widths, other activations, other methods, in one table.

Each file runs from its own graph, so they need not come from one model. The measurements are those of `compare`.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.cost import Measurement
from lilliput.core.errors import LilliputError, UsageError
from lilliput.core.files import is_disk_trouble
from lilliput.core.guard import FullForward
from lilliput.core.progress import SILENT, Progress
from lilliput.core.target import Target
from lilliput.core.task import Role, Task
from lilliput.export.c import project
from lilliput.export.c.host import host_runner
from lilliput.export.c.replay import Replay, replay, trouble
from lilliput.graph.integer import runnable
from lilliput.graph.lower import lower
from lilliput.graph.stored import stored_artifact
from lilliput.graph.trace import graph_of
from lilliput.measure.latency import Runner, interleaved
from lilliput.report.compare import (
    CHECKED_SAMPLES,
    Column,
    add_counts,
    add_latencies,
    add_onnx,
    add_score,
    samples_of,
)

FEW = 64
"""Random samples that check an export, where there are no data."""


def compare_files(
    files: Sequence[Path],
    *,
    task: Task | None = None,
    role: Role = "test",
    target: Target | None = None,
    latency: bool = True,
    progress: Progress = SILENT,
) -> list[Column]:
    """The first file is the reference of differences and ratios. Without a task there is no score.

    Where the target is generated C, networks in integers are written as C: its flash and RAM, its time on this machine,
    and the instructions of one sample on an emulated Cortex-M4, as far as the tools are installed.
    """
    target = target or Target()
    names = _names(files)
    columns: list[Column] = []
    evaluator = None
    with tempfile.TemporaryDirectory(prefix="lilliput-") as scratch:
        for i, (name, file) in enumerate(zip(names, files, strict=True)):
            progress.say(f"measure {name} ...")
            contents = container.read(file)
            artifact = stored_artifact(contents, str(file))
            column = Column(name=name, artifact=artifact)
            column.tensors = {tensor: sum(slots.values()) for tensor, slots in container.sizes(contents).items()}
            graph = graph_of(artifact)
            if task is not None:
                module = runnable(artifact, graph)
                evaluator = evaluator or FullForward(task, module, progress=progress)
                column.evaluation = evaluator(module, role)
                add_score(column, task, columns[0].evaluation if columns else None)
            column.add(Measurement("file", contents.size, "B", "counted", note=".lil"))
            add_counts(column, artifact, graph, target)
            samples = _inputs(artifact, task, role, FEW if task is None else CHECKED_SAMPLES)
            add_onnx(column, artifact, graph, target, Path(scratch) / f"{i}.onnx", samples)
            columns.append(column)
        if latency:
            add_latencies(columns, {c.name: _inputs(c.artifact, task, role, 1) for c in columns})
        if target.preset.file == "flash":
            _add_c(columns, Path(scratch), progress, latency=latency)
    return columns


def _names(files: Sequence[Path]) -> list[str]:
    """The stems, where these tell the files apart; else their paths."""
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    if len(set(names)) < len(names):
        raise UsageError("compare files", "the same file twice", "name each once")
    return names


def _inputs(artifact: Artifact, task: Task | None, role: Role, count: int) -> Tensor:
    return artifact.input.example(count) if task is None else samples_of(task, role, count)


def _add_c(columns: Sequence[Column], folder: Path, progress: Progress, *, latency: bool) -> None:
    """Instructions of each network's C, and its time, in turns."""
    runners: dict[str, Runner] = {}
    with ExitStack() as open_:
        for i, column in enumerate(columns):
            place = folder / f"{i}-c"
            place.mkdir()
            progress.say(f"run {column.name} as C ...")
            try:
                project.write(lower(column.artifact), place)
                results = replay(place)[1]
                wrong = trouble(place, results)
                if wrong is not None:
                    raise wrong
                _add_instructions(column, results)
                if latency:
                    runners[column.name] = open_.enter_context(host_runner(place))
            except LilliputError as error:  # the other numbers are not lost for it
                if is_disk_trouble(error):
                    raise
                column.notes.append(f"not run as C: {error}")
        if not runners:
            return
        timings = interleaved(runners, repeats=30, warmup=3, min_time_ms=1.0)
    for column in columns:
        if column.name in runners:
            m = timings.latency(column.name)
            column.add(Measurement("latency in C", m.value, m.unit, "measured", spread=m.spread, note=m.note))


def _add_instructions(column: Column, results: Sequence[Replay]) -> None:
    emulated = [r for r in results if r.target == "emulated Cortex-M4"]
    for r in emulated:
        if r.instructions is None:
            column.notes.append(f"no instructions: {r.reason}")
        else:
            note = "executed for one sample on an emulated Cortex-M4; no cycles"
            column.add(Measurement("instructions", r.instructions, "", "measured", note=note))
