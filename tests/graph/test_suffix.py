"""Outputs after a change of some channels, from what is known, are those of a plain run."""

# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportOptionalIterable=false

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.graph.suffix import Suffix
from lilliput.graph.trace import evaluate, graph_of
from lilliput.testing import TINY, tiny_model
from lilliput.zoo.registry import ZOO


class Branches(nn.Module):
    """Depthwise and grouped convolutions, a product, a concatenation, and a function before a sum over places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.depth = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, groups=4, padding=1, stride=2)
        self.grouped, self.norm = nn.Conv2d(8, 4, 1, groups=2), nn.BatchNorm2d(8)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = F.hardswish(self.a(x))
        y = self.norm(self.depth(x * torch.sigmoid(x)))
        y = torch.cat([F.relu(y), self.grouped(y)], 1)
        return self.head(F.avg_pool2d(y, 2).mean((2, 3)))


def values_of(graph, state, x):
    values = {graph.inputs[0]: x}
    for node in graph.nodes:
        if node.op not in ("input", "size"):
            values[node.name] = evaluate(node, values, state)
    return values


def networks():
    return [
        *((name, lambda name=name: (tiny_model(name), (1, 4, 4))) for name in TINY if name != "shared"),
        ("branches", lambda: (Branches().eval(), (2, 6, 6))),
        ("resnet8", lambda: (ZOO["resnet8"].model().eval(), (3, 32, 32))),
        ("lenet5-tanh", lambda: (ZOO["lenet5-tanh"].model().eval(), (1, 28, 28))),
    ]


@pytest.mark.parametrize("make", [n[1] for n in networks()], ids=[n[0] for n in networks()])
def test_a_changed_channel_gives_the_outputs_of_a_plain_run(make):
    torch.manual_seed(0)
    model, shape = make()
    net = Artifact.of(model, InputSpec(shape=shape))
    graph, state = graph_of(net), {n: t.clone() for n, t in net.module.state_dict().items()}
    x = torch.randn((6, *shape))
    for node in [n for n in graph.nodes if n.op in ("conv", "linear") and len(graph.users_of(n.state["weight"])) == 1]:
        suffix = Suffix(graph, state, node.name, values_of(graph, state, x))
        channel = state[node.state["weight"]].shape[0] - 1
        blocks, expected = [], []
        for scale in (0.0, -1.5):
            changed = {**state, node.state["weight"]: state[node.state["weight"]].clone()}
            changed[node.state["weight"]][channel] *= scale
            known = values_of(graph, changed, x)
            blocks.append(known[node.name].narrow(suffix.channel_dim, channel, 1))
            expected.append(known[graph.outputs[0]])
        some = torch.tensor([4, 1, 2])
        found = suffix.outputs(torch.stack([b[some] for b in blocks]), channel, some)
        assert torch.allclose(found, torch.stack([e[some] for e in expected]), atol=2e-4, rtol=1e-4)
        assert torch.allclose(suffix.commit_(blocks[1], channel), expected[1], atol=2e-4, rtol=1e-4)
        again = suffix.outputs(blocks[0][None], channel, slice(None))[0]
        assert torch.allclose(again, expected[0], atol=2e-4, rtol=1e-4)


def test_a_constant_channel_is_found_with_the_layer_that_reads_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[0].bias[1] = 0.5
    net = Artifact.of(model, InputSpec(shape=(1, 6, 6)))
    graph, state = graph_of(net), dict(net.module.state_dict())
    suffix = Suffix(graph, state, "0", values_of(graph, state, torch.randn(5, 1, 6, 6)))
    reader, block, value = suffix.constant(1)
    assert (reader.name, block.start, block.stop) == ("4", 4, 8)
    assert value == pytest.approx(float(torch.tanh(torch.tensor(0.5))))
    assert suffix.constant(0) is None
