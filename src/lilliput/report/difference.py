"""What compression changed: how far each layer's output moved, and which samples it flipped."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.device import device_of
from lilliput.core.guard import FullForward
from lilliput.core.task import Role, Task
from lilliput.graph.fold import values_after
from lilliput.graph.integer import IntegerNet, Value, fusions, runnable
from lilliput.graph.trace import Node, graph_of, run
from lilliput.report.compare import samples_of
from lilliput.report.text import render

COMPARED = ("conv", "linear", "add", "sub", "mul", "concat", "avg_pool", "mean")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`sqnr` in dB by layer, on the same inputs from the start (errors add up); `lost` and `gained` sample numbers."""

    sqnr: dict[str, float]
    encodings: dict[str, str]
    lost: list[int]
    gained: list[int]
    samples: int
    role: str
    verdict: str

    def __str__(self) -> str:
        rows = [["layer", "SQNR dB", "stored as"]]
        rows += [
            [name, "exact" if v == math.inf else f"{v:.1f}", self.encodings.get(name, "")]
            for name, v in self.sqnr.items()
        ]
        shown = ", ".join(str(i) for i in self.lost[:20]) + (", ..." if len(self.lost) > 20 else "")
        return "\n".join(
            [
                render(rows),
                f"{self.verdict} ({self.role}, {self.samples} samples)",
                f"lost: {len(self.lost)} samples{f' ({shown})' if shown else ''}; gained: {len(self.gained)}",
            ]
        )


def difference(
    artifact: Artifact, original: nn.Module, task: Task, *, role: Role = "validation", samples: int = 256
) -> Difference:
    """Run both on up to `samples` inputs layer by layer, and on the whole role for the flips."""
    x = samples_of(task, role, samples)
    sqnr = layer_sqnr(artifact, Artifact.of(original, artifact.input), x)
    evaluator = FullForward(task, original)
    before, now = evaluator.reference(role), evaluator(runnable(artifact), role)
    score = task.score
    verdict = f"{score.name} {score.format(score.value(before.rows))} -> {score.format(score.value(now.rows))}"
    stored = {
        name.removesuffix(".weight"): e.describe() for name, e in artifact.encodings.items() if name.endswith("weight")
    }
    return Difference(
        sqnr=sqnr,
        encodings=stored,
        lost=torch.nonzero(before.ok & ~now.ok).reshape(-1).tolist(),
        verdict=verdict,
        gained=torch.nonzero(~before.ok & now.ok).reshape(-1).tolist(),
        samples=len(before.ok),
        role=role,
    )


def layer_sqnr(artifact: Artifact, original: Artifact, x: Tensor) -> dict[str, float]:
    """dB by operation: how far its output on the inputs `x` is from the original's; infinite where it is the same.

    What a BatchNorm that went forward has left unscaled is not compared.
    """

    def home(module: nn.Module) -> torch.device:
        return device_of(module) or torch.device("cpu")

    graph = graph_of(original)
    reference: dict[str, Tensor] = {}

    def keep(node: Node, value: object) -> object:
        if isinstance(value, Tensor):
            reference[node.name] = value.double().cpu()
        return value

    with torch.no_grad():
        run(graph, original.module.state_dict(), x.to(home(original.module)), visit=keep)
    after = values_after(graph, artifact.edits)
    sqnr: dict[str, float] = {}

    net = IntegerNet(artifact)
    fused = fusions(net.graph) if artifact.activations else {}
    layer_of = {relu: name for name, relu in fused.items()}  # compared after the relu: one rounding for both

    def compare(node: Node, value: Value) -> None:
        layer = layer_of.get(node.name, node.name)
        wanted = reference.get(node.name if node.name in layer_of else after.get(node.name, node.name))
        if node.name not in fused and net.graph[layer].op in COMPARED and wanted is not None:
            found = (value if isinstance(value, Tensor) else value.decode()).double().cpu()
            if found.shape == wanted.shape:
                sqnr[layer] = _decibels(wanted, found)

    net.values((x.to(home(net)),), compare)
    return sqnr


def _decibels(wanted: Tensor, found: Tensor) -> float:
    """10 log10 of signal over noise power; infinite when equal."""
    noise = float((found - wanted).square().sum())
    signal = float(wanted.square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
