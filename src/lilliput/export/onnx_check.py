"""Does ONNX Runtime compute from the file what the artifact computes? Asked with real samples, never assumed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lilliput.core.artifact import Artifact
from lilliput.core.errors import UsageError, VerificationError
from lilliput.export.onnx_build import Builder
from lilliput.graph.integer import IntegerNet, Quantized, fusions, runnable
from lilliput.graph.trace import Graph, graph_of
from lilliput.measure.runtime import predict, session

BATCH = 256
LEAST_EQUAL = 0.999
LARGEST_DRIFT = 0.05


@dataclass(frozen=True, kw_only=True)
class Report:
    """What two runs on the same samples differ by.

    `spread` is the standard deviation of all outputs, or their magnitude if there is only one value.
    """

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
    model: str | Path | Any,
    artifact: Artifact,
    samples: Tensor,
    *,
    classes: bool | None = None,
    float_tolerance: float = 1e-4,
    graph: Graph | None = None,
) -> Report:
    """Run the file (a path or an `onnx.ModelProto`) and the artifact on `samples`; raises `VerificationError`.

    Float networks must agree within `float_tolerance` of the largest output. Integer networks may round ties another
    way, so their root mean square difference must stay below 5% of the spread of the outputs. If outputs are `classes`,
    [n, classes], 99.9% of the samples, or all but one, must have the same argmax; where that is not known (None), a
    sample whose two candidates are closer than those 5% does not count.
    """
    if len(samples) == 0:
        raise UsageError("check with ONNX Runtime", "no samples", "give at least one")
    run = session(model if isinstance(model, (str, Path, bytes)) else model.SerializeToString())
    theirs, ours = _both(run, runnable(artifact, graph), samples)
    difference = np.abs(theirs.astype(np.float64) - ours)
    scores = classes is not False and ours.ndim == 2 and ours.shape[1] > 1
    leads = _leads(theirs, ours) if scores else np.zeros(0)
    report = Report(
        samples=len(samples),
        max_difference=float(difference.max()),
        rms_difference=float(np.sqrt((difference**2).mean())),
        spread=float(ours.astype(np.float64).std() or np.abs(ours).max()),
        equal_argmax=1 - len(leads) / len(ours) if scores else None,
    )
    allowed = float_tolerance * float(np.abs(ours).max())
    fault = _fault(report, leads, classes) if artifact.activations else _float_fault(report, allowed)
    if fault:
        raise VerificationError(
            "check with ONNX Runtime", fault, "find the layer with check_layers and report this model"
        )
    return report


def check_layers(
    model: str | Path | Any, artifact: Artifact, samples: Tensor, *, graph: Graph | None = None
) -> dict[str, int]:
    """For each value on a grid, by how many units ONNX Runtime's integers differ from ours, at most.

    Each operation is computed again from ONNX Runtime's own inputs, so that differences do not add up; with the
    runtime's fusions and without. More than one unit is a `VerificationError`: one is a tie rounded to even, or the
    last bit of a float32 multiplication.
    """
    graph = graph or graph_of(artifact)
    builder, fused, net = Builder(artifact, graph, unsigned=True), fusions(graph), IntegerNet(artifact, graph)
    builder.model("batch")
    names = {node: value for node, (value, _) in builder.integers.items() if node not in fused}
    proto = _with_outputs(_load(model), list(dict.fromkeys(names.values())))
    worst: dict[str, int] = {}
    for optimize in (True, False):
        run = session(proto.SerializeToString(), optimize=optimize)
        outputs = [o.name for o in run.get_outputs()]
        for batch in _batches(samples, run):
            found = dict(zip(outputs, run.run(None, {run.get_inputs()[0].name: batch.numpy()}), strict=True))
            for node, units in _differences(net, batch, {node: found[name] for node, name in names.items()}):
                worst[node] = max(worst.get(node, 0), units)
    wrong = next((node for node, units in worst.items() if units > 1), None)
    if wrong is not None:
        found = f"its integers differ from ours by {worst[wrong]} units"
        raise VerificationError(
            f"check of {wrong!r} in ONNX Runtime", found, "export the artifact again, or report this model"
        )
    return worst


@torch.no_grad()
def _differences(net: IntegerNet, batch: Tensor, theirs: dict[str, np.ndarray]) -> Iterator[tuple[str, int]]:
    values: dict[str, Any] = {}
    for node in net.graph.nodes:
        value = net.compute(node, values, batch)
        if node.name in theirs and isinstance(value, Quantized):
            codes = theirs[node.name]
            held_signed, is_8_bits = codes.dtype.kind == "i", codes.dtype.itemsize == 1
            moved = 128 * (int(value.grid.signed) - int(held_signed)) if is_8_bits else 0
            q = torch.from_numpy(codes.astype(np.float32)).to(value.q.device) - moved
            yield node.name, int((q - value.q).abs().max())
            value = Quantized(q, value.grid)
        values[node.name] = value


def _float_fault(report: Report, allowed: float) -> str:
    within = report.max_difference <= allowed
    return "" if within else f"outputs differ by {report.max_difference:.3g}, {allowed:.3g} is allowed"


def _fault(report: Report, leads: np.ndarray, classes: bool | None) -> str:  # noqa: FBT001 - as its caller got it
    if not report.drift <= LARGEST_DRIFT:
        return f"outputs differ by {100 * report.drift:.3g}% of their spread (root mean square)"
    flips = int((leads >= (0 if classes else LARGEST_DRIFT * report.spread)).sum())
    allowed = max(1, int((1 - LEAST_EQUAL) * report.samples))
    return f"{flips} of {report.samples} samples have another largest output" if flips > allowed else ""


def _leads(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """For each sample with another argmax, by how much our largest output leads theirs."""
    rows, a, b = np.arange(len(ours)), ours.argmax(1), theirs.argmax(1)
    return (ours[rows, a] - ours[rows, b])[a != b]


def _both(run: Any, net: torch.nn.Module, samples: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """All outputs of both, [n, ...]; several outputs are flattened and set side by side."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    theirs: list[np.ndarray] = []
    ours: list[np.ndarray] = []
    with torch.no_grad():
        for batch in _batches(samples, run):
            found, answer = predict(run, batch.numpy()), tree_leaves(net(batch.to(device)))
            of_file = [found] if isinstance(found, np.ndarray) else list(found)
            of_net = [o.cpu().numpy() for o in answer if isinstance(o, Tensor)]
            if [o.shape for o in of_file] != [o.shape for o in of_net]:
                shapes = [" and ".join(str(o.shape) for o in outputs) for outputs in (of_file, of_net)]
                raise VerificationError(
                    "check with ONNX Runtime",
                    f"outputs of shape {shapes[0]}, the network gives {shapes[1]}",
                    "export the artifact again; outputs that do not depend on the input are not in a file",
                )
            theirs.append(_joined(of_file))
            ours.append(_joined(of_net))
    return np.concatenate(theirs), np.concatenate(ours)


def _joined(outputs: list[np.ndarray]) -> np.ndarray:
    return outputs[0] if len(outputs) == 1 else np.concatenate([o.reshape(len(o), -1, 1) for o in outputs], axis=1)


def _batches(samples: Tensor, run: Any) -> Iterator[Tensor]:
    size = run.get_inputs()[0].shape[0]
    return iter(samples.detach().cpu().float().split(size if isinstance(size, int) else BATCH))


def _load(model: str | Path | Any) -> Any:
    import onnx

    if isinstance(model, (str, Path)):
        return onnx.load(model)
    return onnx.load_from_string(model if isinstance(model, bytes) else model.SerializeToString())


def _with_outputs(proto: Any, names: list[str]) -> Any:
    from onnx import helper

    made = {name for node in proto.graph.node for name in node.output}
    if not made.issuperset(names):
        raise VerificationError(
            "check of an ONNX file", "it was not made from this artifact", "export the artifact again"
        )
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return proto
