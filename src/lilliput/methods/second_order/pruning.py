"""Second-order pruning: weights go where the others of their neuron can make up for them; no training, no labels.

Which ones: optimal brain surgery, row by row (`ops.elimination`), on the inputs of the network before; what a neuron's
error counts is the mean squared slope of the network's outputs, so neurons and layers are compared. Then, layer by
layer, the weights that are left and the bias are fitted to what the layer should give, on the inputs that it has now.

Frantar et al. (2022), "Optimal brain compression", https://arxiv.org/abs/2208.11580; in order over layers: Frantar and
Alistarh (2023), "SparseGPT", https://arxiv.org/abs/2301.00774.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, PassResult, check_choice, check_range
from lilliput.graph.trace import Node
from lilliput.methods.second_order.layers import Layers, SecondOrder, damped, samples_of, wanted_cross
from lilliput.ops.elimination import eliminated, least_squares
from lilliput.training.layer_targets import Wanted, importance, products_of, walk, walk_inputs

MOST_PLACES = 2**16
DENSEST = 0.02
"""Of a neuron's weights, at least one, that always stay."""


@dataclass(frozen=True, kw_only=True)
class SecondOrderPruning(SecondOrder):
    """Set the share `sparsity` of the selected weights to zero.

    `scope` "global" compares weights of all layers by what they add to the error of the network's outputs, "layer"
    those of each layer. `samples` of train are looked at. Overrides of `sparsity` go with "layer" only. Comes before
    weights are on grids or share values, and best after fold_batchnorm; without that, reestimate_batchnorm may follow.
    """

    name: ClassVar[str] = "second_order_pruning"
    summary: ClassVar[str] = "set weights to zero that others can make up for, and fit what is left (OBC)"
    citations: ClassVar[tuple[str, ...]] = ("https://arxiv.org/abs/2208.11580", "https://arxiv.org/abs/2301.00774")

    sparsity: float = 0.5
    scope: str = "global"
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_range("second_order_pruning sparsity", self.sparsity, 0.0, 0.98)
        check_choice("second_order_pruning scope", self.scope, ("global", "layer"))
        check_range("second_order_pruning samples", self.samples, 1, 1_000_000)
        check_range("second_order_pruning damping", self.damping, 1e-6, 10.0)
        super().__post_init__()
        for settings in self.overrides.values():
            unknown = [name for name in settings if name not in ("sparsity", "damping")]
            if unknown or (self.scope != "layer" and "sparsity" in settings):
                raise RecipeError(
                    "second_order_pruning overrides",
                    f"{unknown[0]} counts for all layers" if unknown else "scope 'global' compares all layers",
                    "override damping, or sparsity with scope: layer",
                )

    def change_(self, net: Artifact, context: Context, layers: Layers) -> PassResult:
        return _Run(self, net, context, layers).result()


@dataclass(kw_only=True)
class _Found:
    """Of one layer: in which order entries would go [channels, most], and what each adds, no less than those before."""

    order: Tensor
    costs: Tensor


class _Run:
    def __init__(self, method: SecondOrderPruning, net: Artifact, context: Context, layers: Layers) -> None:
        self.method, self.net, self.context, self.layers = method, net, context, layers
        self.inputs, _ = samples_of(net, context, method.samples)
        self.before = {name: t.detach().cpu().clone() for name, t in net.module.state_dict().items()}
        self.state = dict(self.before)
        self.found: dict[str, _Found] = {}
        self.keep: dict[str, Tensor] = {}
        self.wanted = 0

    def result(self) -> PassResult:
        nodes, graph = self.layers.nodes, self.layers.graph
        slopes = importance(graph, self.inputs, self.before, nodes, self.context.generator)
        self.slopes = {name: g.diagonal() for name, g in slopes.items()}
        chosen = {n.name for n in nodes}
        with self.context.progress.task("second-order pruning", 2 * len(nodes)) as self.advance:
            walk_inputs(graph, self.inputs, self.before, chosen, self._order)
            self._choose_()
            walk(graph, self.inputs, self.before, self.state, chosen, self._fit)
        changed: dict[str, str] = {}
        skipped = dict(self.layers.skipped)
        for path, weight in self.layers.names.items():
            mask = self.net.encoding(weight).mask
            if weight in self.keep and mask is not None:
                changed[path] = f"{100 * (1 - mask.double().mean().item()):.1f}% zero"
            else:
                skipped[path] = "none of its weights is among those that others make up for best"
        return PassResult(changed=changed, skipped=skipped, notes=tuple(self._short_of()))

    def _short_of(self) -> list[str]:
        """Says where less is zero than was asked for."""
        zero = sum(int((~keep).sum()) for keep in self.keep.values())
        zero += sum(int(self._gone(w).sum()) for w in self.found if w not in self.keep)
        if zero >= self.wanted:
            return []
        kept = "each neuron keeps a fiftieth of its weights, or one"
        return [f"{zero:,} weights are zero, {self.wanted:,} were asked for: {kept}"]

    def _gone(self, weight: str) -> Tensor:
        mask = self.net.encoding(weight).mask
        values = self.before[weight].flatten(1)
        return torch.zeros_like(values, dtype=torch.bool) if mask is None else ~mask.cpu().flatten(1)

    def _order(self, node: Node, inputs: Sequence[Tensor]) -> None:
        weight = self.net.canonical(node.state["weight"])
        centred = self.layers.free_bias(self.net, node) is not None
        seen = products_of(node, inputs, None, centred=centred, most=MOST_PLACES)
        rows, gone = self.before[weight].flatten(1).double(), self._gone(weight)
        system = damped(seen.inner, self.method.for_layer(node.module).damping)
        most = rows.shape[1] - max(1, round(DENSEST * rows.shape[1]))
        parts = [
            eliminated(r.numpy(), s.numpy(), g.numpy(), most)
            for r, s, g in zip(rows.chunk(len(system)), system, gone.chunk(len(system)), strict=True)
        ]
        order = torch.cat([torch.from_numpy(p.order) for p in parts])
        costs = torch.cat([torch.from_numpy(p.costs) for p in parts]) * self.slopes[node.name][:, None]
        costs = torch.where(gone.gather(1, order), -1.0, costs).cummax(1).values
        self.found[weight] = _Found(order=order, costs=costs)
        self.advance(1)

    def _choose_(self) -> None:
        """The entries that go: the first of each row, those with the least costs of all that are compared."""
        method = self.method
        names = {weight: path for path, weight in self.layers.names.items()}
        compared = [list(self.found)] if method.scope == "global" else [[weight] for weight in self.found]
        for group in compared:
            sparsity = method.for_layer(names[group[0]]).sparsity if method.scope == "layer" else method.sparsity
            wanted = round(sparsity * sum(self.before[w].numel() for w in group))
            self.wanted += wanted
            together = torch.cat([self.found[w].costs.reshape(-1) for w in group])
            drop = torch.zeros(len(together), dtype=torch.bool)
            drop[torch.argsort(together, stable=True)[:wanted]] = True
            parts = drop.split([self.found[w].costs.numel() for w in group])
            for weight, part in zip(group, parts, strict=True):
                found = self.found[weight]
                gone = self._gone(weight)
                new = gone | torch.zeros_like(gone).scatter(1, found.order, part.reshape(found.order.shape))
                if bool((new & ~gone).any()):
                    self.keep[weight] = ~new

    def _fit(self, node: Node, products: Wanted) -> None:
        self.advance(1)
        weight = self.net.canonical(node.state["weight"])
        bias = self.layers.free_bias(self.net, node)
        keep = self.keep.get(weight)
        if keep is None:
            return
        seen = products(centred=bias is not None, most=MOST_PLACES)
        kept_bias = None if bias is not None or "bias" not in node.state else self.before[node.state["bias"]]
        rows = self.before[weight].flatten(1).double()
        system = damped(seen.inner, self.method.for_layer(node.module).damping)
        groups = len(system)
        own = (rows.reshape(groups, -1, rows.shape[1]) @ (system - seen.inner)).reshape(rows.shape)
        right = wanted_cross(seen, kept_bias) + own
        fitted = torch.cat(
            [least_squares(r, s, k) for r, s, k in zip(right.chunk(groups), system, keep.chunk(groups), strict=True)]
        )
        old = self.net.encoding(weight)
        new = old.with_mask(keep.reshape(old.shape).to(self.net.device))
        new = new.encode(fitted.float().reshape(old.shape).to(self.net.device))
        self.net.encode_(weight, new)
        self.state[node.state["weight"]] = self.state[weight] = new.decode().cpu()
        if bias is not None:
            moved = seen.wanted - (self.state[weight].flatten(1).double() * seen.of_channels(seen.mean)).sum(1)
            self.net.write_(bias, moved.float())
            self.state[node.state["bias"]] = self.state[bias] = moved.float()
