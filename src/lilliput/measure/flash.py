"""Bytes of constants that a microcontroller keeps in flash: arrays that kernels can read, not the coded `.lil` file.

- A weight of b bits takes 1, 2, 4, 8, 16 or 32 bits, the least that b fits in, with b of the widest channel. Shared
  weights are indices of such widths and a table of values, where that is smaller. Masked weights are stored as zeros.
- A bias entry takes 4 bytes, quantized (int32) or not. What is not quantized is float32.
- A requantization takes 4 bytes for each scale (int32 multiplier) and 1 for the shift that they share, an add 9, a
  result left in accumulators 4 for each scale (float32).
- A function of one value on a grid is a table: 256 entries for 8 bits, 257 points for more; a learned function whose
  2^k + 1 points stand on codes is these. Functions that channels share are there once, and a byte for each channel.
- BatchNorm that is not folded takes 8 bytes a channel.

Tensors that no operation reads are not there, tied tensors are there once. Code is not included.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.cost import CostTable, Measurement
from lilliput.core.encoding import Encoding, Grid
from lilliput.graph.functions import CLIPS, is_wide, shift_of
from lilliput.graph.integer import LAYERS, SUMS, TABLES, fusions
from lilliput.graph.trace import Graph, Node
from lilliput.ops.interpolation import POINT_BITS

WIDTHS = (0, 1, 2, 4, 8, 16, 32)
FLOAT_BITS = 32
MULTIPLIER_BYTES = 5
POINTS = 2**POINT_BITS + 1
MOST_SHARED = 1 << 8


def packed_bits(bit_width: int) -> int:
    """The width that kernels read: 3 bits are kept in 4, 5 in 8."""
    return next(width for width in WIDTHS if bit_width <= width)


def element_bytes(grid: Grid | None) -> int:
    """Of an activation: whole bytes, 4 without a grid (float32 or an accumulator)."""
    if grid is None:
        return 4
    return max(packed_bits(int(grid.bit_width.max())), 8) // 8


def array_bytes(encoding: Encoding) -> int:
    """Of a tensor's numbers, without scales."""
    count = math.prod(encoding.shape)
    bits = FLOAT_BITS if encoding.grid is None else packed_bits(int(encoding.grid.bit_width.max()))
    plain = math.ceil(count * bits / 8)
    if encoding.sharing is None:
        return plain
    index_bits = packed_bits((int(encoding.sharing.sizes.max()) - 1).bit_length())
    return min(plain, math.ceil(count * index_bits / 8) + math.ceil(len(encoding.values) * bits / 8))


def count_flash(graph: Graph, artifact: Artifact, grids: Mapping[str, Grid]) -> CostTable:
    """`flash` of each operation, in bytes; `grids` are those of all values of the graph."""
    tensors = dict(artifact.module.named_parameters(remove_duplicate=False))
    tensors |= dict(artifact.module.named_buffers(remove_duplicate=False))
    encodings = {id(tensors[name]): encoding for name, encoding in artifact.encodings.items()}
    clips = set(fusions(graph).values())
    seen: set[int] = set()
    rows: list[tuple[str, Measurement]] = []
    for node in graph.nodes:
        read = {role: tensors[name] for role, name in node.state.items() if name in tensors}
        new = {role: tensor for role, tensor in read.items() if id(tensor) not in seen}
        seen.update(id(tensor) for tensor in new.values())
        size = 0 if node.name in clips else _arithmetic_bytes(node, grids, read)
        if node.op in ("prelu", "learned_function") and _on_grids(node, grids):
            pass  # a table holds what it does
        elif node.op == "batch_norm":
            size += 8 * node.shape[1] if new else 0
        else:
            for role, tensor in new.items():
                if role == "bias" and node.op in LAYERS:
                    size += 4 * tensor.numel()
                elif tensor.is_floating_point():
                    size += array_bytes(encodings.get(id(tensor)) or Encoding.of(tensor))
                else:  # a buffer of whole numbers that the network computes with
                    size += tensor.numel() * tensor.element_size()
        weight = encodings.get(id(read["weight"])) if node.op in LAYERS and "weight" in read else None
        if weight is not None and weight.grid is not None:
            size += _scale_bytes(weight.grid, requantized=_on_grids(node, grids))
        rows.append((node.name, Measurement("flash", size, "B", "planned")))
    return CostTable.of(rows)


def _on_grids(node: Node, grids: Mapping[str, Grid]) -> bool:
    return bool(node.inputs) and all(name in grids for name in (*node.inputs, node.name))


def _scale_bytes(weight: Grid, *, requantized: bool) -> int:
    zero_points = weight.scale.numel() if bool(weight.zero_point.any()) else 0
    return weight.scale.numel() * 4 + int(requantized) + zero_points  # one shift for all channels


def _arithmetic_bytes(node: Node, grids: Mapping[str, Grid], read: Mapping[str, Tensor]) -> int:
    """Constants of an operation that is not a layer."""
    if not _on_grids(node, grids):
        return 0
    if node.op in ("add", "sub"):
        return 2 * MULTIPLIER_BYTES - 1
    if node.op == "mul" or node.op in SUMS:
        return MULTIPLIER_BYTES
    if node.op == "concat":
        return sum(MULTIPLIER_BYTES for name in node.inputs if not grids[name].same(grids[node.name]))
    if node.op in TABLES:
        if is_wide(grids[node.inputs[0]]) and node.op in CLIPS:
            return MULTIPLIER_BYTES
        source = grids[node.inputs[0]]
        shift = shift_of(node, source, read["limit"]) if node.op == "learned_function" else None
        entries = POINTS if is_wide(source) else 2 ** int(source.bit_width.max())
        if shift:
            entries = node.attributes["points"]
        rows, channels = len(read["weight"]) if "weight" in read else 1, node.shape[node.attributes.get("dim", 1)]
        named = rows > 1 and (rows < channels or "owner" in read)  # channels say in a byte which row they have
        rows, index = (channels, 0) if named and rows > MOST_SHARED else (rows, channels if named else 0)
        return entries * rows * element_bytes(grids[node.name]) + index
    return 0
