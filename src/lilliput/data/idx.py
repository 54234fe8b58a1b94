"""The IDX format of MNIST: big-endian header, then unsigned bytes; plain or gzip.

Header: 0, 0, type (8 = unsigned byte), number of dimensions, then each dimension as uint32.
Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
"""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lilliput.core.errors import DataError
from lilliput.data.files import checked_size, unreadable

MAX_BYTES = 1 << 28
_UNSIGNED_BYTE = 8
_DEFLATE_LIMIT = 1032  # deflate cannot expand its input by more than this factor
_CHUNK = 1 << 20


def read_idx(path: Path, n_dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file, writable.

    What the header claims is checked against the real size before anything is allocated; a compressed file is
    unpacked in pieces and never further than the header says.
    """
    size = checked_size(path, MAX_BYTES)
    with _opened(path) as (file, packed):
        shape = _read_header(path, file, n_dimensions)
        n_bytes = prod(shape)
        room = size * _DEFLATE_LIMIT if packed else size - len(header(shape))
        if n_bytes > min(room, MAX_BYTES):
            raise _damaged(path, f"its header claims {n_bytes} bytes of data, more than the file can hold")
        data = bytearray()
        while len(data) <= n_bytes and (chunk := file.read(min(_CHUNK, n_bytes + 1 - len(data)))):
            data += chunk
    if len(data) != n_bytes:
        more_or_less = "more than" if len(data) > n_bytes else f"only {len(data)} of"
        raise _damaged(path, f"it holds {more_or_less} the {n_bytes} bytes of data that its header claims")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def header(shape: tuple[int, ...]) -> bytes:
    """The IDX header of an uint8 array."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, _UNSIGNED_BYTE, len(shape), *shape)


def content_md5(array: np.ndarray) -> str:
    """md5 of the unpacked file that holds this uint8 array; independent of how it was compressed."""
    digest = hashlib.md5(header(array.shape), usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO | gzip.GzipFile, bool]]:
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield unpacked, True
            else:
                yield raw, False
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, f"its gzip stream is damaged ({error})") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _read_header(path: Path, file: BinaryIO | gzip.GzipFile, n_dimensions: int) -> tuple[int, ...]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise _damaged(path, f"it starts with bytes {start.hex(' ') or 'none'}, not with the magic number of IDX")
    if start[2] != _UNSIGNED_BYTE:
        raise _damaged(path, f"its data type is 0x{start[2]:02x}, expected 0x08 (unsigned byte)")
    if start[3] != n_dimensions:
        raise _damaged(path, f"it has {start[3]} dimensions, expected {n_dimensions}")
    sizes = file.read(4 * n_dimensions)
    if len(sizes) < 4 * n_dimensions:
        raise _damaged(path, "it ends inside its header")
    return struct.unpack(f">{n_dimensions}I", sizes)


def _damaged(path: Path, found: str) -> DataError:
    return DataError(f"read IDX file {path}", found, "get the file again")
