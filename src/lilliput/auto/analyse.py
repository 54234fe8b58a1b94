"""Sensitivity: how far the outputs move when one layer is quantized, pruned or clustered, at several strengths.

Label-free: divergence of the outputs on calibration samples from those of the network as it is (KL for classes, mean
squared error otherwise), each layer alone, everything before it computed once (Cai et al., 2020, "ZeroQ", section 3.2).
A layer's weakest point is where its curve leaves the others. Then a few scores on validation say how much divergence
the task bears: for each kind of change the largest threshold at which every layer takes its strongest level below it
and the guard still accepts the whole network.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lilliput.auto.compress import AnyTask, as_task, threads_for
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import UsageError
from lilliput.core.guard import MaxDrop
from lilliput.core.method import WEIGHTED, Context, layers
from lilliput.core.progress import SILENT, Progress
from lilliput.core.streams import size_bits
from lilliput.core.task import Task
from lilliput.graph.layers import output_axis
from lilliput.graph.trace import Graph, evaluate, graph_of
from lilliput.methods.clustering.weight_clustering import cluster
from lilliput.methods.quantization.post_training import Quantization
from lilliput.pipeline.run import threads
from lilliput.report.curves import draw_curves
from lilliput.training.distillation import distillation_loss
from lilliput.training.lockstep import LAYERS, Lockstep, Turn

LEVELS: dict[str, tuple[float, ...]] = {
    "bits": (8, 6, 5, 4, 3, 2),
    "sparsity": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    "clusters": (64, 32, 16, 8, 4, 2),
}
"""Of each kind of change the levels, from weak to strong."""
SAMPLES, CONFIRMED = 256, 5
TIMED = 64
"""Samples of the forward that predicts how long all takes."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One layer at one level. `divergence` of the outputs; `coded_bytes` of the weight; `effect`: did it change?"""

    layer: str
    kind: str
    level: float
    divergence: float
    coded_bytes: float
    effect: bool


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """For one kind of change each layer's level (None: as it is), and what the whole network then scores."""

    kind: str
    threshold: float
    levels: Mapping[str, float | None]
    score: float
    drop: float
    coded_bytes: float
    tried: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an analysis will do: (stage, forwards of the whole network for one sample, predicted seconds)."""

    stages: tuple[tuple[str, float, float], ...]
    seconds_per_sample: float

    @property
    def seconds(self) -> float:
        return sum(seconds for _, _, seconds in self.stages)

    def __str__(self) -> str:
        lines = [f"{name:<44}{forwards:>12,.0f} forwards {_minutes(s):>10}" for name, forwards, s in self.stages]
        return "\n".join([*lines, f"{'predicted':<44}{'':>21} {_minutes(self.seconds):>10}"])


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """`probes` of every layer, kind and level; `proposals` for each kind; `left` names layers that were not probed."""

    probes: tuple[Probe, ...]
    proposals: tuple[Proposal, ...]
    left: Mapping[str, str] = field(default_factory=dict[str, str])
    samples: int
    measure: str
    score_name: str
    reference: float
    predicted_seconds: float
    seconds: float

    def of(self, kind: str) -> dict[str, list[Probe]]:
        """The probes of each layer, from weak to strong."""
        found: dict[str, list[Probe]] = {}
        for probe in self.probes:
            if probe.kind == kind:
                found.setdefault(probe.layer, []).append(probe)
        return found

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    def draw(self, path: str | Path) -> None:
        """The curves as .png, .svg or .pdf: the most sensitive layers by name, the proposed threshold as a line."""
        curves = {
            p.kind: {name: [(x.level, x.divergence) for x in row] for name, row in self.of(p.kind).items()}
            for p in self.proposals
        }
        draw_curves(curves, Path(path), measure=self.measure, thresholds={p.kind: p.threshold for p in self.proposals})

    def __str__(self) -> str:
        lines = [f"{self.measure} of the outputs, {self.samples} samples, one layer changed at a time", ""]
        for proposal in self.proposals:
            rows = self.of(proposal.kind)
            levels = [p.level for p in next(iter(rows.values()))]
            wide = max([len("layer"), *(len(name) for name in rows)])
            header = f"{proposal.kind:<{wide}} " + "".join(f"{level:>10g}" for level in levels)
            lines.append(header + f"{'proposed':>10}")
            for name, row in rows.items():
                cells = "".join(f"{p.divergence:>10.2g}" if p.effect else f"{'no effect':>10}" for p in row)
                level = proposal.levels[name]
                lines.append(f"{name:<{wide}} {cells}{'-' if level is None else f'{level:g}':>10}")
            together = f"{self.score_name} {proposal.score:.2f} (drop {proposal.drop:.2f})"
            size = f"{proposal.coded_bytes:,.0f} coded bytes of weights"
            lines += [f"proposed together: {together}, {size}, {proposal.tried} scores", ""]
        lines += [f"not probed: {name}: {reason}" for name, reason in self.left.items()]
        lines.append(f"{_minutes(self.seconds)}, predicted {_minutes(self.predicted_seconds)}")
        return "\n".join(lines)


def plan(model: nn.Module, task: AnyTask, *, kinds: Iterable[str] = tuple(LEVELS), samples: int = SAMPLES) -> Plan:
    """What `analyse` with these arguments does, and how long it takes: from one forward of `TIMED` samples."""
    data = as_task(task)
    net = Artifact.of(model, data.spec)
    names = _checked(kinds, samples)
    graph = graph_of(net)
    few, _ = data.data("calibration").batch(torch.arange(min(TIMED, len(data.data("calibration")))))
    with threads(threads_for(model)):
        each = _seconds(graph, net.module, few) / len(few)
    count = min(samples, len(data.data("calibration")))
    shares = _rests(graph)
    weighted = [path for path, module in layers(net).items() if isinstance(module, WEIGHTED)]
    rest = sum(shares.get(path, 0.0) for path in weighted)
    probes = sum(len(LEVELS[kind]) for kind in names)
    validation = len(data.data("validation"))
    stages = [
        ("original on validation", float(validation)),
        (f"{len(weighted)} layers x {probes} levels x {count} samples", 2.0 * count + (1 + probes) * rest * count),
        *((f"{kind}: up to {CONFIRMED} scores on validation", float(CONFIRMED * validation)) for kind in names),
    ]
    first = ("change the weights", 0.0, _changing(net, Context.of(data, model), names))
    return Plan(stages=(first, *((n, f, f * each) for n, f in stages)), seconds_per_sample=each)


def _changing(net: Artifact, context: Context, kinds: Sequence[str]) -> float:
    """Seconds for all changes of weights: those of the largest layer at one level each, times what there is."""
    search = _Analysis(net, context, kinds, 1)
    if not search.weights:
        return 0.0
    sizes = {path: net.encoding(weight).decode().numel() for path, weight in search.weights.items()}
    largest = max(sizes, key=lambda path: sizes[path])
    seconds = 0.0
    for kind in kinds:
        search.changed(largest, kind, LEVELS[kind][0])  # loads what is loaded once
        started = time.perf_counter()
        size_bits(search.changed(largest, kind, LEVELS[kind][1]))
        taken = time.perf_counter() - started
        seconds += taken * len(LEVELS[kind]) * max(sum(sizes.values()) / sizes[largest], len(sizes) / 2)
    return seconds


def analyse(
    model: nn.Module,
    task: AnyTask,
    *,
    kinds: Iterable[str] = tuple(LEVELS),
    samples: int = SAMPLES,
    max_drop: str | float = "1%",
    seed: int = 0,
    progress: Progress = SILENT,
    batch_size: int = 256,
) -> Analysis:
    """Curves of every layer for each of `kinds` (bits, sparsity, clusters), and what the task bears of each.

    `samples` of the calibration role measure divergence. `max_drop` is the guard of the proposals, on validation; the
    test role is not read. The model is left as it was.
    """
    names, data = _checked(kinds, samples), as_task(task)
    with threads(threads_for(model)):
        return _analysed(model, data, names, samples, max_drop, seed, progress, batch_size)


def _analysed(
    model: nn.Module,
    data: Task,
    names: tuple[str, ...],
    samples: int,
    max_drop: str | float,
    seed: int,
    progress: Progress,
    batch_size: int,
) -> Analysis:
    started = time.perf_counter()
    predicted = plan(model, data, kinds=names, samples=samples)
    net = Artifact.of(model, data.spec)
    context = Context.of(data, model, seed=seed, progress=progress, batch_size=batch_size)
    search = _Analysis(net, context, names, samples)
    search.measure()
    reference = context.evaluator.reference("validation")
    proposals = tuple(search.proposal(kind, max_drop) for kind in names) if search.table else ()
    return Analysis(
        probes=tuple(probe for row in search.table.values() for probe in row),
        proposals=proposals,
        left=search.left,
        samples=min(samples, len(data.data("calibration"))),
        measure="KL divergence" if data.kind in ("classification", "segmentation") else "mean squared error",
        score_name=data.score.name,
        reference=data.score.value(reference.rows),
        predicted_seconds=predicted.seconds,
        seconds=time.perf_counter() - started,
    )


class _Analysis:
    def __init__(self, net: Artifact, context: Context, kinds: Sequence[str], samples: int) -> None:
        self.net, self.context, self.kinds, self.samples = net, context, kinds, samples
        self.table: dict[str, list[Probe]] = {}
        self.encodings: dict[tuple[str, str, float], Encoding] = {}
        self.weights: dict[str, str] = {}
        self.left: dict[str, str] = {}
        for path, module in layers(net).items():
            if not isinstance(module, WEIGHTED):
                continue
            weight = net.canonical(f"{path}.weight" if path else "weight")
            if weight in self.weights.values():
                self.left[path] = "it shares its weight with another layer"
            else:
                self.weights[path] = weight

    def measure(self) -> None:
        def visit(turn: Turn) -> bool:
            path = turn.node.module
            if path in self.weights and path not in self.table:
                self.table[path] = self._probes(turn, path)
                advance(1)
            return False

        with self.context.progress.task("probe layers", len(self.weights)) as advance:
            Lockstep(self.net, self.net.module, self.context, edited=False, samples=self.samples).run(visit)
        for path in [p for p in self.weights if p not in self.table]:
            self.left[path] = "it does not run"
            del self.weights[path]

    def _probes(self, turn: Turn, path: str) -> list[Probe]:
        name = turn.node.state["weight"]
        exact = list(turn.rest({}))
        before = self.net.encoding(self.weights[path]).decode()
        found: list[Probe] = []
        for kind in self.kinds:
            for level in LEVELS[kind]:
                encoding = self.changed(path, kind, level)
                weight = encoding.decode()
                self.encodings[path, kind, level] = encoding
                effect = not torch.equal(weight, before)
                found.append(
                    Probe(
                        layer=path,
                        kind=kind,
                        level=level,
                        divergence=self._divergence(turn, {name: weight}, exact) if effect else 0.0,
                        coded_bytes=size_bits(encoding) / 8,
                        effect=effect,
                    )
                )
        return found

    def changed(self, path: str, kind: str, level: float) -> Encoding:
        encoding = self.net.encoding(self.weights[path])
        if kind == "bits":
            axis = output_axis(self.net.module.get_submodule(path))
            method = Quantization(weight_bits=int(level), weight_range="mse", activation_bits=0)
            return method.encoded(encoding, axis, self.context)
        if kind == "clusters":
            return cluster(encoding, int(level), None)
        weight = encoding.decode().abs()
        gone = torch.argsort(weight.flatten(), stable=True)[: int(level * weight.numel())]
        mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[gone] = False
        return encoding.with_mask(mask.reshape(weight.shape))

    def _divergence(self, turn: Turn, state: Mapping[str, Tensor], exact: list[Any]) -> float:
        total = 0.0
        for outputs, wanted in zip(turn.rest(state), exact, strict=True):
            for a, b in zip(tree_leaves(outputs), tree_leaves(wanted), strict=True):
                if isinstance(a, Tensor):
                    total += float(distillation_loss(a, b, kind=self.context.task.kind, temperature=1.0))
        return total / len(exact)

    def proposal(self, kind: str, max_drop: str | float) -> Proposal:
        """The largest threshold of a layer's divergence that the guard bears, by bisection over those that occur."""
        occurring = sorted({p.divergence for row in self.table.values() for p in row if p.kind == kind})
        low, high, tried = -1, len(occurring), 0
        best = self._proposed(kind, -1.0, max_drop, 0)
        with self.context.progress.task(f"confirm {kind}", CONFIRMED) as advance:
            while high - low > 1 and tried < CONFIRMED:
                middle = (low + high) // 2
                tried += 1
                found = self._proposed(kind, occurring[middle], max_drop, tried)
                advance(1)
                if found is None:
                    high = middle
                else:
                    low, best = middle, found
        if best is None:
            raise UsageError(f"analyse {kind}", "the guard refuses the network as it is", "give a larger max_drop")
        return best

    def _proposed(self, kind: str, threshold: float, max_drop: str | float, tried: int) -> Proposal | None:
        net, context = self.net.copy(), self.context
        levels: dict[str, float | None] = {}
        for path, row in self.table.items():
            allowed = [p.level for p in row if p.kind == kind and p.effect and p.divergence <= threshold]
            levels[path] = allowed[-1] if allowed else None
            if allowed:
                net.encode_(self.weights[path], self.encodings[path, kind, allowed[-1]])
        reference = context.evaluator.reference("validation")
        score = context.task.score
        rows = reference.rows
        if any(level is not None for level in levels.values()):
            candidate = context.evaluator(net.module, "validation")
            if not MaxDrop(max_drop=max_drop).judge(context.task, candidate, reference).accepted:
                return None
            rows = candidate.rows
        drop = score.value(reference.rows) - score.value(rows)
        return Proposal(
            kind=kind,
            threshold=threshold,
            levels=levels,
            score=score.value(rows),
            drop=drop if score.higher_is_better else -drop,
            coded_bytes=sum(size_bits(net.encoding(w)) for w in self.weights.values()) / 8,
            tried=tried,
        )


def _checked(kinds: Iterable[str], samples: int) -> tuple[str, ...]:
    names = tuple(dict.fromkeys((kinds,) if isinstance(kinds, str) else kinds))
    unknown = [name for name in names if name not in LEVELS]
    if unknown or not names:
        raise UsageError("analyse", f"kinds {unknown or 'none'}", f"choose of {', '.join(LEVELS)}")
    if samples < 1:
        raise UsageError("analyse", f"{samples} samples", "give at least 1")
    return names


def _seconds(graph: Graph, module: nn.Module, inputs: Tensor) -> float:
    state = {name: t.detach() for name, t in module.state_dict().items()}
    best = float("inf")
    with torch.no_grad():
        for _ in range(2):
            started = time.perf_counter()
            values: dict[str, Any] = {graph.inputs[0]: inputs}
            for node in graph.nodes:
                if node.name not in values:
                    values[node.name] = evaluate(node, values, state)
            best = min(best, time.perf_counter() - started)
    return best


def _rests(graph: Graph) -> dict[str, float]:
    """For each layer the share of the network's work that comes from it on, by sizes of outputs and fan-in."""
    work = [float(torch.Size(n.shape[1:]).numel()) * (10.0 if n.op in LAYERS else 1.0) for n in graph.nodes]
    total = sum(work) or 1.0
    return {n.module: sum(work[i:]) / total for i, n in reversed(list(enumerate(graph.nodes))) if n.op in LAYERS}


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
