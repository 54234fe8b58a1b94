"""Streams of a payload: packed to their exact number of bits, and each coded in the smallest of several ways.

The length of a raw stream follows from what comes before it, so only coded streams carry a length.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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
        return symbols if self.kept is None else in_places(symbols, self.kept)

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


def _kind(slot: str, shape: tuple[int, ...]) -> tuple[str, bool]:
    """Chained streams of one kind are taken to be alike: those of a slot; rows, as biases are, apart."""
    return slot, len(shape) > 1


def _kinds(widths: Ints) -> list[int]:
    return np.flatnonzero(np.bincount(widths)).tolist()


def in_places(stored: Any, kept: npt.NDArray[np.bool_]) -> Any:
    """What is stored of the kept entries, among zeros."""
    full = np.zeros(len(kept), stored.dtype)
    full[kept] = stored
    return full
