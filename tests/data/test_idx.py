import gzip
import tracemalloc
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lilliput.core.errors import DataError
from lilliput.data.idx import MAX_BYTES, content_md5, header, read_idx

shapes = st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple)
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def values(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(array):
    return header(array.shape) + array.tobytes()


def written(path, content, packed=False):
    path.write_bytes(gzip.compress(content, 1, mtime=0) if packed else content)
    return path


@given(shapes, st.booleans())
@fuzz
def test_reading_inverts_writing(tmp_path, shape, packed):
    array = values(*shape)
    read = read_idx(written(tmp_path / "a", encoded(array), packed), len(shape))
    assert read.shape == shape
    assert np.array_equal(read, array)


def test_read_array_can_be_written_to(tmp_path):
    assert read_idx(written(tmp_path / "a", encoded(np.zeros((2, 2), np.uint8))), 2).flags.writeable


@given(st.data(), st.booleans())
@fuzz
def test_damaged_file_is_refused_or_read_as_it_stands(tmp_path, data, packed):
    """A plain file has no checksum: a changed value is a value. A gzip stream has one: no change gets through."""
    array = values(5, 4, 3)
    plain = encoded(array)
    content = bytearray(gzip.compress(plain, mtime=0) if packed else plain)
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)), label="cut")
    content = content[:cut]
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3) if content else st.just([]), label="at"):
        content[at] ^= data.draw(st.integers(1, 255), label="flip")
    path = tmp_path / "a"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        read = read_idx(path, 3)
    except DataError:
        read = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 << 20
    if read is None:
        return
    assert encoded(read) == (plain if packed else bytes(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bytes none"),
        (b"\0\0", "magic"),
        (b"PK\x03\x04" + bytes(20), "magic"),
        (b"\0\0\x0d\x01" + bytes(8), "type is 0x0d"),
        (b"\0\0\x08\x03" + bytes(12), "3 dimensions, expected 1"),
        (b"\0\0\x08\x01\0\0", "inside its header"),
        (b"\0\0\x08\x01\0\0\0\x05abcd", "claims 5 bytes"),
        (b"\0\0\x08\x01\0\0\0\x03abcd", "more than the 3 bytes"),
    ],
)
def test_each_fault_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_idx(written(tmp_path / "plain", content), 1)


@pytest.mark.parametrize(("claimed", "held", "message"), [(5, 4, "only 4 of the 5"), (3, 4, "more than the 3")])
def test_packed_file_must_hold_what_its_header_claims(tmp_path, claimed, held, message):
    with pytest.raises(DataError, match=message):
        read_idx(written(tmp_path / "a.gz", header((claimed,)) + bytes(held), packed=True), 1)


@pytest.mark.parametrize("shape", [(0xFFFFFFFF, 0xFFFFFFFF), (MAX_BYTES + 1, 1), (1 << 24, 1)])
@pytest.mark.parametrize("packed", [True, False])
def test_huge_claim_allocates_nothing(tmp_path, shape, packed):
    assert prod(shape) > 1 << 20
    path = written(tmp_path / "a", header(shape) + bytes(100), packed)
    tracemalloc.start()
    with pytest.raises(DataError, match="more than the file can hold"):
        read_idx(path, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_bomb_is_unpacked_no_further_than_its_header_says(tmp_path):
    path = written(tmp_path / "a.gz", header((1000,)) + bytes(200 << 20), packed=True)
    tracemalloc.start()
    with pytest.raises(DataError, match="more than the 1000 bytes"):
        read_idx(path, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_idx(tmp_path / "none", 1)
    with pytest.raises(DataError, match="not a file"):
        read_idx(tmp_path, 1)


def test_content_checksum_does_not_depend_on_compression(tmp_path):
    array = values(3, 4)
    sums = {
        content_md5(read_idx(written(tmp_path / str(packed), encoded(array), packed), 2)) for packed in (False, True)
    }
    assert len(sums) == 1
