"""Lossless coding of a stream of bytes with what Python always has: nothing, raw deflate, or raw LZMA2.

The streams carry no header and no checksum: the caller stores method and size, and checks content. Decoding never
produces more than one byte beyond the size it is told, whatever the stream claims, and LZMA's dictionary is 1 MiB.

LZMA2 and not LZMA1: an incompressible or tiny stream costs 4 bytes, not 10, and the stream itself says its lc, lp and
pb, so the choice of these is no part of the format. lc = lp = pb = 0 had the least regret on packed 2-, 4- and 8-bit
codes, dense and 80 % zero, and on pruning masks of ResNet-20 and LeNet-5: within 1.4 % of the best of eight settings,
where the usual lc = 3 is up to 11 % above it.
"""

import lzma
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

Method = Literal["raw", "zlib", "lzma"]
Data = bytes | memoryview

CODECS: Mapping[int, Method] = MappingProxyType({0: "raw", 1: "zlib", 2: "lzma"})
"""The codes of the methods in the file format."""

RAW_DEFLATE = -15
DICTIONARY = 1 << 20
LARGEST = 1 << 40
DECODER_FILTERS: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "dict_size": DICTIONARY}]
ENCODER_FILTERS: list[dict[str, Any]] = [
    {**DECODER_FILTERS[0], "lc": 0, "lp": 0, "pb": 0, "mode": lzma.MODE_NORMAL, "mf": lzma.MF_BT4, "nice_len": 273}
]


def encode(data: Data, method: Method) -> bytes:
    """`data` coded by `method`. The same bytes for the same zlib and liblzma, not for every version of them."""
    if method == "raw":
        return bytes(data)
    if method == "zlib":
        deflate = zlib.compressobj(9, zlib.DEFLATED, RAW_DEFLATE, 9)
        return deflate.compress(data) + deflate.flush()
    if method == "lzma":
        return lzma.compress(data, lzma.FORMAT_RAW, filters=ENCODER_FILTERS)
    raise ValueError(f"coding method must be one of {', '.join(CODECS.values())}, not {method!r}")


def encode_smallest(data: Data) -> tuple[Method, bytes]:
    """The shortest of all methods; of equally short ones the first in the order of `CODECS`."""
    return min(((method, encode(data, method)) for method in CODECS.values()), key=lambda coded: len(coded[1]))


def decode(data: Data, method: Method, size: int) -> bytes:
    """The `size` bytes that `data` codes: exactly these, from exactly all of `data`, or `ValueError`."""
    if not 0 <= size <= LARGEST:
        raise ValueError(f"a decoded size must be in 0..2^40, not {size}")
    if method == "raw":
        decoded, ended, rest = bytes(data[: size + 1]), True, b""
    elif method == "zlib":
        decoded, ended, rest = _inflate(data, size + 1)
    elif method == "lzma":
        decoded, ended, rest = _unlzma(data, size + 1)
    else:
        raise ValueError(f"coding method must be one of {', '.join(CODECS.values())}, not {method!r}")
    if len(decoded) != size:
        found = f"{len(decoded)} bytes" if len(decoded) < size else "more"
        raise ValueError(f"the {method} stream should hold {size} bytes, but holds {found}")
    if not ended:
        raise ValueError(f"the {method} stream of {size} bytes is cut off before its end mark")
    if rest:
        raise ValueError(
            f"the {method} stream of {size} bytes is followed by {len(rest)} bytes that do not belong to it"
        )
    return decoded


def _inflate(data: Data, limit: int) -> tuple[bytes, bool, bytes]:
    inflate = zlib.decompressobj(RAW_DEFLATE)
    try:
        decoded = inflate.decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"damaged zlib stream: {error}") from error
    return decoded, inflate.eof, inflate.unused_data


def _unlzma(data: Data, limit: int) -> tuple[bytes, bool, bytes]:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=DECODER_FILTERS)
    try:
        decoded = decompressor.decompress(data, limit)
    except lzma.LZMAError as error:
        raise ValueError(f"damaged lzma stream: {error}") from error
    return decoded, decompressor.eof, decompressor.unused_data
