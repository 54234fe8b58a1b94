"""SIC, synaptic input consolidation: each neuron's incoming weights share as few values as the samples allow.

The published method (Klosvo, "ece525_sasic") takes neuron after neuron (a row of a linear layer, an output channel of a
convolution): its weights become zero, or share 1, 2, 3, ... values, the best for each number (Jenks breaks), and the
first with which an acceptance set stays right is kept. It evaluates the whole network for each candidate;
`mode="exact"` takes the same decisions on what a neuron changes (`exact`, `engine`). `mode="budget"` has the same aim
and another way to it: a small part of the samples may be lost, and all neurons are consolidated at once, by what their
weights cost in the file (`budget`).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, PassResult, check_choice, check_range
from lilliput.data.select import AcceptanceSet, runs_of, subset
from lilliput.graph.trace import Node, graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.consolidation.acceptance import BATCH, MANY, UnderAcceptance, check_group, lost_before
from lilliput.methods.consolidation.budget import Budget
from lilliput.methods.consolidation.engine import Judge, PlainSearch, Trunk, neurons_of, search_kind, verified
from lilliput.methods.consolidation.exact import Exact, Rules
from lilliput.methods.consolidation.inputs import neuron_axis, second_moments
from lilliput.methods.consolidation.layerwise import Chosen
from lilliput.methods.consolidation.statistics import (
    Trail,
    convergence,
    layer_statistics,
    totals,
    unique_weights,
)
from lilliput.methods.consolidation.storing import encoded, short, snapped
from lilliput.methods.consolidation.summed import COUNTS, as_product_of_sums
from lilliput.training.checkpoint import identity_of, read_checkpoint, write_checkpoint

SASIC = {"enable": False, "calibration_fraction": 0.1, "statistic": "p_above", "threshold": 0.01}
ABOVE = 0.01
"""Inputs larger than this count as there, for the statistic `p_above`."""
MOST_DECIMALS = 12
PRICES = 10
"""How many a search looks at, about."""


@dataclass(frozen=True, kw_only=True)
class Sic(UnderAcceptance):
    """`acceptance_from`, `eval_max`, `filtered`, `tiered_asc`: which samples, in which tiers (`UnderAcceptance`).

    `strict`: all samples are looked at after each neuron, where margins can be bounded, not only after each layer.
    `max_k_per_neuron`: the most values that a neuron may share.

    Only in exact mode: `k_sweep` tries so many evenly spaced numbers of values in place of all; `sasic`: {enable,
    calibration_fraction, statistic (p_above or mean_abs), threshold}: only weights whose inputs are active decide where
    the values are; up to `max_passes` over all layers, ended when the number of distinct weights (rounded to
    `rounding_decimals`; with zero unless `uwc_exclude_zero`) has not fallen by more than `uwc_min_rel_delta` in
    `uwc_patience` passes, or no weight has moved by `min_pass_weight_delta`; a neuron that found nothing in
    `neuron_patience` passes rests; `merge_after_clustering` makes one of values that are equal when rounded.

    Only in budget mode: `error_budget` is the share of samples that may be lost, `held_out` the share that the search
    does not see; `weighting` says what an error counts: by the outputs' `margins`, by the `inputs` alone, or `none`;
    `refit` fits shared values and biases to the layer's outputs; `drop_dead` removes weights of inputs that are always
    zero, and neurons that are constant; `finish` spends what is left of the budget neuron by neuron (it pays in
    networks of some hundred weights).

    `track_k_trials` adds each neuron's number of candidates to the statistics; `enable_product_of_sums` compares
    the network as product of sums with the dense one, on the acceptance set.
    """

    name: ClassVar[str] = "sic"
    summary: ClassVar[str] = "share as few weights per neuron as keep an acceptance set right (SIC)"
    citations: ClassVar[tuple[str, ...]] = ("https://github.com/klosvo/ece525_sasic",)
    per_layer: ClassVar[tuple[str, ...]] = ("max_k_per_neuron", "neuron_patience", "strict", "k_sweep")

    mode: str = "budget"
    max_k_per_neuron: int = 1_000_000
    strict: bool = False
    k_sweep: int | None = None
    sasic: Mapping[str, Any] = field(default_factory=lambda: dict(SASIC))
    neuron_patience: int = 0
    rounding_decimals: int = 6
    uwc_patience: int = 1
    uwc_min_rel_delta: float = 0.0
    uwc_exclude_zero: bool = True
    min_pass_weight_delta: float = 0.0
    merge_after_clustering: bool = False
    error_budget: float = 0.001
    held_out: float = 0.08
    weighting: str = "margins"
    refit: bool = True
    drop_dead: bool = True
    finish: bool = False
    track_k_trials: bool = False
    enable_product_of_sums: bool = False

    def __post_init__(self) -> None:
        check_choice("sic mode", self.mode, ("budget", "exact"))
        check_choice("sic weighting", self.weighting, ("margins", "inputs", "none"))
        check_range("sic max_k_per_neuron", self.max_k_per_neuron, 1, MANY)
        check_range("sic neuron_patience", self.neuron_patience, 0, 1000)
        check_range("sic rounding_decimals", self.rounding_decimals, 0, 1000)
        check_range("sic uwc_patience", self.uwc_patience, 1, 1000)
        check_range("sic uwc_min_rel_delta", self.uwc_min_rel_delta, 0.0, 1.0)
        check_range("sic min_pass_weight_delta", self.min_pass_weight_delta, 0.0, 1e30)
        check_range("sic error_budget", self.error_budget, 0.0, 0.5)
        check_range("sic held_out", self.held_out, 0.0, 0.9)
        if self.k_sweep is not None:
            check_range("sic k_sweep", self.k_sweep, 1, MANY)
        check_group("sic sasic", self.sasic, SASIC)
        sasic = {**SASIC, **self.sasic}
        check_choice("sic sasic statistic", sasic["statistic"], ("p_above", "mean_abs"))
        check_range("sic sasic calibration_fraction", sasic["calibration_fraction"], 1e-6, 1.0)
        check_range("sic sasic threshold", sasic["threshold"], 0.0, 1e30)
        super().__post_init__()

    def apply_(self, net: Artifact, context: Context) -> PassResult:
        return _Run(self, net, context).result()


class _Run:
    """One application."""

    def __init__(self, method: Sic, net: Artifact, context: Context) -> None:
        self.method, self.net, self.context = method, net, context
        self.started = time.time()
        self.graph = graph_of(net)
        self.judge = Judge(task=context.task)
        self.state = {name: t.detach().cpu().clone() for name, t in net.module.state_dict().items()}
        self.before = dict(self.state)
        self.trail = Trail()
        self.phases: dict[str, float] = {}
        self.biases: set[str] = set()
        self.proof: dict[str, int] = {}
        self.lost = 0
        self.sums: dict[str, Any] = {}

    def result(self) -> PassResult:
        chosen = Chosen.of(self.method, self.net, self.graph, self._refused)
        self.layers, self.paths, skipped = chosen.layers, chosen.paths, chosen.skipped
        if not self.layers:
            return PassResult(skipped=skipped)
        with self._phase("filtering"):
            found, self.lost_before = self.method.accepted(self.graph, self.state, self.context)
            if len(found) == 0:
                return PassResult(skipped=skipped | dict.fromkeys(self.paths.values(), self.method.none_left()))
            self.samples, self.unseen = self._split(found)
        with self._phase("clustering"):
            extra = self._exact() if self.method.mode == "exact" else self._budget()
        changed = self._written()
        notes = (self._proved(), *extra, *self._as_product_of_sums(), *lost_before(self.lost_before))
        return PassResult(changed=changed, skipped=skipped, notes=notes, statistics=self._statistics())

    def _refused(self, weight: str, node: Node) -> str:
        grid = self.net.encoding(weight).grid
        inside = grid is not None and grid.axis not in (None, neuron_axis(node))
        return "its weights are on a grid that differs inside a neuron" if inside else ""

    def _split(self, found: AcceptanceSet) -> tuple[AcceptanceSet, AcceptanceSet | None]:
        """What the search sees, and what it does not."""
        method = self.method
        hidden = int(method.held_out * len(found)) if method.mode == "budget" else 0
        if hidden == 0:
            return found, None
        order = torch.randperm(len(found), generator=self.context.generator)
        return subset(found, order[hidden:].sort().values), subset(found, order[:hidden].sort().values)

    # --- exact

    def _exact(self) -> list[str]:
        method = self.method
        done, first = 0, 0
        neurons = sum(len(neurons_of(self.state[w], calls[0])) for w, calls in self.layers.items())
        identity = self._identity()
        fast, medium = method.seen_first(len(self.samples))
        with self.context.progress.task("consolidate neurons", neurons * method.max_passes) as advance:
            search = Exact(
                graph=self.graph,
                state=self.state,
                layers=self.layers,
                samples=self.samples,
                judge=self.judge,
                fast=fast,
                medium=medium,
                rules=self._rules,
                active=self._active(),
                snap=self._snap,
                advance=advance,
                trail=self.trail,
            )
            known = None if self.context.checkpoint is None else read_checkpoint(self.context.checkpoint, identity)
            if known is not None:
                first, done = search.restore_(known)
                self.trail = search.trail
            for sweep in range(first, method.max_passes):
                started, before = time.time(), {w: self.state[w].clone() for w in self.layers}

                def report(count: int, sweep: int = sweep) -> None:
                    if self.context.checkpoint is not None:
                        write_checkpoint(self.context.checkpoint, identity, search.to_data(sweep, count))

                search.sweep_(done, report)
                done = 0
                if self._settled(before, time.time() - started):
                    break
        method.count_uses(self.context, self.trail.candidates)
        plain = [self.paths[w] for w, calls in self.layers.items() if search_kind(calls) is PlainSearch]
        notes = [f"{self.trail.candidates:,} candidates", *self._merged()]
        if plain:
            notes.append(f"by forwards of all that comes after, not from kept values: {', '.join(plain)}")
        return notes

    def _rules(self, weight: str) -> Rules:
        own = self.method.for_layer(self.paths[weight])
        return Rules(most_k=own.max_k_per_neuron, patience=own.neuron_patience, strict=own.strict, sweep=own.k_sweep)

    def _active(self) -> Callable[[Tensor, Node, Tensor], Tensor] | None:
        """SASIC: which weights meet inputs that are active in a part of the samples; of the weight's shape."""
        settings = {**SASIC, **self.method.sasic}
        if not settings["enable"]:
            return None
        count = max(1, round(settings["calibration_fraction"] * len(self.samples)))
        part = torch.randperm(len(self.samples), generator=self.context.generator)[:count]

        def active(inputs: Tensor, node: Node, weight: Tensor) -> Tensor:
            x = inputs[part].abs()
            x = (x > ABOVE).float() if settings["statistic"] == "p_above" else x.sqrt()
            return second_moments(x, node, weight) >= settings["threshold"]

        return active

    def _settled(self, before: Mapping[str, Tensor], seconds: float) -> bool:
        """Is another pass of no use? Notes what this one did."""
        method = self.method
        decimals = min(method.rounding_decimals, MOST_DECIMALS)
        count = sum(unique_weights(self.state[w], decimals, without_zero=method.uwc_exclude_zero) for w in self.layers)
        moved = max(float((self.state[w] - before[w]).abs().max()) for w in self.layers)
        passes = self.trail.passes
        last = passes[-1]["unique_weights"] if passes else None
        drop = None if last is None else (last - count) / max(1, last)
        passes.append(
            {"duration": round(seconds, 3), "unique_weights": count, "relative_drop": drop, "max_weight_change": moved}
        )
        recent = [p["relative_drop"] for p in passes[-method.uwc_patience :]]
        stalled = len(recent) == method.uwc_patience and all(
            d is not None and d <= method.uwc_min_rel_delta for d in recent
        )
        return moved == 0 or moved < method.min_pass_weight_delta or stalled

    def _merged(self) -> list[str]:
        """Values of a neuron that are equal when rounded become their mean, if all samples stay right."""
        if not self.method.merge_after_clustering:
            return []
        with self._phase("merging"):
            scale = 10.0 ** min(self.method.rounding_decimals, MOST_DECIMALS)
            merged = 0
            for weight, calls in self.layers.items():
                before = self.state[weight].clone()
                for r, row in enumerate(neurons_of(self.state[weight], calls[0])):
                    rounded = torch.round(row.double() * scale)
                    for name in rounded[row != 0].unique():
                        same = (rounded == name) & (row != 0)
                        if len(row[same].unique()) > 1:
                            row[same] = self._snap(weight, row[same].mean().expand(1, *row.shape).clone(), [r])[0][same]
                            merged += 1
                if not torch.equal(before, self.state[weight]) and not bool(self._right(self.samples).all()):
                    self.state[weight].copy_(before)
                    return [
                        f"values that are equal to {scale:g} were left apart in {self.paths[weight]}: samples were lost"
                    ]
        return [f"{merged} groups of values that are equal when rounded made one"]

    # --- budget

    def _budget(self) -> list[str]:
        method, identity = self.method, self._identity()
        known: dict[str, Any] = {"prices": {}, "lost": torch.zeros(0, dtype=torch.int64)}
        if self.context.checkpoint is not None:
            known = read_checkpoint(self.context.checkpoint, identity) or known
        with self.context.progress.task("prices of a bit", PRICES) as advance:

            def report(judged: Mapping[float, bool], lost: Tensor) -> None:
                advance(1)
                if self.context.checkpoint is not None:
                    write_checkpoint(self.context.checkpoint, identity, {"prices": dict(judged), "lost": lost})

            search = Budget(
                graph=self.graph,
                net=self.net,
                state=self.state,
                layers=self.layers,
                samples=self.samples,
                unseen=self.unseen,
                judge=self.judge,
                error_budget=method.error_budget,
                medium=method.tiers["medium"],
                most_k=lambda weight: method.for_layer(self.paths[weight]).max_k_per_neuron,
                weighting=method.weighting,
                refits=method.refit,
                drop_dead=method.drop_dead,
                finishes=method.finish,
                may_fold=lambda node: self.method.selects(node.layer) and self._free(node),
                generator=self.context.generator,
                snap=self._snap,
            )
            self.state = search.search(known["prices"], known["lost"], report)
        self.biases, self.lost = search.changed_biases, search.lost
        prices = len(known["prices"]) + search.tried
        method.count_uses(self.context, prices + search.candidates)
        found = [f"{prices} prices of a bit"]
        if method.finish:
            found.append(f"{search.candidates:,} candidates")
        if self.unseen is not None:
            right = self._right(self.unseen)
            found.append(f"{int(right.sum()):,} of {len(right):,} that the search did not see are right")
        return found

    def _as_product_of_sums(self) -> list[str]:
        """The network as product of sums beside the dense one, on the hardest samples."""
        if not self.method.enable_product_of_sums:
            return []
        if self.net.activations:
            return ["not compared as product of sums: activations have grids (export with product_of_sums does it)"]
        hardest = torch.argsort(self.samples.margins.nan_to_num(0.0), stable=True)[: self.method.tiers["medium"]]
        self.sums = found = as_product_of_sums(self.net, self.graph, subset(self.samples, hardest), self.judge)
        dense, multiplies, additions = (f"{found[name]:,}" for name in COUNTS)
        note = (
            f"as product of sums: {multiplies} of {dense} multiplies, {additions} additions; {found['same']:,} of "
            f"{found['samples']:,} samples as with the dense network, outputs differ by "
            f"{found['largest_difference']:.1e} of {found['largest_output']:.1f}"
        )
        return [note]

    def _free(self, node: Node) -> bool:
        weight = node.state["weight"]
        return len(self.graph.users_of(weight)) == 1 and self.net.encoding(weight).grid is None

    # --- both

    def _snap(self, weight: str, rows: Tensor, neurons: list[int]) -> Tensor:
        """`rows` [n, ...] for these neurons as the file can hold them: on the grid, if there is one."""
        grid = self.net.encoding(weight).grid
        if grid is None:
            return rows if self.method.mode == "exact" else short(rows)
        return snapped(rows, grid, neurons)

    def _right(self, samples: AcceptanceSet) -> Tensor:
        return verified(Trunk(self.graph, samples.inputs, BATCH), self.state, samples, self.judge)[0]

    def _identity(self) -> str:
        texts = [
            repr(self.method.settings()),
            *(f"{role}:{number}" for role, number in self.samples.where[:: max(1, len(self.samples) // 1000)]),
        ]
        return identity_of(self.net, [self.samples.inputs[:16], self.samples.margins], texts)

    def _proved(self) -> str:
        """What the search has seen of the network as it is now, on all samples."""
        total = len(self.samples)
        right = total - self.lost
        word = "keep their class" if not bool(self.samples.margins.isnan().any()) else "stay right"
        self.proof = {"right": right, "of": total, "lost_before": self.lost_before}
        return f"{right:,} of {total:,} samples of {self.method.acceptance_from} {word}"

    def _written(self) -> dict[str, str]:
        changed: dict[str, str] = {}
        for weight, calls in self.layers.items():
            rows = neurons_of(self.state[weight], calls[0])
            tensor = self.state[weight].to(self.net.device)
            self.net.encode_(weight, encoded(tensor, neuron_axis(calls[0]), self.net.encoding(weight)))
            values = sum(len(row[row != 0].unique()) for row in rows)
            zero = int((~rows.flatten(1).any(1)).sum())
            changed[self.paths[weight]] = f"{values} shared values in {len(rows)} neurons, {zero} of them zero"
        for name in self.biases:
            self.net.write_(name, self.state[name].to(self.net.device))
        return changed

    def _phase(self, name: str) -> "_Phase":
        return _Phase(self.phases, name)

    def _statistics(self) -> dict[str, Any]:
        layers: dict[str, Any] = {}
        table = count_macs(self.graph, self.net)
        for weight, calls in self.layers.items():
            old, new = (neurons_of(s[weight], calls[0]) for s in (self.before, self.state))
            path = self.paths[weight]
            layers[path] = layer_statistics(old, new, self.trail, weight, trials=self.method.track_k_trials)
            layers[path]["operations"] = {name: m.value for name, m in table[calls[0].name].items()}
        zero = sum(row["zero_weights_after"] for row in layers.values())
        total = sum(row["total_params"] for row in layers.values())
        original = sum(t.numel() for t in self.before.values())
        neurons = sum(row["neurons_total"] for row in layers.values())
        tried = self.trail.candidates
        return {
            "global": {
                "mode": self.method.mode,
                "effective_params": original - total + sum(row["final_unique_weights"] for row in layers.values()),
                **totals(self.net, self.started, original, zero),
            },
            "settings": self.method.settings(),
            "acceptance": {
                "source": self.method.acceptance_from,
                "samples": len(self.samples),
                "looked_at": self.samples.seen,
                "not_seen_by_the_search": 0 if self.unseen is None else len(self.unseen),
                "runs": runs_of(self.samples),
                **self.proof,
            },
            "phases": {name: round(seconds, 3) for name, seconds in self.phases.items()},
            "layers": layers,
            "passes": self.trail.passes,
            "sic": {
                "total_k_trials": tried,
                "num_neurons_evaluated": neurons,
                "avg_k_trials_per_neuron": round(tried / max(1, neurons), 3),
            },
            "sasic": {**SASIC, **self.method.sasic},
            "product_of_sums": self.sums,
            "convergence": convergence(self.trail, self.paths),
        }


@dataclass
class _Phase:
    """Adds the seconds inside `with` to a table."""

    seconds: dict[str, float]
    name: str
    started: float = 0.0

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.started
