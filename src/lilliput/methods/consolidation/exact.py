"""Exact mode: neuron after neuron, the first k with which all samples stay right, as the method is published.

A layer is searched on its hard samples and verified on all when it is done; lost ones join the hard ones, and the layer
is searched again (`engine`).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lilliput.data.select import AcceptanceSet, subset
from lilliput.graph.trace import Graph, Node
from lilliput.methods.consolidation.candidates import Neuron
from lilliput.methods.consolidation.engine import (
    NEAR,
    Judge,
    RowSearch,
    Screen,
    Trunk,
    bound,
    neurons_of,
    search_kind,
    verified,
    with_lost,
)
from lilliput.methods.consolidation.statistics import Attempt, Trail

BATCH = 250
"""Samples at once: the values between layers stay in the cache."""
WIDER = 30.0
"""How much more is settled by plain forwards where rounding has misled a search."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Of one layer."""

    most_k: int
    patience: int
    strict: bool
    sweep: int | None


@dataclass(kw_only=True)
class Exact:
    """One pass after the other over `layers`: the calls of each weight, in the order of the network."""

    graph: Graph
    state: dict[str, Tensor]
    layers: Mapping[str, tuple[Node, ...]]
    samples: AcceptanceSet
    judge: Judge
    fast: int
    medium: int
    rules: Callable[[str], Rules]
    active: Callable[[Tensor, Node, Tensor], Tensor] | None
    snap: Callable[[str, Tensor, list[int]], Tensor]
    advance: Callable[[int], None]
    trail: Trail
    failed: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])

    def __post_init__(self) -> None:
        self.margin = self.samples.margins.clone()

    def sweep_(self, done: int, report: Callable[[int], None]) -> None:
        """All layers once, but for the first `done`, which an interrupted sweep has finished."""
        queue = list(self.layers.items())[done:]
        if not queue:
            return
        starts = [calls[0].name for _, calls in queue]
        trunk = Trunk(self.graph, self.samples.inputs, BATCH)
        trunk.reach_(self.state, starts[0])
        for i, (weight, calls) in enumerate(queue):
            after = starts[i + 1] if i + 1 < len(queue) else None
            kept = self._layer(trunk, weight, calls, after)
            report(done + i + 1)
            if after is not None:
                trunk.advance_(kept, after)

    def _layer(self, trunk: Trunk, weight: str, calls: tuple[Node, ...], after: str | None) -> dict[str, Tensor]:
        rules = self.rules(weight)
        original = self.state[weight].clone()
        count = len(neurons_of(original, calls[0]))
        hard = torch.argsort(self.margin.nan_to_num(0.0), stable=True)[: self.medium]
        near, started, active = NEAR, time.perf_counter(), None
        if self.active is not None:
            active = neurons_of(self.active(trunk.values[calls[0].inputs[0]], calls[0], original), calls[0])
        while True:
            search = self._search(trunk, calls, hard, near, strict=rules.strict)
            attempts: list[Attempt] = []
            failed = dict(self.failed)
            for row in range(count):
                attempts += self._neuron(search, rules, weight, row, active)
                self.advance(1)
            right, distance, kept = verified(trunk, self.state, self.samples, self.judge, after)
            if bool(right.all()):
                break
            known, hard = len(hard), with_lost(hard, right)
            if len(hard) == known:  # seen, and taken for right: rounding
                near *= WIDER
            self.failed = failed
            self.state[weight] = original.clone()
            self.trail.again[weight] += 1
            if near > 1.0:
                attempts = []
                right, distance, kept = verified(trunk, self.state, self.samples, self.judge, after)
                break
            self.advance(-count)
        self.margin = distance
        self.trail.add(weight, attempts, time.perf_counter() - started)
        return kept

    def _search(self, trunk: Trunk, calls: tuple[Node, ...], hard: Tensor, near: float, *, strict: bool) -> RowSearch:
        screen = None
        limits = bound(self.graph, self.state, calls[0]) if strict and not calls[1:] else None
        if limits is not None and not bool(self.margin.isnan().any()):
            screen = Screen(self.samples, self.margin, trunk.values, calls[0].inputs[0], *limits)
            screen.leave_(hard)
        return search_kind(calls)(
            self.graph,
            self.state,
            calls[0],
            subset(self.samples, hard),
            self.judge,
            {name: value[hard] for name, value in trunk.values.items()},
            trunk.position,
            fast=min(self.fast, len(hard)),
            screen=screen,
            near=near,
        )

    def _neuron(self, search: RowSearch, rules: Rules, weight: str, row: int, active: Tensor | None) -> list[Attempt]:
        """What was tried; the neuron is changed if something was accepted."""
        neuron = Neuron.of(search.row(row), None if active is None else active[row])
        if len(neuron.live) == 0:
            return [Attempt(neuron=row, k=0, accepted=True, reason="all_zero_weights")]
        if rules.patience and self.failed.get((weight, row), 0) >= rules.patience:
            return [Attempt(neuron=row, k=neuron.distinct, accepted=False, reason="frozen_by_patience")]
        tried: list[Attempt] = []
        for group in neuron.candidates(rules.most_k, rules.sweep):
            rows = self.snap(weight, group.rows, [row] * len(group.rows))
            found = search.first_accepted(row, rows)
            tried += [
                Attempt(neuron=row, k=k, accepted=False, reason="accuracy_loss" if k else "zero_rejected")
                for k in group.ks[:found]
            ]
            if found is not None:
                search.accept_(row, rows[found])
                k = group.ks[found]
                tried.append(Attempt(neuron=row, k=k, accepted=True, reason="converged" if k else "zeroed_perceptron"))
                return tried
        self.failed[(weight, row)] = self.failed.get((weight, row), 0) + 1
        tried.append(Attempt(neuron=row, k=neuron.distinct, accepted=False, reason="max_clusters_exceeded"))
        return tried
