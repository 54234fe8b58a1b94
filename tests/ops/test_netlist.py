"""Circuits as data: values against plain Python, the packed form, what reads nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.cartesian_functions import ADD, COUNT, MULTIPLEXER, NAMES, NEGATE, ONE, READS
from lilliput.ops.netlist import Gate, Netlist, longest, sources, width_of


def plain_value(name, a, b, row, half):
    """Of a function by its printed formula, in Python's own integers."""
    if name == "row ? b : a":
        result = b if row & 1 else a
    else:
        result = eval(name, {"a": a, "b": b, "MAX": half - 1, "MIN": -half})
    return (result + half) % (2 * half) - half


@st.composite
def netlists(draw):
    bits, inputs = draw(st.integers(2, 9)), draw(st.integers(0, 4))
    gates = []
    for k in range(draw(st.integers(0, 12))):
        pins = inputs + k
        function = draw(st.integers(0, COUNT - 1).filter(lambda f: READS[f] == 0 or pins))  # noqa: B023 - used at once
        gates.append(Gate(function, *(draw(st.integers(0, pins - 1)) for _ in range(READS[function]))))
    pins = inputs + len(gates)
    outputs = draw(st.lists(st.integers(0, pins - 1), max_size=6)) if pins else []
    return Netlist(bits=bits, inputs=inputs, gates=tuple(gates), outputs=tuple(outputs))


def numbers(net, rows, seed):
    half = 1 << (net.bits - 1)
    return np.random.default_rng(seed).integers(-half, half, (rows, net.inputs))


@settings(deadline=None)
@given(netlists(), st.integers(0, 9))
def test_values_are_those_of_the_printed_formulas(net, seed):
    given_rows = numbers(net, 3, seed)
    found = net.evaluate(given_rows)
    for row, known in enumerate(given_rows.tolist()):
        pins = list(known)
        for gate in net.gates:
            a, b = (pins[p] if i < READS[gate.function] else 0 for i, p in enumerate(gate[1:]))
            pins.append(plain_value(NAMES[gate.function], a, b, row, 1 << (net.bits - 1)))
        assert found[row].tolist() == [pins[p] for p in net.outputs]
        if row == 0:
            assert net.evaluate(known).tolist() == found[row].tolist()


@settings(deadline=None)
@given(netlists())
def test_unpack_inverts_pack(net):
    assert Netlist.unpack(net.pack()) == net


@settings(deadline=None)
@given(netlists(), st.integers(0, 9))
def test_gates_that_no_output_needs_go_and_nothing_else(net, seed):
    small, given_rows = net.pruned(), numbers(net, 2, seed)
    assert all(small.active())
    assert small.evaluate(given_rows).tolist() == net.evaluate(given_rows).tolist()
    assert len(small.gates) == sum(net.active())


def test_a_gate_counts_once_on_its_way_also_behind_a_constant():
    net = Netlist(bits=8, inputs=0, gates=(Gate(ONE), Gate(NEGATE, 0), Gate(ADD, 0, 1)), outputs=(2,))
    delays = np.zeros(COUNT)
    delays[[ONE, NEGATE, ADD]] = 1.0, 10.0, 100.0
    assert longest(net, delays) == 111.0
    assert net.depth() == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": (Gate(ADD, 0, 1),)}, "gate 0 reads pin 1, which is not before it"),
        ({"gates": (Gate(COUNT, 0),)}, "functions are 0 to"),
        ({"outputs": (1,)}, "reads pin 1 of 1"),
        ({"bits": 17}, "2 to 16 bits"),
    ],
)
def test_what_is_no_circuit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Netlist(**({"bits": 8, "inputs": 1, "gates": (), "outputs": ()} | change))


def test_wrong_numbers_and_bytes_are_refused():
    net = Netlist(bits=4, inputs=1, gates=(Gate(MULTIPLEXER, 0, 0),), outputs=(1,))
    with pytest.raises(ValueError, match="are -8 to 7, not 8"):
        net.evaluate([8])
    with pytest.raises(ValueError, match="a circuit of 1 inputs"):
        net.evaluate([1, 2])
    with pytest.raises(ValueError, match="end too early"):
        Netlist.unpack(net.pack()[:-1])
    with pytest.raises(ValueError, match="left over"):
        Netlist.unpack(net.pack() + b"\0")
    with pytest.raises(ValueError, match="functions are"):
        Netlist.unpack(((6 | 1 << 4 | 1 << 12) | 31 << 28).to_bytes(5, "little"))
    assert sources(Gate(ONE, 3, 4)) == ()
    assert [width_of(n) for n in (0, 1, 2, 3, 256, 257)] == [0, 0, 1, 2, 8, 9]
