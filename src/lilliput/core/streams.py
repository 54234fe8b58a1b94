"""Encodings to bytes and back: what each slot puts into the payload, in a fixed order.

mask (one bit an entry), sizes of tables, indices of kept entries, scales, zero points, bit widths, stored numbers.
Each stream is packed to its exact number of bits, then coded in the smallest of several ways. The length of a raw
stream follows from what comes before it, so only coded streams carry a length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lilliput.core.encoding import MAX_BITS, Encoding, Grid, Sharing
from lilliput.ops import entropy, packing

Ints = npt.NDArray[np.int64]
CODINGS: tuple[tuple[str, entropy.Method], ...] = (
    ("packed", "raw"),
    ("packed", "zlib"),
    ("packed", "lzma"),
    ("bytes", "zlib"),
    ("bytes", "lzma"),
)
"""(layout, codec) of coding 0..4: packed bits, or one byte a symbol (up to 8 bits)."""


@dataclass(frozen=True)
class Stream:
    """`slot` names what the bytes are for; `raw_bits` is their size before coding."""

    slot: str
    data: bytes
    raw_bits: int
    coding: int


class Writer:
    def __init__(self) -> None:
        self.streams: list[Stream] = []

    @property
    def codes(self) -> list[int]:
        """For the header: 0 for a raw stream, else coding + 8 * bytes."""
        return [0 if s.coding == 0 else s.coding + 8 * len(s.data) for s in self.streams]

    @property
    def data(self) -> bytes:
        return b"".join(s.data for s in self.streams)

    def symbols(self, slot: str, values: Ints, widths: Ints | int) -> None:
        """Symbols of one width, or each of its own (packed by ascending width)."""
        if isinstance(widths, int):
            self._put(slot, [(values, widths)])
        else:
            self._put(slot, [(values[widths == w], int(w)) for w in np.unique(widths)])

    def floats(self, slot: str, values: npt.NDArray[np.float32]) -> None:
        raw = values.astype("<f4").tobytes()
        planes = packing.float_planes(values)
        best = (0, raw)
        for coding in (1, 2):
            coded = entropy.encode(planes, CODINGS[coding][1])
            best = min(best, (coding, coded), key=lambda c: len(c[1]))
        self.streams.append(Stream(slot, best[1], 8 * len(raw), best[0]))

    def _put(self, slot: str, parts: Sequence[tuple[Ints, int]]) -> None:
        packed = b"".join(packing.pack(values, width) for values, width in parts)
        options: list[tuple[int, bytes]] = [(0, packed)]
        if len(packed) >= 16:
            options += [(i, entropy.encode(packed, CODINGS[i][1])) for i in (1, 2)]
            if all(width <= 8 for _, width in parts) and any(0 < width < 8 for _, width in parts):
                plain = b"".join(values.astype(np.uint8).tobytes() for values, width in parts if width)
                options += [(i, entropy.encode(plain, CODINGS[i][1])) for i in (3, 4)]
        coding, data = min(options, key=lambda c: len(c[1]))
        self.streams.append(Stream(slot, data, sum(len(v) * w for v, w in parts), coding))


class Reader:
    """Takes streams from a payload in the order in which they were written. Raises ValueError."""

    def __init__(self, data: bytes, codes: Sequence[int]) -> None:
        self.data, self.codes, self.at, self.stream = data, list(codes), 0, 0
        self.taken: list[Stream] = []

    def end(self) -> None:
        if self.at != len(self.data) or self.stream != len(self.codes):
            raise ValueError(f"{len(self.data) - self.at} bytes and {len(self.codes) - self.stream} streams left over")

    def symbols(self, slot: str, counts: Sequence[tuple[int, int]]) -> list[Ints]:
        """One array for each (count, width)."""
        lengths = [(count * width + 7) // 8 for count, width in counts]
        coding, data = self._take(slot, sum(lengths), sum(count * width for count, width in counts))
        if coding >= 3:
            if any(width > 8 for _, width in counts):
                raise ValueError("a byte layout for symbols of more than 8 bits")
            plain = entropy.decode(data, CODINGS[coding][1], sum(count for count, width in counts if width))
            return self._from_bytes(plain, counts)
        if coding:
            data = entropy.decode(data, CODINGS[coding][1], sum(lengths))
        arrays: list[Ints] = []
        start = 0
        for (count, width), length in zip(counts, lengths, strict=True):
            arrays.append(packing.unpack(data[start : start + length], count, width))
            start += length
        return arrays

    def floats(self, slot: str, count: int) -> npt.NDArray[np.float32]:
        coding, data = self._take(slot, 4 * count, 32 * count)
        if coding == 0:
            return np.frombuffer(data, "<f4").astype(np.float32)
        if coding > 2:
            raise ValueError(f"coding {coding} for floats")
        return packing.from_float_planes(entropy.decode(data, CODINGS[coding][1], 4 * count), count, np.float32)

    def _take(self, slot: str, raw_length: int, raw_bits: int) -> tuple[int, bytes]:
        if self.stream >= len(self.codes):
            raise ValueError("fewer streams than the slots need")
        code = self.codes[self.stream]
        self.stream += 1
        coding, length = (0, raw_length) if code == 0 else (code % 8, code // 8)
        if (code and coding == 0) or coding >= len(CODINGS):
            raise ValueError(f"unknown coding {coding}")
        if length > len(self.data) - self.at:
            raise ValueError(f"a stream of {length} bytes, {len(self.data) - self.at} left")
        self.at += length
        data = self.data[self.at - length : self.at]
        self.taken.append(Stream(slot, data, raw_bits, coding))
        return coding, data

    @staticmethod
    def _from_bytes(plain: bytes, counts: Sequence[tuple[int, int]]) -> list[Ints]:
        arrays: list[Ints] = []
        start = 0
        for count, width in counts:
            if width == 0:
                arrays.append(np.zeros(count, np.int64))
                continue
            values = np.frombuffer(plain, np.uint8, count, start).astype(np.int64)
            if count and int(values.max()) >> width:
                raise ValueError(f"a symbol of more than {width} bits")
            arrays.append(values)
            start += count
        return arrays


def write_encoding(writer: Writer, e: Encoding, *, derived_scale: bool = False) -> list[Any]:
    """Put the streams of `e`; returns the header's description of its slots (numbers only).

    [] for plain floats, else [flags, ...]: flags 1 mask, 2 sharing, 4 grid; then the sharing's axis + 1 (0 = none);
    then for a grid: axis + 1, kind (1 signed, 2 narrow, 4 zero points, 8 scales are powers of two, 16 derived scales,
    32 different widths), and the bit width.
    """
    description: list[Any] = []
    if not e.is_plain:
        description.append((e.mask is not None) + 2 * (e.sharing is not None) + 4 * (e.grid is not None))
    kept = None
    if e.mask is not None:
        kept = e.mask.reshape(-1).cpu().numpy()
        writer.symbols("mask", kept.astype(np.int64), 1)
    if e.sharing is not None:
        description.append(0 if e.sharing.axis is None else e.sharing.axis + 1)
        sizes = e.sharing.sizes.cpu().numpy()
        writer.symbols("sharing", sizes, 16)
        rows_width = _widths(np.maximum(sizes - 1, 0))
        widths = _per_entry(rows_width, e.shape, e.sharing.axis)
        indices = e.sharing.indices.reshape(-1).cpu().numpy()
        if kept is not None:
            indices, widths = indices[kept], widths[kept]
        writer.symbols("indices", indices, widths)
    if e.grid is not None:
        description += _write_grid(writer, e.grid, derived_scale=derived_scale)
    _write_values(writer, e, kept)
    return description


def read_encoding(
    reader: Reader, shape: tuple[int, ...], description: Sequence[int], derived: Tensor | None
) -> Encoding:
    """Inverse of `write_encoding`; every count is checked before an array is made."""
    n = int(np.prod(shape, dtype=np.int64)) if shape else 1
    if not description:
        return Encoding(shape=shape, values=torch.from_numpy(reader.floats("values", n)).reshape(shape))
    numbers = list(description)
    flags = numbers.pop(0)
    if not 0 < flags < 8:
        raise ValueError(f"slot flags {flags}")
    mask = sharing = grid = None
    kept: npt.NDArray[np.bool_] | None = None
    if flags & 1:
        kept = reader.symbols("mask", [(n, 1)])[0].astype(bool)
        mask = torch.from_numpy(kept).reshape(shape)
    if flags & 2:
        sharing = _read_sharing(reader, shape, numbers, kept)
    if flags & 4:
        grid = _read_grid(reader, shape, numbers, derived)
    if numbers:
        raise ValueError("more numbers than the slots need")
    values = _read_values(reader, shape, kept, sharing, grid)
    return Encoding(shape=shape, values=values, mask=mask, sharing=sharing, grid=grid)


def streams_of(e: Encoding) -> list[Stream]:
    """The streams that a file holds for this tensor."""
    writer = Writer()
    write_encoding(writer, e)
    return writer.streams


def size_bits(e: Encoding) -> int:
    """Coded size: 8 x the bytes that the file's payload holds for this tensor."""
    return 8 * sum(len(s.data) for s in streams_of(e))


def _write_grid(writer: Writer, grid: Grid, *, derived_scale: bool) -> list[int]:
    scale = grid.scale.cpu().numpy()
    mantissa, exponent = np.frexp(scale)
    powers = bool((mantissa == 0.5).all())
    zero, bits = grid.zero_point.cpu().numpy(), grid.bit_width.cpu().numpy()
    uniform = bool((bits == bits[0]).all())
    kind = grid.signed + 2 * grid.narrow + 4 * bool(zero.any()) + 8 * powers + 16 * derived_scale + 32 * (not uniform)
    if not derived_scale:
        if powers:
            writer.symbols("scale", exponent.astype(np.int64) + 128, 9)
        else:
            writer.floats("scale", scale)
    if not uniform:
        writer.symbols("bit_width", bits, 5)
    if zero.any():
        writer.symbols("zero_point", zero + (1 << MAX_BITS), MAX_BITS + 1)
    return [0 if grid.axis is None else grid.axis + 1, kind, int(bits[0]) if uniform else 0]


def _read_grid(reader: Reader, shape: tuple[int, ...], numbers: list[int], derived: Tensor | None) -> Grid:
    axis_code, kind, width = numbers.pop(0), numbers.pop(0), numbers.pop(0)
    axis, count = _axis(axis_code, shape)
    if not 0 <= kind < 64 or not 0 <= width <= MAX_BITS:
        raise ValueError(f"grid kind {kind}, width {width}")
    if kind & 16:
        if derived is None or derived.numel() not in (1, count):
            raise ValueError("a derived scale without what it derives from")
        scale = derived.expand(count).clone()
    elif kind & 8:
        exponent = reader.symbols("scale", [(count, 9)])[0] - 128
        scale = torch.from_numpy(
            np.ldexp(np.full(count, 0.5, np.float32), exponent.astype(np.int32)).astype(np.float32)
        )
    else:
        scale = torch.from_numpy(reader.floats("scale", count))
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ValueError("a scale that is not positive and finite")
    bits = reader.symbols("bit_width", [(count, 5)])[0] if kind & 32 else np.full(count, width, np.int64)
    if int(bits.max(initial=0)) > MAX_BITS:
        raise ValueError(f"a bit width above {MAX_BITS}")
    zero = (
        reader.symbols("zero_point", [(count, MAX_BITS + 1)])[0] - (1 << MAX_BITS)
        if kind & 4
        else np.zeros(count, np.int64)
    )
    return Grid(
        scale=scale,
        zero_point=torch.from_numpy(zero),
        bit_width=torch.from_numpy(bits),
        signed=bool(kind & 1),
        narrow=bool(kind & 2),
        axis=axis,
    )


def _read_sharing(
    reader: Reader, shape: tuple[int, ...], numbers: list[int], kept: npt.NDArray[np.bool_] | None
) -> Sharing:
    axis, count = _axis(numbers.pop(0), shape)
    sizes = reader.symbols("sharing", [(count, 16)])[0]
    if int(sizes.min(initial=1)) < 1:
        raise ValueError("an empty table")
    widths = _per_entry(_widths(sizes - 1), shape, axis)
    if kept is not None:
        widths = widths[kept]
    stored = _scatter(reader, "indices", widths)
    indices = stored if kept is None else _spread(stored, kept)
    if bool((indices.reshape(-1) >= _per_entry(sizes, shape, axis)).any()):
        raise ValueError("an index beyond its table")
    return Sharing(indices=torch.from_numpy(indices).reshape(shape), sizes=torch.from_numpy(sizes), axis=axis)


def _write_values(writer: Writer, e: Encoding, kept: npt.NDArray[np.bool_] | None) -> None:
    values = e.values.reshape(-1).cpu().numpy()
    if e.grid is None:
        writer.floats("values", values if kept is None or e.sharing is not None else values[kept])
        return
    low, widths = _grid_entries(e.grid, e.shape, e.sharing)
    if kept is not None and e.sharing is None:
        values, low, widths = values[kept], low[kept], widths[kept]
    writer.symbols("values", values - low, widths)


def _read_values(
    reader: Reader,
    shape: tuple[int, ...],
    kept: npt.NDArray[np.bool_] | None,
    sharing: Sharing | None,
    grid: Grid | None,
) -> Tensor:
    n = int(np.prod(shape, dtype=np.int64)) if sharing is None else int(sharing.sizes.sum())
    dense_mask = kept if sharing is None else None
    if grid is None:
        stored: Any = reader.floats("values", n if dense_mask is None else int(dense_mask.sum()))
    else:
        low, widths = _grid_entries(grid, shape, sharing)
        if dense_mask is not None:
            low, widths = low[dense_mask], widths[dense_mask]
        stored = _scatter(reader, "values", widths) + low
    values = stored if dense_mask is None else _spread(stored, dense_mask)
    return torch.from_numpy(values).reshape(shape if sharing is None else (n,))


def _grid_entries(grid: Grid, shape: tuple[int, ...], sharing: Sharing | None) -> tuple[Ints, Ints]:
    """Lowest integer and bit width of each stored number."""
    low, bits = grid.range()[0].cpu().numpy(), grid.bit_width.cpu().numpy()
    if sharing is None:
        return _per_entry(low, shape, grid.axis), _per_entry(bits, shape, grid.axis)
    if grid.axis is not None and sharing.axis == grid.axis:
        sizes = sharing.sizes.cpu().numpy()
        return np.repeat(low, sizes), np.repeat(bits, sizes)
    rows = int(sharing.sizes.sum())
    return np.full(rows, low.min()), np.full(rows, bits.max())


def _scatter(reader: Reader, slot: str, widths: Ints) -> Ints:
    """Symbols packed by ascending width, back in their places."""
    kinds = np.unique(widths)
    places = [np.flatnonzero(widths == w) for w in kinds]
    arrays = reader.symbols(slot, [(len(p), int(w)) for p, w in zip(places, kinds, strict=True)])
    result = np.zeros(len(widths), np.int64)
    for place, values in zip(places, arrays, strict=True):
        result[place] = values
    return result


def _spread(stored: Any, kept: npt.NDArray[np.bool_]) -> Any:
    full = np.zeros(len(kept), stored.dtype)
    full[kept] = stored
    return full


def _widths(highest: Ints) -> Ints:
    """Bits needed for 0..highest."""
    return np.array([int(v).bit_length() for v in highest], np.int64)


def _per_entry(per_slice: Ints, shape: tuple[int, ...], axis: int | None) -> Ints:
    if axis is None:
        return np.full(int(np.prod(shape, dtype=np.int64)), per_slice[0])
    view = per_slice.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    return np.broadcast_to(view, shape).reshape(-1)


def _axis(code: int, shape: tuple[int, ...]) -> tuple[int | None, int]:
    if code == 0:
        return None, 1
    if not 0 < code <= len(shape):
        raise ValueError(f"axis {code - 1} of a tensor of {len(shape)} dimensions")
    return code - 1, shape[code - 1]
