"""Bit packing: the exact number of bytes, and everything comes back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops import packing
from lilliput.ops.packing import float_planes, from_float_planes, pack, packed_bytes, unpack

widths = st.integers(0, 32)


@given(widths.flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, (1 << b) - 1)))))
@settings(max_examples=300, deadline=None)
def test_unpack_inverts_pack(case: tuple[int, list[int]]) -> None:
    bit_width, values = case
    data = pack(np.array(values, dtype=np.int64), bit_width)
    assert len(data) == packed_bytes(len(values), bit_width) == -(-len(values) * bit_width // 8)
    assert int.from_bytes(data, "little") == sum(value << (i * bit_width) for i, value in enumerate(values))
    found = unpack(data, len(values), bit_width)
    assert found.dtype == np.int64
    assert found.tolist() == values


@pytest.mark.parametrize("bit_width", [1, 3, 8, 13, 32])
def test_chunks_leave_no_seam(bit_width: int) -> None:
    count = 2 * packing.CHUNK + 5
    values = np.random.default_rng(bit_width).integers(0, 1 << bit_width, count)
    data = pack(values, bit_width)
    assert len(data) == packed_bytes(count, bit_width)
    assert (unpack(memoryview(data), count, bit_width) == values).all()


def test_bits_fill_bytes_from_the_lowest() -> None:
    assert pack(np.array([1, 2, 3]), 4) == b"\x21\x03"
    assert pack(np.array([0b101, 0b011, 0b110]), 3) == bytes([0b10011101, 0b1])


def test_zero_bits_take_no_bytes() -> None:
    assert pack(np.zeros(5, dtype=np.int64), 0) == b""
    assert unpack(b"", 5, 0).tolist() == [0] * 5


@given(st.binary(max_size=40), st.integers(0, 80), widths)
@settings(max_examples=300, deadline=None)
def test_hostile_bytes_are_refused_or_canonical(data: bytes, count: int, bit_width: int) -> None:
    try:
        values = unpack(data, count, bit_width)
    except ValueError:
        return
    assert pack(values, bit_width) == data


def test_padding_must_be_zero() -> None:
    with pytest.raises(ValueError, match="last 4 bits"):
        unpack(b"\x21\x13", 3, 4)


def test_a_huge_count_is_refused_before_allocating() -> None:
    with pytest.raises(ValueError, match="take"):
        unpack(b"\x00", 1 << 60, 4)


@pytest.mark.parametrize(
    ("values", "bit_width", "message"),
    [
        (np.array([16]), 4, "0..15"),
        (np.array([-1]), 4, "0..15"),
        (np.array([1]), 0, "0..0"),
        (np.array([1]), 33, "bit width"),
        (np.array([1]), -1, "bit width"),
        (np.array([1.0]), 4, "integers"),
        (np.array([[1]]), 4, "vector"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: np.ndarray, bit_width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(values, bit_width)


@pytest.mark.parametrize(("count", "bit_width"), [(-1, 4), (1, 33), (1, 0), (3, 8), (1, 8)])
def test_wrong_lengths_are_refused(count: int, bit_width: int) -> None:
    with pytest.raises(ValueError, match=r"count|bit"):
        unpack(b"\x00\x00", count, bit_width)


@given(st.binary(max_size=64), st.sampled_from([np.float32, np.float16]))
@settings(deadline=None)
def test_planes_give_every_bit_pattern_back(bits: bytes, dtype: Any) -> None:
    width = np.dtype(dtype).itemsize
    values = np.frombuffer(bits[: len(bits) // width * width], dtype=dtype)
    planes = float_planes(values)
    assert planes == b"".join(values.tobytes()[byte::width] for byte in range(width))
    found = from_float_planes(planes, len(values), dtype)
    assert found.dtype == dtype
    assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((2, 2), dtype=np.float32), np.zeros(3, dtype=np.int32)])
def test_other_types_have_no_planes(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="vector of float32 or float16"):
        float_planes(values)


@pytest.mark.parametrize("count", [-1, 0, 1, 3, 1 << 60])
def test_planes_of_the_wrong_length_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="take"):
        from_float_planes(b"\x00" * 8, count, np.float32)
