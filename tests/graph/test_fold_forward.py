"""Folding forward: a BatchNorm goes into the layer that reads it where the function stays, and says why elsewhere."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from folding import fill_, net_of
from lilliput.core import container
from lilliput.core.edits import Fold
from lilliput.graph.fold import Pair, fold_, foldable
from program_networks import Code

IMAGE, SERIES, VECTOR = (4, 7, 6), (4, 9), (6,)
NORM, CONV, LINEAR = nn.BatchNorm2d, nn.Conv2d, nn.Linear


def chain(*layers, norm: type[nn.Module] = NORM):
    """[layer 0 | ReLU | norm "2" | ... | the layer that takes it in, last]"""
    return lambda: nn.Sequential(nn.ReLU(), nn.Identity(), norm(4), *layers)


def code(function, **layers):
    return lambda: Code(lambda m, x: function(m, m.norm(F.relu(x))), norm=NORM(4), **layers)


GOES = {
    "nothing between": (chain(CONV(4, 5, 3)), IMAGE),
    "the input": (lambda: nn.Sequential(NORM(4), CONV(4, 5, 3, bias=False)), IMAGE),
    "dropout": (chain(nn.Dropout(), CONV(4, 5, 3, stride=2, dilation=2, bias=False)), IMAGE),
    "max pool": (chain(nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), CONV(4, 5, 2)), IMAGE),
    "average pool": (chain(nn.AvgPool2d(2, ceil_mode=True), CONV(4, 5, 2)), IMAGE),
    "uncounted padding": (chain(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), CONV(4, 5, 2)), IMAGE),
    "adaptive pool": (chain(nn.AdaptiveAvgPool2d(1), nn.Flatten(), LINEAR(4, 3)), IMAGE),
    "pool and flatten": (chain(nn.MaxPool2d(2), nn.Flatten(), LINEAR(4 * 3 * 3, 5, bias=False)), IMAGE),
    "upsampling": (chain(nn.UpsamplingNearest2d(scale_factor=2), CONV(4, 5, 3)), IMAGE),
    "grouped": (chain(CONV(4, 6, (3, 1), groups=2, bias=False)), IMAGE),
    "depthwise": (chain(nn.MaxPool2d(2), CONV(4, 8, 3, groups=4)), IMAGE),
    "a series": (chain(nn.MaxPool1d(2), nn.Conv1d(4, 5, 3), norm=nn.BatchNorm1d), SERIES),
    "a vector": (lambda: nn.Sequential(nn.Tanh(), nn.BatchNorm1d(6), nn.Dropout(), LINEAR(6, 3, bias=False)), VECTOR),
    "view": (code(lambda m, x: m.layer(x.view(x.size(0), -1)), layer=LINEAR(4 * 7 * 6, 3)), IMAGE),
    "mean": (code(lambda m, x: m.layer(x.mean((2, 3))), layer=LINEAR(4, 3)), IMAGE),
    "amax": (code(lambda m, x: m.layer(x.amax((-1, -2), keepdim=True)), layer=CONV(4, 3, 1)), IMAGE),
    "channels last": (code(lambda m, x: m.layer(x.permute(0, 2, 3, 1)), layer=LINEAR(4, 3)), IMAGE),
    "half of the channels": (code(lambda m, x: m.layer(x[:, 1:3]), layer=CONV(2, 3, 3)), IMAGE),
    "mixed entries": (code(lambda m, x: m.layer(x.transpose(1, 3)[:, 2].flatten(1)), layer=LINEAR(28, 3)), IMAGE),
}
MAXIMA = ("max pool", "pool and flatten", "depthwise", "a series", "amax")
"""The others stand negative factors too."""


def folded(make, shape, seed, *, negative=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = fill_(make(), seed, negative=negative)
    net, graph = net_of(model, shape)
    pairs, refused = foldable(net, graph)
    for pair in pairs:
        fold_(net, pair)
    return model, net, pairs, refused


def agree(model, net, shape, seed=0):
    x = torch.randn((5, *shape), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found, wanted = net.module(x), copy.deepcopy(model).double()(x.double())
    assert float((found - wanted).abs().max()) <= 4e-6 * (1 + float(wanted.abs().max()))


def norms_of(net):
    return [m for m in net.module.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]


@pytest.mark.parametrize("name", GOES)
def test_folding_forward_leaves_the_function_as_it_is_and_a_file_replays_it(name):
    make, shape = GOES[name]
    model, net, pairs, refused = folded(make, shape, 2, negative=name not in MAXIMA)
    assert refused == {}
    assert len(pairs) == 1
    assert norms_of(net) == []
    agree(model, net, shape)
    contents = container.loads(container.dumps(net))
    assert contents.edits == [Fold(layer=pairs[0].layer, norm=pairs[0].norm)]
    again = contents.replay(copy.deepcopy(model))
    x = net.input.example(3)
    with torch.no_grad():
        assert torch.equal(again.module(x), net.module(x))


def test_the_folded_weights_are_those_of_the_formula():
    """Sums written out: feature f of the linear layer belongs to channel f // 9."""
    make, shape = GOES["pool and flatten"]
    model, net, pairs, _ = folded(make, shape, 3)
    norm, linear = model[2], model[5]
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(linear, nn.Linear)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    assert pairs == [Pair(layer="5", norm="2", channels=tuple(f // 9 for f in range(36)))]
    factor = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).tolist()
    shift = [b - m * f for b, m, f in zip(norm.bias.tolist(), norm.running_mean.tolist(), factor, strict=True)]
    rows = linear.weight.double().tolist()
    weight = torch.tensor([[w * factor[f // 9] for f, w in enumerate(row)] for row in rows])
    bias = torch.tensor([sum(w * shift[f // 9] for f, w in enumerate(row)) for row in rows])
    assert torch.equal(net.parameter("5.weight"), weight)
    assert torch.allclose(net.parameter("5.bias"), bias, rtol=1e-6)


def test_a_shift_of_zero_goes_through_padding_and_a_factor_of_zero_through_maxima():
    make = chain(nn.MaxPool2d(2), nn.AvgPool2d(2, padding=1), CONV(4, 5, 3, padding=1))
    model = fill_(make(), 0, negative=False)
    norm = model[2]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    norm.running_mean.zero_()
    with torch.no_grad():
        norm.bias.zero_()
        norm.weight[1] = 0.0
    net, graph = net_of(model, IMAGE)
    pairs, refused = foldable(net, graph)
    assert refused == {}
    fold_(net, pairs[0])
    agree(model, net, IMAGE)


def test_a_layer_takes_in_the_norm_before_it_and_the_one_behind():
    """And a norm that can go both ways goes back."""
    make = lambda: nn.Sequential(CONV(4, 4, 1), NORM(4), CONV(4, 6, 3), nn.ReLU(), NORM(6), CONV(6, 4, 2), NORM(4))  # noqa: E731
    model, net, pairs, _ = folded(make, IMAGE, 5, negative=True)
    assert [(p.layer, p.norm) for p in pairs] == [("0", "1"), ("5", "4"), ("5", "6")]
    assert pairs[0].channels == ()
    agree(model, net, IMAGE)


STAYS = {
    "3 takes maxima, and the factor of channel 0 is negative": chain(nn.MaxPool2d(2), CONV(4, 5, 3)),
    "3 pads with zeros": chain(CONV(4, 5, 3, padding=1)),
    "3 counts padding": chain(nn.AvgPool2d(3, 1, padding=1), CONV(4, 5, 3)),
    "4 is a transposed convolution": chain(nn.Dropout(), nn.ConvTranspose2d(4, 5, 3)),
    "3 (relu) does not commute with a scale and shift": chain(nn.ReLU(), CONV(4, 5, 3)),
    "3 takes several channels for one": chain(LINEAR(6, 5)),
    "it is an output of the network": chain(),
    "3 is an output": chain(nn.AvgPool2d(2)),
    "norm is read by a, b": code(lambda m, x: m.a(x) + m.b(x), a=CONV(4, 5, 3), b=CONV(4, 5, 3)),
    "mean computes with all channels together": code(lambda m, x: m.a(x.mean(1)), a=LINEAR(6, 5)),
    "a is called more than once or shares its weight": code(lambda m, x: m.a(m.a(x).relu()), a=CONV(4, 4, 3)),
    "the weight of conv belongs to functional code": code(lambda m, x: F.conv2d(x, m.a.weight), a=CONV(4, 4, 3)),
}


@pytest.mark.parametrize("reason", STAYS)
def test_a_norm_that_cannot_go_forward_says_why(reason):
    _, net, pairs, refused = folded(STAYS[reason], IMAGE, 1, negative=True)
    assert pairs == []
    assert list(refused.values()) == [f"it follows relu, not a convolution or linear layer; forward: {reason}"]
    assert len(norms_of(net)) == 1


def test_an_encoded_weight_takes_nothing_in():
    model = fill_(chain(CONV(4, 5, 1))(), 0)
    net, graph = net_of(model, IMAGE)
    net.encode_("3.weight", net.encoding("3.weight").with_mask(torch.ones(5, 4, 1, 1).bool()))
    assert foldable(net, graph)[1]["2"].endswith("; forward: the weight of 3 is already encoded")
