"""Functions of one value on integers: what `IntegerNet` computes with and what the program holds are one table.

A value of up to 8 bits has a table with an entry for each code, a wider one points with lines between them
(`ops.interpolation`). A learned function whose points stand on codes is these points, whatever the width: its limit is
then 2^(bits - 1) steps of the grid that it reads (`graph.knots`). A relu or clamp of a wide value is exact: rescaled
and clipped, like the end of a layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.encoding import Grid
from lilliput.core.errors import ArtifactError
from lilliput.graph.operators import POINTWISE
from lilliput.graph.trace import Node, evaluate
from lilliput.ops.fixed_point import integer_range
from lilliput.ops.interpolation import (
    FEWEST_POINT_BITS,
    POINT_BITS,
    WIDEST_TABLE,
    interpolate,
    look_up,
    point_codes,
)
from lilliput.ops.learned_function import table_of

TABLES = (*POINTWISE, "add_scalar", "mul_scalar", "sub_scalar")
CLIPS = ("relu", "clamp")


@dataclass(frozen=True, kw_only=True, eq=False)
class Function:
    """`table`: int64 [entries], or [channels, entries] for channels along dimension `channel` of the batch.

    With `owner`, int64 [channels], it is [rows, entries], and channel c has row owner[c].
    Without `shift` an entry for each code from `low` on; else points, 2^shift codes apart.
    """

    table: Tensor
    low: int
    shift: int | None = None
    channel: int = 1
    owner: Tensor | None = None

    def __call__(self, codes: Tensor) -> Tensor:
        table = self.table.to(codes.device)
        if self.shift is None:
            return look_up(codes, table, self.low, self.channel, self.owner)
        return interpolate(codes, table, self.low, self.shift, self.channel, self.owner)

    def expanded(self) -> "Function":
        """The same with an entry for each code."""
        if self.shift is None:
            return self
        codes = torch.arange((self.table.shape[-1] - 1) << self.shift)
        rows = interpolate(codes[:, None], self.table.reshape(-1, self.table.shape[-1]), 0, self.shift).movedim(0, 1)
        return replace(self, table=rows.reshape(*self.table.shape[:-1], len(codes)), shift=None)

    def bounds(self, low: int, high: int) -> tuple[int, int]:
        """The least and largest results for codes from `low` to `high`."""
        first, last = low - self.low, high - self.low
        if self.shift is not None:
            first, last = first >> self.shift, (last >> self.shift) + 1
        used = self.table[..., first : last + 1]
        return int(used.min()), int(used.max())


def is_wide(grid: Grid) -> bool:
    return int(grid.bit_width.max()) > WIDEST_TABLE


def point_bits(node: Node, bits: int) -> int | None:
    """k of a learned function of 2^k + 1 points that may stand on codes of so many bits; None for other functions."""
    if node.op != "learned_function" or node.attributes["kind"] == "psa":
        return None
    k = (node.attributes["points"] - 1).bit_length() - 1
    fits = FEWEST_POINT_BITS <= k <= min(POINT_BITS, bits) and node.attributes["points"] == (1 << k) + 1
    return k if fits else None


def shift_of(node: Node, source: Grid, limit: Tensor) -> int | None:
    """The points of a learned function stand 2^shift codes of `source` apart; None where they do not stand on codes."""
    bits = int(source.bit_width.max())
    k = point_bits(node, bits)
    centred = source.signed and not source.narrow and source.scale.numel() == 1 and not bool(source.zero_point.any())
    if k is None or not centred or limit.numel() != 1:
        return None
    return bits - k if float(source.scale) * (1 << (bits - 1)) == float(limit) else None


def function(node: Node, source: Grid, grid: Grid, state: Mapping[str, Tensor]) -> Function:
    """The table, or the points, of a node that reads codes of `source` and gives codes of `grid`; on the CPU.

    Where the function has no value (the logarithm of a negative number), the nearest code counts that has one.
    """
    source, grid = source.to(torch.device("cpu")), grid.to(torch.device("cpu"))
    bits = int(source.bit_width)
    if node.op == "learned_function":
        limit = state[node.state["limit"]].detach().cpu()
        shift = shift_of(node, source, limit)
        if shift is not None:
            found = _points(node, grid, state[node.state["weight"]].detach().cpu(), limit, shift, bits)
            return _of_channels(node, found, state)
    if is_wide(source):
        low, shift = integer_range(bits, signed=source.signed)[0], bits - POINT_BITS
        codes = point_codes(low, bits)
    else:
        low, high = (int(end) for end in source.range())
        codes, shift = torch.arange(low, high + 1), None
    table = grid.quantize(_filled(node, values_at(node, state, source.dequantize(codes))))
    found = Function(table=table, low=low, shift=shift, channel=node.attributes.get("dim", 1))
    return _of_channels(node, found, state)


def _points(node: Node, grid: Grid, weight: Tensor, limit: Tensor, shift: int, bits: int) -> Function:
    """The values at the points themselves, rounded; a table where there is one for each code."""
    y = table_of(weight, limit, node.attributes["kind"], node.attributes["points"])
    table, low = grid.quantize(_filled(node, y)), -1 << (bits - 1)
    channel = node.attributes["dim"]
    if shift == 0:
        return Function(table=table[:, :-1], low=low, channel=channel)
    return Function(table=table, low=low, shift=shift, channel=channel)


def _of_channels(node: Node, found: Function, state: Mapping[str, Tensor]) -> Function:
    """One table, one for each channel, or which of several each channel has."""
    rows = len(found.table)
    if rows == 1:
        return replace(found, table=found.table[0])
    channels = node.shape[found.channel]
    if "owner" in node.state:
        return replace(found, owner=state[node.state["owner"]].detach().cpu().long())
    return found if rows == channels else replace(found, owner=torch.arange(channels) // (channels // rows))


def values_at(node: Node, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """[functions, len(x)]: what each function of a node makes of these, on the CPU."""
    node = replace(node, state={role: name for role, name in node.state.items() if role != "owner"})
    own = {name: state[name].detach().cpu() for name in node.state.values()}
    if "dim" in node.attributes:
        node = replace(node, attributes={**node.attributes, "dim": 1})
    return evaluate(node, {node.inputs[0]: x[:, None].expand(-1, rows_of(node, own))}, own).movedim(0, 1)


def rows_of(node: Node, state: Mapping[str, Tensor]) -> int:
    """How many different functions a node of one value is: those of PReLU and learned functions may be several."""
    return state[node.state["weight"]].shape[0] if "weight" in node.state else 1


def _filled(node: Node, y: Tensor) -> Tensor:
    """[..., n] without NaN."""
    known = ~torch.isnan(y).reshape(-1, y.shape[-1]).any(0)
    if bool(known.all()):
        return y
    if not bool(known.any()):
        raise ArtifactError(f"compute {node.name!r} in integers", "NaN everywhere", "look for broken parameters")
    there = torch.nonzero(known).reshape(-1)
    nearest = (torch.arange(y.shape[-1])[:, None] - there).abs().argmin(1)
    return y[..., there[nearest]]


def clip_codes(node: Node, grid: Grid) -> tuple[int, int]:
    """The codes that a relu or clamp leaves."""
    low, high = (int(end) for end in grid.range())
    bounds = (0.0, None) if node.op == "relu" else (node.attributes["low"], node.attributes["high"])
    ends = [None if b is None else int(grid.quantize(torch.tensor([b], device=grid.scale.device))) for b in bounds]
    low = low if ends[0] is None else ends[0]
    return low, high if ends[1] is None else max(ends[1], low)
