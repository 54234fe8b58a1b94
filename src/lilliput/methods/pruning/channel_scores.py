"""What it costs to remove a channel, and in which order a group's channels go.

Norms of filters: Li et al. (2017), https://arxiv.org/abs/1608.08710. BatchNorm scales: Liu et al. (2017),
https://arxiv.org/abs/1708.06519. Gradient x activation: Molchanov et al. (2017), https://arxiv.org/abs/1611.06440; here
the gradient of random projections of the outputs, so that no labels are needed: the expected square of the change. The
error of a layer's outputs, with the other inputs making up for it: the optimal brain surgeon of Hassibi and Stork
(1993), https://doi.org/10.1109/ICNN.1993.298572, for blocks of weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.device import moved
from lilliput.core.guard import one_tensor
from lilliput.core.method import Context
from lilliput.graph.coupling import Coupling, Group
from lilliput.graph.removal import gated
from lilliput.graph.trace import Graph, Node
from lilliput.training.lockstep import Lockstep, Turn
from lilliput.training.moments import moments

CRITERIA = ("l1", "l2", "batchnorm", "taylor", "second_order")
BY_SAMPLES = ("taylor", "second_order")
DIRECTIONS = 4
"""In which the outputs of each sample are looked at; all of them where there are no more."""
Steps = list[tuple[int, float]]
"""(channel in its group, what it costs to remove it after those before)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The network whose channels are judged."""

    net: Artifact
    graph: Graph
    coupling: Coupling
    context: Context

    @property
    def state(self) -> dict[str, Tensor]:
        return {name: t.detach() for name, t in self.net.module.state_dict(keep_vars=True).items()}


def costs(
    subject: Subject, groups: Sequence[Group], criterion: str, *, compensate: bool, samples: int | None = None
) -> dict[Group, Steps]:
    """For each group, its channels in the order in which they should go; a group that cannot be judged has none.

    Costs of "taylor" and "second_order" are squared changes of the outputs, so they compare across groups; the others
    are in units of the group's mean, times how many layers make it. `samples` of the calibration role are looked at, or
    all.
    """
    if criterion == "taylor":
        squares = _sensitivity(subject, samples)[0]
        return {g: _ascending(_part(squares, subject.coupling, g)) for g in groups}
    if criterion == "second_order":
        return _second_order(subject, groups, compensate=compensate, samples=samples)
    found: dict[Group, Steps] = {}
    state = subject.state
    for group in groups:
        score = _scale(subject.graph, group, state) if criterion == "batchnorm" else _norm(group, state, criterion)
        found[group] = [] if score is None else _ascending(len(group.made) * score / score.mean().clamp(min=1e-30))
    return found


def _ascending(score: Tensor) -> Steps:
    order = torch.argsort(score, stable=True)
    return list(zip(order.tolist(), score[order].tolist(), strict=True))


def _part(values: Tensor, coupling: Coupling, group: Group) -> Tensor:
    first = coupling.first(group)
    return values[first : first + len(group.channels)]


def _norm(group: Group, state: Mapping[str, Tensor], criterion: str) -> Tensor:
    """[channels]: of the weights that make each channel."""
    total = torch.zeros(len(group.channels), dtype=torch.float64)
    for name, dim in sorted(group.made):
        weight = state[name].double().abs()
        powers = weight if criterion == "l1" else weight.square()
        by_index = powers.movedim(dim, 0).flatten(1).sum(1).cpu()
        total += torch.stack([by_index[list(c[name, dim])].sum() for c in group.channels])
    return total if criterion == "l1" else total.sqrt()


def _scale(graph: Graph, group: Group, state: Mapping[str, Tensor]) -> Tensor | None:
    """[channels]: the sum of |scale| over the group's BatchNorms; None without one."""
    norms = [n.state["weight"] for n in graph.nodes if n.op == "batch_norm" and "weight" in n.state]
    names = [name for name in dict.fromkeys(norms) if (name, 0) in group.places]
    if not names:
        return None
    sums = [torch.stack([state[name].double().abs()[list(c[name, 0])].sum() for c in group.channels]) for name in names]
    return torch.stack(sums).sum(0).cpu()


class _Gated(nn.Module):
    """Stands in for the network: each sample has its own gate for each channel."""

    def __init__(self, subject: Subject, channels: int) -> None:
        super().__init__()
        self.subject, self.channels, self.state = subject, channels, subject.state
        self.gates = torch.empty(0)
        self.seen: dict[str, Tensor] = {}

    def forward(self, *inputs: Tensor) -> Any:
        self.gates = torch.ones((len(inputs[0]), self.channels), device=inputs[0].device, requires_grad=True)
        return gated(self.subject.graph, self.subject.coupling, self.state, self.gates, *inputs, visit=self._visit)

    def _visit(self, node: Node, value: Any) -> Any:
        if node.name in self.subject.coupling.readers and value.requires_grad:
            self.seen[node.name] = value
        return value


def _sensitivity(subject: Subject, samples: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    """What removal does to the outputs, and what errors of layers do.

    (float64 [channels]: the mean squared change of the outputs when a channel goes, to first order; {layer that mixes
    channels: float64 [its outputs]: the same, of an error of 1 at every place of an output}).
    """
    context, net = subject.context, subject.net
    channels = sum(len(g.channels) for g in subject.coupling.groups)
    squares = torch.zeros(channels, dtype=torch.float64)
    of_outputs: dict[str, Tensor] = {}
    model = _Gated(subject, channels)
    data = context.task.data("calibration")
    count = len(data) if samples is None else min(samples, len(data))
    for x, y in data.batches(min(context.batch_size, 128), torch.arange(count)):
        with torch.enable_grad():
            outputs = one_tensor(context.task.forward(model, moved((x, y), net.device)), len(x))
        ways = _ways(outputs.detach(), context.generator)
        for k, way in enumerate(ways):
            values = list(model.seen.values())
            slopes: Any = torch.autograd.grad(
                outputs, [model.gates, *values], way, retain_graph=k + 1 < len(ways), allow_unused=True
            )
            if slopes[0] is not None:
                squares += _sums(slopes[0], 1) / count
            for (name, value), slope in zip(model.seen.items(), slopes[1:], strict=True):
                if slope is not None:
                    dim = 1 if subject.graph[name].op == "conv" else value.dim() - 1
                    of_outputs[name] = of_outputs.get(name, 0) + _sums(slope, dim) / count
        model.seen.clear()
    return squares, of_outputs


def _ways(outputs: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Directions, each like `outputs`: squares along them add up to the square of a change, in expectation.

    Those of all outputs of a sample, or random ones, drawn sample by sample: so batches of any size give the same.
    """
    size = outputs[0].numel()
    if size <= DIRECTIONS:
        eye = torch.eye(size, device=outputs.device)
        return [row.reshape(1, *outputs.shape[1:]).expand_as(outputs) for row in eye]
    each = [torch.randn((DIRECTIONS, *outputs.shape[1:]), generator=generator) for _ in outputs]
    return list((torch.stack(each, 1) / DIRECTIONS**0.5).to(outputs.device))


def _sums(slope: Tensor, dim: int) -> Tensor:
    """float64, on the CPU: the sum of squares for each index of a dimension."""
    return slope.detach().double().square().movedim(dim, 0).flatten(1).sum(1).cpu()


# --- the error of the outputs of layers ------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class _Layer:
    """A layer that mixes channels.

    `rows` [groups, outputs of one, inputs of one output] are its weights times the square root of what errors do there;
    `second` moments [groups, n, n] or [groups, n] of its inputs; `numbers` of their channels, `each` so many inputs.
    """

    rows: Tensor
    second: Tensor
    numbers: Tensor
    each: int

    def columns(self, first: int, count: int) -> Tensor:
        """int64 [channels, m]: the columns of each of the channels first..first+count-1, in every group."""
        width = self.rows.shape[2] // self.each
        where = [torch.nonzero(self.numbers[:width] == first + c).reshape(-1) for c in range(count)]
        spread = [(w[:, None] * self.each + torch.arange(self.each)).reshape(-1) for w in where]
        return torch.stack(spread)


def _second_order(
    subject: Subject, groups: Sequence[Group], *, compensate: bool, samples: int | None
) -> dict[Group, Steps]:
    _, weights = _sensitivity(subject, samples)
    layers: dict[str, _Layer] = {}

    def visit(turn: Turn) -> bool:
        node = turn.node
        if node.name in subject.coupling.readers:
            layers[node.name] = _layer(subject, turn, weights.get(node.name))
        return False

    Lockstep(subject.net, subject.net.module, subject.context, edited=False, samples=samples).run(visit)
    found: dict[Group, Steps] = {}
    for group in groups:
        first = subject.coupling.first(group)
        inside = range(first, first + len(group.channels))
        own = [layer for layer in layers.values() if bool(torch.isin(layer.numbers, torch.tensor(inside)).any())]
        found[group] = _eliminate(own, first, len(group.channels), compensate=compensate)
    return found


def _layer(subject: Subject, turn: Turn, weights: Tensor | None) -> _Layer:
    node = turn.node
    weight = turn.state[node.state["weight"]].double().cpu()
    groups = int(node.attributes.get("groups", 1))
    if node.attributes.get("transposed"):
        weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    found = moments(turn, subject.context.generator, centred=_absorbs(subject.graph, node))
    rows = weight.flatten(1)
    each = rows.shape[1] * groups // len(subject.coupling.readers[node.name])
    if found is None:  # a transposed convolution: the mean square of each channel
        squares = torch.stack([x.double().square().movedim(1, 0).flatten(1).mean(1) for x in turn.inputs]).mean(0)
        second = squares.cpu().reshape(groups, -1).repeat_interleave(each, 1)
    else:
        second = found.covariance
    scale = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights
    rows = rows * scale.sqrt()[:, None]
    return _Layer(
        rows=rows.reshape(groups, -1, rows.shape[1]),
        second=second,
        numbers=subject.coupling.readers[node.name],
        each=each,
    )


def _absorbs(graph: Graph, node: Node) -> bool:
    """Does a constant added to the output not matter, because a bias or a BatchNorm takes it?"""
    return "bias" in node.state or any(n.op == "batch_norm" for n in graph.consumers()[node.name])


def _eliminate(layers: Sequence[_Layer], first: int, count: int, *, compensate: bool) -> Steps:
    """Always the channel that costs least, given those that are gone already."""
    parts = [_Elimination(layer, layer.columns(first, count), compensate=compensate) for layer in layers]
    left = torch.ones(count, dtype=torch.bool)
    steps: Steps = []
    for _ in range(count):
        cost = torch.zeros(count, dtype=torch.float64)
        for part in parts:
            cost += part.costs()
        cost[~left] = torch.inf
        best = int(cost.argmin())
        steps.append((best, max(0.0, float(cost[best]))))
        left[best] = False
        for part in parts:
            part.remove_(best)
    return steps


class _Elimination:
    """Of one layer: costs of the channels that are left, kept up while channels go."""

    def __init__(self, layer: _Layer, columns: Tensor, *, compensate: bool) -> None:
        self.rows, self.columns = layer.rows.clone(), columns
        self.diagonal = layer.second.dim() == 2
        self.compensate = compensate and not self.diagonal
        self.moments = layer.second
        self.inverse = _inverse(layer.second) if self.compensate else None
        self.gone = torch.zeros_like(self.rows)

    def costs(self) -> Tensor:
        """float64 [channels]."""
        total = torch.zeros(len(self.columns), dtype=torch.float64)
        for g, rows in enumerate(self.rows):
            own = rows[:, self.columns].permute(1, 0, 2)  # [channels, outputs, m]
            if self.diagonal:
                total += (own.square() * self.moments[g][self.columns][:, None, :]).sum((1, 2))
                continue
            pairs = (self.columns[:, :, None], self.columns[:, None, :])
            if self.inverse is not None:
                solved = torch.linalg.solve(self.inverse[g][pairs], own.transpose(1, 2))
                total += (own.transpose(1, 2) * solved).sum((1, 2))
            else:
                total += (own @ self.moments[g][pairs] * own).sum((1, 2))
                met = (self.gone[g] @ self.moments[g])[:, self.columns].permute(1, 0, 2)
                total += 2 * (own * met).sum((1, 2))
        return total

    def remove_(self, channel: int) -> None:
        at = self.columns[channel]
        for g in range(len(self.rows)):
            if self.inverse is not None:
                inverse = self.inverse[g]
                side = inverse[:, at]
                step = torch.linalg.solve(inverse[at][:, at], side.t())  # [m, n]
                self.rows[g] -= self.rows[g][:, at] @ step
                inverse -= side @ step
                inverse[at, :] = 0
                inverse[:, at] = 0
                inverse[at, at] = 1.0
            else:
                self.gone[g][:, at] = self.rows[g][:, at]
            self.rows[g][:, at] = 0


def _inverse(second: Tensor) -> Tensor:
    level = second.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(second.shape[1], dtype=second.dtype)
    return torch.linalg.inv(second + (1e-6 * level + 1e-30)[:, None, None] * eye)
