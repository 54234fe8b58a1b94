"""The header's bytes: a strict subset of CBOR (RFC 8949).

Null, booleans, integers below 2^63, float64, text, bytes, arrays, and maps with text keys. Maps keep their order, which
counts in a recipe (later overrides win). Reading checks every length against the bytes that are left before it
allocates, and refuses what is not the shortest form.
"""

import struct
from typing import Any

MAX_DEPTH = 16
MAX_VALUES = 1 << 20
"""So many values, small ones and empty arrays too, may be read from one header."""


def dumps(value: Any) -> bytes:
    """Raises TypeError for a type outside the subset, ValueError for a number or a depth that `loads` would refuse."""
    out = bytearray()
    _write(out, value, 0)
    return bytes(out)


def loads(data: bytes) -> Any:
    """Raises ValueError for anything but exactly one well-formed value."""
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise ValueError(f"{len(data) - reader.at} bytes after the end of the header")
    return value


def _head(out: bytearray, major: int, n: int) -> None:
    if n < 24:
        out.append(major << 5 | n)
        return
    for code, fmt, limit in ((24, ">B", 1 << 8), (25, ">H", 1 << 16), (26, ">I", 1 << 32), (27, ">Q", 1 << 64)):
        if n < limit:
            out.append(major << 5 | code)
            out += struct.pack(fmt, n)
            return


def _write(out: bytearray, value: Any, depth: int) -> None:
    if value is None:
        out.append(0xF6)
    elif isinstance(value, bool):
        out.append(0xF5 if value else 0xF4)
    elif isinstance(value, int):
        _integer(out, value)
    elif isinstance(value, float):
        out.append(0xFB)
        out += struct.pack(">d", value)
    elif isinstance(value, str):
        raw = value.encode()
        _head(out, 3, len(raw))
        out += raw
    elif isinstance(value, bytes):
        _head(out, 2, len(value))
        out += value
    elif isinstance(value, (list, tuple)):
        _head(out, 4, len(value))
        for item in value:
            _write(out, item, _deeper(depth))
    elif isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key that is not text cannot stand in a header")
        _head(out, 5, len(value))
        for key, item in value.items():
            _write(out, key, depth)
            _write(out, item, _deeper(depth))
    else:
        raise TypeError(f"{type(value).__name__} cannot stand in a header")


def _integer(out: bytearray, value: int) -> None:
    major, n = (0, value) if value >= 0 else (1, -1 - value)
    if n >= 1 << 63:
        raise ValueError(f"integer {value} does not fit 64 bits")
    _head(out, major, n)


def _deeper(depth: int) -> int:
    if depth == MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return depth + 1


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.values = data, 0, 0

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise ValueError(f"the header ends early: {n} bytes wanted, {len(self.data) - self.at} left")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, low: int) -> int:
        if low < 24:
            return low
        sizes = {24: (1, 24), 25: (2, 1 << 8), 26: (4, 1 << 16), 27: (8, 1 << 32)}
        if low not in sizes:
            raise ValueError(f"length code {low} is not in the subset")
        size, least = sizes[low]
        n = int.from_bytes(self.take(size), "big")
        if n < least:
            raise ValueError("a number is not in its shortest form")
        return n

    def value(self, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        first = self.take(1)[0]
        major, low = first >> 5, first & 31
        if first == 0xF6:
            return None
        if first in (0xF4, 0xF5):
            return first == 0xF5
        if first == 0xFB:
            return struct.unpack(">d", self.take(8))[0]
        if major in (0, 1):
            n = self.number(low)
            if n >= 1 << 63:
                raise ValueError("an integer of more than 63 bits")
            return n if major == 0 else -1 - n
        if major == 2:
            return self.take(self.number(low))
        if major == 3:
            return self.take(self.number(low)).decode("utf-8")
        if major == 4:
            return [self.value(_deeper(depth)) for _ in range(self.count(low))]
        if major == 5:
            return self.map(self.count(low), depth)
        raise ValueError(f"byte 0x{first:02x} is not in the subset")

    def count(self, low: int) -> int:
        n = self.number(low)
        if n > len(self.data) - self.at:
            raise ValueError(f"{n} items announced, {len(self.data) - self.at} bytes left")
        return n

    def map(self, n: int, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for _ in range(n):
            key = self.value(depth)
            if not isinstance(key, str):
                raise ValueError("a map key is not text")  # noqa: TRY004 - one kind of error for malformed bytes
            if key in result:
                raise ValueError("a map key appears twice")
            result[key] = self.value(_deeper(depth))
        return result
