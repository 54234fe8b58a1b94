"""Calls and their words: what the graph computes is what the network computes."""

import pytest
import torch
from torch.nn import functional as F

from lilliput.graph.trace import run, trace
from program_networks import FUNCTIONS, Code, prelu

CALLS = {
    **{word: (function, word) for word, function in FUNCTIONS.items()},
    "clamp_min": (lambda x: x.clamp_min(0.1), "clamp"),
    "clamp_max": (lambda x: x.clamp_max(0.1), "clamp"),
    "in place": (lambda x: (x + 1).abs_(), "abs"),
    "maximum of a dimension": (lambda x: x.max(2)[0], "amax"),
    "maximum and its place": (lambda x: torch.add(*x.max(2)), "amax"),
    "amax": (lambda x: x.amax((-1, 1), keepdim=True), "amax"),
    "adaptive max": (torch.nn.AdaptiveMaxPool2d((2, None)), "max_pool"),
    "adaptive max of lines": (lambda x: F.adaptive_max_pool1d(x.flatten(2), 6), "max_pool"),
    "adaptive average": (lambda x: F.adaptive_avg_pool2d(x, (None, 3)), "avg_pool"),
    "argmax": (lambda x: x.argmax(-1), "argmax"),
    "padding": (lambda x: torch.ops.aten.constant_pad_nd(x, [1, 0, 2, 1], 0.5), "pad"),
    "ceil without overhang": (lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True), "avg_pool"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_has_its_word_and_its_value(name):
    function, word = CALLS[name]
    x = torch.randn((2, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    graph = trace(Code(lambda _, x: function(x)).eval(), x)
    assert word in {n.op for n in graph.nodes}
    assert torch.equal(run(graph, {}, x), function(x))


OTHERS = {
    "maximum of two values": lambda x: torch.maximum(x, -x),
    "quotient of two values": lambda x: x / (x.abs() + 1),
    "rounded quotient": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "difference with a factor": lambda x: torch.rsub(x, 1, alpha=2),
    "argmax of everything": lambda x: x.argmax(),
    "maximum of the batch": lambda x: x.amax(0),
    "uneven adaptive pool": lambda x: F.adaptive_max_pool2d(x, 4),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_word_is_computed_as_it_is(name):
    x = torch.randn((2, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    graph = trace(Code(lambda _, x: OTHERS[name](x)).eval(), x)
    assert graph.nodes[-1].op == "other"
    assert torch.equal(run(graph, {}, x), OTHERS[name](x))


@pytest.mark.parametrize("channels", [1, 3])
def test_prelu_names_its_weight(channels):
    model = Code(lambda m, x: m.p(x), p=prelu(channels)).eval()
    x = torch.randn((2, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    graph = trace(model, x)
    node = graph.nodes[-1]
    assert (node.op, dict(node.state)) == ("prelu", {"weight": "p.weight"})
    assert torch.equal(run(graph, model.state_dict(), x), model(x))


def test_ceil_mode_counts_only_where_a_window_reaches_over_the_end():
    x = torch.zeros(1, 1, 6, 6)
    found = [
        trace(Code(lambda _, x, k=k: F.avg_pool2d(x, k, 2, ceil_mode=True)).eval(), x).nodes[-1].attributes["ceil"]
        for k in (2, 3)
    ]
    assert found == [False, True]
