"""The forward of training on activation grids: the values of `IntegerNet`, with gradients that go straight through.

Every value on a grid is held as centred integers and a scale. What an operation gives is what `IntegerNet` gives, bit
by bit; its gradient is that of the float operation before the rounding, 0 where the grid saturates (Bengio et al.,
2013), and for scales what follows from value = integer x scale (Esser et al., 2020, equation 3). Normalizations that
are not folded use their running statistics, and dropout does nothing: the graph is that of evaluation.

A learned function whose points stand on codes has the gradient of the lines between its points in steps of the output,
each of them saturated: through the rounding of points and of lines, exact otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Grid
from lilliput.graph.functions import clip_codes, shift_of
from lilliput.graph.integer import (
    EXACT_FLOAT32,
    LAYERS,
    IntegerNet,
    Quantized,
    accumulator_scale,
    bias_integers,
    fusions,
    multiplier_of,
)
from lilliput.graph.operators import MOVES
from lilliput.graph.shared_bias import owners_of_grids
from lilliput.graph.trace import Graph, Node, evaluate
from lilliput.ops.fixed_point import requantize
from lilliput.ops.learned_function import of_channels, piecewise_linear, table_of


@dataclass(frozen=True)
class Coded:
    """Integers less the zero point (float32, exact), times `scale` (a number that may want its gradient)."""

    q: Tensor
    scale: Tensor
    grid: Grid

    def decode(self) -> Tensor:
        return self.q * self.scale

    def exact(self) -> Quantized:
        return Quantized(self.q.detach() + float(self.grid.zero_point), self.grid)


def through(exact: Tensor, real: Tensor) -> Tensor:
    """The value of `exact` with the gradient of `real`."""
    return exact + (real - real.detach())


class FakeQuant(nn.Module):
    """Runs `net` so; `scales` {node: scale} are differentiable, for nodes that `net.activations` has grids for.

    `refresh` follows a change of weights or grids.
    """

    def __init__(self, net: Artifact, graph: Graph) -> None:
        super().__init__()
        self.module, self.graph = net.module, graph
        self._fused = set(fusions(graph).values())
        self._owners = owners_of_grids(graph)
        self.refresh(net, {})

    def refresh(self, net: Artifact, scales: Mapping[str, Tensor]) -> None:
        self._net, self._scales = net, scales
        self._integers = IntegerNet(net, self.graph)
        self._grids = {n: net.activations[o] for n, o in self._owners.items() if o in net.activations}
        self._state = self.module.state_dict(keep_vars=True)

    def forward(self, *inputs: Tensor) -> Any:
        values: dict[str, Any] = {}
        args = dict(zip(self.graph.inputs, inputs, strict=True))
        for node in self.graph.nodes:
            values[node.name] = self._compute(node, values, args.get(node.name))
        return self.graph.result(tuple(_float(values[name]) for name in self.graph.outputs))

    def _compute(self, node: Node, values: Mapping[str, Any], x: Tensor | None) -> Coded | Tensor:
        grid = self._grids.get(node.name)
        sources = [values[name] for name in node.inputs]
        coded = [v for v in sources if isinstance(v, Coded)]
        if node.op == "size":
            return evaluate(node, _floats(node, values), self._state)
        if node.op in MOVES and coded and not node.attributes.get("value"):
            moved = evaluate(node, {**values, node.inputs[0]: coded[0].q}, self._state)
            return Coded(moved, coded[0].scale, coded[0].grid)
        if node.name in self._fused and coded and grid is not None:
            low, high = (code - int(grid.zero_point) for code in clip_codes(node, grid))
            return Coded(coded[0].q.clamp(low, high), coded[0].scale, grid)
        if node.op in LAYERS and coded and node.name not in self._integers.floats:
            return self._layer(node, coded[0], grid)
        if self._has_points(node, coded, grid) and grid is not None:
            return self._points(node, coded[0], self._exact(node, values, x), grid)
        real = x if x is not None else evaluate(node, _floats(node, values), self._state)
        if grid is None:
            return real
        return self._join(node, real, self._exact(node, values, x), grid)

    @torch.no_grad()
    def _exact(self, node: Node, values: Mapping[str, Any], x: Tensor | None) -> Tensor:
        """Of `IntegerNet`, less the zero point."""
        known = {n: v.exact() if isinstance(v, Coded) else v for n, v in values.items() if n in node.inputs}
        exact: Any = self._integers.compute(node, known, x)
        return exact.centred

    def _has_points(self, node: Node, coded: list[Coded], grid: Grid | None) -> bool:
        if node.op != "learned_function" or not coded or grid is None:
            return False
        return shift_of(node, coded[0].grid, self._state[node.state["limit"]]) is not None

    def _points(self, node: Node, x: Coded, q: Tensor, grid: Grid) -> Coded:
        """A learned function whose points stand on codes; places are counted in codes, where they are exact."""
        scale, (low, high) = self._scale(node, grid)
        weight, limit = (self._state[node.state[role]] for role in ("weight", "limit"))
        owner = self._state[node.state["owner"]] if "owner" in node.state else None
        table = of_channels(table_of(weight, limit, node.attributes["kind"], node.attributes["points"]), owner)
        codes = torch.full_like(limit, float(1 << (int(x.grid.bit_width) - 1)))
        real = piecewise_linear(x.q, (table / scale).clamp(low, high), codes, node.attributes["dim"])
        return Coded(through(q, real), scale, grid)

    def _scale(self, node: Node, grid: Grid) -> tuple[Tensor, tuple[float, float]]:
        """The scale of a node's grid, with its gradient, and the ends of the grid in steps from the zero point."""
        low, high = (float(end - grid.zero_point) for end in grid.range())
        return self._scales.get(self._owners[node.name], grid.scale).reshape(()), (low, high)

    def _layer(self, node: Node, x: Coded, grid: Grid | None) -> Coded | Tensor:
        """One product for value and gradient: in integers, so that it is exact."""
        weight = self._net.encodings[self._net.canonical(node.state["weight"])]
        if weight.grid is None:  # a layer is not among `floats` without one
            return evaluate(node, {node.inputs[0]: x.decode()}, self._state)
        rank = len(weight.shape)
        integers = weight.integers() - weight.grid.spread(weight.grid.zero_point, rank)
        own = {"weight": (integers, weight.grid.spread(weight.grid.scale, rank))}
        unit = accumulator_scale(x.grid, weight.grid)
        live = x.scale * weight.grid.scale  # with its gradient
        bound = _most(integers, node) * _reach(x.grid)
        if "bias" in node.state:
            bias = bias_integers(self._net.encodings[self._net.canonical(node.state["bias"])], unit)
            if bias is None:
                return evaluate(node, {node.inputs[0]: x.decode()}, self._state)
            own["bias"] = (bias, live)
            bound += int(bias.abs().max())
        dtype = torch.float32 if bound < EXACT_FLOAT32 else torch.float64
        state = {
            node.state[role]: through(q.to(dtype), self._state[node.state[role]] / scale)
            for role, (q, scale) in own.items()
        }
        acc = evaluate(node, {node.inputs[0]: x.q.to(dtype)}, {**self._state, **state})
        dim = 1 if node.op == "conv" else acc.dim() - 1
        if grid is None:
            exact = (acc.detach().double() * _spread(unit, acc.dim(), dim)).float()
            return through(exact, (acc * _spread(live, acc.dim(), dim)).float())
        with torch.no_grad():
            multiplier, shift = (_spread(v, acc.dim(), dim) for v in multiplier_of(unit, grid))
            zero, (low, high) = int(grid.zero_point), grid.range()
            q = requantize(acc.detach().long(), multiplier, shift, zero, int(low), int(high)) - zero
        return self._join(node, (acc * _spread(live, acc.dim(), dim)).float(), q.float(), grid)

    def _join(self, node: Node, real: Tensor, q: Tensor, grid: Grid) -> Coded:
        """On the grid: the value of `q`, the gradient of `real` where it is within the range."""
        scale, (low, high) = self._scale(node, grid)
        return Coded(through(q, (real / scale).clamp(low, high)), scale, grid)


def _most(integers: Tensor, node: Node) -> int:
    """The largest sum of |weights| over what is summed for one output; more for transposed convolutions."""
    if node.attributes.get("transposed"):
        return int(integers.abs().transpose(0, 1).flatten(1).sum(1).max())
    return int(integers.abs().flatten(1).sum(1).max())


def _reach(grid: Grid) -> int:
    return max(abs(int(end - grid.zero_point)) for end in grid.range())


def _spread(values: Tensor, rank: int, dim: int) -> Tensor:
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if d == dim else 1 for d in range(rank)])


def _float(value: Any) -> Any:
    return value.decode() if isinstance(value, Coded) else value


def _floats(node: Node, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _float(values[name]) for name in node.inputs}
