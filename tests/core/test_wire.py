"""The header's CBOR: what can be written comes back, and bytes are refused or canonical."""

import math
import re
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core import wire
from strategies import law

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=5),
    max_leaves=12,
)


@given(values)
@law(300)
def test_loads_inverts_dumps_with_every_type(value):
    again = wire.loads(wire.dumps(value))
    assert again == value
    assert repr(again) == repr(value)
    assert wire.dumps(again) == wire.dumps(value)


@given(st.binary(max_size=40))
@law(400)
def test_bytes_are_refused_or_the_only_form_of_their_value(data):
    try:
        value = wire.loads(data)
    except ValueError:
        return
    assert wire.dumps(value) == data


@given(values, st.data())
@law(300)
def test_changed_bytes_are_refused_or_the_only_form_of_their_value(value, data):
    raw = bytearray(wire.dumps(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        changed = wire.loads(bytes(raw))
    except ValueError:
        return
    assert wire.dumps(changed) == raw


@given(values, st.data())
@law(100)
def test_cut_bytes_are_refused(value, data):
    raw = wire.dumps(value)
    with pytest.raises(ValueError, match=r"left|ends early"):
        wire.loads(raw[: data.draw(st.integers(0, len(raw) - 1))])


@pytest.mark.parametrize(
    ("value", "form"),
    [  # RFC 8949, appendix A
        (0, "00"),
        (10, "0a"),
        (23, "17"),
        (24, "1818"),
        (25, "1819"),
        (100, "1864"),
        (1000, "1903e8"),
        (1000000, "1a000f4240"),
        (1000000000000, "1b000000e8d4a51000"),
        (-1, "20"),
        (-10, "29"),
        (-100, "3863"),
        (-1000, "3903e7"),
        (1.1, "fb3ff199999999999a"),
        (-4.1, "fbc010666666666666"),
        (False, "f4"),
        (True, "f5"),
        (None, "f6"),
        (b"", "40"),
        (b"\x01\x02\x03\x04", "4401020304"),
        ("", "60"),
        ("IETF", "6449455446"),
        ("\u00fc", "62c3bc"),
        ("\u6c34", "63e6b0b4"),
        ([], "80"),
        ([1, [2, 3], [4, 5]], "8301820203820405"),
        (list(range(1, 26)), "98190102030405060708090a0b0c0d0e0f101112131415161718181819"),
        ({}, "a0"),
        ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
        (["a", {"b": "c"}], "826161a161626163"),
    ],
)
def test_known_values_have_their_published_form(value, form):
    assert wire.dumps(value).hex() == form
    assert wire.loads(bytes.fromhex(form)) == value


def test_nan_and_minus_zero_keep_their_bits():
    assert math.isnan(wire.loads(wire.dumps(math.nan)))
    assert struct.pack(">d", wire.loads(wire.dumps(-0.0))) == struct.pack(">d", -0.0)


def test_tuples_are_written_as_lists_and_maps_keep_their_order():
    assert wire.loads(wire.dumps((1, (2,)))) == [1, [2]]
    assert list(wire.loads(wire.dumps({"bb": 1, "c": 2, "": 3}))) == ["bb", "c", ""]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("", "the header ends early: 1 bytes wanted, 0 left"),
        ("0000", "1 bytes after the end of the header"),
        ("1817", "a number is not in its shortest form"),
        ("190018", "a number is not in its shortest form"),
        ("580141", "a number is not in its shortest form"),
        ("1c", "length code 28 is not in the subset"),
        ("9f00ff", "length code 31 is not in the subset"),
        ("1b8000000000000000", "an integer of more than 63 bits"),
        ("3b8000000000000000", "an integer of more than 63 bits"),
        ("f7", "byte 0xf7 is not in the subset"),
        ("f90000", "byte 0xf9 is not in the subset"),
        ("c000", "byte 0xc0 is not in the subset"),
        ("a10000", "a map key is not text"),
        ("a2616100616100", "a map key appears twice"),
        ("61ff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        ("9affffffff", "4294967295 items announced, 0 bytes left"),
        ("bb7fffffffffffffff", "9223372036854775807 items announced, 0 bytes left"),
        ("5b7fffffffffffffff", "the header ends early: 9223372036854775807 bytes wanted, 0 left"),
        ("7a7fffffff", "the header ends early: 2147483647 bytes wanted, 0 left"),
        ("81" * 17 + "00", "nested deeper than 16"),
        ("a160" * 17 + "00", "nested deeper than 16"),
    ],
)
def test_what_is_not_canonical_is_refused(form, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        wire.loads(bytes.fromhex(form))


def test_sixteen_levels_are_written_and_read_and_seventeen_are_not():
    value = 0
    for _ in range(16):
        value = [value]
    assert wire.loads(wire.dumps(value)) == value
    with pytest.raises(ValueError, match="nested deeper than 16"):
        wire.dumps([value])
    with pytest.raises(ValueError, match="nested deeper than 16"):
        wire.dumps({"a": value})


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ({1, 2}, TypeError, "set cannot stand in a header"),
        ([{"a": 1j}], TypeError, "complex cannot stand in a header"),
        ({1: 2}, TypeError, "a key that is not text cannot stand in a header"),
        (1 << 63, ValueError, "integer 9223372036854775808 does not fit 64 bits"),
        (-(1 << 63) - 1, ValueError, "integer -9223372036854775809 does not fit 64 bits"),
        ("\ud800", ValueError, "surrogates not allowed"),
    ],
)
def test_what_cannot_be_read_is_not_written(value, error, text):
    with pytest.raises(error, match=text):
        wire.dumps(value)


def test_a_million_values_are_read_and_no_more():
    many = b"\x9a" + (wire.MAX_VALUES - 1).to_bytes(4, "big") + bytes(wire.MAX_VALUES - 1)
    assert len(wire.loads(many)) == wire.MAX_VALUES - 1
    with pytest.raises(ValueError, match="more than 1048576 values"):
        wire.loads(b"\x81" + many)


def test_announced_lengths_allocate_nothing():
    tracemalloc.start()
    for form in ("9affffffff", "bb7fffffffffffffff", "5b7fffffffffffffff", "81" * 1000):
        with pytest.raises(ValueError, match=r"left|deeper"):
            wire.loads(bytes.fromhex(form))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
