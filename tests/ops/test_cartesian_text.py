"""Circuits as published text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.cartesian import Shape, random_circuit
from lilliput.ops.cartesian_functions import IDENTITY
from lilliput.ops.cartesian_text import read, written

SMALL = "{2,1,2,1,2,2,1}([2]0,1,1)([3]2,0,100)(3)"


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=5, max_size=5), bits=st.integers(2, 16), seed=st.integers(0, 99))
def test_reading_inverts_writing(sizes, bits, seed):
    shape = Shape(**dict(zip(("inputs", "outputs", "rows", "columns", "levels_back"), sizes, strict=True)), bits=bits)
    circuit = random_circuit(shape, np.random.default_rng(seed))
    again = read(written(circuit), bits)
    assert again.shape == shape
    assert (again.nodes == circuit.nodes).all()
    assert (again.outputs == circuit.outputs).all()


def test_the_text_is_the_published_one():
    circuit = read(SMALL)
    assert circuit.nodes.tolist() == [[0, 1, 1], [2, 0, IDENTITY]]
    assert circuit.run([[3, 4]]).tolist() == [[7]]
    assert written(circuit) == written(read(SMALL.replace(",", ", ") + "\n")) == SMALL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the text"),
        (SMALL[:-3], "not the text"),
        (SMALL + "(1)", "not the text"),
        (SMALL.replace("[3]", "[4]"), "not the text"),
        (SMALL.replace("0,1,1", "0,1,28"), "not the text"),
        (SMALL.replace("0,1,1", "0,1,9999999999"), "not the text"),
        (SMALL.replace("0,1,1", "0,1,29"), "functions are"),
        (SMALL.replace("0,1,1", "0,2,1"), "cannot read"),
        (SMALL.replace("([2]0,1,1)", ""), "not the text"),
        (SMALL.replace("{2,1,2,1,2", "{2,1,2,1,3"), "3 sources"),
        (SMALL.replace("{2,1,2,1", "{2,1,3,1"), "other arrays"),
        (SMALL.replace("{2", "{0"), "inputs"),
    ],
)
def test_wrong_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read(text)
