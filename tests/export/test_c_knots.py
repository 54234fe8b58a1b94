"""Learned functions of 2^k + 1 points in C: the points, not a table of all codes."""

import pytest
from test_c_writer import GCC, check, samples

from knotted import TASK, chain, functions, quantized
from lilliput.graph.lower import lower

pytestmark = pytest.mark.skipif(GCC is None, reason="gcc is not installed")


@pytest.mark.parametrize(("bits", "k"), [(8, 3), (8, 5), (8, 7), (8, 8), (5, 4), (16, 3), (16, 8)])
def test_c_and_the_interpreter_have_the_points_and_compute_the_same(bits, k, tmp_path):
    net, _ = quantized(chain(functions(2**k + 1)), activation_bits=bits)
    program = lower(net)
    operation = next(o for o in program if o.table is not None)
    assert operation.table is not None
    assert operation.kind == ("table" if k == bits else "interpolate")
    assert operation.table.shape == (3, 2**k + (k < bits))
    check(program, samples(TASK), tmp_path)
