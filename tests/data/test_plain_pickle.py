import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import DataError
from lilliput.data.plain_pickle import Call, Name, read_plain_pickle

NUMPY = frozenset({"numpy._core.multiarray _reconstruct", "numpy ndarray", "numpy dtype", "_codecs encode"})
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=20,
)


def read(data, allowed=frozenset()):
    return read_plain_pickle(data, allowed, "read a test")


@given(values, st.sampled_from([2, 3, 4]))
@settings(max_examples=200, deadline=None)
def test_plain_values_are_read_as_the_unpickler_reads_them(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


def test_byte_strings_and_shared_values_are_read():
    shared = [1]
    assert read(pickle.dumps([b"ab", b"c" * 300, shared, shared], 4)) == [b"ab", b"c" * 300, [1], [1]]


def test_calls_are_kept_and_not_made():
    array = read(pickle.dumps(np.arange(3, dtype=np.uint8), 2), NUMPY)
    assert isinstance(array, Call)
    assert array.path == "numpy._core.multiarray _reconstruct"
    assert array.arguments[0] == Name("numpy ndarray")
    assert array.state[1] == (3,)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_foreign_names_are_refused(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"posix system|instruction"):
        read(pickle.dumps({"data": Attack()}, protocol), NUMPY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",  # protocol 0
        b"\x80\x02ccopyreg\n_reconstructor\n.",
        b"(i__builtin__\nexit\n.",  # INST
        b"(cos\nsystem\no.",  # OBJ
        b"\x80\x02P1\n.",  # persistent id
        b"\x82\x01.",  # extension registry
        b"\x80\x02cnumpy\nndarray.__class__\n.",
    ],
)
def test_instructions_and_names_outside_of_plain_data_are_refused(data):
    with pytest.raises(DataError, match="the pickle"):
        read(data, NUMPY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b".",
        b"t.",
        b"K\x01R.",
        b"]K\x01b.",
        b"}]K\x01s.",
        b"](K\x01K\x02u.",
        b"}(K\x01u.",
        b"X\xff\xff\xff\xffab.",
        b"X\x01\x00\x00\x00\xff.",
        b"h\x07.",
        b"cnumpy",
        b"\x8a\x05\x01.",
    ],
)
def test_damaged_pickles_are_refused(data):
    with pytest.raises(DataError, match="damaged"):
        read(data, NUMPY)


@given(st.binary(max_size=60) | st.data())
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data):
    if not isinstance(data, bytes):
        content = bytearray(pickle.dumps({"data": np.zeros(5, np.uint8), "labels": [1, 2]}, 2))
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        data = bytes(content)
    try:
        read(data, NUMPY)
    except DataError as error:
        assert error.asked == "read a test"  # noqa: PT017


def test_more_instructions_than_real_files_have_are_refused():
    with pytest.raises(DataError, match="more than 1000000 instructions"):
        read(b"(" * 1_100_000)
