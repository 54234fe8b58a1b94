"""Learned rounding: near the best choice of integers, and never kept where held-out batches lose by it."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.encoding import Encoding
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph.blocks import blocks_of
from lilliput.graph.trace import graph_of
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.second_order import learned_blocks, learned_rounding
from lilliput.methods.second_order.layer_rounding import Rounded, Rounding, Work, grid_of, steps_of_bits
from lilliput.methods.second_order.layers import Layers
from lilliput.methods.second_order.learned_blocks import Learning
from lilliput.methods.second_order.learned_rounding import Examples, coded_bits, learned
from lilliput.methods.second_order.rate_distortion import RateDistortion
from lilliput.testing import tiny_model, tiny_task
from lilliput.training.layer_targets import importance, walk

TASK = tiny_task(384)


def applied(model, *methods, task=TASK):
    net = Artifact.of(model, task.spec)
    results = [apply_checked_(m, net, Context.of(task, model)) for m in methods]
    return net, results[-1]


def correlated(samples, inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn((inputs, inputs), generator=generator)
    return torch.randn((samples, inputs), generator=generator) @ mixed


def case(model, inputs, bits, seed):
    """A network of linear layers without biases, rounded to the nearest integers; its only block, and examples."""
    net = Artifact.of(model, InputSpec(shape=(inputs,)))
    graph = graph_of(net)
    nodes = [node for node in graph.nodes if node.op == "linear"]
    batches = [(correlated(64, inputs, seed + i),) for i in range(8)]
    with torch.no_grad():
        wanted = [(model(x),) for (x,) in batches]
    state = {name: t.detach() for name, t in model.state_dict().items()}
    layers: list[Rounded] = []
    for node in nodes:
        weight = state[node.state["weight"]]
        steps = steps_of_bits(weight.double(), bits)
        most = 2 ** (bits - 1) - 1
        q = (weight.double() / steps[:, None]).round().clamp(-most, most).long()
        encoding = Encoding.of(weight).with_grid(grid_of(steps, bits), q)
        squares = torch.cat([x for (x,) in batches]).double().square().mean(0) if node is nodes[0] else torch.ones(())
        curvature = squares.expand_as(weight).double()
        layers.append(Rounded(node=node, fitted=weight.double(), curvature=curvature, encoding=encoding, most=most))
    blocks = blocks_of(graph, nodes)
    block = dataclasses.replace(blocks[0], graph=graph, layers=tuple(nodes))
    return block, layers, Examples(inputs=batches, wanted=wanted, outputs=None, dim=-1), state


def cost(block, examples, state):
    with torch.no_grad():
        return sum(float(examples.cost(block, state, i)) for i in examples.split()[0])


def with_weights(state, layers, weights):
    return {**state, **{layer.node.state["weight"]: w for layer, w in zip(layers, weights, strict=True)}}


def best_of_all(block, layers, examples, state):
    """Over every choice of the integer below or above each weight."""
    lows = [torch.floor(layer.fitted / layer.encoding.grid.scale.double()[:, None]) for layer in layers]
    steps = [layer.encoding.grid.scale[:, None] for layer in layers]
    sizes = [low.numel() for low in lows]
    least = float("inf")
    for bits in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        parts = torch.tensor(bits).split(sizes)
        weights = []
        for low, step, part, layer in zip(lows, steps, parts, layers, strict=True):
            q = (low.float() + part.reshape(low.shape)).clamp(-layer.most, layer.most)
            weights.append(q * step)
        least = min(least, cost(block, examples, with_weights(state, layers, weights)))
    return least


def network(kind):
    torch.manual_seed(3)
    if kind == "one layer":
        return nn.Sequential(nn.Linear(9, 1, bias=False)), 9
    return nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)), 3


@pytest.mark.parametrize("kind", ["one layer", "two layers"])
def test_what_is_learned_is_mostly_the_best_of_all_choices_and_never_worse_than_the_nearest(kind):
    model, inputs = network(kind)
    near = 0
    for seed in range(0, 600, 100):
        block, layers, examples, state = case(model, inputs, 3, seed)
        generator = torch.Generator().manual_seed(0)
        new = learned(block, layers, examples, state, biases=[], price=0.0, steps=400, generator=generator)
        found = cost(block, examples, with_weights(state, layers, [e.decode() for e in new]))
        nearest = cost(block, examples, with_weights(state, layers, [layer.encoding.decode() for layer in layers]))
        least = best_of_all(block, layers, examples, state)
        assert least * (1 - 1e-6) <= found <= nearest * (1 + 1e-6)
        near += found <= 1.03 * least
        for layer, encoding in zip(layers, new, strict=True):
            assert int((encoding.values.flatten(1) - layer.integers()).abs().max()) <= 1
            assert int(encoding.values.abs().max()) <= layer.most
    assert near >= 4


def test_a_price_takes_bits_away():
    model, inputs = network("one layer")
    block, layers, examples, state = case(model, inputs, 4, 0)
    bits = []
    for price in (0.0, 1e4):
        generator = torch.Generator().manual_seed(0)
        new = learned(block, layers, examples, state, biases=[], price=price, steps=100, generator=generator)
        bits.append(sum(coded_bits(e) for e in new))
    assert bits[1] < bits[0]


class Wide(nn.Module):
    """Linear layers without and with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(8, 12, bias=False), nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, x):
        return self.three(torch.relu(self.two(torch.relu(self.one(x)))))


def learning_of(bits=2, steps=80, seed=1):
    torch.manual_seed(seed)
    model = Wide().eval()
    net = Artifact.of(model, InputSpec(shape=(8,)))
    layers = Layers.of(RateDistortion(weight_bits=bits), net)
    inputs = [(correlated(64, 8, i),) for i in range(9)]
    before = {name: t.detach().clone() for name, t in model.state_dict().items()}
    slopes = importance(layers.graph, inputs, before, layers.nodes, torch.Generator().manual_seed(0))
    method = RateDistortion(weight_bits=bits)
    rounding = Rounding(net=net, layers=layers, before=before, slopes=slopes, bits=bits, settings=method.for_layer)
    return Learning(rounding, inputs, 0.0, steps=steps, generator=torch.Generator().manual_seed(0))


def plain(learning):
    rounding = learning.work.rounding
    work = Work(rounding, 0.0)
    names = {node.name for node in rounding.layers.nodes}
    walk(rounding.layers.graph, learning.inputs, rounding.before, work.state, names, work.visit)
    return work


def ran(learning):
    return learning.run(lambda _: None)


def test_what_held_out_batches_lose_by_is_not_kept(monkeypatch):
    learning = learning_of()

    def worse(_block: Any, layers: Any, *_: Any, **__: Any) -> list[Encoding]:
        return [e.with_grid(e.grid, -e.values) for e in (layer.encoding for layer in layers)]

    monkeypatch.setattr(learned_blocks, "learned", worse)
    work, expected = ran(learning), plain(learning)
    assert learning.kept == 0
    for name, encoding in expected.found.items():
        torch.testing.assert_close(work.found[name].decode(), encoding.decode())


def test_batches_that_are_held_out_do_not_lose(monkeypatch):
    costs = []
    cost_of = Learning._cost

    def noted(self, block, examples):
        costs.append(cost_of(self, block, examples))
        return costs[-1]

    monkeypatch.setattr(Learning, "_cost", noted)
    monkeypatch.setattr(learned_rounding, "PULL", 5.0)
    learning = learning_of(seed=3)
    ran(learning)
    assert len(costs) == 2 * len(learning.blocks)
    better = [after < before for before, after in zip(costs[::2], costs[1::2], strict=True)]
    assert learning.kept == sum(better) > 0


def test_what_is_masked_stays_zero_and_the_integers_in_their_bits():
    model = tiny_model("conv")
    net, result = applied(model, MagnitudePruning(sparsity=0.5), RateDistortion(weight_bits=3, learned_steps=20))
    assert "learned rounding kept in" in result.notes[0]
    before, _ = applied(model, MagnitudePruning(sparsity=0.5))
    for name, old in before.encodings.items():
        assert old.mask is not None
        q = net.encodings[name].integers()
        assert not q[~old.mask].any()
        assert bool(q[old.mask].any())
        assert int(q.abs().max()) <= 3


@pytest.mark.parametrize("limit", [470, 420])
def test_the_file_is_not_larger_than_asked(limit):
    model = tiny_model("residual")
    net, _ = applied(model, FoldBatchNorm(), RateDistortion(max_bytes=limit, learned_steps=20))
    assert len(container.dumps(net, strip=True)) <= limit


def test_same_seed_same_bytes():
    model = tiny_model("residual")
    files = [container.dumps(applied(model, RateDistortion(price=1e-4, learned_steps=10))[0]) for _ in range(2)]
    assert files[0] == files[1]


def test_of_one_batch_nothing_is_learned():
    model = tiny_model("conv")
    net, result = applied(model, RateDistortion(weight_bits=3, samples=64, learned_steps=5))
    assert "kept in 0 of" in result.notes[0]
    same, _ = applied(model, RateDistortion(weight_bits=3, samples=64))
    assert all(torch.equal(net.encodings[n].decode(), e.decode()) for n, e in same.encodings.items())


def test_blocks_with_too_many_outputs_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(learned_blocks, "WIDEST_END", 11)
    learning = learning_of()
    assert [b.graph.outputs[-1] in learning.slopes for b in learning.blocks] == [False, True, False]
    first = learning.blocks[0].layers[0].state["weight"]
    assert torch.equal(ran(learning).state[first], plain(learning).state[first])


class Answers(nn.Module):
    """The answer is the second of two outputs; the first is large."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.other, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.body(x)).mean((2, 3))
        return 100 + self.other(x), self.head(x)


class Named(Answers):
    def forward(self, x):
        features, answer = super().forward(x)
        return {"features": features, "answer": answer}


@pytest.mark.parametrize(("kind", "key"), [(Answers, 1), (Named, "answer")])
@pytest.mark.parametrize("wanted", [0.95, "95%"])
def test_agreement_is_that_of_what_the_task_takes_for_the_answer(kind, key, wanted):
    torch.manual_seed(4)
    model = kind().eval()
    x, y = TASK.data("train").batch(torch.arange(384))
    task = Task.classification((x, y), validation=(x[:9], y[:9]), forward=lambda m, batch: m(batch[0])[key])
    net, _ = applied(model, RateDistortion(min_agreement=wanted, samples=64), task=task)
    with torch.no_grad():
        same = (net.module(x)[key].argmax(1) == model(x)[key].argmax(1)).double().mean()
    assert float(same) > 0.93
