"""Which ONNX type holds a grid's integers."""

from dataclasses import dataclass

import torch

from lilliput.core.encoding import Grid
from lilliput.core.errors import ExportError
from lilliput.graph.trace import Node

RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How a grid's integers are held: as `dtype`, moved by `offset`."""

    grid: Grid
    dtype: str
    offset: int

    @property
    def bounds(self) -> tuple[int, int]:
        low, high = self.grid.range()
        return int(low) + self.offset, int(high) + self.offset

    @property
    def zero_point(self) -> int:
        return int(self.grid.zero_point) + self.offset

    @property
    def is_8_bits(self) -> bool:
        return self.dtype in ("uint8", "int8")

    def decode(self, integer: int) -> float:
        return (integer - self.zero_point) * float(self.grid.scale)

    def round(self, value: float) -> int:
        """The integer that `value` is held as."""
        return int(self.grid.quantize(torch.tensor([value]))) + self.offset


def storage(node: Node, grid: Grid, *, unsigned: bool) -> Storage:
    """The type for a value on `grid`; 16-bit grids keep the sign that they have."""
    grid, bits = grid.to(torch.device("cpu")), int(grid.bit_width.max())
    if grid.scale.numel() != 1 or bits > 16:
        found = "its grid has a scale for each channel" if grid.scale.numel() != 1 else f"its grid has {bits} bits"
        raise ExportError(
            f"ONNX export of {node.name!r}", found, "calibrate one scale with at most 16 bits for each value"
        )
    if bits > 8:
        return Storage(grid=grid, dtype="int16" if grid.signed else "uint16", offset=0)
    return Storage(
        grid=grid, dtype="uint8" if unsigned else "int8", offset=128 * (int(grid.signed) - int(not unsigned))
    )
