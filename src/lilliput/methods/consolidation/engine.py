"""Which of several new rows of a layer keep all samples right, in the order in which they are tried.

The network is run once on all samples; from then on a search works on the hardest ones, whose values are kept
(`graph.suffix`), and a layer is verified on all samples when it is done: on failure the lost samples join the hard ones
and the layer starts again. Where incremental sums leave a sample too near to the border, a plain forward decides.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lilliput.core.task import Task
from lilliput.data.select import AcceptanceSet, margins, subset
from lilliput.graph.semantics import RULES
from lilliput.graph.suffix import Suffix
from lilliput.graph.trace import Graph, Node, evaluate
from lilliput.methods.consolidation.inputs import neuron_axis

LOOKS = (16, 64)
"""Samples that candidates meet before the rest of the fast tier: the first ones several candidates at once."""
FEW = 4
"""Candidates of a convolution at once: each is as much work as the network."""
NEAR = 1e-4
"""Of the largest output: a margin below is settled by a plain forward."""
TOGETHER = 4096
"""Outputs that are computed at once for several candidates on several samples."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who is right, by `ok` of the task."""

    task: Task

    def __call__(self, outputs: Tensor, samples: AcceptanceSet, index: Tensor | slice) -> Tensor:
        original = samples.original[index]
        found = self.task.ok(outputs.reshape(original.shape), part_of(samples.targets, index), original)
        return found.bool().reshape(-1)


class Trunk:
    """The values that the rest of the network needs from before a layer, for all samples."""

    def __init__(self, graph: Graph, inputs: Tensor, batch: int) -> None:
        self.graph, self.batch, self.position = graph, batch, 0
        self.values: dict[str, Tensor] = {graph.inputs[0]: inputs}

    def forward(
        self, state: Mapping[str, Tensor], visit: Callable[[slice, Tensor], None] | None, keep: str | None = None
    ) -> dict[str, Tensor]:
        """Runs all samples from here: to the end, where `visit` sees the outputs, or, without, as far as `keep`.

        Gives what `keep` and the nodes after it need from before.
        """
        names = [node.name for node in self.graph.nodes]
        stop = len(names) if keep is None else names.index(keep)
        end = len(names) if visit is not None else stop
        nodes = [n for n in self.graph.nodes[self.position : end] if n.op not in ("input", "size")]
        wanted = {name for n in self.graph.nodes[stop:] for name in n.inputs} - set(names[stop:])
        kept: dict[str, Tensor] = {}
        count = len(next(iter(self.values.values())))
        for start in range(0, count, self.batch):
            part = slice(start, min(start + self.batch, count))
            values = {name: value[part] for name, value in self.values.items()}
            for node in nodes:
                values[node.name] = evaluate(node, values, state)
            if visit is not None:
                visit(part, values[self.graph.outputs[0]])
            for name in wanted:
                if name not in kept and name in self.values:
                    kept[name] = self.values[name]
                elif name not in self.values:
                    whole = kept.setdefault(name, torch.empty((count, *values[name].shape[1:])))
                    whole[part] = values[name]
        return kept

    def reach_(self, state: Mapping[str, Tensor], layer: str) -> None:
        """Go on to just before a layer."""
        self.advance_(self.forward(state, None, layer), layer)

    def advance_(self, kept: dict[str, Tensor], until: str) -> None:
        self.values = kept
        self.position = [n.name for n in self.graph.nodes].index(until)


class Screen:
    """Lower bounds of the margins of all samples that are not among the hard ones, while a layer changes.

    A row that changes by dw moves its sum by at most |dw| |x| (Cauchy and Schwarz), and margins by `factor` times that.
    """

    def __init__(
        self,
        samples: AcceptanceSet,
        margin: Tensor,
        trunk: Mapping[str, Tensor],
        source: str,
        factor: Tensor,
        most: float,
    ) -> None:
        self.samples, self.trunk, self.factor, self.most = samples, trunk, factor, most
        self.norms = torch.linalg.vector_norm(trunk[source], dim=1)
        self.low = margin.clone()
        self.next = self.low
        self.border = NEAR * float(samples.original.abs().max())

    def leave_(self, index: Tensor) -> None:
        """These samples are looked at elsewhere."""
        self.low[index] = torch.inf

    def doubtful(self, row: int, change: Tensor) -> Tensor:
        """Numbers of the samples that this change might lose."""
        moved = (self.norms * float(torch.linalg.vector_norm(change))).clamp(max=self.most)
        self.next = self.low - moved * float(self.factor[row])
        return torch.nonzero(self.next <= self.border).reshape(-1)

    def refresh_(self, index: Tensor, margin: Tensor) -> None:
        self.next[index] = margin

    def accept_(self) -> None:
        self.low = self.next


STEEPEST = {
    "relu": 1.0, "clamp": 1.0, "tanh": 1.0, "sigmoid": 0.25, "leaky_relu": 1.0, "gelu": 1.13, "silu": 1.1,
    "hard_swish": 1.5, "hard_sigmoid": 1 / 6, "identity": 1.0,
}  # fmt: skip
RANGE = {"tanh": 2.0, "sigmoid": 1.0}
"""Largest slopes, and how far a value can move at all."""


def bound(graph: Graph, state: Mapping[str, Tensor], node: Node) -> tuple[Tensor, float] | None:
    """How much a change of a linear layer's sum can move a margin, for each channel, and the most that it can move.

    None where more than a function of one value and one linear layer come after it.
    """
    if node.op != "linear" or len(node.shape) != 2:
        return None
    factor, most = torch.ones(node.shape[1]), torch.inf
    readers = graph.consumers()
    here = node
    while here.name != graph.outputs[0]:
        after = readers[here.name]
        if len(after) != 1 or here.name in graph.outputs:
            return None
        here = after[0]
        if here.op in STEEPEST and not (here.op == "leaky_relu" and abs(here.attributes["slope"]) > 1):
            factor = factor * STEEPEST[here.op]
            most = min(most * STEEPEST[here.op], RANGE.get(here.op, torch.inf))
        elif here.op == "linear" and here.name == graph.outputs[0]:
            weight = state[here.state["weight"]]
            return factor * (weight.amax(0) - weight.amin(0)), most
        else:
            return None
    return factor, most


class RowSearch(ABC):
    """Candidates for one neuron of one layer after the other, on the hard samples.

    `trunk` has the values of these that come from before the layer; `position` is its first node.
    """

    def __init__(
        self,
        graph: Graph,
        state: dict[str, Tensor],
        node: Node,
        samples: AcceptanceSet,
        judge: Judge,
        trunk: Mapping[str, Tensor],
        position: int,
        *,
        fast: int,
        screen: "Screen | None" = None,
        near: float = NEAR,
    ) -> None:
        self.near = near
        self.screen = screen
        self.graph, self.state, self.node, self.samples, self.judge = graph, state, node, samples, judge
        self.trunk, self.position = dict(trunk), position
        self.weight = node.state["weight"]
        self.order = torch.arange(len(samples))
        self.fast = min(fast, len(samples))
        self.plain = self.looked = 0
        self.together = FEW if node.op == "conv" else 1 << 30

    @abstractmethod
    def right(self, row: int, rows: Tensor, index: Tensor) -> Tensor:
        """bool [k, samples]: are the samples of these numbers right with the neuron as each of `rows`?"""

    def row(self, row: int) -> Tensor:
        return neurons_of(self.state[self.weight], self.node)[row]

    def first_accepted(self, row: int, rows: Tensor, allowed: int = 0) -> int | None:
        """The number of the first of `rows` [k, ...] with which at most `allowed` samples are wrong."""
        order = self.order.clone()
        looks = [order[a:b] for a, b in pairwise((0, *(n for n in LOOKS if n < self.fast), self.fast))]
        for start in range(0, len(rows), self.together):
            seen = self.right(row, rows[start : start + self.together], looks[0])
            for k, first in enumerate(seen, start):
                lost = self._lost(row, rows[k], first, looks, allowed)
                if lost is not None:
                    self._promote(lost)
                elif self.screen is None or self._screened(self.screen, row, rows[k]):
                    return k
        return None

    def _lost(self, row: int, values: Tensor, first: Tensor, looks: list[Tensor], allowed: int) -> Tensor | None:
        """A sample that is lost, if more than `allowed` are; `first` says who is right of the first look."""
        found, wrong = [first], int((~first).sum())
        for part in looks[1:]:
            if wrong > allowed:
                break
            found.append(self.right(row, values[None], part)[0])
            wrong += int((~found[-1]).sum())
        if wrong > allowed:
            return torch.cat(looks)[torch.nonzero(~torch.cat(found))[-1]]
        if self.fast == len(self.order):
            return None
        right = self.all_right(row, values)
        lost = torch.nonzero(~right)
        return None if len(lost) <= allowed else self.order[~right[self.order]][-1:]

    def all_right(self, row: int, values: Tensor) -> Tensor:
        """bool [samples]: of all hard ones."""
        return self.right(row, values[None], torch.arange(len(self.samples)))[0]

    def accepted_run(self, row: int, rows: Tensor) -> int:
        """How many of `rows` [k, ...] keep all samples right before the first that loses one."""
        run, start, size, order = len(rows), 0, self.fast, self.order
        lost: Tensor | None = None
        while run > 0 and start < len(order):
            part = order[start : start + size]
            wrong = ~self.right(row, rows[:run], part)
            if bool(wrong.any()):
                run = int(wrong.any(1).int().argmax())
                lost = part[torch.nonzero(wrong[run])[-1]]
            start += len(part)
            size = max(1, TOGETHER // max(1, run))
        if lost is not None:
            self._promote(lost)
        return run

    def holds(self) -> bool:
        """Are all samples right with the layer as the state has it now? By plain forwards."""
        for index in (self.order[: self.fast].clone(), self.order[self.fast :].clone()):
            if len(index) == 0:
                continue
            outputs = self._forward({name: value[index] for name, value in self.trunk.items()})[self.graph.outputs[0]]
            wrong = torch.nonzero(~self.judge(outputs, self.samples, index))
            if len(wrong):
                self._promote(index[wrong[-1]])
                return False
        return True

    def accept_(self, row: int, values: Tensor) -> None:
        """The neuron is `values` from now on."""
        if self.screen is not None:
            self.screen.accept_()
        neurons_of(self.state[self.weight], self.node)[row] = values

    def _plainly(self, row: int, values: Tensor, known: dict[str, Tensor]) -> Tensor:
        """The outputs by a forward from the layer on, like one that knows nothing."""
        neuron = self.row(row)
        before = neuron.clone()
        neuron.copy_(values)
        try:
            return self._forward(known)[self.graph.outputs[0]]
        finally:
            neuron.copy_(before)

    def _screened(self, screen: "Screen", row: int, values: Tensor) -> bool:
        """Do all other samples stay right? Those whose margins are large enough need no look."""
        index = screen.doubtful(row, values - self.row(row))
        if len(index) == 0:
            return True
        right, distance = self._outside(screen, row, values, index)
        if bool(right.all()):
            screen.refresh_(index, distance)
            return True
        self._extend_(screen, index[~right])
        return False

    def _outside(self, screen: "Screen", row: int, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._plainly(row, values, {name: value[index] for name, value in screen.trunk.items()})
        self.looked += len(index)
        return self.judge(outputs, screen.samples, index), margins(outputs, part_of(screen.samples.targets, index))

    def _extend_(self, screen: "Screen", index: Tensor) -> None:
        """These samples are among the hard ones from now on."""
        screen.leave_(index)
        more = subset(screen.samples, index)
        first = len(self.samples)
        self.samples = joined(self.samples, more)
        for name in self.trunk:
            self.trunk[name] = torch.cat([self.trunk[name], screen.trunk[name][index]])
        self.order = torch.cat([torch.arange(first, len(self.samples)), self.order])

    def _forward(self, known: dict[str, Tensor]) -> dict[str, Tensor]:
        """The rest of the network."""
        for node in self.graph.nodes[self.position :]:
            if node.op not in ("input", "size"):
                known[node.name] = evaluate(node, known, self.state)
        return known

    def _promote(self, sample: Tensor) -> None:
        """A lost sample is looked at first from now on."""
        at = int(torch.nonzero(self.order == sample)[0])
        if at > 0:
            self.order[1 : at + 1] = self.order[:at].clone()
            self.order[0] = sample


class PlainSearch(RowSearch):
    """By forwards of all that comes after the layer: for transposed ones, and those that are called more than once."""

    def right(self, row: int, rows: Tensor, index: Tensor) -> Tensor:
        found: list[Tensor] = []
        for values in rows:
            outputs = self._plainly(row, values, {name: value[index] for name, value in self.trunk.items()})
            found.append(self.judge(outputs, self.samples, index))
        return torch.stack(found)


class CachedSearch(RowSearch):
    """By what a change of one channel makes of the values that are kept (`graph.suffix`), all candidates at once."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.bias = self.node.state.get("bias")
        self.suffix = Suffix(self.graph, self.state, self.node.name, self._forward(dict(self.trunk)))
        self._ready: tuple[int, Tensor, Callable[[], None]] | None = None

    def right(self, row: int, rows: Tensor, index: Tensor) -> Tensor:
        outputs = self.suffix.outputs(self._block(row, rows, index), row, index)
        return self._judged(row, rows, index, outputs.flatten(0, 1))

    def _judged(self, row: int, rows: Tensor, index: Tensor, outputs: Tensor) -> Tensor:
        """bool [k, samples] of outputs [k x samples, ...]; near the border by a plain forward."""
        count = len(rows)
        every = index if count == 1 else index.repeat(count)
        right = self.judge(outputs, self.samples, every)
        distance = margins(outputs, part_of(self.samples.targets, every)).abs()
        near = (distance <= self.near * outputs.abs().flatten(1).amax(1)).reshape(count, -1)
        right = right.reshape(count, -1)
        for k in torch.nonzero(near.any(1)).reshape(-1):
            doubtful = index[near[k]]
            self.plain += len(doubtful)
            known = {name: value[doubtful] for name, value in self.trunk.items()}
            right[k, near[k]] = self.judge(self._plainly(row, rows[k], known), self.samples, doubtful)
        return right

    def all_right(self, row: int, values: Tensor) -> Tensor:
        outputs, change_ = self.suffix.prepared(self._block(row, values[None], slice(None))[0], row)
        self._ready = (row, values, change_)
        return self._judged(row, values[None], torch.arange(len(self.samples)), outputs)[0]

    def accept_(self, row: int, values: Tensor) -> None:
        super().accept_(row, values)
        ready, self._ready = self._ready, None
        if ready is not None and ready[0] == row and torch.equal(ready[1], values):
            ready[2]()
        else:
            self.suffix.commit_(self._block(row, values[None], slice(None))[0], row)

    def _extend_(self, screen: "Screen", index: Tensor) -> None:
        super()._extend_(screen, index)
        self._ready = None
        known = self._forward({name: value[index] for name, value in screen.trunk.items()})
        for name in self.suffix.values:
            self.suffix.values[name] = torch.cat([self.suffix.values[name], known[name]])

    def _block(self, row: int, rows: Tensor, index: Tensor | slice) -> Tensor:
        """[k, samples, ...]: what the layer gives in channel `row` for each of `rows`."""
        x = self.suffix.values[self.node.inputs[0]][index]
        bias = None if self.bias is None else self.state[self.bias][row].expand(len(rows))
        if self.node.op == "linear":
            flat = torch.nn.functional.linear(x, rows, bias)
            return flat.movedim(-1, 0).unsqueeze(-1)
        a = self.node.attributes
        groups, channels = a["groups"], self.state[self.weight].shape[0]
        size = x.shape[1] // groups
        group = row // (channels // groups)
        x = x[:, group * size : (group + 1) * size]
        state = {"weight": rows} | ({} if bias is None else {"bias": bias})
        found = RULES["conv"]([x], state, {**a, "groups": 1})
        return found.movedim(1, 0).unsqueeze(2)


def search_kind(calls: tuple[Node, ...]) -> "type[CachedSearch | PlainSearch]":
    """What finds the answers for a layer that is called like this."""
    first, *more = calls
    return PlainSearch if more or first.attributes.get("transposed") else CachedSearch


def neurons_of(weight: Tensor, node: Node) -> Tensor:
    """A view [neurons, ...] of a layer's weight."""
    return weight.movedim(neuron_axis(node), 0)


def with_lost(hard: Tensor, right: Tensor) -> Tensor:
    """The samples that are not right, then the other hard ones."""
    lost = torch.nonzero(~right).reshape(-1)
    return torch.cat([lost, hard[~torch.isin(hard, lost)]])


def verified(
    trunk: Trunk, state: Mapping[str, Tensor], samples: AcceptanceSet, judge: Judge, keep: str | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """All samples through the rest of the network: who is right, with which margins; and what comes after `keep`."""
    right, distance = torch.ones(len(samples), dtype=torch.bool), torch.empty(len(samples))

    def visit(part: slice, outputs: Tensor) -> None:
        right[part] = judge(outputs, samples, part)
        distance[part] = margins(outputs, part_of(samples.targets, part))

    return right, distance, trunk.forward(state, visit, keep)


def joined(a: AcceptanceSet, b: AcceptanceSet) -> AcceptanceSet:
    one = isinstance(a.targets, Tensor)
    return AcceptanceSet(
        inputs=torch.cat([a.inputs, b.inputs]),
        targets=torch.cat([a.targets, b.targets])
        if one
        else tuple(torch.cat(p) for p in zip(a.targets, b.targets, strict=True)),
        original=torch.cat([a.original, b.original]),
        margins=torch.cat([a.margins, b.margins]),
        where=(*a.where, *b.where),
        seen=a.seen,
    )


def part_of(targets: Any, index: Tensor | slice) -> Any:
    return targets[index] if isinstance(targets, Tensor) else type(targets)(t[index] for t in targets)
