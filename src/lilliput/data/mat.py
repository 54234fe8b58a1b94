"""Plain numeric arrays of MATLAB level 5 files, read with every size checked first.

Ours, because scipy's reader takes gigabytes, or crashes the process, on damaged files.
Format: MathWorks, "MAT-File Format": elements of a tag (type, bytes) and data, padded to 8 bytes; a compressed
element holds one matrix; a matrix holds flags, dimensions, name and values. The header tells the order of bytes.
"""

import struct
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from lilliput.core.errors import DataError
from lilliput.data.files import read_limited

Order = Literal["<", ">"]
MAX_BYTES = 1 << 28
_CHUNK = 1 << 16
_HEADER, _MAX_AXES = 128, 32
_ORDERS: dict[bytes, Order] = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX, _SPARSE_OR_LOGICAL = 0x0800, 0x0200


class _DamagedError(Exception):
    pass


def read_mat(path: Path, names: frozenset[str], *, limit: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """The arrays called `names` of a level 5 file, in MATLAB's order of axes (first axis fastest).

    Other variables are passed over. Wanted ones must be real and numeric; all of them must be there. The file, a
    compressed element in it and an array may each have up to `limit` bytes. The arrays can be written to.
    """
    data = memoryview(read_limited(path, limit))
    try:
        return _arrays(data, names, limit)
    except _DamagedError as error:
        raise DataError(f"read MATLAB file {path}", str(error), "get the file again") from error
    except (struct.error, zlib.error) as error:
        raise DataError(f"read MATLAB file {path}", f"it is damaged ({error})", "get the file again") from error


def _arrays(data: memoryview, names: frozenset[str], limit: int) -> dict[str, np.ndarray]:
    order = _ORDERS.get(bytes(data[124:_HEADER]))
    if order is None:
        raise _DamagedError("it is not a MATLAB level 5 file")
    arrays: dict[str, np.ndarray] = {}
    for outer in _elements(data[_HEADER:], order):
        kind, content = _inflated(outer[1], order, limit) if outer[0] == _COMPRESSED else outer
        if kind == _MATRIX:
            name, array = _matrix(content, names, order, limit)
            if array is not None:
                arrays[name] = array
    if missing := sorted(names - arrays.keys()):
        raise _DamagedError(f"it has no variable {', '.join(missing)}")
    return arrays


def _elements(data: memoryview, order: Order) -> Iterator[tuple[int, memoryview]]:
    """Type and data of each element; small elements have both in 8 bytes. Only compressed ones are not padded."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
            if size > 4:
                raise _DamagedError(f"a small element claims {size} bytes")
        else:
            start = at + 8
            step = 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data):
            raise _DamagedError(f"an element claims {size} bytes, {len(data) - start} are left")
        yield kind, data[start : start + size]
        at += step


def _inflated(packed: memoryview, order: Order, limit: int) -> tuple[int, memoryview]:
    content = bytearray()
    kind = size = 0
    for piece in _inflated_pieces(packed):
        content += piece
        if not size and len(content) >= 8:
            kind, size = struct.unpack_from(f"{order}II", content)
            if size > limit:
                raise _DamagedError(f"a compressed element claims {size} bytes, at most {limit} can be right")
        if len(content) > 8 + size:
            break
    if len(content) != 8 + size:
        raise _DamagedError(f"a compressed element does not hold the {size} bytes that it claims")
    return kind, memoryview(content)[8:]


def _inflated_pieces(packed: memoryview) -> Iterator[bytes]:
    """Each of at most `_CHUNK` bytes; the end is the end of the stream, with its checksum."""
    stream = zlib.decompressobj()
    for at in range(0, len(packed), _CHUNK):
        rest: memoryview | bytes = packed[at : at + _CHUNK]
        while not stream.eof:
            piece = stream.decompress(rest, _CHUNK)
            rest = stream.unconsumed_tail
            yield piece
            if not rest and len(piece) < _CHUNK:
                break
    if not stream.eof:
        raise _DamagedError("a compressed element ends too early")


def _matrix(content: memoryview, names: frozenset[str], order: Order, limit: int) -> tuple[str, np.ndarray | None]:
    parts = _elements(content, order)
    (flag_type, flags), (shape_type, dimensions), (name_type, name_bytes) = (_next(parts) for _ in range(3))
    if (flag_type, len(flags), shape_type, name_type) != (_UINT32, 8, _INT32, _INT8) or len(dimensions) % 4:
        raise _DamagedError("a matrix does not start with its flags, dimensions and name")
    name = bytes(name_bytes).decode("latin-1")
    if name not in names:
        return name, None
    (flag,) = struct.unpack_from(f"{order}I", flags)
    if flag & (_COMPLEX | _SPARSE_OR_LOGICAL) or (flag & 0xFF) not in _CLASSES:
        raise _DamagedError(f"variable {name} is not real and numeric")
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    kept = np.dtype(_CLASSES[flag & 0xFF])
    claimed = prod(max(n, 1) for n in shape) * kept.itemsize  # one axis of 0 does not excuse the others
    if len(shape) > _MAX_AXES or claimed > limit:
        raise _DamagedError(f"variable {name} claims {len(shape)} axes and {claimed} bytes")
    stored_type, values = _next(parts)
    stored = np.dtype(_STORED.get(stored_type, "V1")).newbyteorder(order)
    if min(shape, default=-1) < 0 or stored.kind == "V" or prod(shape) * stored.itemsize != len(values):
        raise _DamagedError(f"variable {name} of shape {list(shape)} has {len(values)} bytes of type {stored_type}")
    array = np.frombuffer(values, dtype=stored)
    if kept != stored and not np.can_cast(stored, kept):  # integers stored for a float class always fit
        raise _DamagedError(f"variable {name} of class {kept} is stored as {stored}")
    return name, array.astype(kept, copy=False).reshape(shape, order="F")


def _next(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    part = next(parts, None)
    if part is None:
        raise _DamagedError("a matrix ends too early")
    return part
