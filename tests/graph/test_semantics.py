"""A word computes what the recorded call computes, bit by bit, on every operation of the test networks."""

from functools import cache

import pytest
import torch
from torch import nn

import program_networks
from lilliput.core.wiring import CODES, OPERATIONS
from lilliput.graph.attributes import COMPLETE
from lilliput.graph.operators import FIRST, MOVES, OPERATORS, POINTWISE
from lilliput.graph.semantics import RULES
from lilliput.graph.trace import Graph, Ref, evaluate, trace
from lilliput.testing import TINY, tiny_model
from lowered import Operations
from stored_cases import CASES, example

PASSED_ON = {"other", "several", "scalar", "getitem", "size", "input"}
"""No words: what runs as it was recorded."""


def recorded(node, values, state):
    def resolve(a):
        if isinstance(a, Ref):
            return values[a.name] if a.name in values else state[a.name]
        return type(a)(map(resolve, a)) if isinstance(a, (list, tuple)) else a

    return node.call(*map(resolve, node.arguments), **{k: resolve(v) for k, v in node.keywords.items()})


def check(model: nn.Module, graph: Graph, x: torch.Tensor) -> None:
    state, values = model.state_dict(), {"input": x}
    with torch.no_grad():
        for node in graph.nodes[1:]:
            value = values[node.name] = evaluate(node, values, state)
            wanted = recorded(node, values, state)
            if node.op in RULES:
                assert torch.equal(value, wanted), node
                assert value.stride() == wanted.stride(), node  # a later kernel may add up in another order
                assert value.dtype == wanted.dtype, node


@cache
def traced(name):
    """The network, its graph, and samples."""
    model, shape = example(name)
    x = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0))
    return model, trace(model, x), x


@pytest.mark.parametrize("name", CASES)
def test_a_word_computes_what_the_recorded_call_computes(name):
    check(*traced(name))


def test_every_word_and_call_that_is_read_has_a_rule_a_number_and_a_test_network():
    """A new word needs a function in `RULES`, a row in `OPERATIONS`, and a network here that uses it."""
    nodes = [node for name in CASES for node in traced(name)[1].nodes]
    words = {node.op for node in nodes} - PASSED_ON
    assert words <= set(RULES)
    assert set(RULES) == set(CODES) == words
    assert {*POINTWISE, *MOVES} - {"flatten"} <= set(RULES)
    calls = {str(node.call) for node in nodes}
    aliases = {"aten.alias.default", "aten.detach.default"}  # of which an exported program is freed
    assert {*OPERATORS, *FIRST} - calls - aliases == set()


def test_numbers_of_operations_never_change():
    """They stand in files: append only."""
    assert [o.word for o in OPERATIONS][:30] == [
        "conv", "linear", "relu", "add", "max_pool", "avg_pool", "reshape", "batch_norm", "clamp", "concat", "slice",
        "pad", "identity", "mean", "mul", "sub", "hard_swish", "sigmoid", "tanh", "softmax", "upsample_nearest",
        "permute", "select", "gelu", "elu", "silu", "hard_sigmoid", "leaky_relu", "log_softmax", "layer_norm",
    ]  # fmt: skip
    assert [o.word for o in OPERATIONS][30:60] == [
        "prelu", "add_scalar", "sub_scalar", "mul_scalar", "div_scalar", "rsub_scalar", "pow_scalar", "amax", "argmax",
        "selu", "celu", "softplus", "mish", "log_sigmoid", "hard_shrink", "soft_shrink", "threshold", "abs", "neg",
        "square", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p", "sin", "cos", "erf",
    ]  # fmt: skip


def test_attributes_that_follow_are_those_of_the_table():
    assert set(COMPLETE) == {o.word for o in OPERATIONS if o.attributes}


class Integers(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.arange(4))

    def forward(self, x):
        return x + ((self.steps * 2 + 1).clamp(min=2) % 2)


def test_integers_stay_integers():
    """Attributes are floats; a call on integers runs as it was recorded."""
    model = Integers()
    x = torch.randn(3, 4)
    graph = trace(model, x)
    state, values = model.state_dict(), {"input": x}
    for node in graph.nodes[1:]:
        values[node.name] = evaluate(node, values, state)
        assert values[node.name].dtype == recorded(node, values, state).dtype
    assert torch.equal(values[graph.outputs[0]], model(x))


def test_test_networks_cover_the_package():
    assert {*TINY, *program_networks.NETS} <= {name.removeprefix("tiny ").removeprefix("program ") for name in CASES}
    assert isinstance(example("operations")[0], Operations)
    assert type(example("tiny residual")[0]) is type(tiny_model("residual"))
