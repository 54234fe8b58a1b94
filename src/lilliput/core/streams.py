"""Encodings to bytes and back: what each slot puts into the payload, in a fixed order.

mask (one bit an entry), sizes of tables, indices of kept entries, scales, bit widths, zero points, stored numbers.
Each stream is packed to its exact number of bits, then coded in the smallest of several ways. The length of a raw
stream follows from what comes before it, so only coded streams carry a length.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lilliput.core.encoding import MAX_BITS, Encoding, Grid, Sharing
from lilliput.ops import context_coding, entropy, packing

Ints = npt.NDArray[np.int64]
CODINGS: tuple[tuple[str, entropy.Method], ...] = (
    ("packed", "raw"),
    ("packed", "zlib"),
    ("packed", "lzma"),
    ("bytes", "zlib"),
    ("bytes", "lzma"),
)
"""(layout, codec) of coding 0..4: packed bits, or one byte a symbol (up to 8 bits)."""
CONTEXT = 5
"""The coding of `ops.context_coding`, for symbols of up to 8 bits."""
CHAINED = 6
"""The same in one chain with all streams of this coding in the file; its bytes end the payload, last byte first."""
CHAIN_CODE_BYTES, MOST_CHAINED = 1, 1 << 14
"""What the code of a chained stream takes, and how many entries are tried: more do not gain what the trial takes."""
CODE_BYTES = 4
"""A coded stream must be shorter by this much: about what its code takes in the header."""
LEAST_BYTES = 16
"""Shorter streams stay as they are."""
LEAST_EXPONENT = -127
"""Scales that are powers of two are stored as the 8 bits of e - LEAST_EXPONENT, for 2^(e - 1)."""
SHORT_EXPONENT = -50
"""Scales of 3 bits, (4 + m) x 2^e with m below 4, are stored as the 8 bits of m + 4 x (e - SHORT_EXPONENT)."""


Coded = tuple[int, bytes]


class Places(NamedTuple):
    """Where symbols belong: entries of a tensor of `shape`, those that `kept` [entries] keeps."""

    shape: tuple[int, ...]
    kept: npt.NDArray[np.bool_] | None = None

    @staticmethod
    def row(count: int) -> "Places":
        return Places((count,))

    def widths(self, widths: Ints | int) -> npt.NDArray[np.uint8]:
        """uint8 [entries]: the bits of each symbol, 0 where none is."""
        n = math.prod(self.shape)
        if self.kept is None:
            return np.broadcast_to(np.asarray(widths, np.uint8), n).copy()
        full = np.zeros(n, np.uint8)
        full[self.kept] = widths
        return full

    def spread(self, symbols: Any) -> Any:
        return symbols if self.kept is None else _spread(symbols, self.kept)

    def gather(self, entries: Ints) -> Ints:
        return entries if self.kept is None else entries[self.kept]


@dataclass(frozen=True)
class Stream:
    """`slot` names what the bytes are for; `raw_bits` is their size before coding."""

    slot: str
    data: bytes
    raw_bits: int
    coding: int


class Writer:
    """With `chained` short streams may go into one chain: they have no bytes of their own then."""

    def __init__(self, *, chained: bool = False) -> None:
        self.streams: list[Stream] = []
        self.chain = context_coding.Chain() if chained else None

    def codes(self, first: int = 0) -> list[int]:
        """For the header, from stream `first` on: 0 for a raw stream, else coding + 8 * bytes; no zeros at the end."""
        codes = [0 if s.coding == 0 else s.coding + 8 * len(s.data) for s in self.streams[first:]]
        while codes and codes[-1] == 0:
            codes.pop()
        return codes

    @property
    def data(self) -> bytes:
        end = b"" if self.chain is None else self.chain.chained()
        return b"".join(s.data for s in self.streams) + end[::-1]

    def symbols(self, slot: str, values: Ints, widths: Ints | int, places: "Places | None" = None) -> None:
        """Symbols of one width, or each of its own (packed by ascending width); `places` if they are not a row."""
        one = isinstance(widths, int)
        parts = [(values, widths)] if one else [(values[widths == w], w) for w in _kinds(widths)]
        packed = b"".join(packing.pack(symbols, width) for symbols, width in parts)
        layouts = {1: packed} if len(packed) >= LEAST_BYTES else {}
        places = places or Places.row(len(values))
        coded: list[Coded] = []
        if layouts and all(width <= 8 for _, width in parts):
            if any(0 < width < 8 for _, width in parts):
                layouts[3] = b"".join(symbols.astype(np.uint8).tobytes() for symbols, width in parts if width)
            all_widths = places.widths(widths)
            coded.append((CONTEXT, context_coding.encode(places.spread(values), all_widths, places.shape)))
        self._put(slot, packed, layouts, coded, sum(len(symbols) * width for symbols, width in parts))
        if self.chain is not None and max((width for _, width in parts), default=9) <= 8:
            self._try_chain(slot, places.spread(values), places.widths(widths), places.shape)

    def _try_chain(self, slot: str, values: Ints, widths: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> None:
        if self.chain is None or len(values) > MOST_CHAINED:
            return
        tried, last = self.chain.tried(values, widths, shape, _kind(slot, shape)), self.streams[-1]
        if tried.steps.bits / 8 + CHAIN_CODE_BYTES < len(last.data) + CODE_BYTES * (last.coding > 0):
            self.chain.take(tried)
            self.streams[-1] = Stream(slot, b"", last.raw_bits, CHAINED)

    def floats(self, slot: str, values: npt.NDArray[np.float32], places: "Places | None" = None) -> None:
        raw = values.astype("<f4").tobytes()
        places = places or Places.row(len(values))
        exponents, rest = packing.split_floats(values)
        coded: list[Coded] = []
        if len(raw) >= LEAST_BYTES:
            context = context_coding.encode(places.spread(exponents), places.widths(8), places.shape)
            coded.append((CONTEXT, rest + context))
        self._put(slot, raw, {1: packing.float_planes(values)}, coded, 8 * len(raw))

    def _put(self, slot: str, raw: bytes, layouts: Mapping[int, bytes], coded: list[Coded], raw_bits: int) -> None:
        """`layouts` are the bytes for deflate, by its coding; the LZMA2 of the same bytes is the next one.

        LZMA takes most of the time and is at most a tenth smaller: it is tried where deflate is about as good as all.
        """
        deflated: list[Coded] = [(i, entropy.encode(data, "zlib")) for i, data in layouts.items()]
        least = min((len(data) for _, data in coded), default=len(raw))
        hopeful = [i for i, data in deflated if len(data) < 1.1 * least]
        coded = coded + deflated + [(i + 1, entropy.encode(layouts[i], "lzma")) for i in hopeful]
        coding, data = min(coded, key=lambda c: (len(c[1]), c[0]), default=(0, raw))
        if len(data) + CODE_BYTES > len(raw):
            coding, data = 0, raw
        self.streams.append(Stream(slot, data, raw_bits, coding))


class Reader:
    """Takes streams from a payload in the order in which they were written. Raises ValueError."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.chain: context_coding.Chain | None = None
        self.begin([])

    def begin(self, codes: Sequence[int]) -> None:
        """A new tensor, with the codes of its streams; those after the last code are raw."""
        self.codes, self.taken = list(codes), list[Stream]()

    def end(self) -> list[Stream]:
        """The streams since `begin`."""
        if len(self.taken) < len(self.codes):
            raise ValueError(f"{len(self.codes)} codes for {len(self.taken)} streams")
        return self.taken

    @property
    def left(self) -> int:
        """Bytes that no stream has taken. Raises ValueError unless the chain is at its end."""
        if self.chain is None:
            return len(self.data) - self.at
        if not self.chain.complete:
            raise ValueError("the chained streams do not end where their symbols do")
        return len(self.data) - self.at - self.chain.bytes_read

    def symbols(self, slot: str, count: int, widths: Ints | int, places: Places | None = None) -> Ints:
        """`count` symbols, in the order of the entries, of one width or each of its own."""
        if isinstance(widths, int):
            where, counts = None, [(count, widths)]
        else:
            where = [np.flatnonzero(widths == w) for w in _kinds(widths)]
            counts = [(len(p), int(widths[p[0]])) for p in where]
        lengths = [(n * width + 7) // 8 for n, width in counts]
        coding, data = self._take(slot, sum(lengths), sum(n * width for n, width in counts))
        if coding >= 3 and any(width > 8 for _, width in counts):
            raise ValueError(f"coding {coding} for symbols of more than 8 bits")
        places = places or Places.row(count)
        if coding == CHAINED:
            return places.gather(self._chained(slot, places.widths(widths), places.shape))
        if coding == CONTEXT:
            return places.gather(context_coding.decode(data, places.widths(widths), places.shape))
        if coding >= 3:
            plain = entropy.decode(data, CODINGS[coding][1], sum(n for n, width in counts if width))
            parts = self._from_bytes(plain, counts)
        else:
            if coding:
                data = entropy.decode(data, CODINGS[coding][1], sum(lengths))
            ends = np.cumsum(lengths)
            parts = [
                packing.unpack(data[end - length : end], n, width)
                for (n, width), length, end in zip(counts, lengths, ends, strict=True)
            ]
        if where is None:
            return parts[0]
        result = np.zeros(count, np.int64)
        for place, values in zip(where, parts, strict=True):
            result[place] = values
        return result

    def floats(self, slot: str, count: int, places: Places | None = None) -> npt.NDArray[np.float32]:
        coding, data = self._take(slot, 4 * count, 32 * count)
        if coding == 0:
            return np.frombuffer(data, "<f4").astype(np.float32)
        if coding == CONTEXT:
            places = places or Places.row(count)
            if len(data) < 3 * count:
                raise ValueError(f"{len(data)} bytes for the fractions of {count} floats")
            exponents = context_coding.decode(data[3 * count :], places.widths(8), places.shape)
            return packing.join_floats(places.gather(exponents), data[: 3 * count])
        if coding > 2:
            raise ValueError(f"coding {coding} for floats")
        return packing.from_float_planes(entropy.decode(data, CODINGS[coding][1], 4 * count), count, np.float32)

    def _chained(self, slot: str, widths: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> Ints:
        before = 0 if self.chain is None else self.chain.bytes_read
        if self.chain is None:
            self.chain = context_coding.Chain(self.data[::-1])
        symbols = self.chain.read(widths, shape, _kind(slot, shape))
        own = self.data[::-1][before : self.chain.bytes_read][::-1]
        self.taken[-1] = Stream(slot, own, self.taken[-1].raw_bits, CHAINED)
        return symbols

    def _take(self, slot: str, raw_length: int, raw_bits: int) -> tuple[int, bytes]:
        code = self.codes[len(self.taken)] if len(self.taken) < len(self.codes) else 0
        coding, length = (0, raw_length) if code == 0 else (code % 8, code // 8)
        if (code and coding == 0) or coding > CHAINED or (coding == CHAINED and length):
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


def write_encoding(writer: Writer, e: Encoding, *, source: int | None = None) -> list[int]:
    """Put the streams of `e`; returns the header's description of its slots.

    [] for plain floats, else [flags, ...]: flags 1 mask, 2 sharing, 4 grid; then the sharing's axis + 1 (0 = none);
    then for a grid: axis + 1, kind (1 signed, 2 narrow, 4 zero points, 8 scales are powers of two, 16 derived scales,
    24 scales of 3 bits, 32 different widths), the bit width (0 for different ones), and `source` of derived ones.
    """
    description: list[int] = []
    if not e.is_plain:
        description.append((e.mask is not None) + 2 * (e.sharing is not None) + 4 * (e.grid is not None))
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
    _write_values(writer, e, kept)
    return description


def read_encoding(
    reader: Reader, shape: tuple[int, ...], description: Sequence[int], derive: Callable[[int], Tensor]
) -> Encoding:
    """Inverse of `write_encoding`; every count is checked before an array is made. `derive(source)` gives scales."""
    n = math.prod(shape)
    if not description:
        return Encoding(shape=shape, values=torch.from_numpy(reader.floats("values", n, Places(shape))).reshape(shape))
    numbers = iter(description)
    flags = _next(numbers)
    if not 0 < flags < 8:
        raise ValueError(f"slot flags {flags}")
    mask = sharing = grid = None
    kept: npt.NDArray[np.bool_] | None = None
    if flags & 1:
        kept = reader.symbols("mask", n, 1, Places(shape)).astype(bool)
        mask = torch.from_numpy(kept).reshape(shape)
    if flags & 2:
        sharing = _read_sharing(reader, shape, numbers, kept)
    if flags & 4:
        grid = _read_grid(reader, shape, numbers, derive)
    if list(numbers):
        raise ValueError("more numbers than the slots need")
    values = _read_values(reader, shape, kept, sharing, grid)
    e = Encoding(shape=shape, values=values, mask=mask, sharing=sharing, grid=grid)
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


def _write_values(writer: Writer, e: Encoding, kept: npt.NDArray[np.bool_] | None) -> None:
    values = e.values.reshape(-1).cpu().numpy()
    dense_mask = kept if e.sharing is None else None
    if dense_mask is not None:
        values = values[dense_mask]
    if e.grid is None:
        writer.floats("values", values, Places(e.shape, kept) if e.sharing is None else None)
    else:
        low, _, widths = _grid_entries(e.grid, e.shape, e.sharing, dense_mask)
        writer.symbols("values", values - low, widths, Places(e.shape, kept) if e.sharing is None else None)


def _read_values(
    reader: Reader,
    shape: tuple[int, ...],
    kept: npt.NDArray[np.bool_] | None,
    sharing: Sharing | None,
    grid: Grid | None,
) -> Tensor:
    n = math.prod(shape) if sharing is None else int(sharing.sizes.sum())
    dense_mask = kept if sharing is None else None
    if grid is None:
        places = Places(shape, kept) if sharing is None else None
        stored: Any = reader.floats("values", n if dense_mask is None else int(dense_mask.sum()), places)
    else:
        low, high, widths = _grid_entries(grid, shape, sharing, dense_mask)
        places = Places(shape, kept) if sharing is None else None
        stored = reader.symbols("values", len(widths), widths, places) + low
        if bool((stored > high).any()):
            raise ValueError("an integer beyond its grid")
    values = stored if dense_mask is None else _spread(stored, dense_mask)
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


def _spread(stored: Any, kept: npt.NDArray[np.bool_]) -> Any:
    full = np.zeros(len(kept), stored.dtype)
    full[kept] = stored
    return full


def _kind(slot: str, shape: tuple[int, ...]) -> tuple[str, bool]:
    """Chained streams of one kind are taken to be alike: those of a slot; rows, as biases are, apart."""
    return slot, len(shape) > 1


def _kinds(widths: Ints) -> list[int]:
    return np.flatnonzero(np.bincount(widths)).tolist()


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
