"""Sensitivity: how far the outputs move when a part of the network is quantized, pruned, narrowed or clustered.

Label-free: divergence of the outputs on calibration samples from those of the network as it is (KL for classes, mean
squared error otherwise), each row alone, everything before it computed once (Cai et al., 2020, "ZeroQ", section 3.2).
Rows are layers (bits, zeros, shared values), coupled groups (channels), and the layers that such a group couples. Then
a few scores on validation say how much the task bears: for each kind of change the largest threshold at which every row
takes its strongest level below it and the guard still accepts the whole network. With `max_bytes` one choice for each
layer is allocated, too.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from lilliput.auto.analysis.allocate import allocate
from lilliput.auto.analysis.confirm import Confirmation
from lilliput.auto.analysis.forecast import Plan, forecast
from lilliput.auto.analysis.levels import LEVELS, SAMPLES, checked_kinds
from lilliput.auto.analysis.measure import Probes
from lilliput.auto.analysis.result import Analysis
from lilliput.auto.analysis.subjects import subjects_of
from lilliput.auto.compress import AnyTask, as_task, threads_for
from lilliput.core.artifact import Artifact
from lilliput.core.edits import fingerprint
from lilliput.core.errors import UsageError
from lilliput.core.guard import Guard, MaxDrop, MinAgreement
from lilliput.core.method import Context
from lilliput.core.progress import SILENT, Progress
from lilliput.core.target import parse_bytes
from lilliput.core.task import Task
from lilliput.pipeline.folder import RunFolder
from lilliput.pipeline.run import threads
from lilliput.training.distillation import CLASSES

DROP = "1%"


def plan(
    model: nn.Module,
    task: AnyTask,
    *,
    kinds: Iterable[str] = tuple(LEVELS),
    samples: int = SAMPLES,
    max_bytes: str | int | None = None,
    batch_size: int = 256,
) -> Plan:
    """What `analyse` with these arguments does, and how long it takes: from one of each kind of work, timed."""
    started = time.perf_counter()
    data, names = as_task(task), checked_kinds(kinds, samples)
    budget = _bytes(max_bytes, names)
    with threads(threads_for(model)):
        net = Artifact.of(model, data.spec)
        context = Context.of(data, model, batch_size=batch_size)
        return forecast(subjects_of(net, names), context, names, samples, max_bytes=budget, started=started)


def analyse(
    model: nn.Module,
    task: AnyTask,
    *,
    kinds: Iterable[str] = tuple(LEVELS),
    samples: int = SAMPLES,
    max_drop: str | float | None = None,
    agreement: str | float | None = None,
    max_bytes: str | int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
    batch_size: int = 256,
) -> Analysis:
    """Curves for each of `kinds` (bits, sparsity, channels, clusters), and what the task bears of each.

    `samples` of the calibration role measure divergence. The guard of the proposals is `max_drop` of the score on
    validation ("1%" if nothing is said), or without labels `agreement` ("99%") with the answers of the network as it
    is. `max_bytes` of coded weights: the choice for each layer that moves the outputs least, in `Analysis.allocation`.
    The test role is not read, the model is left as it was.
    """
    names, data = checked_kinds(kinds, samples), as_task(task)
    budget = _bytes(max_bytes, names)
    guard: Guard = MaxDrop(max_drop=DROP if max_drop is None else max_drop)
    if agreement is not None:
        if max_drop is not None:
            raise UsageError("analyse", "max_drop and agreement", "give one of them: each is a guard")
        guard = MinAgreement(agreement=agreement, augmented=False)
        guard.share()
    context = Context.of(data, model, seed=seed, progress=progress, batch_size=batch_size)
    with threads(threads_for(model)):
        return _analysed(model, data, context, names, samples, guard, budget)


def _analysed(
    model: nn.Module,
    data: Task,
    context: Context,
    names: tuple[str, ...],
    samples: int,
    guard: Guard,
    budget: int | None,
) -> Analysis:
    started = time.perf_counter()
    net = Artifact.of(model, data.spec)
    subjects = subjects_of(net, names)
    predicted = forecast(subjects, context, names, samples, max_bytes=budget, started=started)
    probes = Probes(subjects, context, names, samples)
    probes.measure()
    confirmation = Confirmation(probes, guard)
    tables = [*probes.rows.values(), *probes.coupled.values()]
    return Analysis(
        probes=tuple(probe for table in tables for row in table.values() for probe in row),
        proposals=tuple(confirmation.proposal(kind) for kind in names if probes.rows[kind]),
        allocation=None if budget is None else allocate(probes, confirmation, budget),
        left=subjects.left,
        samples=min(samples, len(data.data("calibration"))),
        measure="KL divergence" if data.kind in CLASSES else "mean squared error",
        score_name=confirmation.score_name,
        reference=confirmation.reference(),
        macs=probes.macs,
        coded_bytes=confirmation.coded_bytes(net),
        guard=guard,
        predicted_seconds=predicted.seconds,
        seconds=time.perf_counter() - started,
    )


def run_of(folder: Path, model: nn.Module) -> RunFolder:
    """The folder of a run of this network: its page shows the analysis that is kept there as `analysis.json`."""
    run = RunFolder.begun(folder)
    about = run.read_json("run.json")
    if about.get("search", about).get("model") != fingerprint(model):
        raise UsageError(f"analyse --run {folder}", "a run of another network", "give the model of that run")
    return run


def check_writable(recipe: Path, kinds: Sequence[str], max_bytes: str | int | None) -> None:
    """Raises `UsageError` where no recipe will be written: to be known before the work."""
    if max_bytes is None and len(set(kinds)) > 1:
        raise UsageError(f"write {recipe}", "proposals of several kinds", "give one of them in kinds, or max_bytes")
    if not recipe.absolute().parent.is_dir():
        raise UsageError(f"write {recipe}", f"there is no folder {recipe.parent}", "make it first")


def _bytes(max_bytes: str | int | None, kinds: tuple[str, ...]) -> int | None:
    if max_bytes is None:
        return None
    if not set(kinds) - {"channels"}:
        raise UsageError("analyse max_bytes", "the kind channels alone", "add bits, sparsity or clusters")
    return parse_bytes(max_bytes)
