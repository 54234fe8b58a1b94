"""SIC, synaptic input consolidation: each neuron's incoming weights share as few values as the samples allow.

For each neuron (a row of a linear layer, an output channel of a convolution) in turn: its weights become zero, or share
1, 2, 3, ... values, and the first of these with which the acceptance set stays right is kept. The published method
(Klosvo, "ece525_sasic") evaluates the whole network for each candidate; `engine` takes the same decisions on what a row
changes. Clusterings are optimal (Jenks breaks, found by `ops.clustering`).

`mode="exact"` is the published rule: all samples right, index order. `mode="budget"` differs from it: a small part of
the samples may be lost, released neuron by neuron; errors count by the second moment of the input they meet; weights
of inputs that are always zero go; and the acceptance is judged on samples that the search did not see.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Sharing
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, PassResult, check_choice, check_range
from lilliput.data.select import SOURCES, AcceptanceSet, acceptance_set, margins, subset
from lilliput.graph.suffix import Block
from lilliput.graph.trace import Node, graph_of
from lilliput.methods.consolidation.candidates import Neuron
from lilliput.methods.consolidation.engine import NEAR, Judge, LayerSearch, Screen, Trunk, bound, joined, part_of

TIERS = {"enable": True, "fast": 192, "medium": 1500}
BATCH, MOMENT_SAMPLES, NOISY = 1000, 2048, 4
WHOLE = (
    *("mode", "acceptance_from", "eval_max", "filtered", "tiered_asc", "max_passes", "error_budget", "held_out"),
    "noise",
)
"""Settings that no layer can have for itself."""
WIDER = 30.0
"""How much more is settled by plain forwards where rounding has misled a search."""
TIGHTER, MOST_TRIES, SLACK = 0.7, 4, 1.5
"""What is left of the budget when samples that the search does not see are lost too often, and how often at most; too
often is so many standard deviations above what the budget has released."""


@dataclass(frozen=True, kw_only=True)
class Sic(Pass):
    """`acceptance_from`: train, validation or train+validation; `eval_max` samples of it, the first, or `filtered`.

    `tiered_asc`: {fast, medium}: each candidate meets the `fast` samples that are nearest to being lost, then the rest
    of `medium`, and all samples when the layer is done (`strict`: after each neuron, where margins can be bounded).
    Only in budget mode: `error_budget` is the share of samples that may be lost, `held_out` the share that the search
    does not see, `weighted` the clustering by second moments of the inputs, `drop_dead` the removal of inputs that are
    always zero and of constant neurons; `spare_small` lets a layer lose no larger a part of its weights' energy
    than it holds of all weights; `noise` (standard deviations of the inputs) adds the hardest quarter with noise.
    """

    name: ClassVar[str] = "sic"
    summary: ClassVar[str] = "share as few weights per neuron as keep an acceptance set right (SIC)"
    citations: ClassVar[tuple[str, ...]] = ("https://github.com/klosvo/ece525_sasic",)

    mode: str = "budget"
    acceptance_from: str = "train"
    eval_max: int | None = None
    filtered: bool = False
    tiered_asc: Mapping[str, Any] = field(default_factory=lambda: dict(TIERS))
    max_passes: int = 1
    max_k_per_neuron: int = 1_000_000
    neuron_patience: int = 0
    strict: bool = False
    error_budget: float = 0.001
    held_out: float = 0.08
    weighted: bool = True
    drop_dead: bool = True
    spare_small: bool = True
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_choice("sic mode", self.mode, ("budget", "exact"))
        check_choice("sic acceptance_from", self.acceptance_from, tuple(SOURCES))
        check_range("sic max_passes", self.max_passes, 1, 1000)
        check_range("sic max_k_per_neuron", self.max_k_per_neuron, 1, 1_000_000_000)
        check_range("sic neuron_patience", self.neuron_patience, 0, 1000)
        check_range("sic error_budget", self.error_budget, 0.0, 0.5)
        check_range("sic held_out", self.held_out, 0.0, 0.9)
        check_range("sic noise", self.noise, 0.0, 10.0)
        if self.eval_max is not None:
            check_range("sic eval_max", self.eval_max, 1, 1_000_000_000)
        if not isinstance(self.tiered_asc, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RecipeError("sic tiered_asc", f"{self.tiered_asc!r}", "give {fast: 192, medium: 1500}")
        for key, value in self.tiered_asc.items():
            check_choice("sic tiered_asc", key, tuple(TIERS))
            if key != "enable":
                check_range(f"sic tiered_asc {key}", value, 1, 1_000_000_000)
        for pattern, settings in self.overrides.items():
            for key in settings:
                if key in WHOLE:
                    raise RecipeError(f"sic override for {pattern!r}", f"{key} counts for all layers", "set it once")
        super().__post_init__()

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        return _Run(self, net, context).result()


class _Run:
    """One application: layer by layer in the order in which the network runs."""

    def __init__(self, method: Sic, net: Artifact, context: Context) -> None:
        self.method, self.net, self.context = method, net, context
        self.graph = graph_of(net)
        self.free = method.mode == "budget"
        self.tiers = {**TIERS, **method.tiered_asc}
        self.samples, self.unseen = self._samples()
        self.judge = Judge(task=context.task)
        self.state = {name: t.detach().cpu().clone() for name, t in net.module.state_dict().items()}
        self.margin = self.samples.margins.clone()
        self.lost = self.done = self.tried = self.neurons = self.weights = 0
        self.scale, self.begun = 1.0, 0
        self.failed: dict[tuple[str, int], int] = {}
        self.biases: set[str] = set()

    def _samples(self) -> tuple[AcceptanceSet, AcceptanceSet | None]:
        """What the search sees, and what it does not."""
        method = self.method
        found = acceptance_set(
            self.context.task,
            self.context.evaluator,
            source=method.acceptance_from,
            size=method.eval_max,
            filtered=method.filtered,
        )
        if self.free and method.noise:
            found = self._with_noise(found)
        hidden = int(method.held_out * len(found)) if self.free else 0
        if hidden == 0:
            return found, None
        order = torch.randperm(len(found), generator=self.context.generator)
        return subset(found, order[hidden:].sort().values), subset(found, order[:hidden].sort().values)

    def _with_noise(self, found: AcceptanceSet) -> AcceptanceSet:
        """And the hardest quarter once more with noise on the inputs, as far as the network gets these right."""
        hardest = torch.argsort(found.margins.nan_to_num(0.0), stable=True)[: max(1, len(found) // NOISY)]
        noisy = subset(found, hardest.sort().values)
        spread = self.method.noise * float(noisy.inputs.std())
        inputs = noisy.inputs + spread * torch.randn(noisy.inputs.shape, generator=self.context.generator)
        noisy = replace(noisy, inputs=inputs)
        outputs = [torch.empty((0, *noisy.original.shape[1:]))]
        state = {name: t.detach().cpu() for name, t in self.net.module.state_dict().items()}
        Trunk(self.graph, inputs, BATCH).forward(state, lambda _, part: outputs.append(part))
        noisy = replace(noisy, original=torch.cat(outputs))
        right = torch.nonzero(Judge(task=self.context.task)(noisy.original, noisy, slice(None))).reshape(-1)
        noisy = replace(noisy, margins=margins(noisy.original, noisy.targets))
        return joined(found, subset(noisy, right))

    def result(self) -> PassResult:
        chosen, skipped = self.method.pick(self.net)
        places: dict[str, Node] = {}
        for path, weight in chosen.items():
            users = self.graph.users_of(weight)
            encoding = self.net.encoding(weight)
            if encoding.grid is not None:
                skipped[path] = "its weights are on a grid already: consolidate first, then quantize"
            elif len(users) != 1 or users[0].op not in ("conv", "linear") or users[0].attributes.get("transposed"):
                skipped[path] = "it is called more than once, or transposed"
            else:
                places[path] = users[0]
        if not places:
            return PassResult(skipped=skipped)
        position = {node.name: i for i, node in enumerate(self.graph.nodes)}
        queue = sorted(places, key=lambda path: position[places[path].name])
        self.weights = sum(self.state[chosen[path]].numel() for path in queue)
        self.neurons = self.method.max_passes * sum(self.state[chosen[path]].shape[0] for path in queue)
        found: dict[str, tuple[int, int]] = {}
        with self.context.progress.task("consolidate neurons", self.neurons) as advance:
            for _ in range(self.method.max_passes):
                before = {path: self.state[chosen[path]].clone() for path in queue}
                trunk = Trunk(self.graph, self.samples.inputs, BATCH)
                trunk.reach_(self.state, places[queue[0]].name)
                hidden = None if self.unseen is None else Trunk(self.graph, self.unseen.inputs, BATCH)
                if hidden is not None:
                    hidden.reach_(self.state, places[queue[0]].name)
                for i, path in enumerate(queue):
                    after = places[queue[i + 1]].name if i + 1 < len(queue) else None
                    found[path] = self._layer(trunk, hidden, path, places[path], after, advance)
                if all(torch.equal(before[path], self.state[chosen[path]]) for path in queue):
                    break
        changed: dict[str, str] = {}
        for path in queue:
            weight = self.state[chosen[path]]
            self.net.encode_(chosen[path], encoded(weight.to(self.net.device)))
            groups, zero = found[path]
            changed[path] = f"{groups} shared values in {len(weight)} neurons, {zero} of them zero"
        for name in self.biases:
            self.net.write_(name, self.state[name].to(self.net.device))
        return PassResult(changed=changed, skipped=skipped, notes=self._notes())

    def _notes(self) -> tuple[str, ...]:
        total = len(self.samples)
        notes = [
            f"{total - self.lost:,} of {total:,} samples of {self.method.acceptance_from} that were right are right",
            f"{self.tried:,} candidates",
        ]
        if self.unseen is not None:
            right, _, _ = self._verify(Trunk(self.graph, self.unseen.inputs, BATCH), self.unseen, None)
            notes.append(f"{int(right.sum()):,} of {len(right):,} that the search did not see are right")
        return tuple(notes)

    def _allowed(self) -> int:
        """How many samples may be wrong by now: the budget is released neuron by neuron, and not handed on."""
        released = self.scale * self.method.error_budget * (self.done - self.begun) / self.neurons if self.free else 0.0
        return self.lost + int(released * len(self.samples))

    def _layer(
        self, trunk: Trunk, hidden: Trunk | None, path: str, node: Node, after: str | None, advance: Any
    ) -> tuple[int, int]:
        method = self.method.for_layer(path)
        weight = self.state[node.state["weight"]]
        original, done = weight.clone(), self.done
        self.scale, self.begun = 1.0, done
        hard = torch.argsort(self.margin.nan_to_num(0.0), stable=True)[: int(self.tiers["medium"])]
        moments = None
        if self.free and (method.weighted or method.drop_dead):
            moments = second_moments(trunk.values[node.inputs[0]], node, weight)
            if method.drop_dead:
                weight.masked_fill_(moments == 0, 0.0)
        snapshot, tries, near = weight.clone(), 0, NEAR
        while True:
            search = self._search(trunk, node, hard, near, strict=method.strict)
            groups = zero = tried = 0
            for row in range(len(weight)):
                self.done += 1
                k, count = self._neuron(search, method, path, row, weight, moments)
                groups, zero, tried = groups + k, zero + int(k == 0), tried + count
                advance(1)
            right, distance, kept = self._verify(trunk, self.samples, after)
            lost = int((~right).sum())
            fits = lost <= self._allowed()
            if fits and tries < MOST_TRIES and self._overfits(hidden):
                tries, self.scale = tries + 1, self.scale * TIGHTER
                fits = False
            if fits:
                break
            known, hard = len(hard), torch.unique(torch.cat([hard, torch.nonzero(~right).reshape(-1)]))
            if lost > self._allowed() and len(hard) == known:  # seen, and taken for right: rounding
                near *= WIDER
            weight.copy_(snapshot if near <= 1.0 else original)
            if near > 1.0:
                groups, zero = sum(len(row.unique()) for row in weight), 0
                right, distance, kept = self._verify(trunk, self.samples, after)
                lost = int((~right).sum())
                break
            advance(done - self.done)
            self.done = done
        if self.free and method.drop_dead:
            self._fold_(search, weight)
        self.margin, self.lost = distance, lost
        self.tried += tried
        if after is not None:
            trunk.advance_(kept, after)
            if hidden is not None:
                hidden.reach_(self.state, after)
        return groups, zero

    def _overfits(self, hidden: Trunk | None) -> bool:
        """Are more of the samples that the search does not see wrong than the budget has released?"""
        if hidden is None or self.unseen is None:
            return False
        right, _, _ = self._verify(hidden, self.unseen, None)
        expected = self.method.error_budget * len(right) * self.done / self.neurons
        return int((~right).sum()) > expected + SLACK * math.sqrt(max(expected, 1.0))

    def _verify(
        self, trunk: Trunk, samples: AcceptanceSet, after: str | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """All samples through the rest of the network: who is right, with which margins; and what comes after."""
        right, distance = torch.ones(len(samples), dtype=torch.bool), torch.empty(len(samples))

        def visit(part: slice, outputs: Tensor) -> None:
            right[part] = self.judge(outputs, samples, part)
            distance[part] = margins(outputs, part_of(samples.targets, part))

        return right, distance, trunk.forward(self.state, visit, after)

    def _search(self, trunk: Trunk, node: Node, hard: Tensor, near: float, *, strict: bool) -> LayerSearch:
        screen = None
        limits = bound(self.graph, self.state, node) if strict and not self.free else None
        if limits is not None and not bool(self.margin.isnan().any()):
            screen = Screen(self.samples, self.margin, trunk.values, node.inputs[0], *limits)
            screen.leave_(hard)
        return LayerSearch(
            self.graph,
            self.state,
            node,
            subset(self.samples, hard),
            self.judge,
            {name: value[hard] for name, value in trunk.values.items()},
            trunk.position,
            fast=int(self.tiers["fast"]) if self.tiers["enable"] else len(hard),
            screen=screen,
            near=near,
        )

    def _neuron(
        self, search: LayerSearch, method: Sic, path: str, row: int, weight: Tensor, moments: Tensor | None
    ) -> tuple[int, int]:
        """(shared values of the row, candidates tried)."""
        counts = moments[row] if moments is not None and method.weighted else None
        neuron = Neuron.of(weight[row], counts, short=self.free)
        error = weight.numel() / self.weights if self.free and method.spare_small else 1.0
        patience = method.neuron_patience
        if len(neuron.live) == 0 or (patience and self.failed.get((path, row), 0) >= patience):
            return (0 if len(neuron.live) == 0 else neuron.distinct), 0
        for group in neuron.candidates(method.max_k_per_neuron, error):
            found = search.first_accepted(row, group.rows, self._allowed())
            if found is not None:
                search.accept_(row, group.rows[found])
                values = group.rows[found]
                return len(torch.unique(values[values != 0])), group.first + found + 1
        self.failed[(path, row)] = self.failed.get((path, row), 0) + 1
        return neuron.distinct, neuron.most(method.max_k_per_neuron) + 1

    def _fold_(self, search: LayerSearch, weight: Tensor) -> None:
        """Neurons that are zero give a constant: it goes into the bias of the next layer, their weights there go."""
        for row in range(len(weight)):
            if not bool(weight[row].any()):
                reader = search.suffix.constant(row)
                if reader is not None:
                    self._absorb_(*reader)

    def _absorb_(self, after: Node, block: Block, value: float) -> None:
        name, bias = after.state["weight"], after.state.get("bias")
        part = self.state[name][:, block.start : block.stop]
        padded = after.op == "conv" and any(p != (0, 0) for p in after.attributes["pads"])
        if len(self.graph.users_of(name)) > 1 or not self.method.selects(after.layer):
            return
        if self.net.encoding(name).grid is not None or (value and (bias is None or padded)):
            return
        if value and bias is not None:
            if self.net.canonical(bias) in self.net.encodings or len(self.graph.users_of(bias)) > 1:
                return
            self.state[bias] += value * part.flatten(1).sum(1)
            self.biases.add(self.net.canonical(bias))
        part.zero_()


def second_moments(x: Tensor, node: Node, weight: Tensor) -> Tensor:
    """E[x^2] of what each weight meets, of the weight's shape, over all samples and places; padding counts as zero."""
    if node.op == "linear":
        flat = x.reshape(-1, x.shape[-1])
        return (torch.linalg.vector_norm(flat, dim=0).square() / len(flat)).expand_as(weight)
    a = node.attributes
    squares = x[:: max(1, len(x) // MOMENT_SAMPLES)].square().mean(0, keepdim=True)
    pads = [n for p in reversed(a["pads"]) for n in p]
    wide = torch.nn.functional.pad(squares, pads)
    for d, (k, s, step) in enumerate(zip(a["kernel"], a["stride"], a["dilation"], strict=True)):
        wide = wide.unfold(d + 2, step * (k - 1) + 1, s)[..., ::step]
    rank = len(a["kernel"])
    mean = wide.mean(tuple(range(2, 2 + rank)))[0]  # [channels, *kernel]
    each = len(weight) // a["groups"]
    return mean.reshape(a["groups"], 1, -1, *a["kernel"]).expand(-1, each, *[-1] * (rank + 1)).reshape(weight.shape)


def encoded(weight: Tensor) -> Encoding:
    """The rows as they are: zeros masked, each row's other values as its table."""
    rows = weight.reshape(len(weight), -1)
    mask = rows != 0
    tables: list[Tensor] = []
    indices = torch.zeros(rows.shape, dtype=torch.int64, device=weight.device)
    for i, row in enumerate(rows):
        values, labels = torch.unique(row[mask[i]], return_inverse=True)
        indices[i, mask[i]] = labels
        tables.append(values if len(values) else rows.new_zeros(1))
    sizes = torch.tensor([len(t) for t in tables], device=weight.device)
    sharing = Sharing(indices=indices.reshape(weight.shape), sizes=sizes, axis=0)
    base = Encoding.of(weight)
    whole = base if bool(mask.all()) else base.with_mask(mask.reshape(weight.shape))
    return whole.with_sharing(sharing, torch.cat(tables))
