import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from lilliput.core.errors import DataError
from lilliput.data.mat import read_mat

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encoded(packed=False, **variables):
    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=packed)
    return buffer.getvalue()


def written(path, content):
    path.write_bytes(content)
    return path


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=4),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.text("ABCxyz", min_size=1, max_size=9),
)
@fuzz
def test_what_scipy_writes_is_read_back(tmp_path, shape, dtype, packed, name):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    content = encoded(packed, **{"other": "a text", name: array})
    read = read_mat(written(tmp_path / "a.mat", content), frozenset({name}))
    assert list(read) == [name]
    assert read[name].dtype == array.dtype
    assert np.array_equal(read[name], array)


@given(st.data(), st.booleans())
@fuzz
def test_damaged_file_is_read_or_refused_in_little_memory(tmp_path, data, packed):
    content = bytearray(encoded(packed, X=np.arange(60, dtype=np.uint8).reshape(3, 4, 5), y=np.ones((5, 1))))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)), label="cut")]
    for at in data.draw(st.lists(st.integers(100, 500), min_size=1, max_size=4), label="at"):
        if at < len(content):
            content[at] ^= data.draw(st.integers(1, 255), label="flip")
    path = written(tmp_path / "a.mat", content)
    tracemalloc.start()
    try:
        read = read_mat(path, frozenset("Xy"))
        assert set(read) == {"X", "y"}
    except DataError as error:
        assert "a.mat" in str(error)  # noqa: PT017
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


def with_packed_element(packed):
    tag = (15).to_bytes(4, "little") + len(packed).to_bytes(4, "little")
    return encoded() + tag + packed


CLASSES = {"f8": 6, "i1": 8, "u1": 9, "i2": 10, "u2": 11, "i4": 12, "u4": 13}
TYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f8": 9}


def element(order, kind, content):
    """A tag and its data; up to four bytes share the tag's eight."""
    if 0 < len(content) <= 4:
        return struct.pack(f"{order}I", len(content) << 16 | kind) + content.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(order, name, array, shape=None):
    """The element of a real numeric array; `shape` is what it claims."""
    code = array.dtype.str[1:]
    shape = array.shape if shape is None else shape
    parts = (
        (6, struct.pack(f"{order}II", CLASSES[code], 0)),
        (5, struct.pack(f"{order}{len(shape)}i", *shape)),
        (1, name.encode()),
        (TYPES[code], array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")),
    )
    return element(order, 14, b"".join(element(order, *part) for part in parts))


def packed_element(order, content):
    packed = zlib.compress(content)
    return struct.pack(f"{order}II", 15, len(packed)) + packed


def file_of(order, *elements):
    mark = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    return b"MATLAB 5.0 MAT-file".ljust(124) + mark + b"".join(elements)


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=4),
    st.sampled_from(sorted(CLASSES)),
    st.sampled_from("<>"),
    st.booleans(),
)
@fuzz
def test_both_orders_of_bytes_hold_the_same_array(tmp_path, shape, dtype, order, packed):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    whole = matrix(order, "name", array)
    content = file_of(order, packed_element(order, whole) if packed else whole)
    read = read_mat(written(tmp_path / "a.mat", content), frozenset({"name"}))["name"]
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)
    assert np.array_equal(read, loadmat(io.BytesIO(content))["name"])
    read[...] = 0  # or readers would have to copy


def hostile(order, kind):
    array = np.zeros((3, 4), np.uint8)
    whole = matrix(order, "X", array)
    contents = {
        "element": struct.pack(f"{order}II", 14, 0xFFFFFFF8),
        "packed element": struct.pack(f"{order}II", 15, 0xFFFFFFFF),
        "inner matrix": packed_element(order, struct.pack(f"{order}II", 14, 0xFFFFFFF8) + bytes(64)),
        "dimensions": matrix(order, "X", array, shape=(2**31 - 1,) * 4),
        "empty and huge": matrix(order, "X", array[:0], shape=(0, 2**31 - 1, 2**31 - 1, 2**31 - 1)),
        "negative": matrix(order, "X", array, shape=(-3, -4)),
        "many axes": matrix(order, "X", array, shape=(1,) * 70 + (3, 4)),
        "small element": struct.pack(f"{order}II", 5 << 16 | 14, 0),
        "cut": whole[:-9],
        "cut and packed": packed_element(order, whole)[:-9],
        "cut inside": packed_element(order, whole[:-9]),
    }
    return file_of(order, contents[kind])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("element", "claims 4294967288 bytes, 0 are left"),
        ("packed element", "claims 4294967295 bytes, 0 are left"),
        ("inner matrix", "claims 4294967288 bytes, at most"),
        ("dimensions", r"4 axes and \d+ bytes"),
        ("empty and huge", r"4 axes and \d+ bytes"),
        ("negative", "has 12 bytes"),
        ("many axes", "72 axes"),
        ("small element", "small element claims 5 bytes"),
        ("cut", "are left"),
        ("cut and packed", "are left"),
        ("cut inside", "does not hold"),
    ],
)
def test_sizes_that_the_file_does_not_have_are_refused_and_take_no_memory(tmp_path, order, kind, message):
    path = written(tmp_path / "a.mat", hostile(order, kind))
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        read_mat(path, frozenset("X"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22


def test_small_numbers_are_not_widened_beyond_the_limit(tmp_path):
    """MATLAB stores whole numbers of class double in a byte each."""
    shape, tag = struct.pack("<2i", 1, 5000), struct.pack("<II", CLASSES["f8"], 0)
    parts = ((6, tag), (5, shape), (1, b"X"), (TYPES["u1"], bytes(range(250)) * 20))
    content = file_of("<", element("<", 14, b"".join(element("<", *part) for part in parts)))
    path = written(tmp_path / "a.mat", content)
    assert read_mat(path, frozenset("X"), limit=40_000)["X"].dtype == np.float64
    with pytest.raises(DataError, match="2 axes and 40000 bytes"):
        read_mat(path, frozenset("X"), limit=39_999)


def test_a_file_above_the_limit_is_not_read(tmp_path):
    path = written(tmp_path / "a.mat", file_of("<", matrix("<", "X", np.zeros(5000, np.uint8)[None])))
    assert read_mat(path, frozenset("X"), limit=10_000)["X"].shape == (1, 5000)
    with pytest.raises(DataError, match="at most 5000 can be right"):
        read_mat(path, frozenset("X"), limit=5000)


def packed_matrix(claimed, content):
    return zlib.compress((14).to_bytes(4, "little") + claimed.to_bytes(4, "little") + content)


@pytest.mark.parametrize(
    ("claimed", "message"), [(1 << 30, "claims 1073741824 bytes"), (56, "does not hold the 56 bytes")]
)
def test_bomb_is_unpacked_no_further_than_it_may_claim(tmp_path, claimed, message):
    path = written(tmp_path / "a.mat", with_packed_element(packed_matrix(claimed, bytes(64 << 20))))
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        read_mat(path, frozenset("X"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_packed_element_without_its_checksum_is_refused(tmp_path):
    packed = packed_matrix(56, bytes(56))
    for damaged in (packed[:-4], packed[:-1] + bytes([packed[-1] ^ 1])):
        with pytest.raises(DataError, match=r"too early|incorrect data check"):
            read_mat(written(tmp_path / "a.mat", with_packed_element(damaged)), frozenset("X"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a MATLAB level 5 file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "not a MATLAB level 5 file"),
        (encoded(X=np.ones((2, 2))), "no variable y"),
        (encoded(X=np.ones((2, 2)), y=np.ones(3) * 1j), "y is not real"),
        (encoded(X=np.ones((2, 2)), y="text"), "y is not real"),
        (encoded(X=np.ones((2, 2)), y=np.ones(3, dtype=bool)), "y is not real"),
    ],
)
def test_each_fault_of_a_matlab_file_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_mat(written(tmp_path / "a.mat", content), frozenset("Xy"))
