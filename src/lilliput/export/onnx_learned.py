"""Learned functions in ONNX: lines between points in float32, and one table for each channel on integers.

Both are in opset 13: an index is computed and looked up with Gather.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lilliput.export.onnx_writer import Writer
from lilliput.graph.functions import Function
from lilliput.graph.trace import Node
from lilliput.ops.learned_function import PSA_LIMIT, SOFTNESS, of_channels, table_of


@dataclass(frozen=True, kw_only=True)
class Functions:
    """The functions of a node: `weight` and `limit` as `ops.learned_function` has them."""

    writer: Writer
    node: Node
    weight: Tensor
    limit: Tensor
    owner: Tensor | None = None

    @property
    def channels(self) -> int:
        return self.node.shape[self.node.attributes["dim"]]

    def along(self, values: Tensor | np.ndarray) -> str:
        """A constant with one entry, or one for each channel, that broadcasts over the node's value."""
        array = np.asarray(values)
        if len(array) == 1:
            return self.writer.constant(array.reshape(()))
        array = np.repeat(array, self.channels // len(array))
        dim = self.node.attributes["dim"]
        return self.writer.constant(array.reshape([-1 if d == dim else 1 for d in range(1, len(self.node.shape))]))

    def write(self, x: str) -> str:
        if self.node.attributes["kind"] == "psa":
            return self._psa(x)
        table = table_of(self.weight, self.limit, self.node.attributes["kind"], self.node.attributes["points"])
        return self._lines(x, table)

    def _lines(self, x: str, table: Tensor) -> str:
        op, (rows, points) = self.writer.op, table.shape
        limit = self.limit if len(self.limit) == 1 else of_channels(self.limit, self.owner)
        scaled = op("Mul", [x, self.along((points - 1) / (2 * limit))])
        u = op("Add", [scaled, self.writer.number((points - 1) / 2)])
        bounds = [self.writer.number(0), self.writer.number(points - 2)]
        place = op("Clip", [op("Floor", [u]), *bounds])
        first = np.arange(rows) if self.owner is None or rows == 1 else self.owner.numpy()
        index = op("Add", [op("Cast", [place], to=7), self.along(first * (points - 1))])
        left, step = (
            op("Gather", [self.writer.constant(values.reshape(-1).numpy()), index])
            for values in (table[:, :-1], table[:, 1:] - table[:, :-1])
        )
        rest = op("Mul", [op("Sub", [u, place]), step])
        return op("Add", [left, rest], name=self.node.name)

    def _psa(self, x: str) -> str:
        op, terms = self.writer.op, (self.weight.shape[1] - 2) // 3
        limit = self.limit if len(self.limit) == 1 else of_channels(self.limit, self.owner)
        factor = limit / PSA_LIMIT
        v, w, b, scale, offset = of_channels(self.weight, self.owner).split([terms, terms, terms, 1, 1], dim=1)
        z = op("Div", [x, self.along(factor)])
        wide = op("Unsqueeze", [z, self.writer.shape(-1)])
        away = op("Sub", [wide, self._terms(b)])
        scores = op("Mul", [op("Mul", [away, away]), self._terms(-1 / (w**2 + SOFTNESS))])
        mixed = op("Mul", [op("Softmax", [scores], axis=-1), self._terms(v)])
        slope = op("ReduceSum", [mixed, self.writer.shape(-1)], keepdims=0)
        line = op("Mul", [op("Mul", [z, slope]), self.along((scale[:, 0] * factor).contiguous())])
        return op("Add", [line, self.along((offset[:, 0] * factor).contiguous())], name=self.node.name)

    def _terms(self, values: Tensor) -> str:
        """[rows, terms] as a constant whose last dimension is the terms."""
        wide = values.repeat_interleave(self.channels // len(values), 0) if len(values) > 1 else values
        dim, rank = self.node.attributes["dim"], len(self.node.shape)
        shape = [-1 if d == dim and len(values) > 1 else 1 for d in range(1, rank)]
        return self.writer.constant(wide.reshape(*shape, values.shape[1]).numpy())


def write_table(writer: Writer, node: Node, x: str, function: Function, offsets: tuple[int, int], dtype: str) -> str:
    """Integers to integers, each code's result. `offsets` are what codes of input and output are moved by."""
    function = function.expanded()
    table = (function.table + offsets[1]).reshape(-1)
    entries = function.table.shape[-1]
    rows = len(table) // entries
    row = np.arange(rows) if function.owner is None else function.owner.numpy()
    base = row * entries - function.low - offsets[0]
    wide = [-1 if d == function.channel and rows > 1 else 1 for d in range(1, len(node.shape))]
    first = writer.constant(base.reshape(wide) if rows > 1 else base.reshape(()))
    index = writer.op("Add", [writer.op("Cast", [x], to=7), first])
    return writer.op("Gather", [writer.constant(table.numpy().astype(dtype)), index], name=node.name)
