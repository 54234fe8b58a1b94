"""From an artifact to its integer program: what `IntegerNet` computes, exactly, or an `ExportError` with a reason."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Grid
from lilliput.core.errors import ExportError
from lilliput.core.program import LARGEST_SUM, Ints, Operation, Program, Rescale, Value, sum_bounds
from lilliput.graph.bounds import output_rows
from lilliput.graph.functions import CLIPS, TABLES, clip_codes, function, is_wide
from lilliput.graph.integer import (
    LAYERS,
    SUMS,
    IntegerNet,
    accumulator_scale,
    argmax_multipliers,
    bias_integers,
    fusions,
    grids_of,
    multiplier_of,
)
from lilliput.graph.operators import MOVES
from lilliput.graph.product_of_sums import grouped_nodes
from lilliput.graph.support import remedy
from lilliput.graph.trace import Graph, Node, graph_of
from lilliput.ops.fixed_point import add_multipliers

TAILS = ("softmax", "log_softmax")


def lower(artifact: Artifact, graph: Graph | None = None, *, product_of_sums: bool = False) -> Program:
    """The program of a network whose weights, biases and activations are integers.

    `product_of_sums`: layers whose weights share values become `grouped_sum`, with the same integers as results.
    Raises `ExportError` with node, source line and remedy for what has no integer form.
    """
    if not artifact.activations:
        raise ExportError("lower to integers", "activations have no grids", "quantize with activation_bits: 8 first")
    graph = graph or graph_of(artifact)
    grouped = grouped_nodes(artifact, graph) if product_of_sums else {}
    if product_of_sums and not grouped:
        found = "no linear layer or convolution shares values"
        raise ExportError("lower as product of sums", found, "put sic or weight_clustering into the recipe")
    return _Lowering(artifact, graph, grouped).program()


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A node that has no integer form: why, where it stands in the user's code (file:line or ""), what to do."""

    node: str
    layer: str
    source: str
    found: str
    do: str

    def error(self) -> ExportError:
        line = f" ({self.source})" if self.source else ""
        return ExportError(f"lower {self.layer!r} to integers", f"{self.found}{line}", self.do)

    def __str__(self) -> str:
        return f"{self.node}{f' ({self.source})' if self.source else ''}: {self.found}; {self.do}"


def refusals(artifact: Artifact, graph: Graph | None = None) -> tuple[Refusal, ...]:
    """All that `lower` would refuse in an artifact whose activations have grids; not what only follows from it."""
    return _Lowering(artifact, graph or graph_of(artifact)).refusals()


class _RefusedError(Exception):
    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class _Lowering:
    def __init__(self, artifact: Artifact, graph: Graph, grouped: Collection[str] = ()) -> None:
        self.artifact, self.graph, self.grouped = artifact, graph, grouped
        self.grids = grids_of(graph, artifact.activations)
        self.fused = fusions(graph)
        self.floats = IntegerNet(artifact, graph).floats
        self.values: dict[str, Value] = {}
        self.operations: list[Operation] = []
        self.tensors: dict[str, Ints] = {}
        self.names: dict[str, str] = {}  # node -> the value that it is
        self.tail = ""

    def program(self) -> Program:
        if len(self.graph.inputs) != 1:
            raise ExportError("lower to integers", f"{len(self.graph.inputs)} inputs", "give the network one input")
        for node in self.graph.nodes:
            try:
                self._lower(node)
            except _RefusedError as refused:
                found = _Lowering(
                    self.artifact, self.graph, self.grouped
                ).refusals()  # leaves out what only follows from others
                raise (found or (refused.refusal,))[0].error() from None
        read = {name for o in self.operations for name in o.inputs}
        outputs = tuple(self.names[name] for name in self.graph.outputs)
        kept = tuple(o for o in self.operations if o.output in read or o.output in outputs)
        used = {name for o in kept for name in (*o.inputs, o.output)} | {self.names[self.graph.inputs[0]]}
        return Program(
            values={name: v for name, v in self.values.items() if name in used},
            operations=kept,
            input=self.names[self.graph.inputs[0]],
            outputs=outputs,
            tensors=self.tensors,
            tail=self.tail,
        )

    def refusals(self) -> tuple[Refusal, ...]:
        """Of a node whose inputs are unknown, only that it never has a rule. A grid makes a value known again."""
        found: list[Refusal] = []
        unknown: set[str] = set()
        for node in self.graph.nodes:
            follows = bool(unknown.intersection(node.inputs))
            if not follows or not (node.op in (*RULES, "getitem") or self._is_tail(node)):
                try:
                    self._lower(node)
                except _RefusedError as refused:
                    if node.op not in MOVES or self._is_last(node):  # else who reads the sums is refused
                        found.append(refused.refusal)
                    follows = True
            if follows and node.name in self.grids:
                low, high = self.grids[node.name].range()
                self._put(node, self.grids[node.name], int(low), int(high))
            elif follows:
                unknown.add(node.name)
        return tuple(found)

    def _is_last(self, node: Node) -> bool:
        """Do only moves follow, if anything?"""
        readers = self.graph.consumers()[node.name]
        return all(r.op in MOVES and self._is_last(r) for r in readers)

    def _refuse(self, node: Node, found: str, do: str) -> _RefusedError:
        return _RefusedError(Refusal(node=node.name, layer=node.layer, source=node.source, found=found, do=do))

    def _lower(self, node: Node) -> None:
        if node.op in ("size", "scalar"):
            return
        constant = node.op == "other" and all(self.graph[name].op == "size" for name in node.inputs)
        if constant and node.name not in self.graph.outputs:
            return  # who reads it is refused
        grid = self.grids.get(node.name)
        if node.op == "input":
            if grid is None:
                raise self._refuse(node, "the input has no grid", "quantize the network with activation_bits: 8")
            self._put(node, grid, int(grid.range()[0]), int(grid.range()[1]))
            return
        if any(owner == node.name for owner in self.fused.values()) and node.inputs[0] in self.fused:
            self.names[node.name] = self.names[node.inputs[0]]  # the operation before has clipped already
            return
        if self._is_tail(node):
            self.tail, self.names[node.name] = node.op, self.names[node.inputs[0]]
            return
        rule = RULES.get(node.op)
        if node.name in self.floats or rule is None:
            reason = self.floats.get(node.name, f"{node.target} has no integer rule")
            raise self._refuse(node, reason, remedy(node, reason))
        rule(self, node)

    def _is_tail(self, node: Node) -> bool:
        return node.op in TAILS and node.name in self.graph.outputs

    def _value(self, node: Node, index: int = 0) -> Value:
        name = node.inputs[index]
        if name not in self.names:
            found = f"it reads {self.graph[name].target}, which is no integer"
            raise self._refuse(node, found, remedy(self.graph[name]))
        return self.values[self.names[name]]

    def _put(self, node: Node, grid: Grid, low: int, high: int) -> Value:
        """A value on a grid."""
        value = Value(
            name=node.name,
            shape=tuple(node.shape[1:]),
            low=low,
            high=high,
            scale=(float(grid.scale),),
            zero_point=int(grid.zero_point),
        )
        self.values[node.name], self.names[node.name] = value, node.name
        return value

    def _clip(self, node: Node, grid: Grid) -> tuple[int, int]:
        """The codes that this node and the relu or clamp after it may give."""
        after = self.graph[self.fused.get(node.name, node.name)]
        if after.op in CLIPS:
            return clip_codes(after, grid)
        low, high = (int(bound) for bound in grid.range())
        return low, high

    def _rescale(self, node: Node, scale: Tensor, grid: Grid) -> Rescale:
        multiplier, shift = multiplier_of(scale, grid)
        low, high = self._clip(node, grid)
        return Rescale(
            multiplier=multiplier.reshape(-1).numpy(),
            shift=shift.reshape(-1).numpy(),
            zero_point=int(grid.zero_point),
            low=low,
            high=high,
        )

    def _emit(self, node: Node, kind: str, inputs: tuple[str, ...] | None = None, **parts: Any) -> None:
        names = inputs or tuple(self.names[name] for name in node.inputs if name in self.names)
        self.operations.append(Operation(kind=kind, inputs=names, output=node.name, source=node.source, **parts))

    def _sums(self, node: Node, low: Ints, high: Ints) -> tuple[int, int]:
        ends = int(low.min()), int(high.max())
        if ends[0] < -LARGEST_SUM or ends[1] > LARGEST_SUM:
            raise self._refuse(node, f"sums from {ends[0]} to {ends[1]}", "use fewer bits: sums must fit into 32")
        return ends

    def _finish(
        self, node: Node, kind: str, scale: Tensor, low: Ints, high: Ints, channel: int = 0, **parts: Any
    ) -> None:
        """An operation that sums: its codes on a grid, or the sums themselves."""
        sums = self._sums(node, low, high)
        grid = self.grids.get(node.name)
        if grid is None:
            scales = tuple(float(s) for s in scale.reshape(-1))
            value = Value(
                name=node.name, shape=tuple(node.shape[1:]), low=sums[0], high=sums[1], scale=scales, channel=channel
            )
            self.values[node.name], self.names[node.name] = value, node.name
            self._emit(node, kind, sums=sums, **parts)
            return
        rescale = self._rescale(node, scale, grid)
        self._put(node, grid, *rescale.bounds(low, high))
        self._emit(node, kind, sums=sums, rescale=(rescale,), **parts)

    def _zeros_before(self, node: Node) -> Node | None:
        """The padding with zeros around the picture that this convolution alone reads: it pads by itself."""
        before = self.graph[node.inputs[0]]
        alone = len(self.graph.consumers()[before.name]) == 1 and before.name not in self.graph.outputs
        if node.op != "conv" or node.attributes.get("transposed") or before.op != "pad" or not alone:
            return None
        pads = before.attributes["pads"]
        inside = all(tuple(p) == (0, 0) for p in pads[:2]) and all(min(p) >= 0 for p in pads)
        return before if inside and not before.attributes["value"] else None

    def _layer(self, node: Node) -> None:
        zeros = self._zeros_before(node)
        x = self.values[self.names[(zeros or node).inputs[0]]]
        names = {role: self.artifact.canonical(name) for role, name in node.state.items()}
        weight = self.artifact.encodings[names["weight"]]
        assert weight.grid is not None  # noqa: S101 - IntegerNet has taken it
        self._tensor(names["weight"])
        rows = output_rows(self.tensors[names["weight"]], node)
        bias = None
        if "bias" in names:
            scale = accumulator_scale(self.grids[node.inputs[0]], weight.grid)
            found = bias_integers(self.artifact.encodings[names["bias"]], scale)
            assert found is not None  # noqa: S101 - IntegerNet has taken it
            bias = self.tensors[names["bias"]] = found.cpu().numpy()
        least, most = sum_bounds(rows, x.low - x.zero_point, x.high - x.zero_point, bias)
        transposed = bool(node.attributes.get("transposed"))
        source = self.grids[node.inputs[0]]
        kept = ("stride", "dilation", "pads", "kernel", "groups", "output_padding")
        attributes = {key: v for key, v in node.attributes.items() if key in kept}
        if zeros is not None:
            more = zeros.attributes["pads"][2:]
            own = attributes["pads"]
            attributes["pads"] = tuple((p + a, q + b) for (p, q), (a, b) in zip(own, more, strict=True))
        kind = "linear" if node.op == "linear" else "conv_transposed" if transposed else "conv"
        if node.name in self.grouped:
            kind = "grouped_sum"
            self._sums(node, *sum_bounds(rows, x.low - x.zero_point, x.high - x.zero_point))  # products without bias
        self._finish(
            node,
            kind,
            accumulator_scale(source, weight.grid).cpu(),
            least,
            most,
            channel=0 if node.op == "conv" else len(node.shape) - 2,
            attributes=attributes,
            inputs=(x.name,),
            weight=names["weight"],
            bias=names.get("bias"),
        )

    def _tensor(self, name: str) -> None:
        if name not in self.tensors:
            encoding = self.artifact.encodings[name]
            assert encoding.grid is not None  # noqa: S101 - IntegerNet has taken it
            zero = encoding.grid.spread(encoding.grid.zero_point, len(encoding.shape))
            self.tensors[name] = (encoding.integers() - zero).cpu().numpy()

    def _add(self, node: Node) -> None:
        a, b = self._value(node, 0), self._value(node, 1)
        grid = self.grids[node.name]
        scales = [self.grids[name].scale for name in node.inputs]
        multipliers, shift = add_multipliers([float(s / grid.scale) for s in scales], 1.0)
        second = -multipliers[1] if node.op == "sub" else multipliers[1]
        ends = [
            sorted(((v.low - v.zero_point) * m, (v.high - v.zero_point) * m))
            for v, m in ((a, multipliers[0]), (b, second))
        ]
        low, high = self._clip(node, grid)
        rescale = Rescale(
            multiplier=np.ones(1, np.int64),
            shift=np.array([shift]),
            zero_point=int(grid.zero_point),
            low=low,
            high=high,
        )
        least, most = (np.array([ends[0][i] + ends[1][i]]) for i in (0, 1))
        self._put(node, grid, *rescale.bounds(least, most))
        self._emit(node, "add", attributes={"multipliers": (multipliers[0], second)}, rescale=(rescale,))

    def _multiply(self, node: Node) -> None:
        a, b = self._value(node, 0), self._value(node, 1)
        scale = self.grids[node.inputs[0]].scale * self.grids[node.inputs[1]].scale
        corners = [(p - a.zero_point) * (q - b.zero_point) for p in (a.low, a.high) for q in (b.low, b.high)]
        self._finish(node, "mul", scale, np.array([min(corners)]), np.array([max(corners)]))

    def _concat(self, node: Node) -> None:
        grid = self.grids[node.name]
        rescales: list[Rescale] = []
        bounds: list[tuple[int, int]] = []
        for i, name in enumerate(node.inputs):
            v, own = self._value(node, i), self.grids[name]
            rescale = self._rescale(node, own.scale, grid)
            if own.same(grid):
                rescale = replace(rescale, multiplier=np.ones(1, np.int64), shift=np.zeros(1, np.int64))
            rescales.append(rescale)
            bounds.append(rescale.bounds(np.array([v.low - v.zero_point]), np.array([v.high - v.zero_point])))
        self._put(node, grid, min(b[0] for b in bounds), max(b[1] for b in bounds))
        self._emit(node, "concat", attributes={"dim": node.attributes["dim"] - 1}, rescale=tuple(rescales))

    def _average(self, node: Node) -> None:
        x, a = self._value(node), node.attributes
        grid = self.grids.get(node.name)
        if grid is None:
            raise self._refuse(node, "an average that feeds only the output", "put a linear layer after it")
        if node.op == "avg_pool":
            count, padded = math.prod(a["kernel"]), any(p != (0, 0) for p in a["pads"])
            attributes = {"kernel": a["kernel"], "stride": a["stride"], "pads": a["pads"]}
        else:
            count, padded = math.prod(self.graph[node.inputs[0]].shape[d] for d in a["dims"]), False
            attributes = {"dims": tuple(d - 1 for d in a["dims"])}
        ends = [count * (end - x.zero_point) for end in (x.low, x.high)]
        if padded:
            ends = [min(ends[0], 0), max(ends[1], 0)]
        scale = self.grids[node.inputs[0]].scale / count
        kind = "sum_pool" if node.op == "avg_pool" else "sum"
        self._finish(node, kind, scale, np.array(ends[:1]), np.array(ends[1:]), attributes=attributes)

    def _function(self, node: Node) -> None:
        """A table of all codes of the input, points with lines between them, or an exact relu or clamp."""
        x, source = self._value(node), self.grids.get(node.inputs[0])
        grid = self.grids.get(node.name)
        if grid is None or source is None:
            raise self._refuse(node, "a function that feeds only the output", "apply it after the network")
        if node.op in CLIPS and is_wide(source):
            rescale = self._rescale(node, source.scale, grid)
            self._put(node, grid, *rescale.bounds(*(np.array([end - x.zero_point]) for end in (x.low, x.high))))
            self._emit(node, "rescale", rescale=(rescale,))
            return
        found = function(node, source, grid, self.artifact.module.state_dict())
        self._put(node, grid, *found.bounds(x.low, x.high))
        attributes: dict[str, Any] = {"first": found.low}
        if found.table.dim() > 1:
            attributes["channel"] = found.channel - 1
        if found.owner is not None:
            attributes["owner"] = tuple(found.owner.tolist())
        if found.shift is not None:
            attributes["shift"] = found.shift
        kind = "table" if found.shift is None else "interpolate"
        self._emit(node, kind, attributes=attributes, table=found.table.numpy())

    def _argmax(self, node: Node) -> None:
        x, dim = self._value(node), node.attributes["dim"]
        scale = torch.tensor(x.scale, dtype=torch.float32)
        wide = scale.reshape([-1 if d == x.channel + 1 and len(scale) > 1 else 1 for d in range(len(x.shape) + 1)])
        multipliers = argmax_multipliers(wide, len(x.shape) + 1, dim).reshape(-1)
        attributes: dict[str, Any] = {"dim": dim - 1}
        if len(multipliers) > 1:
            attributes["multipliers"] = tuple(multipliers.tolist())
        self.values[node.name] = Value(
            name=node.name, shape=tuple(node.shape[1:]), low=0, high=x.shape[dim - 1] - 1, scale=(1.0,)
        )
        self.names[node.name] = node.name
        self._emit(node, "argmax", attributes=attributes)

    def _max_pool(self, node: Node) -> None:
        x = self._value(node)
        a = node.attributes
        if x.zero_point != 0 or len(x.scale) == 1:
            attributes = {key: a[key] for key in ("kernel", "stride", "pads", "dilation")}
            size = [s + sum(p) for s, p in zip(x.shape[1:], a["pads"], strict=True)]
            reach = [d * (k - 1) + 1 for k, d in zip(a["kernel"], a["dilation"], strict=True)]
            missing = [
                max(0, (n - 1) * s + r - have)
                for n, s, r, have in zip(node.shape[2:], a["stride"], reach, size, strict=True)
            ]
            attributes["pads"] = tuple((p[0], p[1] + m) for p, m in zip(a["pads"], missing, strict=True))
            self._moved(node, x, x.low, x.high, "max_pool", attributes)
            return
        raise self._refuse(node, "max pooling of sums with several scales", "put it before the last layer")

    def _reshape(self, node: Node, x: Value) -> None:
        if len(x.scale) > 1:  # sums keep the scale of each element
            x = replace(x, scale=tuple(x.scales().reshape(-1).tolist()), channel=len(node.shape) - 2)
        self._moved(node, x, x.low, x.high, "reshape", {})

    def _maximum(self, node: Node) -> None:
        x = self._value(node)
        if len(x.scale) > 1:
            raise self._refuse(node, "a maximum of sums with several scales", "put it before the last layer")
        self._moved(node, x, x.low, x.high, "max", {"dims": tuple(d - 1 for d in node.attributes["dims"])})

    def _moved(self, node: Node, x: Value, low: int, high: int, kind: str, attributes: Mapping[str, Any]) -> None:
        value = replace(x, name=node.name, shape=tuple(node.shape[1:]), low=low, high=high)
        self.values[node.name], self.names[node.name] = value, node.name
        self._emit(node, kind, inputs=(x.name,), attributes=attributes)

    def _move(self, node: Node) -> None:
        x, a = self._value(node), node.attributes
        if node.op == "identity" or (node.op in ("reshape", "flatten") and tuple(node.shape[1:]) == x.shape):
            self.names[node.name] = x.name
            return
        if node.op in ("reshape", "flatten"):
            self._reshape(node, x)
        elif len(x.scale) > 1:
            raise self._refuse(node, f"{node.op} of sums with a scale for each channel", "put a layer after it")
        elif node.op == "permute":
            self._moved(node, x, x.low, x.high, "transpose", {"order": tuple(d - 1 for d in a["order"][1:])})
        elif node.op == "slice":
            kept = {"dim": a["dim"] - 1, "start": a["start"], "stop": a["stop"], "step": a["step"]}
            self._moved(node, x, x.low, x.high, "slice", kept)
        elif node.op == "select":
            kept = {"dim": a["dim"] - 1, "start": a["index"], "stop": a["index"] + 1, "step": 1}
            self._moved(node, x, x.low, x.high, "slice", kept)
        elif node.op == "pad":
            grid = self.grids[node.inputs[0]]
            code = int(grid.quantize(torch.tensor([a["value"]]))) if a["value"] else x.zero_point
            self._moved(node, x, min(x.low, code), max(x.high, code), "pad", {"pads": a["pads"][1:], "code": code})
        else:
            self._moved(node, x, x.low, x.high, "upsample", {"factors": a["factors"]})


RULES: dict[str, Callable[[_Lowering, Node], None]] = {
    **dict.fromkeys(LAYERS, _Lowering._layer),
    **dict.fromkeys(SUMS, _Lowering._average),
    **dict.fromkeys(TABLES, _Lowering._function),
    **dict.fromkeys(("add", "sub"), _Lowering._add),
    **dict.fromkeys(
        ("flatten", "reshape", "identity", "permute", "slice", "select", "pad", "upsample_nearest"), _Lowering._move
    ),
    "mul": _Lowering._multiply,
    "concat": _Lowering._concat,
    "max_pool": _Lowering._max_pool,
    "amax": _Lowering._maximum,
    "argmax": _Lowering._argmax,
}
"""{word: what emits its operations}."""
