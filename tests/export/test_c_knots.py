"""Learned functions of 2^k + 1 points in C: the points, not a table of all codes."""

import pytest
import torch
from test_c_writer import GCC, check, samples
from torch import nn

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


@pytest.mark.parametrize("settings", [{}, {"tables": "full"}, {"activation_bits": 16}])
@pytest.mark.parametrize("share", ["indexed", "group"])
def test_shared_functions_are_there_once(share, settings, tmp_path):
    act = functions(17, channels=4, share=share, groups=2)
    if act.owner is not None:
        act.owner.copy_(torch.tensor([1, 0, 1, 1]))
    torch.manual_seed(0)
    net, _ = quantized(nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 2)).eval(), **settings)
    program = lower(net)
    operation = next(o for o in program if o.table is not None)
    assert operation.table is not None
    assert len(operation.table) == 2
    assert operation.attributes["owner"] == ((1, 0, 1, 1) if share == "indexed" else (0, 0, 1, 1))
    assert operation.kind == ("table" if settings == {"tables": "full"} else "interpolate")
    check(program, samples(TASK), tmp_path)


def test_more_functions_than_a_byte_can_name_are_there_for_each_channel(tmp_path):
    act = functions(9, channels=514, share="group", groups=257)
    torch.manual_seed(0)
    net, _ = quantized(nn.Sequential(nn.Linear(4, 514), act, nn.Linear(514, 2)).eval())
    check(lower(net), samples(TASK), tmp_path)
