"""`$name` in plain data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.bench.placeholders import fill, names_in
from lilliput.core.errors import RecipeError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("abc {}:"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1), inner, max_size=3),
)


@given(PLAIN)
def test_data_without_placeholders_stay_as_they_are(data):
    assert names_in(data) == set()
    assert fill(data, {}, "here") == data


@given(PLAIN, st.sampled_from(["$size", "${size}"]))
def test_a_placeholder_alone_takes_the_value_with_its_type(value, written):
    data = [{"a": [written, "b"]}, written]
    assert names_in(data) == {"size"}
    assert fill(data, {"size": value}, "here") == [{"a": [value, "b"]}, value]


def test_within_a_text_the_value_is_text():
    assert fill("${n}kB of $x.", {"n": 4, "x": "flash"}, "here") == "4kB of flash."


def test_a_filled_copy_leaves_the_original():
    data = {"a": ["$n"]}
    fill(data, {"n": 1}, "here")
    assert data == {"a": ["$n"]}


def test_a_missing_value_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match=r"method 'x': there is no value for \$sparsty; .*sparsity"):
        fill(["$sparsty"], {"sparsity": 0.5}, "method 'x'")
