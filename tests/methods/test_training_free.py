"""Methods that neither train nor read labels, on networks and tasks of every kind: what holds for all of them."""

# pyright: reportIndexIssue=false, reportArgumentType=false

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.auto.load import load
from lilliput.core.artifact import Artifact
from lilliput.core.guard import MinAgreement
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph import stored
from lilliput.graph.integer import runnable
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.second_order.pruning import SecondOrderPruning
from lilliput.methods.second_order.rate_distortion import RateDistortion

METHODS = {
    "pruning": SecondOrderPruning(sparsity=0.4),
    "rounding": RateDistortion(weight_bits=6),
    "channels": ChannelPruning(amount=0.25),
}
SAMPLES = 96


class Two(nn.Sequential):
    def __init__(self, outputs=3) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))


class Sixty(nn.Module):
    """60 layers of 8 channels, all but two of them in residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.inner = nn.ModuleList(nn.Linear(8, 8) for _ in range(58))

    def forward(self, x):
        x = torch.relu(self.first(x))
        for layer in self.inner:
            x = x + 0.1 * torch.relu(layer(x))
        return self.head(x)


class Signal(nn.Module):
    """One-dimensional convolutions, one of them depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm = nn.Conv1d(2, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.deep, self.head = nn.Conv1d(8, 8, 3, groups=8, stride=2), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.deep(torch.relu(self.norm(self.wide(x))))).mean(2))


class Blocks(nn.Module):
    """A residual sum around a depthwise convolution, and a grouped one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped, self.head = nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.wide(x))
        return self.head(torch.relu(self.grouped(torch.relu(self.deep(x)) + x)).mean((2, 3)))


class Pixels(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))


NETWORKS = {
    "two layers": (Two, (6,), Task.classification),
    "sixty layers": (Sixty, (6,), Task.classification),
    "conv1d": (Signal, (2, 8), Task.classification),
    "residual, depthwise, grouped": (Blocks, (2, 5, 5), Task.classification),
    "regression": (lambda: Two(1), (6,), Task.regression),
    "anomaly": (lambda: Two(6), (6,), Task.anomaly),
    "segmentation": (Pixels, (2, 5, 5), Task.segmentation),
}


@cache
def trained(name):
    """A network that has learned a little, its inputs, and its targets: (train, validation, test) of each."""
    make, shape, kind = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((SAMPLES, *shape), generator=generator)
    if kind is Task.classification:
        y = torch.arange(SAMPLES) % 3
        x += torch.randn((3, *shape), generator=generator)[y]
    elif kind is Task.segmentation:
        y = (x[:, 0] > 0).long() + (x[:, 1] > 1).long()
    elif kind is Task.regression:
        y = x[:, :1] * x[:, 1:2] + x[:, 2:3]
    else:
        y = torch.arange(SAMPLES) % 2
        x = torch.randn((SAMPLES, 2), generator=generator) @ torch.randn((2, *shape), generator=generator)
        x += y[:, None] * torch.randn((SAMPLES, *shape), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(40):
            optimizer.zero_grad()
            out = model(x)
            wanted = x if kind is Task.anomaly else y
            (F.mse_loss(out, wanted) if wanted.is_floating_point() else F.cross_entropy(out, wanted)).backward()
            optimizer.step()
    return model.eval(), x, y


def task_of(name, x, y):
    kind = NETWORKS[name][2]
    more = {"n_classes": 3} if kind is Task.segmentation else {}
    parts = [(x[part], y[part]) for part in (slice(0, 64), slice(64, 80), slice(80, None))]
    return kind(train=parts[0], validation=parts[1], test=parts[2], **more)


@cache
def applied(name, method, *, batch_size=256, other_labels=False):
    """What the method makes of the network; to be read only."""
    model, x, y = trained(name)
    task = task_of(name, x, y.flip(0) if other_labels else y)
    context = Context.of(task, model, batch_size=batch_size)
    net = Artifact.of(model, task.spec)
    return net, apply_checked_(METHODS[method], net, context), context


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_score_is_the_same_in_batches_of_any_size_and_after_saving(name, method, tmp_path):
    model, x, y = trained(name)
    task = task_of(name, x, y)
    net, result, _ = applied(name, method)
    assert result.effect
    (tmp_path / "net.lil").write_bytes(stored.dumps(net))
    scores = [
        task.score.value(Context.of(task, model, batch_size=size).evaluator(module, "test").rows)
        for module in (runnable(net), load(tmp_path / "net.lil"))
        for size in (1, 7, 1000)
    ]
    if task.kind == "classification":
        assert len(set(scores)) == 1
    else:
        assert scores == pytest.approx([scores[0]] * 6, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["two layers", "conv1d", "residual, depthwise, grouped", "regression"])
def test_what_is_done_depends_neither_on_labels_nor_on_the_batch_size(name, method):
    net, _, _ = applied(name, method)
    other, _, _ = applied(name, method, batch_size=7, other_labels=True)
    for (key, a), (_, b) in zip(net.module.state_dict().items(), other.module.state_dict().items(), strict=True):
        assert a.shape == b.shape, key
        rounding = 1e-2 if method == "channels" else 0.0  # of its own sums over batches
        assert torch.allclose(a, b, rtol=rounding, atol=rounding), key


@pytest.mark.parametrize("name", NETWORKS)
def test_six_bits_keep_the_answers_and_the_score(name):
    net, result, context = applied(name, "rounding")
    assert MinAgreement(agreement=0.9).decide(context.evaluator, net.module).accepted
    score = context.task.score
    before, now = (
        score.value(e.rows) for e in (context.evaluator.reference("test"), context.evaluator(net.module, "test"))
    )
    assert abs(now - before) <= 0.07 * abs(before)
    for path in result.changed:
        assert int(net.encoding(f"{path}.weight").integers().abs().max()) <= 31


@pytest.mark.parametrize("name", NETWORKS)
def test_so_many_zeros_as_asked_and_better_ones_than_the_smallest(name):
    net, _, _ = applied(name, "pruning")
    weights = [p for p in net.module.parameters() if p.dim() > 1]
    total = sum(w.numel() for w in weights)
    assert sum(int((w == 0).sum()) for w in weights) == round(0.4 * total)
    model, x, _ = trained(name)
    border = (
        torch.cat([p.abs().flatten() for p in model.parameters() if p.dim() > 1]).kthvalue(round(0.4 * total)).values
    )
    smallest = net.copy().module
    smallest.load_state_dict(model.state_dict())
    with torch.no_grad():
        for p in smallest.parameters():
            if p.dim() > 1:
                p[p.abs() <= border] = 0.0
        wanted = model(x)
        ours, theirs = (float((m(x) - wanted).square().mean()) for m in (net.module, smallest))
    assert ours < theirs


@pytest.mark.parametrize("name", NETWORKS)
def test_a_quarter_of_eight_channels_is_two(name):
    net, result, _ = applied(name, "channels")
    assert result.statistics is not None
    assert all(gone * 4 == of for gone, of in result.statistics["channels"].values())
    layers = {n: m for n, m in net.module.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))}
    assert [len(m.weight) for m in layers.values()].count(6) >= len(layers) - 1
