"""Coding: what went in comes out, and a hostile stream gives `ValueError` or bytes of the promised size."""

import lzma
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.entropy import CODECS, DECODER_FILTERS, Method, decode, encode, encode_smallest

methods = st.sampled_from(list(CODECS.values()))
COMPRESSING: tuple[Method, ...] = ("zlib", "lzma")
texts = st.one_of(st.binary(max_size=200), st.builds(lambda b, n: b * n, st.binary(max_size=9), st.integers(0, 500)))


@given(texts, methods)
@settings(max_examples=300, deadline=None)
def test_decode_inverts_encode(data: bytes, method: Method) -> None:
    assert decode(encode(data, method), method, len(data)) == data
    assert decode(memoryview(encode(memoryview(data), method)), method, len(data)) == data


@given(texts)
@settings(max_examples=100, deadline=None)
def test_smallest_is_no_longer_than_any(data: bytes) -> None:
    method, coded = encode_smallest(data)
    assert len(coded) == min(len(encode(data, other)) for other in CODECS.values())
    assert decode(coded, method, len(data)) == data
    assert len(coded) <= len(data)


def test_smallest_finds_structure_and_leaves_noise_alone() -> None:
    noise = np.random.default_rng(0).bytes(5000)
    assert encode_smallest(noise) == ("raw", noise)
    assert encode_smallest(b"") == ("raw", b"")
    assert len(encode_smallest(noise * 2)[1]) < 5200


def test_long_streams_come_back() -> None:
    data = np.random.default_rng(1).integers(0, 5, 1_200_000).astype(np.uint8).tobytes()
    for method in COMPRESSING:
        assert decode(encode(data, method), method, len(data)) == data


@given(st.binary(min_size=1, max_size=200), methods, st.data())
@settings(max_examples=200, deadline=None)
def test_any_other_length_is_refused(data: bytes, method: Method, draw: st.DataObject) -> None:
    coded = encode(data, method)
    wrong = draw.draw(st.integers(0, 2 * len(data)).filter(lambda size: size != len(data)))
    with pytest.raises(ValueError, match="should hold"):
        decode(coded, method, wrong)
    cut = draw.draw(st.integers(0, len(coded) - 1))
    with pytest.raises(ValueError, match="stream"):
        decode(coded[:cut], method, len(data))
    with pytest.raises(ValueError, match="stream"):
        decode(coded + draw.draw(st.binary(min_size=1, max_size=5)), method, len(data))


@pytest.mark.parametrize("method", COMPRESSING)
def test_flipped_bits_give_an_error_or_the_promised_size(method: Method) -> None:
    rng = np.random.default_rng(2)
    data = rng.integers(0, 16, 600).astype(np.uint8).tobytes()
    coded = encode(data, method)
    refused = 0
    for _ in range(4000):
        hostile = np.frombuffer(coded, dtype=np.uint8).copy()
        hostile[rng.integers(0, len(coded), rng.integers(1, 4))] ^= np.uint8(1 << rng.integers(0, 8))
        try:
            assert len(decode(hostile.tobytes(), method, len(data))) == len(data)
        except ValueError:
            refused += 1
    assert refused > 100


@given(st.binary(max_size=300), methods, st.integers(0, 1000))
@settings(max_examples=300, deadline=None)
def test_random_bytes_give_an_error_or_the_promised_size(data: bytes, method: Method, size: int) -> None:
    try:
        assert len(decode(data, method, size)) == size
    except ValueError:
        return


@pytest.mark.parametrize("method", COMPRESSING)
def test_a_bomb_is_refused_within_little_memory(method: Method) -> None:
    bomb = encode(bytes(50_000_000), method)
    tracemalloc.start()
    with pytest.raises(ValueError, match="holds more"):
        decode(bomb, method, 1000)
    with pytest.raises(ValueError, match="holds more"):
        decode(bomb, method, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_an_lzma_stream_cannot_ask_for_a_larger_dictionary() -> None:
    wide = [{**DECODER_FILTERS[0], "dict_size": 1 << 24}]
    noise = np.random.default_rng(3).bytes(2_000_000)
    far = lzma.compress(noise * 2, lzma.FORMAT_RAW, filters=wide)
    with pytest.raises(ValueError, match="damaged"):
        decode(far, "lzma", 4_000_000)


def test_only_headerless_deflate_is_read() -> None:
    with pytest.raises(ValueError, match="stream"):
        decode(zlib.compress(b"abc" * 20), "zlib", 60)


@pytest.mark.parametrize("size", [-1, 1 << 64])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="decoded size"):
        decode(b"", "zlib", size)


def test_unknown_methods_are_refused() -> None:
    unknown: Any = "zstd"
    for call in (lambda: encode(b"", unknown), lambda: decode(b"", unknown, 0)):
        with pytest.raises(ValueError, match="raw, zlib, lzma"):
            call()
