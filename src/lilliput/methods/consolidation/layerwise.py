"""Layer after layer under an acceptance set: which layers, which samples, and how a search of one is verified.

A layer is searched on its hard samples and verified on all when it is done; lost ones join the hard ones, and the layer
is searched again (`engine`).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.method import Pass
from lilliput.data.select import AcceptanceSet, subset
from lilliput.graph.trace import Graph, Node
from lilliput.methods.consolidation.acceptance import BATCH
from lilliput.methods.consolidation.engine import (
    NEAR,
    Judge,
    RowSearch,
    Screen,
    Trunk,
    bound,
    search_kind,
    verified,
    with_lost,
)
from lilliput.methods.consolidation.inputs import neuron_axis
from lilliput.methods.consolidation.statistics import Attempt, Trail

WIDER = 30.0
"""How much more is settled by plain forwards where rounding has misled a search."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The calls of each weight, weights in the order in which the network first uses them; their layers; the others."""

    layers: dict[str, tuple[Node, ...]]
    paths: dict[str, str]
    skipped: dict[str, str]

    @staticmethod
    def of(method: Pass, net: Artifact, graph: Graph, refused: Callable[[str, Node], str] | None = None) -> "Chosen":
        """`refused` gives a method's own reason against a weight, or none."""
        picked, skipped = method.pick(net)
        position = {node.name: i for i, node in enumerate(graph.nodes)}
        layers: dict[str, tuple[Node, ...]] = {}
        paths: dict[str, str] = {}
        for path, weight in picked.items():
            calls = tuple(n for n in graph.users_of(weight) if n.state.get("weight") == weight)
            reason = _unusable(calls) or (refused(weight, calls[0]) if refused else "")
            if reason:
                skipped[path] = reason
            else:
                layers[weight] = tuple(sorted(calls, key=lambda n: position[n.name]))
                paths[weight] = path
        ordered = sorted(layers.items(), key=lambda item: position[item[1][0].name])
        return Chosen(layers=dict(ordered), paths=paths, skipped=skipped)


def _unusable(calls: tuple[Node, ...]) -> str:
    if not calls or any(n.op not in ("conv", "linear") for n in calls):
        return "its weight is not that of a convolution or a linear layer when the network runs"
    axis = neuron_axis(calls[0])
    if any(neuron_axis(n) != axis for n in calls) or (axis and calls[0].attributes["groups"] > 1):
        return "it is transposed and grouped"
    return ""


@dataclass(kw_only=True)
class Layerwise(ABC):
    """One pass after the other over `layers`: the calls of each weight, in the order of the network."""

    graph: Graph
    state: dict[str, Tensor]
    layers: Mapping[str, tuple[Node, ...]]
    samples: AcceptanceSet
    judge: Judge
    fast: int
    medium: int
    advance: Callable[[int], None]
    trail: Trail = field(default_factory=Trail)

    def __post_init__(self) -> None:
        self.margin = self.samples.margins.clone()

    @abstractmethod
    def decide_(self, search: RowSearch, trunk: Trunk, weight: str) -> list[Attempt]:
        """Changes the layer as far as the samples of `search` allow; gives what was tried."""

    @abstractmethod
    def size(self, weight: str) -> int:
        """How many steps a layer is for `advance`."""

    def touched(self, weight: str) -> tuple[str, ...]:
        """Names of what `decide_` may change."""
        return (weight,)

    def settle_(self, weight: str, attempts: list[Attempt], seconds: float) -> None:
        """These decisions have been verified."""
        self.trail.add(weight, attempts, seconds)

    def strict(self, weight: str) -> bool:
        """Are the other samples looked at after each neuron, where margins can be bounded?"""
        return False

    def kind(self, weight: str) -> type[RowSearch]:
        return search_kind(self.layers[weight])

    def to_data(self, sweep: int, done: int) -> dict[str, Any]:
        """All that a checkpoint needs after `done` layers of a sweep; `restore_` takes it."""
        names = {name for weight in self.layers for name in self.touched(weight)}
        return {
            "pass": sweep, "done": done, "trail": self.trail.to_data(), "margin": self.margin,
            "weights": {name: self.state[name] for name in sorted(names)},
        }  # fmt: skip

    def restore_(self, data: Mapping[str, Any]) -> tuple[int, int]:
        """Gives the sweep, and how many of its layers are done."""
        self.state.update(data["weights"])
        self.trail, self.margin = Trail.of_data(data["trail"]), data["margin"]
        sizes = [self.size(weight) for weight in self.layers]
        self.advance(data["pass"] * sum(sizes) + sum(sizes[: data["done"]]))
        return data["pass"], data["done"]

    def sweep_(self, done: int, report: Callable[[int], None]) -> None:
        """All layers once, but for the first `done`, which an interrupted sweep has finished."""
        queue = list(self.layers.items())[done:]
        if not queue:
            return
        starts = [calls[0].name for _, calls in queue]
        trunk = Trunk(self.graph, self.samples.inputs, BATCH)
        trunk.reach_(self.state, starts[0])
        for i, (weight, _) in enumerate(queue):
            after = starts[i + 1] if i + 1 < len(queue) else None
            kept = self._layer(trunk, weight, after)
            report(done + i + 1)
            if after is not None:
                trunk.advance_(kept, after)

    def _layer(self, trunk: Trunk, weight: str, after: str | None) -> dict[str, Tensor]:
        original = {name: self.state[name].clone() for name in self.touched(weight)}
        hard = torch.argsort(self.margin.nan_to_num(0.0), stable=True)[: self.medium]
        near, started = NEAR, time.perf_counter()
        while True:
            attempts = self.decide_(self._search(trunk, weight, hard, near), trunk, weight)
            right, distance, kept = verified(trunk, self.state, self.samples, self.judge, after)
            if bool(right.all()):
                break
            known, hard = len(hard), with_lost(hard, right)
            if len(hard) == known:  # seen, and taken for right: rounding
                near *= WIDER
            self.state.update({name: value.clone() for name, value in original.items()})
            self.trail.again[weight] += 1
            if near > 1.0:
                attempts = []
                _, distance, kept = verified(trunk, self.state, self.samples, self.judge, after)
                break
            self.advance(-self.size(weight))
        self.margin = distance
        self.settle_(weight, attempts, time.perf_counter() - started)
        return kept

    def _search(self, trunk: Trunk, weight: str, hard: Tensor, near: float) -> RowSearch:
        calls = self.layers[weight]
        screen = None
        limits = bound(self.graph, self.state, calls[0]) if self.strict(weight) and not calls[1:] else None
        if limits is not None and not bool(self.margin.isnan().any()):
            screen = Screen(self.samples, self.margin, trunk.values, calls[0].inputs[0], *limits)
            screen.leave_(hard)
        return self.kind(weight)(
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
