"""Blocks of a network: run one after the other, they are the network."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.graph.blocks import blocks_of
from lilliput.graph.trace import run, trace
from lilliput.testing import TINY, tiny_model, tiny_task


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6 * 16, 3)

    def forward(self, x):
        return self.head(torch.flatten(torch.relu(self.two(torch.relu(self.one(x)))), 1))


class Sized(Plain):
    """Flattens by the size of the batch, which was read before the layers."""

    def forward(self, x):
        n = x.size(0)
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.head(x.view(n, -1))


class SizedLate(Plain):
    def forward(self, x):
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.head(x.view(x.size(0), -1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        x = torch.relu(x + self.d(torch.relu(self.c(x))))
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deep, self.point = nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.point(F.relu6(self.deep(x))).amax((2, 3))


class Dense(nn.Module):
    """Everything is read again at the end: there is nowhere to cut."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        y = self.one(x)
        z = self.two(y)
        return torch.cat([x, y, z, self.three(z)], 1)


class Heads(nn.Module):
    """A tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
        self.early, self.late = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.relu(self.body(x))
        return self.early(y.mean((2, 3))), self.late(y.amax((2, 3)))


class Tapped(Heads):
    """One of the outputs is from the middle."""

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return x, self.late(torch.relu(self.body(x)).mean((2, 3)))


class Halves(nn.Module):
    """Several values at once are no place to cut."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x):
        a, b = torch.chunk(torch.relu(self.one(x)), 2, 1)
        return self.two(a) + self.three(b)


NETS = {
    Plain: [["one"], ["two"], ["head"]],
    Sized: [["one"], ["two"], ["head"]],
    SizedLate: [["one"], ["two"], ["head"]],
    Residual: [["stem"], ["a", "b"], ["c", "d"], ["head"]],
    Depthwise: [["deep"], ["point"]],
    Dense: [["one", "two", "three"]],
    Heads: [["stem"], ["body"], ["early", "late"]],
    Tapped: [["stem"], ["body", "late"]],
    Halves: [["one"], ["two", "three"]],
}


def chained(graph, blocks, state, x):
    value = (x,)
    for block in blocks:
        found = run(block.graph, state, *value)
        value = found if isinstance(found, tuple) else (found,)
    return value


def layers_of(graph):
    return [node for node in graph.nodes if node.op in ("conv", "linear")]


@pytest.mark.parametrize("kind", NETS)
def test_the_blocks_in_a_chain_are_the_network_bit_by_bit(kind):
    torch.manual_seed(0)
    model = kind().eval()
    x = torch.randn(5, 2, 8, 8)
    graph = trace(model, x[:2])
    blocks = blocks_of(graph, layers_of(graph))
    assert [[node.module for node in block.layers] for block in blocks] == NETS[kind]
    with torch.no_grad():
        wanted, state = model(x), model.state_dict()
        found = chained(graph, blocks, state, x)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", TINY)
def test_each_layer_that_is_asked_for_is_in_exactly_one_block(name):
    model = tiny_model(name)
    x = tiny_task().data("train").batch(torch.arange(3))[0]
    graph = trace(model, x[:2])
    asked = layers_of(graph)[1:] or layers_of(graph)
    blocks = blocks_of(graph, asked)
    assert [n.name for b in blocks for n in b.layers] == [n.name for n in asked]
    with torch.no_grad():
        assert torch.equal(chained(graph, blocks, model.state_dict(), x)[0], model(x))
