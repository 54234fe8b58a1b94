"""Does ONNX Runtime compute from the file what the artifact computes? Asked with real samples, never assumed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.errors import VerificationError
from lilliput.export.onnx import graph_of
from lilliput.export.onnx_build import Builder
from lilliput.graph.integer import IntegerNet, Quantized, fusions, runnable
from lilliput.graph.trace import Graph, Node
from lilliput.measure.runtime import predict, session

BATCH = 256
LEAST_EQUAL = 0.999
LARGEST_DRIFT = 0.05


@dataclass(frozen=True, kw_only=True)
class Report:
    """What two runs on the same samples differ by. `spread` is the standard deviation of all outputs."""

    samples: int
    max_difference: float
    rms_difference: float
    spread: float
    equal_argmax: float | None  # share of samples with the same largest output; None if outputs are not classes

    @property
    def drift(self) -> float:
        """Root mean square difference by spread."""
        return self.rms_difference / self.spread if self.spread else float(self.rms_difference > 0)


def check_with_runtime(
    model: str | Path | Any, artifact: Artifact, samples: Tensor, *, classes: bool | None = None,
    float_tolerance: float = 1e-4, graph: Graph | None = None,
) -> Report:  # fmt: skip
    """Run the file (a path or an `onnx.ModelProto`) and the artifact on `samples`; `VerificationError` if they disagree.

    Float networks must agree within `float_tolerance` of the range of the outputs. Integer networks may round ties
    another way, so their root mean square difference must stay below 5% of the spread of the outputs, and outputs that
    are `classes` (guessed from their shape if None) must have the same argmax for 99.9% of the samples, or all but one.
    """
    graph = graph or graph_of(artifact)
    run = session(_source(model))
    theirs, ours = _both(run, runnable(artifact, graph), samples)
    difference = np.abs(theirs.astype(np.float64) - ours)
    if classes is None:
        classes = ours.ndim == 2 and ours.shape[1] > 1
    report = Report(
        samples=len(samples),
        max_difference=float(difference.max()),
        rms_difference=float(np.sqrt((difference**2).mean())),
        spread=float(ours.astype(np.float64).std()),
        equal_argmax=float((theirs.argmax(1) == ours.argmax(1)).mean()) if classes else None,
    )
    _judge(report, float_tolerance * float(np.ptp(ours)), integer=bool(artifact.activations))
    return report


def check_layers(model: str | Path | Any, artifact: Artifact, samples: Tensor, *, graph: Graph | None = None) -> dict[str, int]:
    """For each value on a grid, by how many units ONNX Runtime's integers differ from ours, at most.

    Each operation is computed again from ONNX Runtime's own inputs, so that differences do not add up; with the
    runtime's fusions and without. More than one unit is a `VerificationError`: one is a tie rounded to even, or the
    last bit of a float32 multiplication.
    """
    graph = graph or graph_of(artifact)
    builder = Builder(artifact, graph, unsigned=True)
    builder.model("batch")
    fused = fusions(graph)
    names = {node: value for node, (value, _) in builder.integers.items() if node not in fused}
    proto = _with_outputs(_load(model), list(dict.fromkeys(names.values())))
    worst: dict[str, int] = {}
    for optimize in (True, False):
        run = session(proto.SerializeToString(), optimize=optimize)
        outputs = [o.name for o in run.get_outputs()]
        for batch in _batches(samples, run):
            found = dict(zip(outputs, run.run(None, {run.get_inputs()[0].name: batch.numpy()}), strict=True))
            theirs = {node: found[name] for node, name in names.items()}
            for node, units in _differences(IntegerNet(artifact, graph), batch, theirs):
                worst[node] = max(worst.get(node, 0), units)
    wrong = {node: units for node, units in worst.items() if units > 1}
    if wrong:
        node = next(iter(wrong))
        raise VerificationError(f"check of {node!r} in ONNX Runtime", f"its integers differ by {wrong[node]} units from ours",
                                "report this model: file and artifact should agree")  # fmt: skip
    return worst


@torch.no_grad()
def _differences(net: IntegerNet, batch: Tensor, theirs: dict[str, np.ndarray]) -> Iterator[tuple[str, int]]:
    values: dict[str, Any] = {}
    for node in net.graph.nodes:
        value = _compute(net, node, values, batch)
        if node.name in theirs and isinstance(value, Quantized):
            codes = theirs[node.name]
            moved = {"uint8": 128, "int8": 0}.get(codes.dtype.name, 0) - (0 if value.grid.signed else 128)
            q = torch.from_numpy(codes.astype(np.float32)) - (moved if codes.dtype.itemsize == 1 else 0)
            yield node.name, int((q - value.q).abs().max()) if q.numel() else 0
            value = Quantized(q, value.grid)
        values[node.name] = value


def _compute(net: IntegerNet, node: Node, values: dict[str, Any], batch: Tensor) -> Any:
    if node.op == "input":
        return net._enter(node, batch)  # noqa: SLF001
    return net._steps[node.name](values)  # noqa: SLF001


def _judge(report: Report, tolerance: float, *, integer: bool) -> None:
    asked, do = "check with ONNX Runtime", "run check_layers to find the operation, and report this model"
    if not integer and not report.max_difference <= tolerance:
        raise VerificationError(asked, f"outputs differ by {report.max_difference:.3g}, {tolerance:.3g} is allowed", do)
    if integer and not report.drift <= LARGEST_DRIFT:
        raise VerificationError(asked, f"outputs differ by {100 * report.drift:.3g}% of their spread (root mean square)", do)
    if report.equal_argmax is not None:
        flips = round((1 - report.equal_argmax) * report.samples)
        if flips > max(1, int((1 - LEAST_EQUAL) * report.samples)):
            raise VerificationError(asked, f"{flips} of {report.samples} samples have another largest output", do)


def _both(run: Any, net: torch.nn.Module, samples: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """All outputs of both, [n, ...]; several outputs are flattened and set side by side."""
    theirs, ours = [], []
    with torch.no_grad():
        for batch in _batches(samples, run):
            theirs.append(_joined(predict(run, batch.numpy())))
            ours.append(_joined(net(batch)))
    return np.concatenate(theirs), np.concatenate(ours)


def _joined(outputs: Any) -> np.ndarray:
    if not isinstance(outputs, (tuple, list)):
        return np.asarray(outputs)
    return np.concatenate([np.asarray(o).reshape(len(o), -1, 1) for o in outputs], axis=1)


def _batches(samples: Tensor, run: Any) -> Iterator[Tensor]:
    size = run.get_inputs()[0].shape[0]
    return iter(samples.float().split(size if isinstance(size, int) else BATCH))


def _source(model: Any) -> str | Path | bytes:
    return model if isinstance(model, (str, Path, bytes)) else model.SerializeToString()


def _load(model: Any) -> Any:
    import onnx

    if isinstance(model, (str, Path)):
        return onnx.load(model)
    return onnx.load_from_string(_source(model))


def _with_outputs(proto: Any, names: list[str]) -> Any:
    from onnx import helper

    made = {name for node in proto.graph.node for name in node.output}
    missing = [name for name in names if name not in made]
    if missing:
        raise VerificationError("check of an ONNX file", "it was not made from this artifact", "export the artifact again")
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return proto
