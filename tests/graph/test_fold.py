"""Folding: the same function, for every kind of layer; a BatchNorm that stays says why."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from folding import fill_, net_of
from lilliput.core.edits import Fold
from lilliput.graph.fold import Pair, fold_, foldable
from program_networks import Code

IMAGE, SERIES, VECTOR = (4, 6, 5), (4, 9), (6,)
LAYERS = {
    "conv2d": (lambda bias: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=bias), nn.BatchNorm2d, 6, IMAGE),
    "grouped": (lambda bias: nn.Conv2d(4, 6, (3, 1), groups=2, bias=bias), nn.BatchNorm2d, 6, IMAGE),
    "depthwise": (
        lambda bias: nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=4, bias=bias),
        nn.BatchNorm2d,
        4,
        IMAGE,
    ),
    "same": (lambda bias: nn.Conv2d(4, 3, 2, padding="same", bias=bias), nn.BatchNorm2d, 3, IMAGE),
    "transposed": (lambda bias: nn.ConvTranspose2d(4, 6, 3, 2, output_padding=1, bias=bias), nn.BatchNorm2d, 6, IMAGE),
    "conv1d": (lambda bias: nn.Conv1d(4, 6, 3, bias=bias), nn.BatchNorm1d, 6, SERIES),
    "transposed1d": (lambda bias: nn.ConvTranspose1d(4, 5, 3, stride=3, bias=bias), nn.BatchNorm1d, 5, SERIES),
    "linear": (lambda bias: nn.Linear(6, 7, bias=bias), nn.BatchNorm1d, 7, VECTOR),
}
THREAD = settings(deadline=None, max_examples=4)


@pytest.mark.parametrize("name", LAYERS)
@THREAD
@given(bias=st.booleans(), affine=st.booleans(), seed=st.integers(0, 2**20))
def test_folding_leaves_the_function_as_it_is(name, bias, affine, seed):
    make, norm, channels, shape = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = fill_(nn.Sequential(make(bias), norm(channels, eps=1e-3, affine=affine), nn.ReLU()), seed)
    net, graph = net_of(model, shape)
    pairs, refused = foldable(net, graph)
    assert (pairs, refused) == ([Pair(layer="0", norm="1")], {})
    fold_(net, pairs[0])
    assert net.edits == [Fold(layer="0", norm="1")]
    x = torch.randn((5, *shape), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        wanted = model.double()(x.double())
        found = net.module(x)
    assert float((found - wanted).abs().max()) <= 2e-6 * (1 + float(wanted.abs().max()))


def test_the_folded_weights_are_those_of_the_formula():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = fill_(nn.Sequential(nn.ConvTranspose2d(3, 2, 2), nn.BatchNorm2d(2)), 1)
    conv, norm = model[0], model[1]
    assert isinstance(conv, nn.ConvTranspose2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert conv.bias is not None
    assert norm.running_var is not None
    assert norm.running_mean is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    net, graph = net_of(model, (3, 4, 4))
    fold_(net, foldable(net, graph)[0][0])
    weight = conv.weight.double() * factor[None, :, None, None]
    bias = (conv.bias.double() - norm.running_mean.double()) * factor + norm.bias.double()
    assert torch.equal(net.parameter("0.weight"), weight.float())
    assert torch.equal(net.parameter("0.bias"), bias.float())


def tied():
    a, b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    b.weight = a.weight
    return Code(lambda m, x: m.b(m.norm(m.a(x))), a=a, b=b, norm=nn.BatchNorm2d(4))


def tied_biases():
    a, b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    b.bias = a.bias
    return Code(lambda m, x: m.b(F.relu(m.norm(m.a(x)))), a=a, b=b, norm=nn.BatchNorm2d(4))


def conv():
    return nn.Conv2d(4, 4, 1)


STAYS = {
    "it follows relu, not a convolution or linear layer": (
        lambda: Code(lambda m, x: m.norm(F.relu(m.a(x))), a=conv(), norm=nn.BatchNorm2d(4)),
        IMAGE,
    ),
    "it follows input, not a convolution or linear layer": (lambda: nn.Sequential(nn.BatchNorm2d(4)), IMAGE),
    "it has no running statistics": (
        lambda: Code(lambda m, x: m.norm(m.a(x)), a=conv(), norm=nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGE,
    ),
    "it is called more than once": (
        lambda: Code(lambda m, x: m.norm(m.b(m.norm(m.a(x)))), a=conv(), b=conv(), norm=nn.BatchNorm2d(4)),
        IMAGE,
    ),
    "the output of a is read elsewhere too": (
        lambda: Code(lambda m, x: m.norm(y := m.a(x)) + y, a=conv(), norm=nn.BatchNorm2d(4)),
        IMAGE,
    ),
    "a is called more than once or shares its weight": (
        lambda: Code(lambda m, x: m.norm(m.a(F.relu(m.a(x)))), a=conv(), norm=nn.BatchNorm2d(4)),
        IMAGE,
    ),
    "a is a grouped transposed convolution": (
        lambda: Code(lambda m, x: m.norm(m.a(x)), a=nn.ConvTranspose2d(4, 4, 2, groups=2), norm=nn.BatchNorm2d(4)),
        IMAGE,
    ),
    "the channels of a are not its normalized dimension": (
        lambda: Code(lambda m, x: m.norm(m.a(x)), a=nn.Linear(9, 5), norm=nn.BatchNorm1d(4)),
        SERIES,
    ),
}


def backward(refused):
    """Why not into the layer before; why not forward either is in test_fold_forward.py."""
    return {norm: reason.partition("; forward: ")[0] for norm, reason in refused.items()}


@pytest.mark.parametrize("reason", STAYS)
def test_a_norm_that_stays_says_why(reason):
    make, shape = STAYS[reason]
    model = make().eval()
    net, graph = net_of(model, shape)
    pairs, refused = foldable(net, graph)
    assert pairs == []
    assert set(backward(refused).values()) == {reason}


@pytest.mark.parametrize("make", [tied, tied_biases])
def test_tied_weights_and_biases_are_not_folded_into_one_of_their_layers(make):
    net, graph = net_of(make().eval(), IMAGE)
    assert foldable(net, graph)[0] == []
    assert backward(foldable(net, graph)[1]) == {"norm": "a is called more than once or shares its weight"}


def test_an_output_of_the_network_is_read_elsewhere():
    model = Code(lambda m, x: (y := m.a(x), m.norm(y)), a=conv(), norm=nn.BatchNorm2d(4)).eval()
    net, graph = net_of(model, IMAGE)
    reason = "the output of a is read elsewhere too; forward: it is an output of the network"
    assert foldable(net, graph) == ([], {"norm": reason})


def test_an_encoded_weight_is_not_folded():
    model = nn.Sequential(conv(), nn.BatchNorm2d(4)).eval()
    net, graph = net_of(model, IMAGE)
    net.encode_("0.weight", net.encoding("0.weight").with_mask(torch.ones(4, 4, 1, 1).bool()))
    reason = "the weight of 0 is already encoded; forward: it is an output of the network"
    assert foldable(net, graph) == ([], {"1": reason})


def test_chains_are_folded_one_by_one():
    layers = [m for i in range(3) for m in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Tanh())]
    model = fill_(nn.Sequential(*layers), 3)
    net, graph = net_of(model, IMAGE)
    pairs, _ = foldable(net, graph)
    assert [p.layer for p in pairs] == ["0", "3", "6"]
    for pair in pairs:
        fold_(net, pair)
    x = net.input.example(4)
    with torch.no_grad():
        assert torch.allclose(net.module(x), model(x), rtol=1e-4, atol=1e-5)
    again, graph = net_of(net.module, IMAGE)
    assert foldable(again, graph) == ([], {})
