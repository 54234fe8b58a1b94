"""Which values of a network are integers, and running it exactly as an integer back-end would.

This is the one place that says how a network with encodings and activation grids computes; evaluation, export and
verification all follow it. The arithmetic itself (rounding, requantizing, saturation) is `ops.fixed_point`.

- Weights are integers on their grid, biases on scale(input) * scale(weight), accumulators 32 bits wide. Where that
  takes more bits than are stored, biases are on a power of two times that scale.
- A layer and the relu or clamp that alone reads it are one operation with one rounding.
- Operations that move values keep the grid of what they move.
- A function of one value is a table, or points with lines between them (`graph.functions`).
- What feeds only the output stays in accumulators: no rounding at the end. What has no integer rule runs in float.
- Layers that share a bias read one grid (`shared_grids`), so that the bias has one scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import ArtifactError, UsageError
from lilliput.core.grid import MAX_BITS
from lilliput.core.program import LARGEST_SUM, sum_bounds
from lilliput.graph.bounds import code_bounds, output_rows
from lilliput.graph.functions import CLIPS, TABLES, clip_codes, function, is_wide
from lilliput.graph.operators import MOVES
from lilliput.graph.trace import Graph, Node, evaluate, graph_of, run
from lilliput.ops.fixed_point import add_multipliers, requantize, requantize_add, shared_shift

LAYERS = ("conv", "linear")
FUSED = ("relu", "clamp")  # into the operation before them
FUSABLE = (*LAYERS, "add", "sub", "mul")
SUMS = ("avg_pool", "mean")
JOINING = ("add", "sub", "mul", "concat")
ARITHMETIC = (*FUSABLE, *SUMS, "concat")
EXACT_FLOAT32 = 2**24
TOO_LARGE = "its sums may need more than 32 bits"


def fusions(graph: Graph) -> dict[str, str]:
    """{operation: the relu or clamp that alone reads it}."""
    result: dict[str, str] = {}
    for name, readers in graph.consumers().items():
        alone = len(readers) == 1 and name not in graph.outputs
        if alone and graph[name].op in FUSABLE and readers[0].op in FUSED:
            result[name] = readers[0].name
    return result


def integer_values(graph: Graph) -> list[str]:
    """The nodes whose values get a grid of their own, in order: what arithmetic reads, once for each grid.

    So does what an argmax reads, unless that is a layer, whose accumulators it compares.
    """
    readers, fused = graph.consumers(), fusions(graph)
    needed: dict[str, bool] = {}
    for node in reversed(graph.nodes):
        needed[node.name] = any(
            r.op in ARITHMETIC
            or (r.op in (*MOVES, *TABLES) and needed[r.name])
            or (r.op == "argmax" and node.op not in LAYERS)
            for r in readers[node.name]
        )
    return [n.name for n in graph.nodes if needed[n.name] and n.op not in (*MOVES, "size") and n.name not in fused]


@dataclass(frozen=True)
class Quantized:
    """Integers (held in float32, exact) on a grid."""

    q: Tensor
    grid: Grid

    @property
    def centred(self) -> Tensor:
        """q - zero_point."""
        return self.q - float(self.grid.zero_point)

    def decode(self) -> Tensor:
        return self.grid.dequantize(self.q.double())


@dataclass(frozen=True)
class Sums:
    """Accumulators (exact, in float32 or float64) that an argmax reads; `scale` broadcasts."""

    acc: Tensor
    scale: Tensor

    def decode(self) -> Tensor:
        return (self.acc.double() * self.scale).float()


Value = Quantized | Sums | Tensor
Step = Callable[[Mapping[str, Any]], Value]


class IntegerNet(nn.Module):
    """Runs an artifact with its activation grids in integer arithmetic; `floats` names what stays float, and why.

    Input and output are float32: the input is put on its grid first, the output decoded. Evaluation only.
    """

    def __init__(self, artifact: Artifact, graph: Graph | None = None) -> None:
        super().__init__()
        self.module = artifact.module
        self.graph = graph or graph_of(artifact)
        self._artifact = artifact
        self._build()

    def _build(self) -> None:
        artifact = self._artifact
        unknown = sorted(set(artifact.activations) - set(self.graph.by_name))
        if unknown:
            raise ArtifactError(
                "run in integers",
                f"an activation grid for {unknown[0]!r}, which is no value of the network",
                "give the module that the file was made from",
            )
        self.floats: dict[str, str] = {}
        self._grids = grids_of(self.graph, artifact.activations)
        self._codes = code_bounds(self.graph, self._grids, fusions(self.graph))
        self._state = {**artifact.module.state_dict(keep_vars=False)}
        self._steps: dict[str, Step] = {
            node.name: self._step(node, artifact) for node in self.graph.nodes if node.op != "input"
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's own
        """`.to(device)`: the integers go with the module."""
        before = self._artifact.device
        super()._apply(fn, recurse)
        if self._artifact.device != before:
            self._artifact = replace(self._artifact).to_(self._artifact.device)
            self.graph = graph_of(self._artifact)
            self._build()
        return self

    def forward(self, *inputs: Tensor) -> Any:
        return self.values(inputs, None)

    @torch.no_grad()
    def values(self, inputs: tuple[Tensor, ...], visit: Callable[[Node, Value], None] | None) -> Any:
        """Run; `visit(node, value)` sees every value on the way."""
        values: dict[str, Any] = {}
        args = dict(zip(self.graph.inputs, inputs, strict=True))
        left = dict.fromkeys(self._grids, 0)
        for node in self.graph.nodes:
            for name in node.inputs:
                left[name] = left.get(name, 0) + 1
        for node in self.graph.nodes:
            value: Any = self.compute(node, values, args.get(node.name))
            if visit is not None:
                visit(node, value)
            values[node.name] = value
            for name in node.inputs:
                left[name] -= 1
                if left[name] == 0 and name not in self.graph.outputs:
                    del values[name]
        return self.graph.result(tuple(_float(values[name]) for name in self.graph.outputs))

    def compute(self, node: Node, values: Mapping[str, Any], x: Tensor | None = None) -> Value:
        """The value of one node from those of its inputs; for an input node, from the float input `x`."""
        if node.op != "input":
            return self._steps[node.name](values)
        if x is None:
            raise UsageError(f"compute {node.name!r}", "no input", "give x")
        grid = self._grids.get(node.name)
        return x if grid is None else _quantize(x, grid)

    def _step(self, node: Node, artifact: Artifact) -> Step:
        grid = self._grids.get(node.name)
        sources = [self._grids.get(name) for name in node.inputs]
        if node.op == "size":
            return lambda values: evaluate(node, _floats(node, values), self._state)
        if node.op in MOVES and sources and sources[0] is not None:
            return self._move(node)
        if node.op in FUSED and grid is not None and any(a == node.name for a in fusions(self.graph).values()):
            return self._clip(node, grid)
        known = [s for s in sources if s is not None]
        made = self._integer_step(node, artifact, known, grid) if len(known) == len(sources) > 0 else None
        if node.op == "argmax" and (known or self._is_summed(node.inputs[0])):
            made = self._argmax(node)
        if callable(made):
            return made
        if node.op in (*ARITHMETIC, "other", "several", "batch_norm", "layer_norm", "softmax", "argmax"):
            self.floats.setdefault(node.name, made or self._why(node, sources))
        return self._float_step(node, grid)

    def _integer_step(
        self, node: Node, artifact: Artifact, sources: list[Grid], grid: Grid | None
    ) -> Step | str | None:
        """The rule of a node whose inputs are on grids, or why it has none; None where nothing needs saying."""
        if node.op in LAYERS:
            return self._layer(node, artifact, sources[0], grid)
        if grid is None:
            return None
        if node.op in ("add", "sub") and len(sources) == 2:
            return self._sum(node, sources, grid)
        if node.op == "mul" and len(sources) == 2:
            return self._product(node, sources[0], sources[1], grid)
        if node.op == "concat":
            return self._concat(node, sources, grid)
        if node.op in SUMS:
            return self._average(node, sources[0], grid)
        return self._function(node, sources[0], grid) if node.op in TABLES else None

    def _is_summed(self, name: str) -> bool:
        """Does this node give accumulators?"""
        return self.graph[name].op in LAYERS and name not in self._grids and name not in self.floats

    def _why(self, node: Node, sources: list[Grid | None]) -> str:
        if node.op in (*ARITHMETIC, "argmax") and any(s is None for s in sources):
            return "its input is not calibrated"
        if node.op == "batch_norm":
            return "BatchNorm is not folded"
        if node.op in JOINING and node.state:
            return "it reads a parameter that belongs to no layer"
        if node.op in ("other", "several"):
            return f"{node.target} has no integer rule"
        return f"{node.op} has no integer rule here" if node.name in self._grids else "it feeds only the output"

    def _float_step(self, node: Node, grid: Grid | None) -> Step:
        def step(values: Mapping[str, Any]) -> Value:
            result = evaluate(node, _floats(node, values), self._state)
            return result if grid is None else _quantize(result, grid)

        return step

    def _move(self, node: Node) -> Step:
        def step(values: Mapping[str, Any]) -> Value:
            value = values[node.inputs[0]]
            if not isinstance(value, Quantized):
                return evaluate(node, _floats(node, values), self._state)
            if node.attributes.get("value"):  # padding with a number other than 0
                return _quantize(evaluate(node, _floats(node, values), self._state), value.grid)
            moved = evaluate(node, {**values, node.inputs[0]: value.centred}, self._state)
            return Quantized(moved + float(value.grid.zero_point), value.grid)

        return step

    def _clip(self, node: Node, grid: Grid) -> Step:
        """The fused relu or clamp: the operation before it has already rounded to this grid."""
        bounds = clip_codes(node, grid)

        def step(values: Mapping[str, Any]) -> Value:
            value = values[node.inputs[0]]
            if not isinstance(value, Quantized):
                return _quantize(evaluate(node, _floats(node, values), self._state), grid)
            return Quantized(value.q.clamp(*bounds), grid)

        return step

    def _function(self, node: Node, source: Grid, grid: Grid) -> Step:
        """A function of one value: its table, its points, or an exact relu or clamp."""
        name = node.inputs[0]
        if node.op in CLIPS and is_wide(source):
            finish, bounds = _finisher(source.scale, grid, None), clip_codes(node, grid)
            return lambda values: Quantized(finish(values[name].centred).q.clamp(*bounds), grid)
        table = function(node, source, grid, self._state)
        return lambda values: Quantized(table(values[name].q.long()).float(), grid)

    def _argmax(self, node: Node) -> Step | str:
        """The lowest index of the largest: of codes, or of accumulators on one scale."""
        name, dim = node.inputs[0], node.attributes["dim"]
        if node.name not in self.graph.outputs or self.graph.consumers()[node.name]:
            return "argmax is not the last operation"

        def step(values: Mapping[str, Any]) -> Value:
            value = values[name]
            if isinstance(value, Sums):
                multipliers = argmax_multipliers(value.scale, value.acc.dim(), dim)
                compared = value.acc.long() * multipliers.to(value.acc.device)
            else:
                compared = value.q
            return evaluate(node, {name: compared}, self._state)

        return step

    def _layer(self, node: Node, artifact: Artifact, source: Grid, grid: Grid | None) -> Step | str:
        weight = artifact.encodings.get(artifact.canonical(node.state["weight"]))
        name = node.state.get("bias")
        bias = None if name is None else artifact.encodings.get(artifact.canonical(name))
        missing = "its weight or bias has no integer grid"
        if weight is None or weight.grid is None or (name is not None and (bias is None or bias.grid is None)):
            return missing
        grouped_transposed = node.attributes.get("transposed") and node.attributes["groups"] > 1
        axis = None if grouped_transposed else 1 if node.attributes.get("transposed") else 0
        scales = weight.grid.scale
        if weight.grid.axis not in (None, axis) or source.scale.numel() != 1:
            return missing
        product = accumulator_scale(source, weight.grid)
        q_bias = None if bias is None else bias_integers(bias, product)
        if bias is not None and q_bias is None:
            return "its bias is on another scale than its sums"
        device = scales.device
        zero = weight.grid.spread(weight.grid.zero_point, len(weight.shape))
        q_weight = weight.integers() - zero
        low, high = (code - int(source.zero_point) for code in self._codes[node.inputs[0]])
        rows = output_rows(q_weight.cpu().numpy(), node)
        ends = sum_bounds(rows, low, high, None if q_bias is None else q_bias.cpu().numpy())
        if max(int(-ends[0].min()), int(ends[1].max())) > LARGEST_SUM:
            return TOO_LARGE
        dims = [d for d in range(q_weight.dim()) if d != axis]
        bound = int(q_weight.abs().sum(dim=dims).max()) * max(-low, high)
        bound += 0 if q_bias is None else int(q_bias.abs().max())
        dtype = torch.float32 if bound < EXACT_FLOAT32 else torch.float64
        state = {**self._state, node.state["weight"]: q_weight.to(dtype)}
        if name is not None and q_bias is not None:
            state[name] = q_bias.to(dtype)
        channel_dim = 1 if node.op == "conv" else -1
        summed = grid is None and any(r.op == "argmax" for r in self.graph.consumers()[node.name])
        finish = _finisher(product.to(device), grid, channel_dim, summed=summed)

        def step(values: Mapping[str, Any]) -> Value:
            x: Quantized = values[node.inputs[0]]
            return finish(evaluate(node, {**values, node.inputs[0]: x.centred.to(dtype)}, state))

        return step

    def _sum(self, node: Node, sources: list[Grid], grid: Grid) -> Step:
        signs = [1, -1 if node.op == "sub" else 1]
        names = node.inputs
        multipliers, shift = add_multipliers([float(g.scale / grid.scale) for g in sources], 1.0)
        low, high = grid.range()

        def step(values: Mapping[str, Any]) -> Value:
            addends = [s * values[n].centred.long() for s, n in zip(signs, names, strict=True)]
            addends = list(torch.broadcast_tensors(*addends))
            q = requantize_add(addends, [0, 0], multipliers, shift, int(grid.zero_point), int(low), int(high))
            return Quantized(q.float(), grid)

        return step

    def _product(self, node: Node, a: Grid, b: Grid, grid: Grid) -> Step | str:
        finish = _finisher(a.scale * b.scale, grid, None)
        ends = [[code - int(g.zero_point) for code in self._codes[n]] for n, g in zip(node.inputs, (a, b), strict=True)]
        if max(abs(p * q) for p in ends[0] for q in ends[1]) > LARGEST_SUM:
            return TOO_LARGE

        def step(values: Mapping[str, Any]) -> Value:
            x, y = (values[name].centred.double() for name in node.inputs)
            return finish(x * y)

        return step

    def _concat(self, node: Node, sources: list[Grid], grid: Grid) -> Step:
        finishers = {name: _finisher(s.scale, grid, None) for name, s in zip(node.inputs, sources, strict=True)}

        def step(values: Mapping[str, Any]) -> Value:
            parts = {
                name: values[name].q if values[name].grid.same(grid) else finishers[name](values[name].centred).q
                for name in node.inputs
            }
            return Quantized(evaluate(node, {**values, **parts}, self._state), grid)

        return step

    def _average(self, node: Node, source: Grid, grid: Grid) -> Step | str:
        a = node.attributes
        if node.op == "avg_pool":
            if a["ceil"] or (not a["count_pad"] and any(p != (0, 0) for p in a["pads"])):
                return "its windows count different numbers of values"
            count = int(torch.tensor(a["kernel"]).prod())
        else:
            shape = self.graph[node.inputs[0]].shape
            count = int(torch.tensor([shape[d] for d in a["dims"]]).prod())
        if count * max(abs(code - int(source.zero_point)) for code in self._codes[node.inputs[0]]) > LARGEST_SUM:
            return TOO_LARGE
        finish = _finisher(source.scale / count, grid, None)

        def step(values: Mapping[str, Any]) -> Value:
            mean = evaluate(node, {**values, node.inputs[0]: values[node.inputs[0]].centred.double()}, self._state)
            return finish(torch.round(mean * count))  # the exact sum of integers

        return step


def runnable(artifact: Artifact, graph: Graph | None = None) -> nn.Module:
    """The module that computes what the file computes: the plain one, or the integer one if activations have grids."""
    return IntegerNet(artifact, graph) if artifact.activations else artifact.module


def accumulator_scale(source: Grid, weight: Grid) -> Tensor:
    """float32 [1] or [channels]: what one unit of a layer's accumulator is worth.

    Rounded to float32, as float back-ends compute it; so is its ratio to the output's scale, from which the integer
    multiplier follows. Then ONNX Runtime differs from us in the last bit of a product only.
    """
    return source.scale * weight.scale


def observe(graph: Graph, state: Mapping[str, Tensor], batch: Tensor, visit: Callable[[Node, Tensor], None]) -> None:
    """Show `visit` every float value of one batch."""

    def look(node: Node, value: Any) -> Any:
        if isinstance(value, Tensor):
            visit(node, value)
        return value

    with torch.no_grad():
        run(graph, state, batch, visit=look)


def grids_of(graph: Graph, activations: Mapping[str, Grid]) -> dict[str, Grid]:
    """The grid of every value that has one: its own, its relu's, or that of what it moves."""
    fused = fusions(graph)
    grids: dict[str, Grid] = {}
    for node in graph.nodes:
        owner = fused.get(node.name, node.name)
        if owner in activations:
            grids[node.name] = activations[owner]
        elif node.op in MOVES and node.inputs and node.inputs[0] in grids:
            grids[node.name] = grids[node.inputs[0]]
    return grids


def argmax_multipliers(scale: Tensor, rank: int, dim: int) -> Tensor:
    """int64, broadcasts over accumulators of `rank` dimensions: what makes those along `dim` comparable.

    Ones where they have one scale; else multipliers of 31 bits with the scales' ratios, as an addition has them.
    """
    if scale.numel() == 1 or scale.dim() != rank or scale.shape[dim % rank] == 1 or bool((scale == scale.max()).all()):
        return torch.ones((), dtype=torch.int64)
    return shared_shift(scale.double() / scale.max().double())[0].cpu()


def multiplier_of(scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(multiplier, shift) from sums worth `scale` each to integers of `grid`."""
    ratio = (scale.float() / grid.scale).clamp(max=2.0**29)  # beyond, every accumulator but 0 saturates anyway
    return shared_shift(ratio)


def _finisher(
    scale: Tensor, grid: Grid | None, channel_dim: int | None, *, summed: bool = False
) -> Callable[[Tensor], Any]:
    """From accumulators (worth `scale` each) to integers of `grid`, or to float32 without one, unless kept `summed`."""

    def spread(values: Tensor, rank: int) -> Tensor:
        if values.numel() == 1 or channel_dim is None:
            return values.reshape(())
        return values.reshape([-1 if d == channel_dim % rank else 1 for d in range(rank)])

    if grid is None and summed:
        return lambda acc: Sums(acc, spread(scale, acc.dim()))
    if grid is None:
        return lambda acc: (acc.double() * spread(scale, acc.dim())).float()
    multiplier, shift = multiplier_of(scale, grid)
    low, high = grid.range()
    zero, low, high = int(grid.zero_point), int(low), int(high)

    def finish(acc: Tensor) -> Quantized:
        rank = acc.dim()
        q = requantize(acc.long(), spread(multiplier, rank), spread(shift, rank), zero, low, high)
        return Quantized(q.float(), grid)

    return finish


def _quantize(x: Tensor, grid: Grid) -> Quantized:
    return Quantized(grid.quantize(x).float(), grid)


def _float(value: Any) -> Any:
    return value.decode() if isinstance(value, Quantized | Sums) else value


def _floats(node: Node, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _float(values[name]) for name in node.inputs}


def bias_integers(bias: Encoding, product: Tensor) -> Tensor | None:
    """int64: a bias in units of its layer's accumulator, which are worth `product`; None where it has other units."""
    if bias.grid is None:
        return None
    ratio = bias.grid.scale.double() / product.float().double()
    if not bool(is_power_of_two(ratio).all()):
        return None
    return (bias.integers() - bias.grid.zero_point) << (torch.frexp(ratio).exponent.long() - 1)


def is_power_of_two(ratio: Tensor) -> Tensor:
    """Which are 1, 2, 4 and so on."""
    mantissa, exponent = torch.frexp(ratio)
    return (mantissa == 0.5) & (exponent >= 1)


def integer_bias(
    bias: Tensor, source: Grid, weight: Grid, encoding: Encoding | None = None, *, output: Grid | None = None
) -> Encoding:
    """A bias on the scale of its layer's accumulator, with as few bits as it needs.

    Where it needs more than an encoding holds, its scale is the least power of two times that. With `output` it is on
    the scale of the layer's output, if that is a power of two of accumulators, at least one, in every channel.
    """
    scale = accumulator_scale(source, weight).float()
    if output is not None and bool(is_power_of_two(output.scale.double() / scale.double()).all()):
        scale = output.scale.float()
    most = float((bias.detach().double() / scale.double()).abs().max())
    while most + 0.5 >= 1 << (MAX_BITS - 1):
        scale, most = 2 * scale, most / 2
    q = torch.floor(bias.double() / scale.double() + 0.5)
    bits = int(q.abs().max().clamp(min=1).log2().floor()) + 2
    width = torch.full(scale.shape, min(bits, MAX_BITS), dtype=torch.int64, device=scale.device)
    grid = Grid(
        scale=scale,
        zero_point=torch.zeros_like(width),
        bit_width=width,
        signed=True,
        axis=0 if scale.numel() > 1 else None,
    )
    return (encoding or Encoding.of(bias)).with_grid(grid)
