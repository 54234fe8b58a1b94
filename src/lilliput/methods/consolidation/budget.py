"""Budget mode: all neurons at once, at one price for a bit; the highest price at which few enough samples are lost.

For a price, each neuron's clusters are those with the least (output error + price x bits), found exactly
(`ops.rate_clustering`); the output error of a weight counts by the second moment of its input and by how steeply the
margins depend on its neuron. So the last bit of every neuron of every layer saves as much margin as any other: what an
order of neurons by bits saved and margin spent can only come near. Layer by layer, shared values and biases are then
fitted to what the layer gave before (`refit`). Acceptance is judged on the samples that the search sees, and on the
rest, which must not be lost more often than the budget says.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.data.select import AcceptanceSet, margins, subset
from lilliput.graph.suffix import Suffix
from lilliput.graph.trace import Graph, Node, evaluate
from lilliput.methods.consolidation.engine import (
    Judge,
    Trunk,
    neurons_of,
    part_of,
    search_kind,
    verified,
    with_lost,
)
from lilliput.methods.consolidation.inputs import neuron_axis, second_moments, sparse_places
from lilliput.methods.consolidation.refit import WIDEST, Products, refit
from lilliput.ops.rate_clustering import RateClusters, rate_clusters

BATCH = 250
PROBE, STEEPNESS = 2048, 1024
"""Samples that moments are taken from, and those whose gradients are."""
HARD = 4
"""Times the medium tier: samples that each price is judged on; the one that is taken, on all."""
SLACK = 1.5
"""Standard deviations above the budget that unseen samples may be lost."""
OCTAVES, CLOSE = 3.0, 0.05
"""Steps in powers of two until a price is too high and another low enough; then halves down to so few."""
FURTHER = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Powers of two beyond the price that a single neuron is tried at."""
FAST, TRIES = 192, 3
RANGE = 40.0
"""Powers of two from the first price where the search ends."""
HALF_BITS = 16
Report = Callable[[Mapping[float, bool], Tensor], None]


@dataclass(kw_only=True)
class Budget:
    """The search for a price. `layers` names the calls of each weight, in the order of the network."""

    graph: Graph
    net: Artifact
    state: dict[str, Tensor]
    layers: Mapping[str, tuple[Node, ...]]
    samples: AcceptanceSet
    unseen: AcceptanceSet | None
    judge: Judge
    error_budget: float
    medium: int
    most_k: Callable[[str], int]
    weighting: str
    refits: bool
    drop_dead: bool
    finishes: bool
    may_fold: Callable[[Node], bool]
    generator: torch.Generator
    snap: Callable[[str, Tensor, list[int]], Tensor]
    changed_biases: set[str] = field(default_factory=set[str])
    cost: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    given: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    tried: int = 0
    candidates: int = 0
    lost: int = 0

    @property
    def position(self) -> dict[str, int]:
        return {node.name: i for i, node in enumerate(self.graph.nodes)}

    def search(self, known: Mapping[float, bool], lost: Tensor, report: Report) -> dict[str, Tensor]:
        """The state at the highest price that keeps the budget; the state as it was if none does.

        `known` are prices (log2) that an interrupted search has judged, `lost` the samples that it has found to be
        lost; `report` gets both after each price.
        """
        self.hard = torch.argsort(self.samples.margins.nan_to_num(0.0), stable=True)[: HARD * self.medium]
        self.hard = torch.unique(torch.cat([self.hard, lost]))
        self.probe = subset(self.samples, torch.randperm(len(self.samples), generator=self.generator)[:PROBE])
        self._measure_()
        judged = dict(known)
        middle = self._scale()
        while True:
            price, settled = _next(judged, middle)
            if price is None:
                return dict(self.state)
            state = self.consolidated(2.0**price)
            if settled:
                wrong = torch.nonzero(~self.right(state, self.samples)).reshape(-1)
                if len(wrong) <= self.allowed() and self._holds(state):
                    self.lost = len(wrong)
                    return self._finished(state, price) if self.finishes else state
                lost = torch.unique(torch.cat([lost, wrong]))
                self.hard = torch.unique(torch.cat([self.hard, wrong]))
                judged[price] = False
            else:
                self.tried += 1
                wrong = int((~self.right(state, subset(self.samples, self.hard))).sum())
                judged[price] = wrong <= self.allowed()
            report(judged, lost)

    def allowed(self) -> int:
        return int(self.error_budget * len(self.samples))

    def _finished(self, state: dict[str, Tensor], price: float) -> dict[str, Tensor]:
        """What is left of the budget, spent neuron by neuron: fewer bits where it still loses few enough samples.

        Neurons go in the order of bits saved for error added; what is left is released along the way.
        """
        state = dict(state)
        neurons = sum(len(neurons_of(state[w], calls[0])) for w, calls in self.layers.items())
        trunk, done, left = Trunk(self.graph, self.samples.inputs, BATCH), 0, self.allowed() - self.lost
        first = self.lost
        _, margin, _ = verified(trunk, state, self.samples, self.judge)
        queue = list(self.layers.items())
        trunk.reach_(state, queue[0][1][0].name)
        for i, (weight, calls) in enumerate(queue):
            after = queue[i + 1][1][0].name if i + 1 < len(queue) else None
            count = len(neurons_of(state[weight], calls[0]))
            allowed = [first + left * (done + n + 1) // neurons for n in range(count)]
            done += count
            before = state[weight]
            hard = torch.argsort(margin.nan_to_num(0.0), stable=True)[: self.medium]
            for _ in range(TRIES):
                state[weight] = before.clone()
                self._spend_(state, weight, calls, trunk, hard, allowed, price)
                right, distance, kept = verified(trunk, state, self.samples, self.judge, after)
                lost = int((~right).sum())
                if lost <= allowed[-1] and self._holds(state):
                    break
                hard = with_lost(hard, right)
            else:
                state[weight] = before
                right, distance, kept = verified(trunk, state, self.samples, self.judge, after)
                lost = int((~right).sum())
            margin, self.lost = distance, lost
            if after is not None:
                trunk.advance_(kept, after)
        return state

    def _spend_(
        self,
        state: dict[str, Tensor],
        weight: str,
        calls: tuple[Node, ...],
        trunk: Trunk,
        hard: Tensor,
        allowed: list[int],
        price: float,
    ) -> None:
        inputs = {name: value[hard] for name, value in trunk.values.items()}
        search = search_kind(calls)(
            self.graph, state, calls[0], subset(self.samples, hard), self.judge, inputs, trunk.position, fast=FAST
        )
        rows, cost = (neurons_of(t[weight], calls[0]).flatten(1) for t in (self.state, self.cost))
        now = neurons_of(state[weight], calls[0])
        steps: list[RateClusters] = [
            rate_clusters(rows, 2.0 ** (price + octave), cost, table_bits=HALF_BITS, most_k=self.most_k(weight))
            for octave in FURTHER
        ]
        bits, error = ideal_bits(now.flatten(1)), (cost * (now.flatten(1) - rows).square()).sum(1)
        further = [(cost * (torch.from_numpy(s.values).float() - rows).square()).sum(1) for s in steps]
        saved = bits - torch.from_numpy(steps[0].bits)
        order = torch.argsort(saved / (further[0] - error).clamp(min=1e-30), descending=True)
        for n, row in enumerate(order.tolist()):
            found: dict[float, Tensor] = {0.0: torch.zeros_like(now[row])}
            for step in reversed(steps):
                if step.bits[row] < bits[row]:
                    found.setdefault(
                        float(step.bits[row]), torch.from_numpy(step.values[row]).float().reshape(now[row].shape)
                    )
            if bits[row] <= 0:
                continue
            chosen = self.snap(weight, torch.stack([found[b] for b in sorted(found)]), [row] * len(found))
            accepted = search.first_accepted(row, chosen, allowed[n])
            self.candidates += len(chosen) if accepted is None else accepted + 1
            if accepted is not None:
                search.accept_(row, chosen[accepted])

    def _scale(self) -> float:
        """log2 of a price in the middle: a hundredth of the mean cost of a weight that is gone."""
        total = sum(float((self.cost[w] * self.state[w].square()).sum()) for w in self.layers)
        count = sum(self.state[w].numel() for w in self.layers)
        return math.log2(max(total / count, 1e-30) / 100)

    def _holds(self, state: dict[str, Tensor]) -> bool:
        """Are those that the search does not see lost hardly more often than the budget says?"""
        if self.unseen is None:
            return True
        right = self.right(state, self.unseen)
        expected = self.error_budget * len(right)
        return int((~right).sum()) <= expected + SLACK * math.sqrt(max(expected, 1.0))

    def right(self, state: Mapping[str, Tensor], samples: AcceptanceSet) -> Tensor:
        right = torch.ones(len(samples), dtype=torch.bool)

        def visit(part: slice, outputs: Tensor) -> None:
            right[part] = self.judge(outputs, samples, part)

        Trunk(self.graph, samples.inputs, BATCH).forward(state, visit)
        return right

    def consolidated(self, price: float) -> dict[str, Tensor]:
        """Every layer at this price, each fitted to what it gave."""
        state = dict(self.state)
        trunk = Trunk(self.graph, self.probe.inputs, BATCH)
        for weight, calls in self.layers.items():
            axis = neuron_axis(calls[0])
            rows = self.state[weight].movedim(axis, 0)
            cost = self.cost[weight].movedim(axis, 0)
            found = rate_clusters(
                rows.reshape(len(rows), -1), price, cost.reshape(len(rows), -1),
                table_bits=HALF_BITS, most_k=self.most_k(weight),
            )  # fmt: skip
            new = torch.from_numpy(found.values).float().reshape(rows.shape)
            bias = calls[0].state.get("bias")
            if self.refits and self._can_refit(weight, calls):
                free = bias is not None and self._may_move(bias)
                trunk.reach_(state, calls[0].name)
                now = sparse_places(trunk.values[calls[0].inputs[0]], calls[0])
                products = Products.of([self.given[weight]], [now], calls[0])
                new, moved = refit(rows, new, self.state[bias] if free and bias else None, products)
                if bias is not None and moved is not None:
                    state[bias] = moved
                    self.changed_biases.add(self.net.canonical(bias))
            state[weight] = self.snap(weight, new, list(range(len(new)))).movedim(0, axis).contiguous()
        if self.drop_dead:
            self._fold_(state)
        return state

    def _can_refit(self, weight: str, calls: tuple[Node, ...]) -> bool:
        fan_in = self.state[weight][0].numel()
        return len(calls) == 1 and neuron_axis(calls[0]) == 0 and fan_in <= WIDEST

    def _may_move(self, bias: str) -> bool:
        """Is the bias plain, and this layer's alone?"""
        return self.net.canonical(bias) not in self.net.encodings and len(self.graph.users_of(bias)) == 1

    def _measure_(self) -> None:
        """`cost`: what a squared change of each weight costs; weights of inputs that are always zero go."""
        calls = [call for nodes in self.layers.values() for call in nodes]
        steep = self._steepness(calls)
        trunk = Trunk(self.graph, self.probe.inputs, BATCH)
        zero: dict[str, Tensor] = {}
        for call in sorted(calls, key=lambda c: self.position[c.name]):
            weight = call.state["weight"]
            trunk.reach_(self.state, call.name)
            inputs = trunk.values[call.inputs[0]]
            found = second_moments(inputs, call, self.state[weight])
            self.given[weight] = sparse_places(inputs, call).clone()
            zero[weight] = zero.get(weight, torch.ones_like(found, dtype=torch.bool)) & (found == 0)
            if self.weighting == "none":
                found = torch.ones_like(found)
            elif self.weighting == "margins":
                found = found * steep[call.name].reshape(
                    [-1 if d == neuron_axis(call) else 1 for d in range(found.dim())]
                )
            self.cost[weight] = self.cost[weight] + found if weight in self.cost else found
        if self.drop_dead:
            self._drop_({weight: gone for weight, gone in zero.items() if bool(gone.any())})

    def _drop_(self, zero: dict[str, Tensor]) -> None:
        """Weights of inputs that are zero in the probe, if they are so in all samples."""
        trunk = Trunk(self.graph, self.samples.inputs, BATCH)
        for call in (call for weight in zero for call in self.layers[weight]):
            weight = call.state["weight"]
            trunk.reach_(self.state, call.name)
            zero[weight] &= second_moments(trunk.values[call.inputs[0]], call, self.state[weight]) == 0
        for weight, gone in zero.items():
            self.state[weight] = self.state[weight].masked_fill(gone, 0.0)

    def _steepness(self, calls: list[Node]) -> dict[str, Tensor]:
        """For each channel of each call the mean square of d margin / d sum, added up over places.

        Where there are no margins, of a random sum of the outputs.
        """
        few = subset(self.probe, torch.arange(min(STEEPNESS, len(self.probe))))
        found = {call.name: torch.zeros(call.shape[_channel(call)]) for call in calls}
        if self.weighting != "margins":
            return found
        size = BATCH
        for start in range(0, len(few), size):
            part = slice(start, min(start + size, len(few)))
            values: dict[str, Tensor] = {self.graph.inputs[0]: few.inputs[part]}
            with torch.enable_grad():
                for node in self.graph.nodes:
                    if node.op in ("input", "size"):
                        continue
                    values[node.name] = evaluate(node, values, self.state)
                    if node.name in found:
                        value = values[node.name]
                        values[node.name] = value if value.requires_grad else value.requires_grad_()
                outputs = values[self.graph.outputs[0]]
                wanted = margins(outputs, part_of(few.targets, part))
                if bool(wanted.isnan().any()):
                    wanted = outputs * (torch.randint(0, 2, outputs.shape, generator=self.generator) * 2.0 - 1.0)
                slopes = torch.autograd.grad(wanted.sum(), [values[name] for name in found], allow_unused=True)
            for call, slope in zip(calls, slopes, strict=True):
                if slope is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    channel = _channel(call)
                    others = [d for d in range(slope.dim()) if d != channel]
                    found[call.name] += slope.square().sum(others) / len(few)
        return found

    def _fold_(self, state: dict[str, Tensor]) -> None:
        """Neurons that are zero give a constant: it goes into the bias of the next layer, their weights there go."""
        for weight, calls in self.layers.items():
            rows = state[weight].movedim(neuron_axis(calls[0]), 0).flatten(1)
            gone = torch.nonzero(~rows.any(1)).reshape(-1).tolist()
            if not gone or calls[1:]:
                continue
            values: dict[str, Tensor] = {self.graph.inputs[0]: self.probe.inputs[:64]}
            for node in self.graph.nodes:
                if node.op not in ("input", "size"):
                    values[node.name] = evaluate(node, values, state)
            suffix = Suffix(self.graph, state, calls[0].name, values)
            for row in gone:
                reader = suffix.constant(row)
                if reader is not None and self.may_fold(reader[0]):
                    self._absorb_(state, reader[0], slice(reader[1].start, reader[1].stop), reader[2])

    def _absorb_(self, state: dict[str, Tensor], after: Node, block: slice, value: float) -> None:
        name, bias = after.state["weight"], after.state.get("bias")
        padded = after.op == "conv" and any(p != (0, 0) for p in after.attributes["pads"])
        part = state[name][:, block]
        if not bool(part.any()):
            return
        if value:
            if bias is None or padded or not self._may_move(bias):
                return
            state[bias] = state[bias] + value * part.flatten(1).sum(1)
            self.changed_biases.add(self.net.canonical(bias))
        state[name] = state[name].clone()
        state[name][:, block] = 0.0


def _next(judged: Mapping[float, bool], middle: float) -> tuple[float | None, bool]:
    """(the price to look at, whether it is the one to be settled); None when even the lowest loses too much."""
    high = min((price for price, keeps in judged.items() if not keeps), default=math.inf)
    low = max((price for price, keeps in judged.items() if keeps and price < high), default=-math.inf)
    if high - low <= CLOSE or low > middle + RANGE:
        return low, True
    if low == -math.inf and high < middle - RANGE:
        return None, True
    if low == -math.inf:
        return (middle if high == math.inf else high - OCTAVES), False
    return ((low + OCTAVES) if high == math.inf else (low + high) / 2), False


def ideal_bits(rows: Tensor) -> Tensor:
    """Of each of `rows`: an ideal code of its entries, and its table."""
    bits: list[float] = []
    for row in rows:
        values, counts = torch.unique(row, return_counts=True)
        bits.append(float((counts * torch.log2(row.numel() / counts)).sum()) + HALF_BITS * int((values != 0).sum()))
    return torch.tensor(bits, dtype=torch.float64)


def _channel(call: Node) -> int:
    return 1 if call.op == "conv" else len(call.shape) - 1
