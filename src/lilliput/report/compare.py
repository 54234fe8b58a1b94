"""The same measurements for several networks: score, size, memory, operations, latency, each with its origin."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.cost import CostTable, Measurement
from lilliput.core.errors import ArtifactError, LilliputError, VerificationError
from lilliput.core.files import is_disk_trouble
from lilliput.core.guard import Evaluation, FullForward
from lilliput.core.progress import SILENT, Progress
from lilliput.core.target import Target
from lilliput.core.task import Role, Task
from lilliput.export import onnx as onnx_export
from lilliput.export.c.plan import planned
from lilliput.export.onnx_check import Report, check_with_runtime
from lilliput.graph import stored
from lilliput.graph.integer import LAYERS, runnable
from lilliput.graph.operators import POINTWISE
from lilliput.graph.trace import Graph, graph_of
from lilliput.measure.latency import interleaved, session_runner, single_thread, torch_runner
from lilliput.measure.macs import count_macs
from lilliput.measure.peak import peak_tensor_bytes
from lilliput.measure.runtime import session as open_session

CHECKED_SAMPLES = 1000


@dataclass(kw_only=True)
class Column:
    """One network of a comparison. `notes` says what could not be measured, and why.

    `mismatch` says how an exported file computed something else; such a file is removed.
    """

    name: str
    artifact: Artifact
    measurements: dict[str, Measurement] = field(default_factory=dict[str, Measurement])
    evaluation: Evaluation | None = None
    onnx: Path | None = None
    notes: list[str] = field(default_factory=list[str])
    mismatch: str = ""
    tensors: dict[str, int] = field(default_factory=dict[str, int])
    """Bytes of each tensor in the file."""
    costs: CostTable | None = None
    """What each operation computes (`count_macs`)."""

    def add(self, measurement: Measurement) -> None:
        self.measurements[measurement.name] = measurement


def compare(
    artifacts: Mapping[str, Artifact],
    model: nn.Module,
    task: Task,
    *,
    target: Target,
    evaluator: FullForward,
    role: Role,
    folder: Path,
    progress: Progress = SILENT,
    latency: bool = True,
    left_out: Mapping[str, Callable[[str], str]] = MappingProxyType({}),
) -> list[Column]:
    """Write, read back, run and measure each network; the first is the reference of differences and ratios.

    `left_out` says, for a network by name and a layer, why its recipe left it alone ("" if it did not).

    Scores are those of the `.lil` file, read back into a fresh module. ONNX files are written to `folder`, run by ONNX
    Runtime on real samples and compared with the `.lil`. `model` is the user's, as it came.
    """
    columns: list[Column] = []
    for name, artifact in artifacts.items():
        progress.say(f"measure {name} ...")
        column = Column(name=name, artifact=artifact)
        data = stored.dumps(artifact)
        contents = container.loads(data)
        column.tensors = {tensor: sum(slots.values()) for tensor, slots in container.sizes(contents).items()}
        fresh = contents.replay(copy.deepcopy(model).cpu())
        fresh.input = artifact.input
        fresh.memo = artifact.memo
        graph = graph_of(fresh)
        plain = not artifact.edits and not artifact.activations
        unchanged = plain and _same_weights(fresh.module, evaluator.original)
        column.evaluation = evaluator.reference(role) if unchanged else evaluator(runnable(fresh, graph), role)
        add_score(column, task, columns[0].evaluation if columns else None)
        column.add(Measurement("file", len(data), "B", "counted", note=".lil"))
        add_counts(column, fresh, graph, target)
        samples = samples_of(task, role, CHECKED_SAMPLES)
        add_onnx(column, fresh, graph, target, folder / f"{name.replace(' ', '-')}.onnx", samples)
        _in_float(column, fresh, graph, left_out.get(name))
        columns.append(column)
    if latency:
        x = samples_of(task, role, 1)
        add_latencies(columns, {column.name: x for column in columns})
    return columns


def _same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Bit by bit: then the file computes what has been evaluated already."""
    one, other = a.state_dict(), b.state_dict()
    return list(one) == list(other) and all(torch.equal(t, other[n].to(t.device)) for n, t in one.items())


def add_score(column: Column, task: Task, reference: Evaluation | None) -> None:
    """The score of the column's evaluation, and what it is more or less than the reference's on the same samples."""
    if column.evaluation is None:
        return
    score, rows = task.score, column.evaluation.rows
    column.add(
        Measurement(
            score.name,
            score.value(rows),
            score.unit,
            "measured",
            spread=_ordered(score.interval(rows)),
            note=f"{column.evaluation.role}, {len(rows)} samples, 95% interval",
        )
    )
    if reference is not None:
        difference, interval = score.difference(rows, reference.rows)
        flips = int((column.evaluation.ok & ~reference.ok).sum()), int((~column.evaluation.ok & reference.ok).sum())
        column.add(
            Measurement(
                "difference",
                difference,
                "pt" if score.unit == "%" else score.unit,
                "measured",
                spread=_ordered(interval),
                note=f"paired; {flips[1]} samples lost, {flips[0]} gained",
            )
        )


def add_counts(column: Column, artifact: Artifact, graph: Graph, target: Target) -> None:
    """Planned and used memory, parameters, operations."""
    for measurement in planned(artifact, graph, target):
        column.add(measurement)
    column.costs = table = count_macs(graph, artifact)
    peak = peak_tensor_bytes(artifact.module, artifact.input.example(1))
    column.add(
        Measurement("peak memory", peak.value, "B", "measured", note="tensors alive in one float forward in torch")
    )
    for name, label in (
        ("parameters", "parameters"),
        ("kept_parameters", "stored parameters"),
        ("macs", "MACs"),
        ("effective_multiplies", "multiplies"),
        ("effective_additions", "additions"),
        ("function_parameters", "parameters of functions"),
        ("function_values", "values through functions"),
        ("learned_values", "values through learned functions"),
    ):
        if name in table.names():
            total = table.total(name)
            column.add(Measurement(label, total.value, "", "counted", note=total.note))
    read = {artifact.canonical(name) for n in graph.nodes if n.op in POINTWISE for name in n.state.values()}
    size = sum(count for name, count in column.tensors.items() if name in read)
    column.add(Measurement("file bytes of functions", size, "B", "counted"))


def add_onnx(column: Column, artifact: Artifact, graph: Graph, target: Target, path: Path, samples: Tensor) -> None:
    """Export the network to `path`, run it on the samples, compare; what fails is a note."""
    try:
        onnx_export.export(artifact, path, target=onnx_target(target), graph=graph)
        report = check_with_runtime(path, artifact, samples)
    except LilliputError as error:  # whatever it is: the other numbers are not lost for it
        if is_disk_trouble(error):  # but this is not the network's fault: it would be missing after a resume too
            raise
        if isinstance(error, (VerificationError, ArtifactError)):
            column.mismatch = str(error)
        column.notes.append(f"no ONNX file: {error}")
        path.unlink(missing_ok=True)
        return
    column.onnx = path
    size = path.stat().st_size
    column.add(
        Measurement(
            "ONNX file", size, "B", "counted", note=f"run and compared on {len(samples)} samples: {agreement(report)}"
        )
    )


def _in_float(column: Column, artifact: Artifact, graph: Graph, left_out: Callable[[str], str] | None) -> None:
    """Notes of the layers that run in float32; a layer whose weight has no grid because its recipe said so says so."""
    if column.onnx is None:
        return
    for name, reason in onnx_export.layers_in_float(artifact, graph).items():
        node = graph[name]
        plain = node.op in LAYERS and artifact.encoding(node.state["weight"]).grid is None
        column.notes.append(f"{name} stays in float: {(plain and left_out and left_out(node.module)) or reason}")


def add_latencies(columns: list[Column], inputs: Mapping[str, Tensor]) -> None:
    """One sample, `inputs` by the names of the columns: in ONNX Runtime if all have a file, else in torch, in turns."""
    with_file = [c for c in columns if c.onnx is not None]
    if len(with_file) == len(columns):
        runners: dict[str, Any] = {}
        for column in columns:
            session = open_session(str(column.onnx), threads=1)
            feed = {session.get_inputs()[0].name: inputs[column.name].numpy()}
            runners[column.name] = session_runner(session, feed, threads=1)
    else:
        floats = [c for c in columns if not c.artifact.activations]
        runners = {c.name: torch_runner(runnable(c.artifact), inputs[c.name]) for c in floats}
        for column in columns:
            if column.name not in runners:
                column.notes.append("no latency: there is no ONNX file to run")
    if not runners:
        return
    with single_thread():
        timings = interleaved(runners, repeats=30, warmup=3, min_time_ms=1.0)
    for column in columns:
        if column.name in runners:
            measured = timings.latency(column.name)
            column.add(
                Measurement(
                    "latency",
                    measured.value,
                    measured.unit,
                    "measured",
                    spread=measured.spread,
                    note=f"batch 1, {measured.note}",
                )
            )
            if column is not columns[0] and columns[0].name in runners:
                ratio = timings.ratio(column.name, columns[0].name)
                column.add(
                    Measurement(
                        "latency ratio",
                        ratio.value,
                        "x",
                        "measured",
                        spread=ratio.spread,
                        note=f"to {columns[0].name}, within each round",
                    )
                )


def agreement(report: Report) -> str:
    """How well an exported file agrees with the `.lil`."""
    classes = "" if report.equal_argmax is None else f"{100 * report.equal_argmax:.2f}% equal argmax, "
    return f"{classes}largest difference {report.max_difference:.2g} (outputs spread {report.spread:.2g})"


def samples_of(task: Task, role: Role, most: int) -> Tensor:
    """Up to `most` inputs of a role, spread over it."""
    data = task.data(role)
    index = torch.linspace(0, len(data) - 1, min(most, len(data))).long()
    return data.batch(index)[0]


def onnx_target(target: Target) -> str:
    """The ONNX preset for a target: its own, or the one with the same kind of activations."""
    return (
        target.name
        if target.name.startswith("onnx")
        else ("onnx-arm" if target.preset.activations_signed else "onnx-x86")
    )


def _ordered(interval: tuple[float, float]) -> tuple[float, float] | None:
    low, high = min(interval), max(interval)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
