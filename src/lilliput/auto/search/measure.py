"""A candidate in numbers: bytes, planned memory, the score on validation, and the latency if it has a limit."""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lilliput.auto.search.budget import Measured
from lilliput.auto.search.pace import JUDGED
from lilliput.auto.search.setup import Setup
from lilliput.core.artifact import Artifact
from lilliput.core.guard import Evaluation, evaluate
from lilliput.export import onnx as onnx_export
from lilliput.export.c.plan import planned
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.graph.trace import graph_of
from lilliput.measure.latency import interleaved, session_runner, single_thread
from lilliput.measure.runtime import session as open_session
from lilliput.report.compare import onnx_target, samples_of

SUBSET = 1000
"""Samples of validation, spread over it, that judge before all of them do."""
REPEATS = 15


class Judge:
    """Measures artifacts of one search. The test role is never read."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        data = setup.task.data("validation")
        self.index = torch.linspace(0, len(data) - 1, SUBSET).long() if len(data) > 2 * SUBSET else None

    @property
    def has_subset(self) -> bool:
        return self.index is not None

    def measure(self, artifact: Artifact, *, subset: bool = False, timed: bool = True) -> Measured:
        """`subset`: on a part of validation, which also is enough for what is too large."""
        setup = self.setup
        graph = graph_of(artifact)
        ram, flash, _ = (m.value for m in planned(artifact, graph, setup.target))
        sizes = Measured(bytes=float(len(stored.dumps(artifact))), flash=flash, ram=ram, score=0.0, drop=0.0)
        subset = subset or any(name != "max_drop" for name in setup.budget.missed(sizes))
        score = setup.task.score.value(self._evaluation(artifact, subset=subset).rows)
        before = setup.task.score.value(self._reference(subset=subset).rows)
        times = self._times(artifact) if timed and setup.budget.times else (None, None)
        drop = before - score if setup.task.score.higher_is_better else score - before
        return replace(sizes, score=score, drop=drop, ratio=times[0], milliseconds=times[1])

    def least_drop(self, artifact: Artifact) -> float:
        """On the subset: what is lost at least, by the 95% interval of the paired difference."""
        score = self.setup.task.score
        ours, theirs = self._evaluation(artifact, subset=True), self._reference(subset=True)
        _, (low, high) = score.difference(ours.rows, theirs.rows)
        return -high if score.higher_is_better else low

    def _evaluation(self, artifact: Artifact, *, subset: bool) -> Evaluation:
        setup, evaluator = self.setup, self.setup.evaluator
        started, data = time.perf_counter(), setup.task.data("validation")
        model = runnable(artifact)
        if not subset or self.index is None:
            found = evaluator(model, "validation")
        else:
            evaluator.count("validation", 1)
            data = data.subset(self.index)
            outputs = evaluator.reference("validation").outputs
            original = None if outputs is None else outputs[self.index]
            found = evaluate(
                model, setup.task, data, "validation", original, setup.batch_size, evaluator.device, setup.progress
            )
        setup.pace.note("", JUDGED, (time.perf_counter() - started) / len(data))
        return found

    def _reference(self, *, subset: bool) -> Evaluation:
        found = self.setup.evaluator.reference("validation")
        if not subset or self.index is None:
            return found
        return Evaluation(role=found.role, rows=found.rows[self.index], ok=found.ok[self.index])

    def _times(self, artifact: Artifact) -> tuple[float, float]:
        """ONNX Runtime, one thread, batch 1: (ratio to float, milliseconds)."""
        setup = self.setup
        x = samples_of(setup.task, "validation", 1).numpy()
        with TemporaryDirectory() as folder, single_thread():
            runners = {}
            for name, net in (("float", setup.original), ("ours", artifact)):
                path = Path(folder) / f"{name}.onnx"
                onnx_export.export(net, path, target=onnx_target(setup.target))
                session = open_session(str(path), threads=1)
                runners[name] = session_runner(session, {session.get_inputs()[0].name: x}, threads=1)
            timings = interleaved(runners, repeats=REPEATS, warmup=3, min_time_ms=1.0)
        return timings.ratio("ours", "float").value, timings.latency("ours").value
