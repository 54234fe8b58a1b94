"""Every network of the zoo folds, quantizes and lowers, and its program computes what `IntegerNet` computes."""

import numpy as np
import pytest
import torch

from lilliput.graph.integer import IntegerNet, Quantized
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.zoo.registry import ZOO
from zoo_networks import LARGE, random_network, samples_of


def check(name, count, *, plain):
    """Every value; fast, and in plain integers too."""
    net = random_network(name)
    program, reference, x = lower(net), IntegerNet(net), samples_of(name, count, seed=2)
    assert reference.floats == {}
    expected: dict[str, torch.Tensor] = {}

    def keep(node, value):
        if isinstance(value, Quantized):
            expected[node.name] = value.q

    result = reference.values((x,), keep)
    codes = quantize_input(program, x.numpy())
    for fast in (True, False)[: 1 + plain]:
        seen: dict[str, np.ndarray] = {}
        outputs = run(program, codes, fast=fast, visit=lambda o, q, seen=seen: seen.__setitem__(o.output, q))
        for value, q in seen.items():
            assert program.values[value].low <= q.min() <= q.max() <= program.values[value].high, value
            assert value not in expected or np.array_equal(q, expected[value].numpy()), value
        assert len(set(seen) & set(expected)) >= len(seen) - 2  # all but sums
        decoded = decode(program.values[program.outputs[0]], outputs[0])
        assert np.array_equal(decoded, result.numpy())
        assert decoded.std() > 0


@pytest.mark.parametrize("name", [name for name in ZOO if name not in LARGE])
def test_the_program_of_a_zoo_network_computes_what_the_integer_net_computes(name):
    check(name, 2, plain=ZOO[name].shape[-1] < 96)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_so_does_that_of_a_large_one(name):
    check(name, 1, plain=False)
