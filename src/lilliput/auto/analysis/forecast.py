"""What an analysis will do and how long it takes, from one probe of each kind, timed on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lilliput.auto.analysis.levels import CONFIRMED, LEVELS, OF_WEIGHTS, changed
from lilliput.auto.analysis.subjects import Subjects
from lilliput.auto.analysis.text import minutes
from lilliput.core.guard import evaluate
from lilliput.core.method import Context
from lilliput.core.streams import size_bits
from lilliput.graph.trace import evaluate as run_node
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.pruning.channel_scores import Subject, costs
from lilliput.training.distillation import distillation_loss

FEW = 32
"""Samples that time the criterion of channels."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an analysis will do: (stage, how many of what, predicted seconds)."""

    stages: tuple[tuple[str, str, float], ...]

    @property
    def seconds(self) -> float:
        return sum(seconds for _, _, seconds in self.stages)

    def __str__(self) -> str:
        lines = [f"{name:<44}{work:>24} {minutes(s):>10}" for name, work, s in self.stages]
        return "\n".join([*lines, f"{'predicted':<44}{'':>24} {minutes(self.seconds):>10}"])


def forecast(
    subjects: Subjects, context: Context, kinds: Sequence[str], samples: int, *, max_bytes: int | None, started: float
) -> Plan:
    """`started`: when the work began whose last part is this; that it takes time too is part of the plan."""
    clock = _Clock(subjects, context, samples)
    stages: list[tuple[str, str, float]] = []
    of_weights = [kind for kind in kinds if kind in OF_WEIGHTS]
    n, coupled = len(subjects.weights), len(subjects.coupled)
    changes = {kind: clock.changing(kind) * len(LEVELS[kind]) for kind in of_weights}
    if of_weights:
        levels = sum(len(LEVELS[kind]) for kind in of_weights)
        stages.append(("change and code weights", f"{n * levels} times", sum(changes.values())))
        rests = [clock.rest({subjects.weights[path]}) for path in subjects.weights]
        rests += [clock.rest({subjects.weights[path] for path in paths}) for paths in subjects.coupled.values()]
        label = f"{n} layers, {coupled} sets of coupled ones" if coupled else f"{n} layers"
        stages.append((label, f"{(n + coupled) * levels} probes", levels * sum(rests)))
    if "channels" in kinds:
        groups = list(subjects.groups.values())
        levels = len(LEVELS["channels"])
        rests = [clock.rest({name for name, _ in group.read}) for group in groups]
        stages.append(("order of channels", f"{clock.count} samples", clock.ordering()))
        stages.append((f"{len(groups)} groups of channels", f"{levels * len(groups)} probes", levels * sum(rests)))
    stages.append(("network as it is", f"{clock.count} samples", 3 * clock.forward))
    score, scores = clock.scoring(), 1 + CONFIRMED * len(kinds) + (max_bytes is not None)
    stages.append(("scores on validation, at most", f"{scores} scores", scores * score))
    if max_bytes is not None and {"bits", "sparsity"} <= set(kinds):
        pairs = len(LEVELS["bits"]) * len(LEVELS["sparsity"])
        stages.append(
            ("code zeros with bits, at most", f"{n * pairs} times", changes["bits"] * len(LEVELS["sparsity"]))
        )
    stages.insert(0, ("prepare, and time one of each", "", time.perf_counter() - started))
    return Plan(stages=tuple(stages))


class _Clock:
    """Times one of each kind of work."""

    def __init__(self, subjects: Subjects, context: Context, samples: int) -> None:
        self.subjects, self.context = subjects, context
        data = context.task.data("calibration")
        self.count = min(samples, len(data))
        inputs, _ = data.batch(torch.arange(min(self.count, context.batch_size)))
        self.times = self._nodes(inputs, self.count / max(len(inputs), 1))
        self.forward = sum(seconds for _, seconds in self.times)

    def _nodes(self, inputs: torch.Tensor, times: float) -> list[tuple[set[str], float]]:
        """For each operation its parameters, and seconds for all samples; of two runs the faster. Last: divergence."""
        graph, module = self.subjects.graph, self.subjects.net.module
        state = {name: t.detach() for name, t in module.state_dict(keep_vars=True).items()}
        runs: list[list[float]] = []
        outputs: list[Any] = []
        with torch.no_grad():
            for _ in range(2):
                values: dict[str, Any] = {graph.inputs[0]: inputs}
                taken: list[float] = []
                for node in graph.nodes:
                    started = time.perf_counter()
                    if node.name not in values:
                        values[node.name] = run_node(node, values, state)
                    taken.append(time.perf_counter() - started)
                runs.append(taken)
            outputs = [v for name in graph.outputs if isinstance(v := values[name], torch.Tensor)]
            kind = self.context.task.kind
            divergence = _seconds(lambda: [distillation_loss(v, v, kind=kind, temperature=1.0) for v in outputs])
        names = [set(node.state.values()) for node in graph.nodes]
        best = [min(pair) * times for pair in zip(*runs, strict=True)]
        return [*zip(names, best, strict=True), (set(), divergence * times)]

    def rest(self, weights: set[str]) -> float:
        """From the first operation that reads one of these on."""
        canonical = self.subjects.net.canonical
        parameters = dict(self.subjects.net.module.named_parameters(remove_duplicate=False))
        for i, (names, _) in enumerate(self.times):
            if any(canonical(name) in weights for name in names if name in parameters):
                return sum(seconds for _, seconds in self.times[i:])
        return 0.0

    def changing(self, kind: str) -> float:
        """Of all weights at one level: a line through the smallest and the largest."""
        net, weights = self.subjects.net, self.subjects.weights
        sizes = {path: net.encoding(weight).decode().numel() for path, weight in weights.items()}
        if not sizes:
            return 0.0
        level = LEVELS[kind][len(LEVELS[kind]) // 2]

        def change(path: str) -> None:
            size_bits(changed(net.encoding(weights[path]), self.subjects.axis(path), kind, level, self.context))

        small, large = (pick(sizes, key=lambda path: sizes[path]) for pick in (min, max))
        change(small)  # loads what is loaded once
        change(large)
        low, high = _seconds(lambda: change(small)), _seconds(lambda: change(large))
        slope = max(0.0, high - low) / max(1, sizes[large] - sizes[small])
        return sum(low + slope * (size - sizes[small]) for size in sizes.values())

    def ordering(self) -> float:
        subjects, few = self.subjects, min(FEW, self.count)
        groups = list(subjects.groups.values())
        if not groups:
            return 0.0
        subject = Subject(net=subjects.net, graph=subjects.graph, coupling=subjects.coupling, context=self.context)
        criterion, state = ChannelPruning().criterion, self.context.generator.get_state()

        def order(samples: int) -> None:
            costs(subject, groups, criterion, compensate=True, samples=samples)

        order(1)
        seconds = _seconds(lambda: order(few)) * self.count / few
        self.context.generator.set_state(state)
        return seconds

    def scoring(self) -> float:
        """The network once over the validation role."""
        task, context = self.context.task, self.context
        data = task.data("validation")
        part = data.subset(torch.arange(min(len(data), context.batch_size)))

        def score() -> None:
            evaluate(self.subjects.net.module, task, part, "validation", None, context.batch_size, context.device)

        return _seconds(score) * len(data) / len(part)


def _seconds(work: Callable[[], object]) -> float:
    """The faster of two: others may use the machine, too."""
    taken: list[float] = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)
