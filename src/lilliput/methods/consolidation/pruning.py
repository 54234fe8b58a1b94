"""Pruning under an acceptance set: weights become zero as long as all samples stay right.

The strategies are those of the published implementation of SIC (https://github.com/klosvo/ece525_sasic); candidates are
evaluated many at once, on what they change (`engine`), and decided one after the other, as it decides them.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, PassResult, check_choice
from lilliput.graph.integer import runnable
from lilliput.graph.trace import Graph, graph_of
from lilliput.methods.consolidation.acceptance import BATCH, UnderAcceptance, lost_before
from lilliput.methods.consolidation.engine import Judge, PlainSearch, RowSearch, Trunk, neurons_of, verified
from lilliput.methods.consolidation.layerwise import Chosen, Layerwise
from lilliput.methods.consolidation.statistics import Attempt, Trail, layer_statistics, totals
from lilliput.training.checkpoint import identity_of, read_checkpoint, write_checkpoint

STRATEGIES = ("per_neuron_sequential", "per_layer_binary_search", "per_neuron_binary_values")
LAYER, BIASES = -1, -2
"""In place of the number of a neuron: what is decided for a whole layer."""
FIRST, MOST = 4, 64
"""Candidates of a neuron that are evaluated at once: to begin with, doubled each time, and at most."""


@dataclass(frozen=True, kw_only=True)
class AcceptancePruning(UnderAcceptance):
    """Weights of selected layers become zero, the smallest first, as far as an acceptance set stays right.

    `strategy`: "per_neuron_sequential" takes weights one by one and ends a neuron at the first that loses a sample;
    "per_layer_binary_search" bisects how many of a layer's smallest weights can go; "per_neuron_binary_values" bisects
    how many of a neuron's smallest shared values can go, each with all of its weights. `include_bias`: biases too.
    Repeated over all layers until nothing changes, at most `max_passes` times.

    `acceptance_from`, `eval_max`, `filtered`, `tiered_asc`: which samples, in which tiers (`UnderAcceptance`). Samples
    that the network has lost before are left out.
    """

    name: ClassVar[str] = "acceptance_pruning"
    summary: ClassVar[str] = "set the smallest weights to zero as far as an acceptance set stays right"
    citations: ClassVar[tuple[str, ...]] = ("https://github.com/klosvo/ece525_sasic",)
    per_layer: ClassVar[tuple[str, ...]] = ("strategy", "include_bias")

    strategy: str = "per_neuron_sequential"
    include_bias: bool = False

    def __post_init__(self) -> None:
        check_choice("acceptance_pruning strategy", self.strategy, STRATEGIES)
        super().__post_init__()

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        return _Run(self, net, context).result()


def bisect(most: int, holds: Callable[[int], bool]) -> tuple[int, int]:
    """(a count of 0..most that holds, if 0 does; how many were tried): where all below hold, it is the largest."""
    low, high, tried = 0, most, 0
    while low < high:
        middle = (low + high + 1) // 2
        tried += 1
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low, tried


def ranks(values: Tensor, *, shared: bool = False) -> tuple[Tensor, int]:
    """(int64 [n]: in which step each of `values` [n] becomes zero, and how many steps there are).

    Ascending |value|, of equal ones the first. `shared`: equal values in one step, of opposite ones the negative first.
    Zeros have the number of steps as theirs: they are zero at any.
    """
    live = torch.nonzero(values).reshape(-1)
    steps, which = torch.arange(len(live)), torch.arange(len(live))
    names = values[live]
    if shared:
        names, which = torch.unique(values[live], return_inverse=True)
        steps = torch.arange(len(names))
    place = torch.empty_like(steps)
    place[torch.argsort(names.abs(), stable=True)] = steps
    found = torch.full((len(values),), len(names))
    found[live] = place[which]
    return found, len(names)


@dataclass(kw_only=True)
class Pruner(Layerwise):
    """`strategies` of each weight, and the `biases` of those layers where they are pruned too."""

    strategies: Mapping[str, str]
    biases: Mapping[str, str]

    def size(self, weight: str) -> int:
        return len(neurons_of(self.state[weight], self.layers[weight][0]))

    def touched(self, weight: str) -> tuple[str, ...]:
        return (weight, *([self.biases[weight]] if weight in self.biases else []))

    def kind(self, weight: str) -> type[RowSearch]:
        return PlainSearch if self.strategies[weight] == "per_layer_binary_search" else super().kind(weight)

    def decide_(self, search: RowSearch, trunk: Trunk, weight: str) -> list[Attempt]:
        strategy = self.strategies[weight]
        if strategy == "per_layer_binary_search":
            self.advance(self.size(weight))
            return [self._together(search, self.touched(weight), LAYER)]
        attempts: list[Attempt] = []
        for row in range(self.size(weight)):
            attempts.append((_one_by_one if strategy == "per_neuron_sequential" else _by_values)(search, row))
            self.advance(1)
        if weight in self.biases:
            sequential = strategy == "per_neuron_sequential"
            bias = self.biases[weight]
            attempts.append(self._biases(search, bias) if sequential else self._together(search, (bias,), BIASES))
        return attempts

    def _together(self, search: RowSearch, names: tuple[str, ...], number: int) -> Attempt:
        """Bisects how many of the smallest entries of these tensors, as one list, can be zero."""
        before = [self.state[name].clone() for name in names]
        flat = torch.cat([t.reshape(-1) for t in before])
        rank, steps = ranks(flat)

        def put_(count: int) -> None:
            parts = flat.where(rank >= count, 0.0).split([t.numel() for t in before])
            for name, part, old in zip(names, parts, before, strict=True):
                self.state[name].copy_(part.reshape(old.shape))

        def holds(count: int) -> bool:
            put_(count)
            return search.holds()

        count, tried = bisect(steps, holds)
        put_(count)
        return _attempt(number, count, steps, tried)

    def _biases(self, search: RowSearch, name: str) -> Attempt:
        """One after the other, up to the first that loses a sample."""
        bias = self.state[name]
        rank, steps = ranks(bias)
        done = 0
        for row in torch.argsort(rank)[:steps].tolist():
            value = bias[row].clone()
            bias[row] = 0.0
            neuron = search.row(row).clone()
            if search.accepted_run(row, neuron[None]) == 0:
                bias[row] = value
                return _attempt(BIASES, done, steps, done + 1)
            search.accept_(row, neuron)
            done += 1
        return _attempt(BIASES, done, steps, done)


def _attempt(number: int, count: int, steps: int, tried: int, zeros: int | None = None) -> Attempt:
    reason = "all_zero_weights" if steps == 0 else "pruned" if count else "accuracy_loss"
    k = count if zeros is None else zeros
    return Attempt(neuron=number, k=k, accepted=count > 0, reason=reason, candidates=tried)


def _without(row: Tensor, rank: Tensor, counts: Tensor) -> Tensor:
    """[counts, ...]: the row after so many steps."""
    flat = row.reshape(-1)
    return flat.where(rank >= counts[:, None], 0.0).reshape(len(counts), *row.shape)


def _one_by_one(search: RowSearch, row: int) -> Attempt:
    neuron = search.row(row).clone()
    rank, steps = ranks(neuron.reshape(-1))
    done, tried, size = 0, 0, FIRST
    while done < steps:
        counts = torch.arange(done + 1, min(done + size, steps) + 1)
        run = search.accepted_run(row, _without(neuron, rank, counts))
        done, tried = done + run, tried + min(run + 1, len(counts))
        if run < len(counts):
            break
        size = min(2 * size, MOST)
    if done:
        search.accept_(row, _without(neuron, rank, torch.tensor([done]))[0])
    return _attempt(row, done, steps, tried)


def _by_values(search: RowSearch, row: int) -> Attempt:
    neuron = search.row(row).clone()
    rank, steps = ranks(neuron.reshape(-1), shared=True)

    def values(count: int) -> Tensor:
        return _without(neuron, rank, torch.tensor([count]))

    count, tried = bisect(steps, lambda count: search.accepted_run(row, values(count)) == 1)
    if count:
        search.accept_(row, values(count)[0])
    return _attempt(row, count, steps, tried, zeros=int((rank < count).sum()))


class _Run:
    """One application."""

    def __init__(self, method: AcceptancePruning, net: Artifact, context: Context) -> None:
        self.method, self.net, self.context = method, net, context
        self.started = time.time()
        self.graph: Graph = graph_of(net)
        self.judge = Judge(task=context.task)
        self.state = {name: t.detach().cpu().clone() for name, t in net.module.state_dict().items()}
        self.before = {name: t.clone() for name, t in self.state.items()}

    def result(self) -> PassResult:
        self.chosen = chosen = Chosen.of(self.method, self.net, self.graph)
        if not chosen.layers:
            return PassResult(skipped=chosen.skipped)
        self.samples, self.lost = self.method.accepted(self.graph, self.state, self.context)
        if len(self.samples) == 0:
            return PassResult(skipped=chosen.skipped | dict.fromkeys(chosen.paths.values(), self.method.none_left()))
        search = self._searched()
        changed, skipped = self._written(search)
        return PassResult(
            changed=changed,
            skipped=chosen.skipped | skipped,
            notes=self._notes(search),
            statistics=self._statistics(search),
        )

    def _right(self) -> Tensor:
        return verified(Trunk(self.graph, self.samples.inputs, BATCH), self.state, self.samples, self.judge)[0]

    def _searched(self) -> Pruner:
        method, chosen = self.method, self.chosen
        fast, medium = method.seen_first(len(self.samples))
        sizes = [len(neurons_of(self.state[w], calls[0])) for w, calls in chosen.layers.items()]
        identity = self._identity()
        with self.context.progress.task("prune neurons", sum(sizes) * method.max_passes) as advance:
            search = Pruner(
                graph=self.graph,
                state=self.state,
                layers=chosen.layers,
                samples=self.samples,
                judge=self.judge,
                fast=fast,
                medium=medium,
                advance=advance,
                strategies={w: method.for_layer(path).strategy for w, path in chosen.paths.items()},
                biases=self._biases(),
            )
            first, done = 0, 0
            if self.context.checkpoint is not None:
                known = read_checkpoint(self.context.checkpoint, identity)
                first, done = (0, 0) if known is None else search.restore_(known)
            for sweep in range(first, method.max_passes):
                self._sweep_(search, sweep, done, identity)
                done = 0
                if not search.trail.passes[-1]["became_zero"]:
                    break
        method.count_uses(self.context, search.trail.candidates)
        return search

    def _sweep_(self, search: Pruner, sweep: int, done: int, identity: str) -> None:
        started, trail = time.time(), search.trail
        earlier = sum(p["became_zero"] for p in trail.passes)

        def report(count: int) -> None:
            if self.context.checkpoint is not None:
                write_checkpoint(self.context.checkpoint, identity, search.to_data(sweep, count))

        search.sweep_(done, report)
        zeros = sum(self._zeros(self.state, w) - self._zeros(self.before, w) for w in self._touched(search))
        trail.passes.append({"duration": round(time.time() - started, 3), "became_zero": zeros - earlier})

    def _touched(self, search: Pruner) -> list[str]:
        return sorted({name for weight in search.layers for name in search.touched(weight)})

    def _zeros(self, state: Mapping[str, Tensor], name: str) -> int:
        return int((state[name] == 0).sum())

    def _biases(self) -> dict[str, str]:
        """The biases that are pruned too: of layers that want it, where no other layer reads them."""
        found: dict[str, str] = {}
        for weight, path in self.chosen.paths.items():
            if not self.method.for_layer(path).include_bias:
                continue
            name = self.net.canonical(f"{path}.bias" if path else "bias")
            users = {node.name for node in self.graph.users_of(name)}
            if users and users <= {node.name for node in self.chosen.layers[weight]}:
                found[weight] = name
        return found

    def _identity(self) -> str:
        return identity_of(self.net, [self.samples.inputs[:16], self.samples.margins], [repr(self.method.settings())])

    def _written(self, search: Pruner) -> tuple[dict[str, str], dict[str, str]]:
        changed: dict[str, str] = {}
        skipped: dict[str, str] = {}
        for weight, path in self.chosen.paths.items():
            parts: list[str] = []
            for name, word in zip(search.touched(weight), ("weights", "biases"), strict=False):
                new = self._zeros(self.state, name) - self._zeros(self.before, name)
                if new:
                    self._store_(name, word)
                    parts.append(f"{new:,} of {self.state[name].numel():,} {word} became zero")
            if parts:
                changed[path] = ", ".join(parts)
            else:
                live = any(bool(self.state[name].any()) for name in search.touched(weight))
                skipped[path] = "a sample is lost with the first weight" if live else "all of it is zero"
        return changed, skipped

    def _store_(self, name: str, word: str) -> None:
        encoding = self.net.encoding(name)
        values = self.state[name].to(self.net.device)
        if word == "weights":
            self.net.encode_(name, encoding.with_mask(values != 0))
        elif self.net.canonical(name) in self.net.encodings:
            self.net.encode_(name, encoding.encode(values))
        else:
            self.net.write_(name, values)

    def _notes(self, search: Pruner) -> tuple[str, ...]:
        total, role = len(self.samples), self.method.acceptance_from
        right = int(self._right().sum())
        word = "keep their class" if not bool(self.samples.margins.isnan().any()) else "stay right"
        self.proof = {"right": right, "of": total, "lost_before": self.lost}
        names = self._touched(search)
        before, after = (sum(self._zeros(s, name) for name in names) for s in (self.before, self.state))
        of = sum(self.state[name].numel() for name in names)
        found = [
            f"{right:,} of {total:,} samples of {role} {word}",
            f"{search.trail.candidates:,} candidates",
            f"{before:,} -> {after:,} zeros of {of:,}",
        ]
        found += lost_before(self.lost)
        if self.net.activations:
            found.append(f"with integer activations {self._integers():,} of {total:,} are right")
        return tuple(found)

    def _integers(self) -> int:
        """How many samples are right in integers; the search itself sees no rounding of activations."""
        net, right = runnable(self.net, self.graph), 0
        with torch.no_grad():
            for start in range(0, len(self.samples), BATCH):
                part = slice(start, start + BATCH)
                outputs = net(self.samples.inputs[part].to(self.net.device)).cpu()
                right += int(self.judge(outputs, self.samples, part).sum())
        return right

    def _statistics(self, search: Pruner) -> dict[str, Any]:
        trail, chosen = search.trail, self.chosen
        layers = {path: self._layer(search, weight) for weight, path in chosen.paths.items()}
        names = self._touched(search)
        original = sum(t.numel() for t in self.before.values())
        zero = sum(self._zeros(self.state, name) for name in names)
        return {
            "global": {"mode": "pruning", **totals(self.net, self.started, original, zero)},
            "settings": self.method.settings(),
            "acceptance": {
                "source": self.method.acceptance_from,
                "samples": len(self.samples),
                "looked_at": self.samples.seen,
                **self.proof,
            },
            "layers": layers,
            "passes": trail.passes,
            "pruning": {
                "candidates": trail.candidates,
                "zeros_before": sum(self._zeros(self.before, name) for name in names),
                "zeros_after": zero,
            },
            "convergence": _decisions(trail, chosen.paths),
        }

    def _layer(self, search: Pruner, weight: str) -> dict[str, Any]:
        node, trail = self.chosen.layers[weight][0], search.trail
        old, new = (neurons_of(s[weight], node) for s in (self.before, self.state))
        whole = layer_statistics(old, new, trail, weight, trials=False)
        found = {name: whole[name] for name in SHARED_COLUMNS}
        pruned = ((old != 0) & (new == 0)).flatten(1).any(1)
        found |= {
            "strategy": search.strategies[weight],
            "neurons_pruned": int(pruned.sum()),
            "candidates": sum(a.candidates for a in trail.attempts.get(weight, [])),
        }
        bias = search.biases.get(weight)
        if bias is not None:
            found |= {"biases": len(self.state[bias]), "zero_biases_before": self._zeros(self.before, bias)}
            found["zero_biases_after"] = self._zeros(self.state, bias)
        return found


SHARED_COLUMNS = (
    *("shape", "total_params", "neurons_total", "neurons_zero", "original_unique_weights", "final_unique_weights"),
    *("zero_weights_before", "zero_weights_after", "searched_again", "processing_time", "weight_distribution"),
)
"""Columns that mean the same as in the statistics of `sic`."""


def _decisions(trail: Trail, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """What was decided for each neuron, or for a layer or its biases, in order."""
    words = {LAYER: "layer", BIASES: "biases"}
    return [
        {
            "layer": names[weight], "neuron": words.get(a.neuron, a.neuron), "became_zero": a.k, "success": a.accepted,
            "candidates": a.candidates, "timestamp": a.timestamp, "reason": a.reason,
        }
        for weight, attempts in trail.attempts.items()
        for a in attempts
    ]  # fmt: skip
