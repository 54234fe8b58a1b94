"""Exact mode: neuron after neuron, the first k with which all samples stay right, as the method is published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lilliput.graph.trace import Node
from lilliput.methods.consolidation.candidates import Neuron
from lilliput.methods.consolidation.engine import RowSearch, Trunk, neurons_of
from lilliput.methods.consolidation.layerwise import Layerwise
from lilliput.methods.consolidation.statistics import Attempt


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Of one layer."""

    most_k: int
    patience: int
    strict: bool
    sweep: int | None


@dataclass(kw_only=True)
class Exact(Layerwise):
    """`failed` counts in how many passes a neuron has found nothing."""

    rules: Callable[[str], Rules]
    active: Callable[[Tensor, Node, Tensor], Tensor] | None
    snap: Callable[[str, Tensor, list[int]], Tensor]
    failed: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])

    def decide_(self, search: RowSearch, trunk: Trunk, weight: str) -> list[Attempt]:
        rules, node, active = self.rules(weight), self.layers[weight][0], None
        if self.active is not None:
            found = self.active(trunk.values[node.inputs[0]], node, self.state[weight])
            active = neurons_of(found, node)
        attempts: list[Attempt] = []
        for row in range(self.size(weight)):
            attempts += self._neuron(search, rules, weight, row, active)
            self.advance(1)
        return attempts

    def settle_(self, weight: str, attempts: list[Attempt], seconds: float) -> None:
        super().settle_(weight, attempts, seconds)
        for attempt in attempts:
            if attempt.reason == "max_clusters_exceeded":
                self.failed[(weight, attempt.neuron)] = self.failed.get((weight, attempt.neuron), 0) + 1

    def size(self, weight: str) -> int:
        return len(neurons_of(self.state[weight], self.layers[weight][0]))

    def strict(self, weight: str) -> bool:
        return self.rules(weight).strict

    def to_data(self, sweep: int, done: int) -> dict[str, Any]:
        return super().to_data(sweep, done) | {"failed": [(w, r, n) for (w, r), n in self.failed.items()]}

    def restore_(self, data: Mapping[str, Any]) -> tuple[int, int]:
        self.failed = {(w, r): n for w, r, n in data["failed"]}
        return super().restore_(data)

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
        tried.append(Attempt(neuron=row, k=neuron.distinct, accepted=False, reason="max_clusters_exceeded"))
        return tried
