"""Plain numeric arrays of MATLAB level 5 files, read with every size checked first.

Ours, because scipy's reader takes gigabytes, or crashes the process, on damaged files.
Format: MathWorks, "MAT-File Format": elements of a tag (type, bytes) and data, padded to 8 bytes; a compressed
element holds one matrix; a matrix holds flags, dimensions, name and values.
"""

import struct
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from lilliput.core.errors import DataError
from lilliput.data.files import read_limited

MAX_BYTES = 1 << 28
_HEADER = 128
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_STORED = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX, _SPARSE_OR_LOGICAL = 0x0800, 0x0200


class _DamagedError(Exception):
    pass


def read_mat(path: Path, names: frozenset[str]) -> dict[str, np.ndarray]:
    """The arrays called `names` of a little-endian level 5 file, in MATLAB's order of axes (first axis fastest).

    Other variables are passed over. Wanted ones must be real and numeric; all of them must be there.
    """
    data = memoryview(read_limited(path, MAX_BYTES))
    try:
        return _arrays(data, names)
    except _DamagedError as error:
        raise DataError(f"read MATLAB file {path}", str(error), "get the file again") from error
    except (struct.error, zlib.error) as error:
        raise DataError(f"read MATLAB file {path}", f"it is damaged ({error})", "get the file again") from error


def _arrays(data: memoryview, names: frozenset[str]) -> dict[str, np.ndarray]:
    if len(data) < _HEADER or bytes(data[124:128]) != b"\x00\x01IM":
        raise _DamagedError("it is not a little-endian MATLAB level 5 file")
    arrays: dict[str, np.ndarray] = {}
    for outer in _elements(data[_HEADER:]):
        kind, content = _inflated(outer[1]) if outer[0] == _COMPRESSED else outer
        if kind == _MATRIX:
            name, array = _matrix(content, names)
            if array is not None:
                arrays[name] = array
    if missing := sorted(names - arrays.keys()):
        raise _DamagedError(f"it has no variable {', '.join(missing)}")
    return arrays


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and data of each element; small elements have both in 8 bytes. Only compressed ones are not padded."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
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


def _inflated(packed: memoryview) -> tuple[int, memoryview]:
    stream = zlib.decompressobj()
    tag = stream.decompress(packed, 8)
    kind, size = struct.unpack("<II", tag)
    if size > MAX_BYTES:
        raise _DamagedError(f"a compressed element claims {size} bytes, at most {MAX_BYTES} can be right")
    content = stream.decompress(stream.unconsumed_tail, size + 1) if size else b""
    content += stream.decompress(stream.unconsumed_tail, 1)  # nothing, but the end of the stream and its checksum
    if len(content) != size or not stream.eof:
        raise _DamagedError(f"a compressed element does not hold the {size} bytes that it claims")
    return kind, memoryview(content)


def _matrix(content: memoryview, names: frozenset[str]) -> tuple[str, np.ndarray | None]:
    parts = _elements(content)
    (flag_type, flags), (shape_type, dimensions), (name_type, name_bytes) = (_next(parts) for _ in range(3))
    if (flag_type, len(flags), shape_type, name_type) != (_UINT32, 8, _INT32, _INT8) or len(dimensions) % 4:
        raise _DamagedError("a matrix does not start with its flags, dimensions and name")
    name = bytes(name_bytes).decode("latin-1")
    if name not in names:
        return name, None
    (flag,) = struct.unpack_from("<I", flags)
    if flag & (_COMPLEX | _SPARSE_OR_LOGICAL) or (flag & 0xFF) not in _CLASSES:
        raise _DamagedError(f"variable {name} is not real and numeric")
    shape = struct.unpack(f"<{len(dimensions) // 4}i", dimensions)
    stored_type, values = _next(parts)
    stored = np.dtype(_STORED.get(stored_type, "V1"))
    if min(shape, default=-1) < 0 or stored.kind == "V" or prod(shape) * stored.itemsize != len(values):
        raise _DamagedError(f"variable {name} of shape {list(shape)} has {len(values)} bytes of type {stored_type}")
    kept = np.dtype(_CLASSES[flag & 0xFF])
    array = np.frombuffer(values, dtype=stored)
    if kept != stored and not np.can_cast(stored, kept):  # integers stored for a float class always fit
        raise _DamagedError(f"variable {name} of class {kept} is stored as {stored}")
    return name, array.astype(kept, copy=False).reshape(shape, order="F")


def _next(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    part = next(parts, None)
    if part is None:
        raise _DamagedError("a matrix ends too early")
    return part
