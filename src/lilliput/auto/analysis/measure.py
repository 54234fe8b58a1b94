"""Divergence of the outputs for each row and level: everything before the first change is computed once."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lilliput.auto.analysis.levels import LEVELS, OF_WEIGHTS, changed
from lilliput.auto.analysis.parts import Probe
from lilliput.auto.analysis.subjects import Subjects
from lilliput.core.encoding import Encoding
from lilliput.core.method import Context
from lilliput.core.streams import size_bits
from lilliput.graph.coupling import Channel
from lilliput.graph.removal import removed_places
from lilliput.training.distillation import distillation_loss
from lilliput.training.lockstep import Lockstep, Turn

MOST_KEPT = 40_000_000
"""Entries of changed weights: some 300 MB."""


class Probes:
    """`rows[kind][name]` of layers and groups, `coupled[kind][name]` of the layers that a group couples."""

    def __init__(self, subjects: Subjects, context: Context, kinds: tuple[str, ...], samples: int) -> None:
        self.subjects, self.context, self.kinds, self.samples = subjects, context, kinds, samples
        self.rows: dict[str, dict[str, list[Probe]]] = {kind: {} for kind in kinds}
        self.coupled: dict[str, dict[str, list[Probe]]] = {kind: {} for kind in kinds}
        self.macs = subjects.macs()
        self._encodings: dict[tuple[str, str, float], Encoding] = {}
        self._bits: dict[tuple[str, str, float], int] = {}
        self._kept = 0
        self._exact: list[Any] = []

    def measure(self) -> None:
        layer_kinds = [kind for kind in self.kinds if kind in OF_WEIGHTS]
        due = {f"layer {name}": {weight} for name, weight in self.subjects.weights.items()} if layer_kinds else {}
        if layer_kinds:
            weights = self.subjects.weights
            due |= {f"coupled {n}": {weights[path] for path in paths} for n, paths in self.subjects.coupled.items()}
        if "channels" in self.kinds:
            self.subjects.order_(self.context, self.samples)
            due |= {f"group {n}": {name for name, _ in group.read} for n, group in self.subjects.groups.items()}

        def visit(turn: Turn) -> bool:
            weight = self.subjects.net.canonical(turn.node.state["weight"])
            for row in [row for row, weights in due.items() if weight in weights]:
                del due[row]
                what, _, name = row.partition(" ")
                self._probe(turn, what, name, layer_kinds)
                advance(1)
            return False

        with self.context.progress.task("probe", len(due)) as advance:
            net = self.subjects.net
            Lockstep(net, net.module, self.context, edited=False, samples=self.samples).run(visit)
        self.rows = {kind: self._in_order(kind, rows) for kind, rows in self.rows.items()}

    def _in_order(self, kind: str, rows: Mapping[str, list[Probe]]) -> dict[str, list[Probe]]:
        names = self.subjects.groups if kind == "channels" else self.subjects.weights
        return {name: rows[name] for name in names if name in rows}

    def _probe(self, turn: Turn, what: str, name: str, layer_kinds: list[str]) -> None:
        if what == "group":
            self.rows["channels"][name] = [self._channels(turn, name, level) for level in LEVELS["channels"]]
            return
        table = self.rows if what == "layer" else self.coupled
        paths = (name,) if what == "layer" else self.subjects.coupled[name]
        for kind in layer_kinds:
            table[kind][name] = [self._weights(turn, name, paths, kind, level) for level in LEVELS[kind]]

    def _weights(self, turn: Turn, name: str, paths: tuple[str, ...], kind: str, level: float) -> Probe:
        state: dict[str, Tensor] = {}
        for path in paths:
            weight = self.encoding(path, kind, level).decode()
            if not torch.equal(weight, self.subjects.net.encoding(self.subjects.weights[path]).decode()):
                state |= self._by_every_name(turn, self.subjects.weights[path], weight)
        return Probe(
            layer=name,
            layers=paths,
            kind=kind,
            level=level,
            divergence=self.divergence(turn, state) if state else 0.0,
            coded_bytes=sum(self.bits(path, kind, level) for path in paths) / 8,
            macs=self.macs,
            effect=bool(state),
            coupled=len(paths) > 1,
        )

    def _channels(self, turn: Turn, name: str, level: float) -> Probe:
        subjects = self.subjects
        gone = subjects.channels({name: level})
        state = {
            k: v for place, weight in subjects.ignoring(gone).items()
            for k, v in self._by_every_name(turn, place, weight).items()
        }  # fmt: skip
        owners = {weight: path for path, weight in subjects.weights.items()}
        touched = {subjects.net.canonical(t) for t in subjects.groups[name].tensors if t in turn.state} & set(owners)
        return Probe(
            layer=name,
            layers=tuple(path for weight, path in owners.items() if weight in touched),
            kind="channels",
            level=level,
            divergence=self.divergence(turn, state) if gone else 0.0,
            coded_bytes=sum(self._without(weight, gone) for weight in touched) / 8,
            macs=subjects.macs(gone),
            effect=bool(gone),
        )

    def _without(self, weight: str, gone: list[Channel]) -> int:
        encoding = self.subjects.net.encoding(weight)
        for (name, dim), index in removed_places(gone).items():
            if name == weight:
                left = [i for i in range(encoding.shape[dim]) if i not in index]
                encoding = encoding.select(dim, torch.tensor(left))
        return size_bits(encoding)

    def _by_every_name(self, turn: Turn, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Tied weights have several names in the graph."""
        own = turn.state[name]
        return {k: weight for k, t in turn.state.items() if t.data_ptr() == own.data_ptr() and t.shape == own.shape}

    def encoding(self, path: str, kind: str, level: float) -> Encoding:
        """Kept for the proposals, as far as `MOST_KEPT` goes."""
        key = path, kind, level
        if key in self._encodings:
            return self._encodings[key]
        before = self.subjects.net.encoding(self.subjects.weights[path])
        found = changed(before, self.subjects.axis(path), kind, level, self.context)
        if self._kept + math.prod(before.shape) <= MOST_KEPT:
            self._kept += math.prod(before.shape)
            self._encodings[key] = found
        return found

    def bits(self, path: str, kind: str, level: float) -> int:
        key = path, kind, level
        if key not in self._bits:
            self._bits[key] = size_bits(self.encoding(path, kind, level))
        return self._bits[key]

    def divergence(self, turn: Turn, state: Mapping[str, Tensor]) -> float:
        """From the outputs of the network as it is; those are the same for every row."""
        if not self._exact:
            self._exact = list(turn.rest({}))
        total = 0.0
        for outputs, wanted in zip(turn.rest(state), self._exact, strict=True):
            for a, b in zip(tree_leaves(outputs), tree_leaves(wanted), strict=True):
                if isinstance(a, Tensor):
                    total += float(distillation_loss(a, b, kind=self.context.task.kind, temperature=1.0))
        return total / len(self._exact)
