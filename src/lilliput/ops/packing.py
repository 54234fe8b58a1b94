"""Integers of any bit width in a row of bytes, and floats as planes of bytes.

The layout is part of the `.lil` format: value i occupies bits [i * bit_width, (i + 1) * bit_width) of the stream, bit b
of the stream is bit b % 8 (counted from the lowest) of byte b // 8, and the unused high bits of the last byte are zero.
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]
Float = TypeVar("Float", np.float32, np.float16)

WIDEST = 32
CHUNK = 1 << 16  # a multiple of 8, so that every chunk but the last ends at a byte; bounds the unpacked bits to 2 MiB


def packed_bytes(count: int, bit_width: int) -> int:
    """Length of `count` packed values: `ceil(count * bit_width / 8)`."""
    if not 0 <= bit_width <= WIDEST:
        raise ValueError(f"bit width must be in 0..{WIDEST}, not {bit_width}")
    if count < 0:
        raise ValueError(f"count must not be negative: {count}")
    return (count * bit_width + 7) // 8


def pack(values: Ints, bit_width: int) -> bytes:
    """The bytes of the flat `values`, each in 0..2^bit_width - 1; no bytes at all for bit width 0."""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"values must be a vector of integers, not {values.dtype} of shape {values.shape}")
    packed_bytes(values.size, bit_width)
    if values.size and not (values.min() >= 0 and values.max() < 1 << bit_width):
        raise ValueError(f"values must be in 0..{(1 << bit_width) - 1}: found {values.min()} to {values.max()}")
    return b"".join(_pack(values[i : i + CHUNK], bit_width) for i in range(0, values.size, CHUNK))


def unpack(data: bytes | memoryview, count: int, bit_width: int) -> Ints:
    """The `count` values in `data`, which must have the one right length and zero padding; checked before allocating.

    Bit width 0 needs no data, so no length limits `count` there: the caller does.
    """
    expected = packed_bytes(count, bit_width)
    if len(data) != expected:
        raise ValueError(f"{count} values of {bit_width} bits take {expected} bytes, not {len(data)}")
    padding = -count * bit_width % 8
    if padding and data[-1] >> (8 - padding):
        raise ValueError(f"the last {padding} bits of the packed values are padding and must be zero")
    values = np.zeros(count, dtype=np.int64)
    if bit_width:
        stream = np.frombuffer(data, dtype=np.uint8)
        for i in range(0, count, CHUNK):
            chunk = values[i : i + CHUNK]
            chunk[:] = _unpack(stream[i * bit_width // 8 :], chunk.size, bit_width)
    return values


def float_planes(values: NDArray[np.floating[Any]]) -> bytes:
    """All lowest bytes of the flat little-endian `values`, then all second bytes, and so on.

    An entropy coder sees the exponents side by side and not between mantissas that look random.
    """
    if values.ndim != 1 or values.dtype.kind != "f" or values.itemsize > 4:
        raise ValueError(f"values must be a vector of float32 or float16, not {values.dtype} of shape {values.shape}")
    little = values.astype(f"<f{values.itemsize}").view(np.uint8)
    return little.reshape(-1, values.itemsize).T.tobytes()


def from_float_planes(data: bytes | memoryview, count: int, dtype: type[Float]) -> NDArray[Float]:
    """The `count` values whose planes are `data`; every bit pattern, NaN payloads included, comes back."""
    width = np.dtype(dtype).itemsize
    if count < 0 or len(data) != count * width:
        raise ValueError(f"{count} values of {width} bytes take {count * width} bytes, not {len(data)}")
    planes = np.frombuffer(data, dtype=np.uint8).reshape(width, count)
    return np.ascontiguousarray(planes.T).view(f"<f{width}").reshape(count).astype(dtype)


def _pack(values: Ints, bit_width: int) -> bytes:
    words = values.astype("<u4").view(np.uint8).reshape(-1, 4)
    return np.packbits(np.unpackbits(words, axis=1, bitorder="little")[:, :bit_width], bitorder="little").tobytes()


def _unpack(stream: Bits, count: int, bit_width: int) -> NDArray[np.uint32]:
    words = np.zeros((count, WIDEST), dtype=np.uint8)
    bits = np.unpackbits(stream[: packed_bytes(count, bit_width)], count=count * bit_width, bitorder="little")
    words[:, :bit_width] = bits.reshape(count, bit_width)
    return np.packbits(words, axis=1, bitorder="little").view("<u4").reshape(count)


def split_floats(values: NDArray[np.float32]) -> tuple[NDArray[np.int64], bytes]:
    """The exponents, 0..255, and for each float three bytes: 23 bits of its fraction over its sign, little-endian."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    turned = ((bits << 1) | (bits >> 31)).astype("<u4")
    parts = turned.view(np.uint8).reshape(-1, 4)
    return parts[:, 3].astype(np.int64), parts[:, :3].tobytes()


def join_floats(exponents: NDArray[np.int64], rest: bytes) -> NDArray[np.float32]:
    """Inverse of `split_floats`."""
    parts = np.empty((len(exponents), 4), np.uint8)
    parts[:, 3] = exponents
    parts[:, :3] = np.frombuffer(rest, np.uint8).reshape(-1, 3)
    turned = parts.reshape(-1).view("<u4")
    return ((turned >> 1) | (turned << 31)).astype("<u4").view("<f4").astype(np.float32)
