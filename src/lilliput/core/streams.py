"""Encodings to bytes and back: what each slot puts into the payload, in a fixed order.

mask (one bit an entry), sizes of tables, indices of kept entries, scales, bit widths, zero points, a circuit and its
inputs, stored numbers: each a stream of `core.coding`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lilliput.core.bank import Bank
from lilliput.core.coding import Ints, Places, Reader, Stream, Writer, in_places
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.grid import MAX_BITS
from lilliput.ops.cartesian_functions import limits
from lilliput.ops.netlist import Netlist, width_of

MOST_CIRCUIT_BYTES = 1 << 17
LEAST_EXPONENT = -127
"""Scales that are powers of two are stored as the 8 bits of e - LEAST_EXPONENT, for 2^(e - 1)."""
SHORT_EXPONENT = -50
"""Scales of 3 bits, (4 + m) x 2^e with m below 4, are stored as the 8 bits of m + 4 x (e - SHORT_EXPONENT)."""


def write_encoding(writer: Writer, e: Encoding, *, source: int | None = None, circuit: int | None = None) -> list[int]:
    """Put the streams of `e`; returns the header's description of its slots.

    [] for plain floats, else [flags, ...]: flags 1 mask, 2 sharing, 4 grid, 8 bank; then the sharing's axis + 1 (0 =
    none); then for a grid: axis + 1, kind (1 signed, 2 narrow, 4 zero points, 8 scales are powers of two, 16 derived
    scales, 24 scales of 3 bits, 32 different widths), the bit width (0 for different ones), and `source` of derived
    ones; then for a bank: 1 + the tensor (`circuit`) that has its circuit too, or 0 and the bytes of its own circuit.
    """
    description: list[int] = []
    if not e.is_plain:
        flags = (e.mask is not None) + 2 * (e.sharing is not None) + 4 * (e.grid is not None) + 8 * (e.bank is not None)
        description.append(flags)
    kept = None
    if e.mask is not None:
        kept = e.mask.reshape(-1).cpu().numpy()
        writer.symbols("mask", kept.astype(np.int64), 1, Places(e.shape))
    if e.sharing is not None:
        description.append(0 if e.sharing.axis is None else e.sharing.axis + 1)
        sizes = e.sharing.sizes.cpu().numpy()
        writer.symbols("sharing", sizes, 16)
        widths = _per_entry(_widths(sizes - 1), e.shape, e.sharing.axis)
        indices = e.sharing.indices.reshape(-1).cpu().numpy()
        if kept is not None:
            indices, widths = indices[kept], widths[kept]
        writer.symbols("indices", indices, widths, Places(e.shape, kept))
    if e.grid is not None:
        description += _write_grid(writer, e.grid, source)
    if e.bank is not None:
        description += _write_bank(writer, e.bank) if circuit is None else [circuit + 1]
    _write_values(writer, e, kept)
    return description


def read_encoding(
    reader: Reader,
    shape: tuple[int, ...],
    description: Sequence[int],
    derive: Callable[[int], Tensor],
    before: Sequence[Encoding] = (),
) -> Encoding:
    """Inverse of `write_encoding`; every count is checked before an array is made.

    `derive(source)` gives scales; `before` are the tensors that the file has before this one.
    """
    n = math.prod(shape)
    if not description:
        return Encoding(shape=shape, values=torch.from_numpy(reader.floats("values", n, Places(shape))).reshape(shape))
    numbers = iter(description)
    flags = _next(numbers)
    if not 0 < flags < 8 and flags not in (12, 13):
        raise ValueError(f"slot flags {flags}")
    mask = sharing = grid = bank = None
    kept: npt.NDArray[np.bool_] | None = None
    if flags & 1:
        kept = reader.symbols("mask", n, 1, Places(shape)).astype(bool)
        mask = torch.from_numpy(kept).reshape(shape)
    if flags & 2:
        sharing = _read_sharing(reader, shape, numbers, kept)
    if flags & 4:
        grid = _read_grid(reader, shape, numbers, derive)
    if flags & 8:
        bank = _read_bank(reader, numbers, before)
    if list(numbers):
        raise ValueError("more numbers than the slots need")
    values = _read_values(reader, shape, kept, sharing, grid, bank)
    e = Encoding(shape=shape, values=values, mask=mask, sharing=sharing, grid=grid, bank=bank)
    if sharing is not None and grid is not None:
        low, high = e.row_range()
        if bool(((values < low) | (values > high)).any()):
            raise ValueError("an integer of a table beyond a slice that uses it")
    return e


def streams_of(e: Encoding) -> list[Stream]:
    """The streams that a file holds for this tensor."""
    writer = Writer()
    write_encoding(writer, e)
    return writer.streams


def size_bits(e: Encoding) -> int:
    """Coded size: 8 x the bytes that the file's payload holds for this tensor."""
    return 8 * sum(len(s.data) for s in streams_of(e))


def _write_grid(writer: Writer, grid: Grid, source: int | None) -> list[int]:
    scale = grid.scale.cpu().numpy()
    mantissa, exponent = np.frexp(scale)
    powers = bool((mantissa == 0.5).all()) and int(exponent.min()) >= LEAST_EXPONENT
    zero, bits = grid.zero_point.cpu().numpy(), grid.bit_width.cpu().numpy()
    uniform = bool((bits == bits[0]).all())
    kind = grid.signed + 2 * grid.narrow + 4 * bool(zero.any()) + 16 * (source is not None) + 32 * (not uniform)
    short = _short(scale)
    if source is None and powers:
        kind += 8
        writer.symbols("scale", exponent.astype(np.int64) - LEAST_EXPONENT, 8)
    elif source is None and np.array_equal(_from_short(short), scale):
        kind += 24
        writer.symbols("scale", short, 8)
    elif source is None:
        writer.floats("scale", scale)
    if not uniform:
        writer.symbols("bit_width", bits, 5)
    if zero.any():
        writer.symbols("zero_point", zero + (1 << MAX_BITS), MAX_BITS + 1)
    description = [0 if grid.axis is None else grid.axis + 1, kind, int(bits[0]) if uniform else 0]
    return description if source is None else [*description, source]


def _short(scale: npt.NDArray[np.float32]) -> Ints:
    """The numbers of scales of 3 bits; of others any."""
    mantissa, exponent = np.frexp(scale)
    return np.clip((8 * mantissa).astype(np.int64) % 4 + 4 * (exponent.astype(np.int64) - 3 - SHORT_EXPONENT), 0, 255)


def _from_short(numbers: Ints) -> npt.NDArray[np.float32]:
    return np.ldexp(4.0 + numbers % 4, numbers // 4 + SHORT_EXPONENT).astype(np.float32)


def _read_grid(reader: Reader, shape: tuple[int, ...], numbers: Iterator[int], derive: Callable[[int], Tensor]) -> Grid:
    axis_code, kind, width = _next(numbers), _next(numbers), _next(numbers)
    axis, count = _axis(axis_code, shape)
    if kind >= 64 or width > MAX_BITS or (width and kind & 32):
        raise ValueError(f"grid kind {kind}, width {width}")
    if kind & 24 == 24:
        scale = torch.from_numpy(_from_short(reader.symbols("scale", count, 8)))
    elif kind & 16:
        scale = derive(_next(numbers))
        if scale.numel() != count:
            raise ValueError(f"{scale.numel()} derived scales for {count}")
    elif kind & 8:
        exponent = reader.symbols("scale", count, 8) + LEAST_EXPONENT
        scale = torch.from_numpy(np.ldexp(np.full(count, 0.5), exponent).astype(np.float32))
    else:
        scale = torch.from_numpy(reader.floats("scale", count))
    bits = reader.symbols("bit_width", count, 5) if kind & 32 else np.full(count, width)
    zero = np.zeros(count, np.int64)
    if kind & 4:
        zero = reader.symbols("zero_point", count, MAX_BITS + 1) - (1 << MAX_BITS)
    return Grid(
        scale=scale,
        zero_point=torch.from_numpy(zero),
        bit_width=torch.from_numpy(bits),
        signed=bool(kind & 1),
        narrow=bool(kind & 2),
        axis=axis,
    )


def _read_sharing(
    reader: Reader, shape: tuple[int, ...], numbers: Iterator[int], kept: npt.NDArray[np.bool_] | None
) -> Sharing:
    axis, count = _axis(_next(numbers), shape)
    sizes = reader.symbols("sharing", count, 16)
    least, most, entries = int(sizes.min()), int(sizes.max()), math.prod(shape) // count
    if not 1 <= least <= most <= entries:
        raise ValueError(f"tables of {least} to {most} values for {entries} entries")
    widths = _per_entry(_widths(sizes - 1), shape, axis)
    own = widths if kept is None else widths[kept]
    places = Places(shape, kept)
    indices = places.spread(reader.symbols("indices", len(own), own, places))
    if bool((indices >= _per_entry(sizes, shape, axis)).any()):
        raise ValueError("an index beyond its table")
    return Sharing(indices=torch.from_numpy(indices).reshape(shape), sizes=torch.from_numpy(sizes), axis=axis)


def _write_bank(writer: Writer, bank: Bank) -> list[int]:
    packed = bank.netlist.pack()
    writer.symbols("circuit", np.frombuffer(packed, np.uint8).astype(np.int64), 8)
    low, _ = limits(bank.netlist.bits)
    writer.symbols("inputs", np.asarray(bank.inputs, dtype=np.int64) - low, bank.netlist.bits)
    return [0, len(packed)]


def _read_bank(reader: Reader, numbers: Iterator[int], before: Sequence[Encoding]) -> Bank:
    source = _next(numbers)
    if source:
        found = before[source - 1].bank if source <= len(before) else None
        if found is None:
            raise ValueError(f"the circuit of tensor {source - 1}, which has none")
        return found
    size = _next(numbers)
    if size > MOST_CIRCUIT_BYTES:
        raise ValueError(f"a circuit of {size} bytes")
    netlist = Netlist.unpack(reader.symbols("circuit", size, 8).astype(np.uint8).tobytes())
    low, _ = limits(netlist.bits)
    return Bank(netlist=netlist, inputs=tuple((reader.symbols("inputs", netlist.inputs, netlist.bits) + low).tolist()))


def _write_values(writer: Writer, e: Encoding, kept: npt.NDArray[np.bool_] | None) -> None:
    values = e.values.reshape(-1).cpu().numpy()
    dense_mask = kept if e.sharing is None else None
    if dense_mask is not None:
        values = values[dense_mask]
    if e.grid is None:
        writer.floats("values", values, Places(e.shape, kept) if e.sharing is None else None)
    else:
        low, _, widths = _grid_entries(e.grid, e.shape, e.sharing, dense_mask)
        if e.bank is not None:
            known = e.bank.values.cpu().numpy()
            low, widths = 0, _index_widths(widths, len(known))
            values = np.where(widths > 0, np.searchsorted(known, values).clip(max=len(known) - 1), 0)
        writer.symbols("values", values - low, widths, Places(e.shape, kept) if e.sharing is None else None)


def _read_values(
    reader: Reader,
    shape: tuple[int, ...],
    kept: npt.NDArray[np.bool_] | None,
    sharing: Sharing | None,
    grid: Grid | None,
    bank: Bank | None,
) -> Tensor:
    n = math.prod(shape) if sharing is None else int(sharing.sizes.sum())
    dense_mask = kept if sharing is None else None
    if grid is None:
        places = Places(shape, kept) if sharing is None else None
        stored: Any = reader.floats("values", n if dense_mask is None else int(dense_mask.sum()), places)
    else:
        low, high, widths = _grid_entries(grid, shape, sharing, dense_mask)
        places = Places(shape, kept) if sharing is None else None
        if bank is None:
            stored = reader.symbols("values", len(widths), widths, places) + low
        else:
            known, gone = bank.values.numpy(), widths == 0
            indices = reader.symbols("values", len(widths), _index_widths(widths, len(known)), places)
            if bool((indices >= len(known)).any()):
                raise ValueError("an index beyond the values of its circuit")
            stored = np.where(gone, low, known[indices])
        if bool(((stored > high) | (stored < low)).any()):
            raise ValueError("an integer beyond its grid")
    values = stored if dense_mask is None else in_places(stored, dense_mask)
    return torch.from_numpy(values).reshape(shape if sharing is None else (n,))


def _grid_entries(
    grid: Grid, shape: tuple[int, ...], sharing: Sharing | None, mask: npt.NDArray[np.bool_] | None
) -> tuple[Ints, Ints, Ints]:
    """Lowest and highest integer and bit width of each stored number: of the tensor's, or of the table's rows."""
    slices = [v.cpu().numpy() for v in (*grid.range(), grid.bit_width)]
    if sharing is None:
        low, high, widths = (_per_entry(v, shape, grid.axis) for v in slices)
        return (low, high, widths) if mask is None else (low[mask], high[mask], widths[mask])
    sizes = sharing.sizes.cpu().numpy()
    if grid.axis is not None and sharing.axis == grid.axis:
        low, high, widths = (np.repeat(v, sizes) for v in slices)
    else:
        low, high, widths = (np.full(int(sizes.sum()), v) for v in grid.common())
    return low, high, widths


def _index_widths(widths: Ints, count: int) -> Ints:
    """Of indices of `count` values, where entries have bits."""
    return np.where(widths > 0, width_of(count), 0).astype(np.int64)


def _widths(highest: Ints) -> Ints:
    """Bits needed for 0..highest."""
    return np.frexp(highest.astype(np.float64))[1].astype(np.int64)


def _per_entry(per_slice: Ints, shape: tuple[int, ...], axis: int | None) -> Ints:
    if axis is None:
        return np.broadcast_to(per_slice, math.prod(shape))
    view = per_slice.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    return np.broadcast_to(view, shape).reshape(-1)


def _next(numbers: Iterator[int]) -> int:
    for number in numbers:
        return number
    raise ValueError("fewer numbers than the slots need")


def _axis(code: int, shape: tuple[int, ...]) -> tuple[int | None, int]:
    if code == 0:
        return None, 1
    if not 0 < code <= len(shape):
        raise ValueError(f"axis {code - 1} of a tensor of {len(shape)} dimensions")
    return code - 1, shape[code - 1]
