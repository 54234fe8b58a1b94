"""From an artifact to its integer program: what `IntegerNet` computes, exactly, or an `ExportError` with a reason."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Grid
from lilliput.core.errors import ExportError
from lilliput.core.program import LARGEST_SUM, Ints, Operation, Program, Rescale, Value
from lilliput.graph.integer import (
    LAYERS,
    SUMS,
    TABLES,
    IntegerNet,
    accumulator_scale,
    fusions,
    grids_of,
    multiplier_of,
)
from lilliput.graph.trace import Graph, Node, evaluate, graph_of
from lilliput.ops.fixed_point import add_multipliers

TAILS = ("softmax", "log_softmax")


def lower(artifact: Artifact, graph: Graph | None = None) -> Program:
    """The program of a network whose weights, biases and activations are integers.

    Raises `ExportError` with node, source line and remedy for what has no integer form.
    """
    if not artifact.activations:
        raise ExportError("lower to integers", "activations have no grids", "quantize with activation_bits: 8 first")
    return _Lowering(artifact, graph or graph_of(artifact)).program()


class _Lowering:
    def __init__(self, artifact: Artifact, graph: Graph) -> None:
        self.artifact, self.graph = artifact, graph
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
            self._lower(node)
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

    def _refuse(self, node: Node, found: str, do: str) -> ExportError:
        line = f" ({node.source})" if node.source else ""
        return ExportError(f"lower {node.layer!r} to integers", f"{found}{line}", do)

    def _lower(self, node: Node) -> None:
        if node.op == "size":
            return
        grid = self.grids.get(node.name)
        if node.op == "input":
            if grid is None:
                raise self._refuse(node, "the input has no grid", "quantize the network with activation_bits: 8")
            self._put(node, grid, int(grid.range()[0]), int(grid.range()[1]))
            return
        if any(owner == node.name for owner in self.fused.values()) and node.inputs[0] in self.fused:
            self.names[node.name] = self.names[node.inputs[0]]  # the operation before has clipped already
            return
        if node.op in TAILS and node.name in self.graph.outputs:
            self.tail, self.names[node.name] = node.op, self.names[node.inputs[0]]
            return
        rules: dict[str, Callable[[Node], None]] = {
            **dict.fromkeys(LAYERS, self._layer),
            **dict.fromkeys(SUMS, self._average),
            **dict.fromkeys(TABLES, self._table),
            **dict.fromkeys(("add", "sub"), self._add),
            **dict.fromkeys(("flatten", "reshape", "identity", "permute", "slice", "select", "pad"), self._move),
            "mul": self._multiply,
            "concat": self._concat,
            "max_pool": self._max_pool,
            "upsample_nearest": self._move,
        }
        rule = rules.get(node.op)
        if node.name in self.floats or rule is None:
            reason = self.floats.get(node.name, f"{node.target} has no integer rule")
            raise self._refuse(node, reason, "quantize its layer and inputs, or replace it by a supported operation")
        rule(node)

    def _value(self, node: Node, index: int = 0) -> Value:
        return self.values[self.names[node.inputs[index]]]

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
        low, high = (int(bound) for bound in grid.range())
        after = self.fused.get(node.name)
        if after is None:
            return low, high
        clamp = self.graph[after]
        bounds = (0.0, None) if clamp.op == "relu" else (clamp.attributes["low"], clamp.attributes["high"])
        codes = [None if b is None else int(grid.quantize(torch.tensor([b]))) for b in bounds]
        low = low if codes[0] is None else min(max(low, codes[0]), high)
        return low, high if codes[1] is None else max(min(high, codes[1]), low)

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

    def _layer(self, node: Node) -> None:
        x = self._value(node)
        names = {role: self.artifact.canonical(name) for role, name in node.state.items()}
        weight = self.artifact.encodings[names["weight"]]
        assert weight.grid is not None  # noqa: S101 - IntegerNet has taken it
        self._tensor(names["weight"])
        transposed = bool(node.attributes.get("transposed"))
        q = self.tensors[names["weight"]]
        if transposed:  # [in, out / groups, ...] -> [out, in / groups, ...]
            groups = node.attributes["groups"]
            q = np.concatenate([part.swapaxes(0, 1) for part in np.split(q, groups)])
        rows = q.reshape(len(q), -1)
        reach = x.low - x.zero_point, x.high - x.zero_point
        ends = np.stack([rows * reach[0], rows * reach[1], np.zeros_like(rows)])  # 0: padding
        least, most = ends.min(0).sum(1), ends.max(0).sum(1)
        if "bias" in names:
            self._tensor(names["bias"])
            bias = self.tensors[names["bias"]]
            least, most = np.minimum(least, 0) + bias, np.maximum(most, 0) + bias
        source = self.grids[node.inputs[0]]
        kept = ("stride", "dilation", "pads", "kernel", "groups", "output_padding")
        attributes = {key: v for key, v in node.attributes.items() if key in kept}
        kind = "linear" if node.op == "linear" else "conv_transposed" if transposed else "conv"
        self._finish(
            node,
            kind,
            accumulator_scale(source, weight.grid).cpu(),
            least,
            most,
            channel=0 if node.op == "conv" else len(node.shape) - 2,
            attributes=attributes,
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

    def _table(self, node: Node) -> None:
        """All codes of the input through the function, once."""
        x, source = self._value(node), self.grids[node.inputs[0]]
        grid = self.grids.get(node.name)
        if grid is None:
            raise self._refuse(node, "a function that feeds only the output", "apply it after the network")
        low, high = (int(bound) for bound in source.range())
        codes = torch.arange(low, high + 1)
        result = evaluate(node, {node.inputs[0]: source.dequantize(codes.double())}, {})
        table = grid.quantize(result).cpu().numpy()
        used = table[x.low - low : x.high - low + 1]
        self._put(node, grid, int(used.min()), int(used.max()))
        self._emit(node, "table", attributes={"first": low}, table=table)

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

    def _moved(self, node: Node, x: Value, low: int, high: int, kind: str, attributes: Mapping[str, Any]) -> None:
        value = replace(x, name=node.name, shape=tuple(node.shape[1:]), low=low, high=high)
        self.values[node.name], self.names[node.name] = value, node.name
        self._emit(node, kind, inputs=(x.name,), attributes=attributes)

    def _move(self, node: Node) -> None:
        x, a = self._value(node), node.attributes
        if node.op == "identity" or (node.op in ("reshape", "flatten") and tuple(node.shape[1:]) == x.shape):
            self.names[node.name] = x.name
            return
        if len(x.scale) > 1:
            raise self._refuse(node, f"{node.op} of sums with a scale for each channel", "put a layer after it")
        if node.op in ("reshape", "flatten"):
            self._moved(node, x, x.low, x.high, "reshape", {})
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
