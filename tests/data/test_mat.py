import io
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

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
        with pytest.raises(DataError, match=r"56 bytes|incorrect data check"):
            read_mat(written(tmp_path / "a.mat", with_packed_element(damaged)), frozenset("X"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a little-endian"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "not a little-endian"),
        (encoded(X=np.ones((2, 2))), "no variable y"),
        (encoded(X=np.ones((2, 2)), y=np.ones(3) * 1j), "y is not real"),
        (encoded(X=np.ones((2, 2)), y="text"), "y is not real"),
        (encoded(X=np.ones((2, 2)), y=np.ones(3, dtype=bool)), "y is not real"),
    ],
)
def test_each_fault_of_a_matlab_file_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_mat(written(tmp_path / "a.mat", content), frozenset("Xy"))
