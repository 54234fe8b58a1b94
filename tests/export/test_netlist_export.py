"""Circuits as C and as pictures: the C computes the same for every input; the picture has every gate and wire."""

import re
import shutil

import numpy as np
import pytest

from lilliput.core.errors import UnsupportedError, UsageError, VerificationError
from lilliput.export.netlist_c import all_inputs, c_function, verify_c
from lilliput.export.netlist_dot import dot
from lilliput.measure.energy import PUBLISHED
from lilliput.methods.weight_generation.constructive import generate
from lilliput.ops.cartesian_functions import ADD, COUNT, FLIP_SIGN, MULTIPLEXER, NEGATE, ONE, READS, SUBTRACT
from lilliput.ops.netlist import Gate, Netlist

needs_cc = pytest.mark.skipif(
    all(shutil.which(t) is None for t in ("cc", "gcc", "clang")), reason="no C compiler is installed"
)


def every_function(bits):
    """Two inputs, and an output for each function."""
    gates = tuple(Gate(function, *(0, 1)[: READS[function]]) for function in range(COUNT))
    return Netlist(bits=bits, inputs=2, gates=gates, outputs=tuple(range(2, 2 + COUNT)))


@needs_cc
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_every_function_is_the_same_in_c_for_every_pair_of_operands(bits):
    assert verify_c(every_function(bits)) == 4**bits


@needs_cc
@pytest.mark.parametrize("bits", [9, 16])
def test_wide_numbers_are_the_same_in_c(bits):
    half = 1 << (bits - 1)
    ends = np.array([(a, b) for a in (-half, -1, 0, 1, half - 1) for b in (-half, -1, 0, 1, half - 1)])
    rows = np.random.default_rng(0).integers(-half, half, (2000, 2))
    assert verify_c(every_function(bits), np.vstack([ends, rows])) == 2025


@needs_cc
def test_generated_weights_come_out_of_the_c():
    every = list(range(-128, 128))
    net = generate([], every, bits=8, prices=PUBLISHED.energy_pj)
    assert verify_c(net) == 1
    net = generate([5, -77], every[::3], bits=8, prices=PUBLISHED.energy_pj)
    assert verify_c(net) == 65536


@needs_cc
def test_a_difference_is_found_and_told():
    net = Netlist(bits=4, inputs=2, gates=(Gate(SUBTRACT, 0, 1),), outputs=(2,))
    wrong = c_function(Netlist(bits=4, inputs=2, gates=(Gate(SUBTRACT, 1, 0),), outputs=(2,)))
    with pytest.raises(VerificationError, match=r"output 0 is 1 instead of -1 for \[-8, -7\]"):
        verify_c(net, source=wrong)
    with pytest.raises(VerificationError, match="compile a circuit's C"):
        verify_c(net, source="nonsense")


@needs_cc
def test_unused_inputs_and_empty_circuits_compile():
    assert verify_c(Netlist(bits=3, inputs=2, gates=(Gate(NEGATE, 1),), outputs=(2,))) == 64
    assert verify_c(Netlist(bits=3, inputs=0, gates=(), outputs=())) == 1


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnsupportedError, match="no C compiler"):
        verify_c(Netlist(bits=3, inputs=0, gates=(Gate(ONE),), outputs=(0,)))


def test_too_many_combinations_and_odd_names_are_refused():
    with pytest.raises(UsageError, match="3 inputs of 8 bits; give the rows"):
        all_inputs(Netlist(bits=8, inputs=3, gates=(), outputs=()))
    with pytest.raises(UsageError, match="not a plain name"):
        c_function(Netlist(bits=8, inputs=0, gates=(), outputs=()), name="int main")


def test_the_picture_has_every_gate_wire_and_value():
    gates = (Gate(ONE), Gate(FLIP_SIGN, 0), Gate(ADD, 2, 1), Gate(NEGATE, 0))
    net = Netlist(bits=8, inputs=1, gates=gates, outputs=(3, 0))
    text = dot(net, [5], name='a "name"')
    assert text.startswith('digraph "a \\"name\\"" {')
    assert set(re.findall(r"(\w+) -> (\w+)", text)) == {
        ("v0", "v2"),
        ("v2", "v3"),
        ("v1", "v3"),
        ("v3", "out0"),
        ("v0", "out1"),
    }
    assert 'v2 -> v3 [label="a"]' in text
    assert 'label="a + b\\n-122"' in text
    assert "-a" not in text
    assert "\\n" not in dot(net)
    with pytest.raises(UsageError, match="2 values for 1 inputs"):
        dot(net, [1, 2])


def test_multiplexers_take_the_row():
    assert "int row)" in c_function(Netlist(bits=8, inputs=2, gates=(Gate(MULTIPLEXER, 0, 1),), outputs=(2,)))
