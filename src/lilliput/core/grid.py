"""The grid of a tensor: what its integers stand for."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.errors import UsageError
from lilliput.ops.fixed_point import dequantize, integer_range, quantize

MAX_BITS = 23
"""|q - zero_point| < 2^23, so that rounding a decoded float32 gives q back: `encode` inverts `decode`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Integers q in `low..high` stand for (q - zero_point) * scale.

    Each field is a tensor of one entry (whole tensor) or of one entry for each slice of `axis`. A bit width of 0 means
    that the slice is gone: all its values are 0. Signed grids are narrow (-127..127) when `narrow`. Every value of the
    range is a finite float32.
    """

    scale: Tensor  # float32 [1] or [slices], positive
    zero_point: Tensor  # int64, in the range (any of 24 bits where the bit width is 0)
    bit_width: Tensor  # int64, 0..MAX_BITS
    signed: bool = True
    narrow: bool = False
    axis: int | None = None

    def __post_init__(self) -> None:
        n = self.scale.numel()
        same = self.zero_point.shape == self.bit_width.shape == self.scale.shape == (n,)
        if not same or n == 0 or (self.axis is None and n != 1):
            raise UsageError(
                "a grid",
                f"scale, zero_point and bit_width of shapes {tuple(self.scale.shape)}, "
                f"{tuple(self.zero_point.shape)}, {tuple(self.bit_width.shape)} for axis {self.axis}",
                "give each one entry, or one for each slice of the axis",
            )
        if self.scale.dtype != torch.float32 or not bool((torch.isfinite(self.scale) & (self.scale > 0)).all()):
            raise UsageError("a grid", "a scale that is not a positive finite float32", "choose scales with ops.affine")
        if self.zero_point.dtype != torch.int64 or self.bit_width.dtype != torch.int64:
            found = f"zero_point of {self.zero_point.dtype} and bit_width of {self.bit_width.dtype}"
            raise UsageError("a grid", found, "give both as torch.int64")
        least, most = int(self.bit_width.min()), int(self.bit_width.max())
        if least < 0 or most > MAX_BITS:
            raise UsageError("a grid", f"bit widths from {least} to {most}", f"use 0 to {MAX_BITS} bits")
        if self.narrow and bool((self.bit_width == 1).any()):
            raise UsageError("a grid", "a narrow range of 1 bit, which is a single integer", "use at least 2 bits")
        low, high = self.range()
        limit = 1 << MAX_BITS
        outside = (self.zero_point < low) | (self.zero_point > high) | (self.zero_point.abs() >= limit)
        if bool(outside.any()):
            found = f"zero point {int(self.zero_point[outside][0])} outside of its range"
            raise UsageError("a grid", found, "choose zero points with ops.affine")
        reach = torch.maximum(high - self.zero_point, self.zero_point - low).double() * self.scale.double()
        if bool((reach > torch.finfo(torch.float32).max).any()):
            raise UsageError("a grid", f"values up to {float(reach.max()):.3g}", "use a smaller scale or fewer bits")

    @staticmethod
    def per_tensor(scale: float, zero_point: int, bit_width: int, *, signed: bool, narrow: bool = False) -> "Grid":
        return Grid(
            scale=torch.tensor([scale], dtype=torch.float32),
            zero_point=torch.tensor([zero_point]),
            bit_width=torch.tensor([bit_width]),
            signed=signed,
            narrow=narrow,
        )

    def range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest integer of each slice; both are the zero point where the bit width is 0."""
        low, high = torch.empty_like(self.zero_point), torch.empty_like(self.zero_point)
        for bits in self.bit_width.unique().tolist():
            at = self.bit_width == bits
            if bits == 0:
                low[at] = high[at] = self.zero_point[at]
            else:
                low[at], high[at] = integer_range(bits, signed=self.signed, narrow=self.narrow)
        return low, high

    def common(self) -> tuple[int, int, int]:
        """(lowest integer, highest integer, bit width) that hold what any slice holds; slices of 0 bits hold nothing.

        The zero point of the first slice where all are gone.
        """
        low, high = self.range()
        alive = self.bit_width > 0
        if not bool(alive.any()):
            return int(low[0]), int(high[0]), 0
        return int(low[alive].min()), int(high[alive].max()), int(self.bit_width.max())

    def spread(self, values: Tensor, rank: int) -> Tensor:
        """One of the fields, shaped so that it broadcasts over a tensor of `rank` dimensions."""
        if self.axis is None:
            return values.reshape(())
        return values.reshape([-1 if d == self.axis else 1 for d in range(rank)])

    def quantize(self, x: Tensor) -> Tensor:
        """int64: nearest integers, halves up, saturated."""
        low, high = self.range()
        s = [self.spread(v, x.dim()) for v in (self.scale, self.zero_point, low, high)]
        return quantize(x, *s)

    def dequantize(self, q: Tensor) -> Tensor:
        return dequantize(q, self.spread(self.scale, q.dim()), self.spread(self.zero_point, q.dim()))

    def select(self, dim: int, index: Tensor) -> "Grid":
        if dim != self.axis:
            return self
        return replace(
            self, scale=self.scale[index], zero_point=self.zero_point[index], bit_width=self.bit_width[index]
        )

    def to(self, device: torch.device) -> "Grid":
        return replace(
            self,
            scale=self.scale.to(device),
            zero_point=self.zero_point.to(device),
            bit_width=self.bit_width.to(device),
        )

    def holds(self, q: Tensor, mask: Tensor | None = None) -> bool:
        """Whether the integers, those that `mask` keeps, are in the range."""
        low, high = (self.spread(v, q.dim()) for v in self.range())
        inside = (low <= q) & (q <= high)
        return bool((inside if mask is None else inside | ~mask).all())

    def same(self, other: "Grid | None") -> bool:
        return (
            other is not None
            and (self.signed, self.narrow, self.axis) == (other.signed, other.narrow, other.axis)
            and all(torch.equal(a, b) for a, b in zip(self._fields(), other._fields(), strict=True))
        )

    def _fields(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.scale, self.zero_point, self.bit_width
