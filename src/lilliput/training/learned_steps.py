"""Learned step sizes: the scales of grids train together with the numbers on them.

Esser et al. (2020), "Learned step size quantization", https://arxiv.org/abs/1902.08153: equation 3 for the gradient of
a scale, and section 2.2 for its size, 1 / sqrt(n q): n weights that a scale serves, or n values of an activation in a
sample, and q the largest integer. Zero points and bit widths stay.

What the optimizer moves is the ratio of a scale to the one before training. Its gradient is that of the scale divided
by the first scale: SGD then moves scales as in the paper, and Adam by the learning rate as a part of the scale.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid, cluster_means
from lilliput.core.errors import DataError
from lilliput.graph.integer import LAYERS, IntegerNet, grids_of, integer_bias, integer_values
from lilliput.graph.knots import standing
from lilliput.graph.shared_bias import owners_of_grids, shared_grids
from lilliput.graph.trace import graph_of
from lilliput.training.attach import DIVERGED, Attached
from lilliput.training.fake_quant import FakeQuant
from lilliput.training.optimizer import names_of
from lilliput.training.restore import put_

SUFFIX = ":step"
"""What the name of a weight or a value ends with to name its step, in groups of parameters."""
FARTHEST = 256.0
"""A scale stays within this factor of its start."""


@dataclass(kw_only=True, eq=False)
class Step:
    grid: Grid  # before training
    ratio: Tensor  # float32, like its scale; what the optimizer moves
    factor: Tensor  # float32: the size of the gradient
    aliases: list[str]

    @staticmethod
    def of(grid: Grid, count: int, aliases: list[str]) -> "Step":
        most = (grid.range()[1] - grid.zero_point).clamp(min=1).float()
        return Step(
            grid=grid,
            ratio=torch.ones_like(grid.scale).requires_grad_(),
            factor=1 / torch.sqrt(max(count, 1) * most),
            aliases=aliases,
        )

    def now(self) -> Grid:
        scale = (self.grid.scale.double() * self.ratio.detach().double()).float()
        return replace(self.grid, scale=scale.clamp(min=torch.finfo(torch.float32).tiny))

    def pull_(self, gradient: Tensor) -> None:
        """Take the gradient of the scale."""
        self.ratio.grad = (gradient.float() * self.factor / self.grid.scale).reshape(self.ratio.shape)


class LearnedSteps(Attached):
    """`Attached`, with the scales of grids on weights and activations; biases stay on the scale of their sums.

    Grids that the points of learned functions stand on stay: their limits say them.

    Values that share a grid share a step. The step of a weight has its weight's names, that of a value those of the
    weights that read it: groups of parameters that freeze a layer leave what it computes with.
    """

    def __init__(self, net: Artifact, *, dither: torch.Generator | None = None) -> None:
        super().__init__(net, dither=dither)
        place = net.device
        self._view = replace(
            net,
            encodings={n: e.to(place) for n, e in net.encodings.items()},
            activations={n: g.to(place) for n, g in net.activations.items()},
        )
        self._biases: dict[str, tuple[str, str]] = {}  # {bias: (the value that its layer reads, the weight)}
        self._outputs: dict[str, str] = {}  # {bias: the value whose scale it is on, where that is not its sum's}
        self._steps: dict[str, Step] = {}
        self._leaders: dict[str, str] = {}
        self._scales: dict[str, Tensor] = {}
        self._fake: FakeQuant | None = None
        if net.activations:
            self._activations_()
        for s in self._stored:
            if s.encoding.grid is not None and s.name not in self._biases:
                grid = s.encoding.grid
                count = math.prod(s.encoding.shape) // grid.scale.numel()
                self._steps[s.name] = Step.of(grid, count, names_of(net.module)[s.name])
        self.project_()

    def _activations_(self) -> None:
        net = self._view
        graph = graph_of(net)
        floats = IntegerNet(net, graph).floats
        self._fake = FakeQuant(net, graph)
        owner, grids = owners_of_grids(graph), grids_of(graph, net.activations)
        self._raw_biases = {n: e.decode() for n, e in net.encodings.items()}
        self._leaders = {n: shared_grids(graph).get(n, n) for n in integer_values(graph) if n in net.activations}
        readers: dict[str, list[str]] = {}
        known = names_of(net.module)
        for node in graph.nodes:
            if node.op in LAYERS and node.inputs[0] in grids:
                source = owner[node.inputs[0]]
                names = [alias for n in node.state.values() for alias in known[net.canonical(n)]]
                readers.setdefault(self._leaders.get(source, source), []).extend(names)
                if node.name not in floats and "bias" in node.state:
                    self._biases[net.canonical(node.state["bias"])] = source, net.canonical(node.state["weight"])
        fixed = {owner[graph[n].inputs[0]] for n in standing(graph, grids, net.module.state_dict())}
        for name, leader in self._leaders.items():
            if name == leader and name not in fixed:
                count = math.prod(graph[name].shape[1:])
                self._steps[name + SUFFIX] = Step.of(net.activations[name], count, readers.get(name, []))

    def _now(self, step: Step) -> Grid:
        """The grid that computes."""
        return step.now()

    def _join_(self) -> None:
        """Change grids of activations that depend on others."""

    @property
    def network(self) -> nn.Module:
        return self._module if self._fake is None else self._fake

    def trainable(self) -> dict[str, Tensor]:
        return {**super().trainable(), **{_named(n): step.ratio for n, step in self._steps.items()}}

    def aliases(self) -> dict[str, list[str]]:
        return {_named(n): [_named(n), *step.aliases] for n, step in self._steps.items()}

    def pull_(self) -> None:
        for s in self._stored:
            if s.name in self._steps and s.parameter.grad is not None:
                with torch.no_grad():
                    self._steps[s.name].pull_(step_gradient(s.encoding, s.real(), s.parameter.grad))
        for leader, leaf in self._scales.items():
            if leaf.grad is not None:
                self._steps[leader + SUFFIX].pull_(leaf.grad)
            leaf.grad = None
        super().pull_()

    def project_(self) -> None:
        super().project_()
        self._refresh_()
        if self._fake is not None:
            known = {n: leader for n, leader in self._leaders.items() if leader in self._scales}
            self._fake.refresh(self._view, {n: self._scales[leader] for n, leader in known.items()})

    def _refresh_(self) -> None:
        """Grids as their steps are now, and biases on the scales that follow."""
        with torch.no_grad():
            for name, step in self._steps.items():
                if not bool(torch.isfinite(step.ratio).all()):
                    raise DataError(f"training of the step of {name!r}", "NaN or infinity", DIVERGED)
                step.ratio.clamp_(1 / FARTHEST, FARTHEST)
            for i, s in enumerate(self._stored):
                if s.name in self._steps:
                    encoding = replace(s.encoding, grid=self._now(self._steps[s.name])).encode(s.real())
                    self._put_(s.name, i, encoding)
            for name, leader in self._leaders.items():
                if leader + SUFFIX in self._steps:
                    self._view.activations[name] = self._now(self._steps[leader + SUFFIX])
            self._join_()
            self._scales = {
                n: self._view.activations[n].scale.clone().requires_grad_()
                for n in dict.fromkeys(self._leaders.values())
                if n + SUFFIX in self._steps
            }
            raw = {s.name: (i, s.real()) for i, s in enumerate(self._stored)}
            for name, (source, weight) in self._biases.items():
                own, grid = self._view.encodings[name], self._view.encodings[weight].grid
                at, values = raw.get(name, (None, self._raw_biases[name]))
                if grid is None:
                    continue
                free = Encoding(shape=own.shape, values=values.detach().clone(), mask=own.mask)
                output = self._view.activations[self._outputs[name]] if name in self._outputs else None
                encoding = integer_bias(values, self._view.activations[source], grid, free, output=output)
                self._put_(name, at, encoding)

    def _put_(self, name: str, at: int | None, encoding: Encoding) -> None:
        if at is not None:
            self._stored[at] = replace(self._stored[at], encoding=encoding)
        self._view.encodings[name] = encoding
        self._module.get_parameter(name).copy_(encoding.decode())

    def bake_(self, net: Artifact) -> None:
        self.project_()
        for name, encoding in self._view.encodings.items():
            home = net.encodings[name].values.device
            net.encode_(name, encoding.to(home))
        for name, grid in self._view.activations.items():
            net.activations[name] = grid.to(net.activations[name].scale.device)

    def state(self) -> dict[str, dict[str, Tensor]]:
        steps = {n: step.ratio.detach().to("cpu", copy=True) for n, step in self._steps.items()}
        return {**super().state(), "steps": steps}

    def load_(self, state: dict[str, dict[str, Tensor]]) -> None:
        put_(lambda name: self._steps[name].ratio, state["steps"])
        super().load_(state)


def step_gradient(encoding: Encoding, raw: Tensor, gradient: Tensor) -> Tensor:
    """The gradient for each scale of a grid, given that for `encoding.encode(raw).decode()`, where values are `raw`.

    Of an entry: its integer less its place between the integers (both from the zero point), or its integer alone
    where the grid saturates; 0 where it is dropped. Entries that share a value have the place of their mean.
    """
    grid, rank = encoding.grid, len(encoding.shape)
    if grid is None:
        return torch.zeros(0)
    zero, live = grid.spread(grid.zero_point, rank), encoding._live()
    real = raw.double() / grid.spread(grid.scale, rank) + zero
    low, high = (grid.spread(end, rank) for end in grid.range())
    if encoding.sharing is not None:
        rows = encoding.sharing.rows()
        real = cluster_means(real, encoding.sharing, live)[rows]
        low, high = (end[rows] for end in encoding.row_range())
    q = encoding.encode(raw).integers()
    inside = (low <= real) & (real <= high)
    term = torch.where(inside, q - real, (q - zero).double()) * gradient
    if live is not None:
        term = torch.where(live, term, 0.0)
    axis = grid.axis
    return term.sum().reshape(1) if axis is None else term.movedim(axis, 0).flatten(1).sum(1)


def _named(name: str) -> str:
    return name if name.endswith(SUFFIX) else name + SUFFIX
