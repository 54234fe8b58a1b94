"""Functions and circuits against plain Python."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartesian_oracle import SOURCES, functions, interpreted, wrapped
from lilliput.ops import cartesian_functions as cf
from lilliput.ops.cartesian import Circuit, Shape, random_circuit


@pytest.mark.parametrize("function", range(cf.COUNT), ids=cf.NAMES)
def test_functions_are_those_of_plain_integers_for_every_pair_of_8_bits(function):
    a, b = np.divmod(np.arange(65536), 256) - np.array([[128], [128]])
    oracle = functions(8)[function]
    for row in (0, 1):
        wanted = [wrapped(oracle(p, q, row), 8) for p, q in zip(a.tolist(), b.tolist(), strict=True)]
        assert cf.evaluate(function, a, b, 8, row).tolist() == wanted


@settings(max_examples=60, deadline=None)
@given(
    function=st.integers(0, cf.COUNT - 1),
    bits=st.integers(2, 16),
    row=st.integers(0, 3),
    pairs=st.lists(st.tuples(*[st.integers(-(1 << 15), (1 << 15) - 1)] * 2), min_size=1, max_size=30),
)
def test_functions_are_those_of_plain_integers_at_any_width(function, bits, row, pairs):
    a, b = (cf.wrap(x, bits) for x in zip(*pairs, strict=True))
    wanted = [wrapped(functions(bits)[function](p, q, row), bits) for p, q in zip(a.tolist(), b.tolist(), strict=True)]
    assert cf.evaluate(function, a, b, bits, row).tolist() == wanted


@pytest.mark.parametrize("function", range(cf.COUNT), ids=cf.NAMES)
def test_a_function_depends_on_exactly_what_it_reads(function):
    values = np.arange(-128, 128)
    over_a, over_b = (
        len({tuple(cf.evaluate(function, *pair, 8, 1).tolist()) for pair in pairs}) > 1
        for pairs in ([(values, b) for b in (3, 77)], [(a, values) for a in (3, 77)])
    )
    reads_a = len({int(cf.evaluate(function, a, 5, 8, 0)) for a in range(-128, 128)}) > 1
    assert cf.READS[function] == SOURCES[function] == (2 if over_a else 1 if reads_a else 0)
    assert over_b is reads_a or function == cf.MULTIPLEXER


def test_shifts_beyond_the_width_leave_the_sign_or_nothing():
    assert cf.evaluate(cf.RIGHT_5, [-2, -1, 0, 1], 0, bits=2).tolist() == [-1, -1, 0, 0]
    assert cf.evaluate(cf.LEFT_5, [-4, 3], 0, bits=3).tolist() == [0, 0]


SHAPES = [
    Shape(inputs=i, outputs=o, rows=r, columns=c, levels_back=lb, bits=bits)
    for (i, o, r, c, lb), bits in zip(
        [(1, 3, 4, 5, 5), (7, 20, 5, 5, 6), (3, 4, 8, 12, 2), (2, 2, 1, 40, 1), (5, 9, 16, 3, 3)],
        [8, 4, 16, 2, 11],
        strict=True,
    )
]


def rows_of(shape, count, seed):
    low, high = cf.limits(shape.bits)
    return np.random.default_rng(seed).integers(low, high + 1, size=(count, shape.inputs))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_circuits_compute_what_a_plain_interpreter_computes(shape, seed):
    circuit = random_circuit(shape, np.random.default_rng(seed))
    inputs = rows_of(shape, 1 + seed, seed)
    assert circuit.run(inputs).tolist() == interpreted(circuit, inputs)


def test_random_circuits_use_every_pin_and_function_that_they_may():
    shape = Shape(inputs=2, outputs=3, rows=2, columns=4, levels_back=2)
    circuits = [random_circuit(shape, np.random.default_rng(seed)) for seed in range(200)]
    for node, reach in ((0, {0, 1}), (2, {0, 1, 2, 3}), (4, {2, 3, 4, 5}), (7, {4, 5, 6, 7})):
        for side in (0, 1):
            assert {int(c.nodes[node, side]) for c in circuits} == reach
    assert {int(pin) for c in circuits for pin in c.outputs} == {6, 7, 8, 9}
    assert {int(f) for c in circuits for f in c.nodes[:, 2]} == set(cf.DRAWN)


def test_inputs_are_outputs_only_if_levels_reach_back_over_all_columns():
    for levels_back, first in ((4, 2), (5, 0)):
        low, count = Shape(inputs=2, outputs=1, rows=3, columns=4, levels_back=levels_back).sources()
        assert (low[-1], low[-1] + count[-1]) == (first, 14)


def test_exactly_what_outputs_depend_on_is_active():
    shape = Shape(inputs=3, outputs=3, rows=4, columns=5, levels_back=5)
    for seed in range(5):
        circuit = random_circuit(shape, np.random.default_rng(seed))
        reached, todo = set(), circuit.outputs.tolist()
        while todo:
            pin = todo.pop()
            if pin >= 3 and pin not in reached:
                reached.add(pin)
                todo += circuit.nodes[pin - 3, : SOURCES[circuit.nodes[pin - 3, 2]]].tolist()
        assert (np.flatnonzero(circuit.active()) + 3).tolist() == sorted(reached)


def test_wrong_circuits_are_refused():
    shape = Shape(inputs=1, outputs=1, rows=1, columns=2, levels_back=1)
    nodes, outputs = np.array([[0, 0, 1], [1, 1, 1]], dtype=np.int32), np.array([2], dtype=np.int32)
    assert Circuit(shape=shape, nodes=nodes, outputs=outputs).run([[3]]).tolist() == [[12]]
    for place, value in itertools.product([(0, 0), (1, 1)], (-1, 2)):
        wrong = nodes.copy()
        wrong[place] = value
        with pytest.raises(ValueError, match="cannot read"):
            Circuit(shape=shape, nodes=wrong, outputs=outputs)
    with pytest.raises(ValueError, match="functions are 0 to 28"):
        Circuit(shape=shape, nodes=nodes + np.array([0, 0, 28], dtype=np.int32), outputs=outputs)
    with pytest.raises(ValueError, match="cannot read"):
        Circuit(shape=shape, nodes=nodes, outputs=outputs - 1)
    with pytest.raises(ValueError, match="other arrays"):
        Circuit(shape=shape, nodes=nodes[:1], outputs=outputs)
    with pytest.raises(ValueError, match="8 bits"):
        Circuit(shape=shape, nodes=nodes, outputs=outputs).run([[128]])
    for key in ("inputs", "outputs", "rows", "columns", "levels_back"):
        with pytest.raises(ValueError, match=key):
            Shape(**{"inputs": 1, "outputs": 1, "rows": 1, "columns": 1, "levels_back": 1, key: 0})
    with pytest.raises(ValueError, match="2 to 16 bits, not 17"):
        Shape(inputs=1, outputs=1, rows=1, columns=1, levels_back=1, bits=17)
