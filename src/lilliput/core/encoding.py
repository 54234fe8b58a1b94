"""How a tensor is stored: four slots that passes fill in any order.

- **mask**: which entries are stored (True = kept; the others are exactly zero);
- **sharing**: entries name centroids of a table, one table for the tensor or one for each slice of an axis (ragged);
- **grid**: what is stored are integers q; the value is (q - zero_point) * scale, for the tensor or for each slice;
- **coding**: how the packed streams are coded, chosen per stream in `lilliput.core.coding`; integers of a grid may come
  from a circuit (`bank`), and are then stored as which of its values they are.

The stored numbers (`values`) are kept, never recomputed: a learned rounding is not the nearest rounding. An encoding is
immutable; every change gives a new one. Laws, each a test: `z.encode(z.decode()) == z`, `z.select(d, i).decode() ==
z.decode().index_select(d, i)`, reported bits = packed bits.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.bank import Bank
from lilliput.core.errors import UsageError
from lilliput.core.grid import Grid

MOST_SHARED = 65535
"""Values in one table."""
FLOATS = ("torch.float32", "torch.float64", "torch.float16", "torch.bfloat16")
INTEGERS = ("torch.int64", "torch.int32", "torch.int16", "torch.int8", "torch.uint8")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sharing:
    """Which centroid each entry uses. `sizes[g]` centroids belong to slice g of `axis` (one slice if None)."""

    indices: Tensor  # int64, the tensor's shape, 0 <= index < sizes of its slice
    sizes: Tensor  # int64 [1] or [slices]
    axis: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("indices", self.indices), ("sizes", self.sizes)):
            if _kind(value) != "torch.int64":
                raise UsageError("sharing", f"{name} of {_kind(value)}", f"give {name} as a tensor of torch.int64")
        if self.sizes.dim() != 1:
            raise UsageError("sharing", f"sizes of shape {tuple(self.sizes.shape)}", "give a vector of them")
        if self.axis is not None and type(self.axis) is not int:
            raise UsageError("sharing", f"axis {self.axis!r}", "give the number of a dimension, or None")

    def offsets(self) -> Tensor:
        return torch.cumsum(self.sizes, 0) - self.sizes

    def rows(self) -> Tensor:
        """Position in the table of each entry."""
        offsets = self.offsets()
        if self.axis is None:
            return self.indices + offsets[0]
        return self.indices + offsets.reshape([-1 if d == self.axis else 1 for d in range(self.indices.dim())])


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """One tensor and its slots.

    `values` holds what is stored: float32 or the integers of the grid (int64); of the tensor's shape, or, with sharing,
    the tables one after the other. Entries that the mask drops hold 0 (index 0 with sharing). With a `bank` the others
    are values of it, in slices that have bits; there is a grid then, and no sharing.
    """

    shape: tuple[int, ...]
    values: Tensor
    mask: Tensor | None = None
    sharing: Sharing | None = None
    grid: Grid | None = None
    bank: Bank | None = None

    @staticmethod
    def of(tensor: Tensor) -> "Encoding":
        """A float tensor as it is."""
        if not tensor.is_floating_point():
            raise UsageError("an encoding", f"a tensor of {tensor.dtype}", "encode floating-point tensors")
        return Encoding(shape=tuple(tensor.shape), values=tensor.detach().float().clone())

    @staticmethod
    def on_one_grid(tensor: Tensor, bits: int) -> "Encoding":
        """Nearest integers on one symmetric grid that reaches to the largest entry; as it is with 0 bits."""
        plain = Encoding.of(tensor)
        largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
        if bits == 0 or largest == 0.0:
            return plain
        scale = float(torch.tensor(largest / (2 ** (bits - 1) - 1), dtype=torch.float32).clamp(min=1e-30))
        return plain.with_grid(Grid.per_tensor(scale, 0, bits, signed=True, narrow=True))

    @property
    def is_plain(self) -> bool:
        return self.mask is None and self.sharing is None and self.grid is None

    @property
    def is_integer(self) -> bool:
        return self.grid is not None

    def integers(self) -> Tensor:
        """int64 of the tensor's shape: the grid's integers, the zero point where masked.

        Raises `UsageError` without a grid.
        """
        if self.grid is None:
            raise UsageError("integers of an encoding", "it has no grid", "quantize the tensor first")
        q = self._dense()
        if self.mask is not None:
            zero = self.grid.spread(self.grid.zero_point, len(self.shape)).expand(self.shape)
            q = torch.where(self.mask, q, zero)
        return q

    def decode(self) -> Tensor:
        """float32: the values that the network computes with."""
        x = self._dense()
        if self.grid is not None:
            x = self.grid.dequantize(x)
        if self.mask is not None:
            x = torch.where(self.mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
        return x

    def encode(self, x: Tensor) -> "Encoding":
        """`x` in these slots: masked, its clusters' means, rounded. Inverts `decode`.

        The assignment to clusters, the mask and the grid stay; only the stored numbers move.
        """
        if tuple(x.shape) != self.shape:
            raise UsageError("encode", f"a tensor of shape {tuple(x.shape)}", f"give one of shape {self.shape}")
        x = x.detach()
        if self.sharing is not None:
            if self.grid is None:
                return replace(self, values=cluster_means(x, self.sharing, self.mask).float())
            rank, grid = len(self.shape), self.grid  # means of q, not of x: scales may differ inside a cluster
            real = x.double() / grid.spread(grid.scale, rank) + grid.spread(grid.zero_point, rank)
            means = torch.floor(cluster_means(real, self.sharing, self._live()) + 0.5).long()
            return replace(self, values=torch.clamp(means, *self.row_range()))
        stored: Tensor = x.float() if self.grid is None else self._rounded(self.grid, x)
        return replace(self, values=_blank(stored, self.mask))

    def with_mask(self, mask: Tensor) -> "Encoding":
        """Keep only entries that `mask` and the present mask keep."""
        if tuple(mask.shape) != self.shape:
            raise UsageError("mask", f"a mask of shape {tuple(mask.shape)}", f"give one of shape {self.shape}")
        mask = mask != 0 if self.mask is None else (mask != 0) & self.mask
        if self.sharing is not None:
            sharing = replace(self.sharing, indices=_blank(self.sharing.indices, mask))
            return replace(self, mask=mask, sharing=sharing)._compact()
        return replace(self, mask=mask, values=_blank(self.values, mask))

    def with_sharing(self, sharing: Sharing, table: Tensor) -> "Encoding":
        """Entries become references into `table` (values; on a grid: its integers).

        Integers saturate to what their slices can hold: to the narrowest where a cluster spans several. A bank goes.
        """
        self._check_table(sharing, table)
        indices = _blank(sharing.indices, self.mask)
        values = table.float() if self.grid is None else table.long()
        new = replace(self, values=values, sharing=replace(sharing, indices=indices), bank=None)
        if self.grid is not None:
            new = replace(new, values=torch.clamp(values, *new.row_range()))
        new = new._compact()
        if new.sharing is not None and int(new.sharing.sizes.max()) > MOST_SHARED:
            raise UsageError("sharing", f"more than {MOST_SHARED} values in a table", "use fewer clusters")
        return new

    def with_grid(self, grid: Grid, values: Tensor | None = None) -> "Encoding":
        """Stored numbers become integers of `grid`: the nearest, or the given `values` (learned roundings).

        With a shared table that spans slices of the grid's axis, the grid must be one for the whole tensor. With a bank
        they are its nearest values; it goes where given `values` are others.
        """
        slices = grid.scale.numel()
        if grid.axis is not None and not (0 <= grid.axis < len(self.shape) and self.shape[grid.axis] == slices):
            raise UsageError(
                "grid",
                f"{slices} scales on axis {grid.axis} for a tensor of shape {self.shape}",
                "give one for each slice of the axis",
            )
        rows = grid if self.sharing is None else self._table_grid(grid)
        if values is None:
            source = self.decode() if self.sharing is None else self._float_table()
            reached = self.bank is not None and self.bank.reaches(grid)
            values = self._rounded(grid, source) if reached else rows.quantize(source)
        elif (
            values.shape != self.values.shape
            or values.is_floating_point()
            or not rows.holds(values, self._dense_mask())
        ):
            raise UsageError("grid", "values that are not integers of the grid", "round and saturate them first")
        new = replace(self, grid=grid, values=_blank(values.long().clone(), self._dense_mask()))
        if self.bank is not None and not new._fits(self.bank):
            new = replace(new, bank=None)
        return new if self.sharing is None else new._compact()

    def with_bank(self, bank: Bank) -> "Encoding":
        """Integers become the nearest values of the bank. Shared tables are resolved."""
        if self.grid is None:
            raise UsageError("values of a circuit", "a tensor without a grid", "quantize it first")
        if not bank.reaches(self.grid):
            raise UsageError("values of a circuit", "none is in the range of some channel", "make smaller values too")
        new = replace(self, sharing=None, bank=bank)
        return replace(new, values=_blank(new._rounded(self.grid, self.decode()), self.mask))

    def select(self, dim: int, index: Tensor) -> "Encoding":
        """The encoding of the chosen slices of dimension `dim`."""
        shape = tuple(len(index) if d == dim else s for d, s in enumerate(self.shape))
        mask = None if self.mask is None else self.mask.index_select(dim, index)
        grid = None if self.grid is None else self.grid.select(dim, index)
        if self.sharing is None:
            values = self.values.index_select(dim, index)
            return Encoding(shape=shape, values=values, mask=mask, grid=grid, bank=self.bank)
        indices, sizes, table = self.sharing.indices.index_select(dim, index), self.sharing.sizes, self.values
        if dim == self.sharing.axis:
            tables = torch.split(table, sizes.tolist())
            table = torch.cat([tables[i] for i in index.tolist()] or [table[:0]])
            sizes = sizes[index]
        sharing = Sharing(indices=indices, sizes=sizes, axis=self.sharing.axis)
        return Encoding(shape=shape, values=table, mask=mask, grid=grid, sharing=sharing)._compact()

    def to(self, device: torch.device) -> "Encoding":
        sharing = self.sharing and replace(
            self.sharing, indices=self.sharing.indices.to(device), sizes=self.sharing.sizes.to(device)
        )
        return replace(
            self,
            values=self.values.to(device),
            mask=None if self.mask is None else self.mask.to(device),
            sharing=sharing,
            grid=self.grid and self.grid.to(device),
        )

    def same(self, other: "Encoding") -> bool:
        """Bitwise the same slots."""
        if self.shape != other.shape or not _equal(self.mask, other.mask) or not torch.equal(self.values, other.values):
            return False
        if (self.grid is None) != (other.grid is None) or (self.grid is not None and not self.grid.same(other.grid)):
            return False
        if (self.bank is None) != (other.bank is None) or (self.bank is not None and not self.bank.same(other.bank)):
            return False
        a, b = self.sharing, other.sharing
        if a is None or b is None:
            return a is b
        return a.axis == b.axis and torch.equal(a.indices, b.indices) and torch.equal(a.sizes, b.sizes)

    def describe(self) -> str:
        """One short phrase: "50% kept, 16 shared values, 8 bits per channel"."""
        parts: list[str] = []
        if self.mask is not None:
            parts.append(f"{100 * self.mask.float().mean().item():.0f}% kept")
        if self.sharing is not None:
            many = _from_to(self.sharing.sizes)
            values = "value" if many == "1" else "values"
            parts.append(f"{many} shared {values}" + (" per channel" if self.sharing.axis is not None else ""))
        if self.grid is not None:
            parts.append(
                f"{_from_to(self.grid.bit_width)} bits" + (" per channel" if self.grid.axis is not None else "")
            )
        if self.bank is not None:
            parts.append(self.bank.describe())
        return ", ".join(parts) or "float32"

    def row_range(self) -> tuple[Tensor, Tensor]:
        """int64 [rows of the table] each: the lowest and the highest integer that every slice using a row can hold."""
        if self.grid is None or self.sharing is None:
            raise UsageError("range of a table", "no grid or no shared table", "quantize and cluster first")
        grid, sharing = self.grid, self.sharing
        low, high = grid.range()
        if grid.axis is None:
            return low.expand(int(sharing.sizes.sum())), high.expand(int(sharing.sizes.sum()))
        if grid.axis == sharing.axis:
            return torch.repeat_interleave(low, sharing.sizes), torch.repeat_interleave(high, sharing.sizes)
        rows = sharing.rows().reshape(-1)
        low, high = (grid.spread(v, len(self.shape)).expand(self.shape).reshape(-1) for v in (low, high))
        live = self._live()
        if live is not None:
            rows, low, high = (v[live.reshape(-1)] for v in (rows, low, high))
        least, most, _ = grid.common()
        lows, highs = (torch.full_like(self.values, v) for v in (least, most))
        return lows.scatter_reduce(0, rows, low, "amax"), highs.scatter_reduce(0, rows, high, "amin")

    def _rounded(self, grid: Grid, x: Tensor) -> Tensor:
        """int64: the nearest integers of the grid; of the bank, where there is one."""
        if self.bank is None:
            return grid.quantize(x)
        rank = len(self.shape)
        low, high = (grid.spread(end, rank) for end in grid.range())
        real = x.double() / grid.spread(grid.scale, rank) + grid.spread(grid.zero_point, rank)
        gone = grid.spread(grid.bit_width == 0, rank)
        return torch.where(gone, grid.spread(grid.zero_point, rank), self.bank.nearest(real, low, high))

    def _fits(self, bank: Bank) -> bool:
        """Are all integers that are stored values of the bank?"""
        live = self._live()
        found = bank.holds(self.values)
        return bool((found if live is None else found | ~live).all())

    def _live(self) -> Tensor | None:
        """bool: the entries that use a shared table, None for all: kept ones in slices of more than 0 bits."""
        if self.grid is None or not bool((self.grid.bit_width == 0).any()):
            return self.mask
        alive = self.grid.spread(self.grid.bit_width > 0, len(self.shape)).expand(self.shape)
        return alive if self.mask is None else alive & self.mask

    def _dense(self) -> Tensor:
        if self.sharing is None:
            return self.values
        x = self.values[self.sharing.rows()]
        if self.grid is None or not bool((self.grid.bit_width == 0).any()):
            return x
        rank = len(self.shape)
        alive = self.grid.spread(self.grid.bit_width > 0, rank)
        return torch.where(alive, x, self.grid.spread(self.grid.zero_point, rank))

    def _dense_mask(self) -> Tensor | None:
        """The mask of `values`: there is none where they are a table."""
        return self.mask if self.sharing is None else None

    def _check_table(self, sharing: Sharing, table: Tensor) -> None:
        sizes, axis = sharing.sizes, sharing.axis
        if _kind(table) not in (FLOATS if self.grid is None else INTEGERS):
            raise UsageError("sharing", f"a table of {_kind(table)}", "give floats, or integers where there is a grid")
        if table.dim() != 1:
            found = f"a table of shape {tuple(table.shape)}"
            raise UsageError("sharing", found, "give a vector: the tables one after the other")
        if not bool(torch.isfinite(table).all()):
            raise UsageError("sharing", "a table with NaN or infinity", "give finite values")
        if tuple(sharing.indices.shape) != self.shape:
            found = f"indices of shape {tuple(sharing.indices.shape)} for a tensor of shape {self.shape}"
            raise UsageError("sharing", found, "give one index for each entry, also for those that a mask drops")
        if axis is not None and not 0 <= axis < len(self.shape):
            raise UsageError("sharing", f"axis {axis} of a tensor of shape {self.shape}", "use one of its dimensions")
        slices = 1 if axis is None else self.shape[axis]
        if len(sizes) != slices:
            found = f"{len(sizes)} sizes for {slices} tables (axis {axis})"
            raise UsageError("sharing", found, "give one size for the tensor, or one for each slice of the axis")
        if bool((sizes < 1).any()):
            raise UsageError("sharing", "a table without values", "give each slice at least one")
        if int(sizes.sum()) != len(table):
            found = f"a table of {len(table)} values for sizes that add up to {int(sizes.sum())}"
            raise UsageError("sharing", found, "give each slice as many values as its size says")
        limit = sizes if axis is None else sizes.reshape([-1 if d == axis else 1 for d in range(len(self.shape))])
        if bool(((sharing.indices < 0) | (sharing.indices >= limit)).any()):
            raise UsageError("sharing", "an index beyond its table", "count from 0 in the table of the entry's slice")

    def _float_table(self) -> Tensor:
        return self.values if self.grid is None else self._table_grid(self.grid).dequantize(self.values)

    def _table_grid(self, grid: Grid) -> Grid:
        """The grid, one entry for each row of the table."""
        sharing = self.sharing
        if sharing is None or grid.axis is None:
            return grid
        if sharing.axis != grid.axis:
            raise UsageError(
                "grid",
                "one scale for each channel under a table shared by all channels",
                "use one grid for the tensor, or share per channel",
            )
        rows = torch.repeat_interleave(torch.arange(len(sharing.sizes), device=sharing.sizes.device), sharing.sizes)
        return replace(grid.select(grid.axis, rows), axis=0)

    def _compact(self) -> "Encoding":
        """Tables sorted, without equal or unused rows."""
        sharing = self.sharing
        if sharing is None:
            return self
        rows = sharing.rows()
        live = self._live()
        used = torch.zeros(len(self.values), dtype=torch.bool, device=rows.device)
        used[rows if live is None else rows[live]] = True
        new_index = torch.zeros(len(self.values), dtype=torch.int64, device=rows.device)
        tables: list[Tensor] = []
        start = 0
        for size in sharing.sizes.tolist():
            here = slice(start, start + size)
            kept, inverse = torch.unique(self.values[here][used[here]], sorted=True, return_inverse=True)
            positions = torch.zeros(size, dtype=torch.int64, device=rows.device)
            positions[used[here]] = inverse
            new_index[here] = positions
            tables.append(kept)
            start += size
        for i, table in enumerate(tables):
            if len(table) == 0:  # a slice without stored entries keeps one row, as near 0 as `encode` would put it
                tables[i] = torch.full((1,), self._idle(i), dtype=self.values.dtype, device=self.values.device)
        sizes = torch.tensor([len(t) for t in tables], dtype=torch.int64, device=rows.device)
        indices = _blank(new_index[rows], live)
        return replace(self, values=torch.cat(tables), sharing=replace(sharing, indices=indices, sizes=sizes))

    def _idle(self, table: int) -> int:
        if self.grid is None:
            return 0
        low, high, _ = self.grid.common()
        if self.grid.axis is not None and self.sharing is not None and self.grid.axis == self.sharing.axis:
            low, high = (int(v[table]) for v in self.grid.range())
        return min(max(0, low), high)


def cluster_means(x: Tensor, sharing: Sharing, mask: Tensor | None) -> Tensor:
    """float64 [rows of the table]: the mean of the kept entries of each cluster; 0 for a row without entries."""
    rows, values = sharing.rows().reshape(-1), x.reshape(-1).double()
    if mask is not None:
        rows, values = rows[mask.reshape(-1)], values[mask.reshape(-1)]
    total = torch.zeros(int(sharing.sizes.sum()), dtype=torch.float64, device=x.device).index_add_(0, rows, values)
    count = torch.zeros_like(total).index_add_(0, rows, torch.ones_like(values))
    return total / count.clamp(min=1)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _blank(values: Tensor, mask: Tensor | None) -> Tensor:
    return (
        values if mask is None else torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
    )


def _from_to(numbers: Tensor) -> str:
    """For example "2..16", or "2" where all are the same."""
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low}" if low == high else f"{low}..{high}"


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is b) if a is None or b is None else torch.equal(a, b)
