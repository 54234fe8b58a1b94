"""Every operation of the program in C: the interpreter's integers, in 8 and 16 bits, under both sanitizers."""

import numpy as np
import pytest
import torch
from test_c_writer import GCC, check, samples

from lilliput.graph.lower import lower
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, tiny_task
from lowered import Operations, quantized, quantized_tiny, task_of
from program_networks import NETS, SHAPE, chain_of_functions, quantized_network

pytestmark = pytest.mark.skipif(GCC is None, reason="gcc is not installed")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", NETS)
def test_operations_compute_what_the_interpreter_computes(name, bits, tmp_path):
    task = task_of(SHAPE)
    program = lower(quantized_network(name, Quantization(activation_bits=bits)))
    check(program, samples(task), tmp_path)


WIDE = {"activation_bits": 16}
MANIFOLD = ("conv1d", "residual", "grouped")
"""Those with operations that the others do not have."""


@pytest.mark.parametrize(("name", "settings"), [
    pytest.param(name, settings, marks=() if settings == WIDE or name in MANIFOLD else pytest.mark.slow)
    for name in TINY for settings in (WIDE, {"activation_bits": 16, "signed": False}, {"weight_bits": 14})
])  # fmt: skip
def test_wide_networks_compute_what_the_interpreter_computes(name, settings, tmp_path):
    task = tiny_task()
    check(lower(quantized_tiny(name, Quantization(**settings))), samples(task), tmp_path)


def test_all_operations_of_8_bits_have_16(tmp_path):
    torch.manual_seed(0)
    task = task_of((2, 9, 8))
    program = lower(quantized(Operations().eval(), task, Quantization(activation_bits=16)))
    check(program, samples(task), tmp_path)


@pytest.mark.parametrize(("signed", "channel"), [(True, None), (False, 1), (True, 0), (False, 2)])
def test_lines_between_3_to_8_bits_of_points(signed, channel, tmp_path):
    program = chain_of_functions(signed=signed, channel=channel)
    value = program.values[program.input]
    x = np.random.default_rng(1).integers(value.low, value.high + 1, (50, *value.shape))
    check(program, x.astype(np.float64), tmp_path)
