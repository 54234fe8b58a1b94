"""SIC decides as the published algorithm does, candidate by candidate; its budget mode loses no more than it may."""

# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportOptionalIterable=false

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph.trace import graph_of
from lilliput.methods.consolidation.sic import Sic, second_moments
from lilliput.ops.clustering import optimal_1d
from lilliput.testing import Residual


class Convolutions(nn.Module):
    """Strided, padded, grouped and depthwise convolutions, BatchNorm, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)
        self.b, self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)))
        x = torch.tanh(self.depth(F.elu(self.b(x)))) + x
        return self.head(F.max_pool2d(x, 2).flatten(1))


MODELS = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3)
    ),
    "convolutions": Convolutions,
    "residual": Residual,
}


def trained(name, samples=160, side=8):
    """A network that has learned patterns in noise, and its task."""
    generator = torch.Generator().manual_seed(1)
    side = 4 if name == "residual" else side
    patterns = torch.randn((3, 1, side, side), generator=generator)
    y = torch.arange(samples) % 3
    x = patterns[y] + 1.2 * torch.randn((samples, 1, side, side), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval(), Task.classification(train=(x, y), validation=(x[:30], y[:30]))


def published(model, task, most=10**6):
    """The algorithm as it is published: a full forward of all samples for each candidate. Gives the candidates."""
    x, y = task.train.batch(torch.arange(len(task.train)))
    candidates = 0
    with torch.no_grad():
        right = model(x).argmax(1) == y
        x, y = x[right], y[right]
        for module in model.modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            for row in module.weight:
                before = row.clone()
                live = before != 0
                values = before[live].double().numpy()
                for k in range(max(1, min(len(np.unique(values)) - 1, most)) + 1):
                    row.zero_()
                    if k:
                        found = optimal_1d(values, k)
                        row[live] = torch.from_numpy(found.centroids[found.labels]).float()
                    candidates += 1
                    if bool((model(x).argmax(1) == y).all()):
                        break
                else:
                    row.copy_(before)
    return candidates


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{}, {"tiered_asc": {"fast": 7, "medium": 1000}}, {"strict": True}])
def test_exact_mode_takes_the_decisions_of_the_published_algorithm(name, settings):
    model, task = trained(name)
    net = Artifact.of(model, task.spec)
    result = apply_checked_(Sic(mode="exact", **settings), net, Context.of(task, model))
    candidates = published(model, task)
    for parameter, value in model.named_parameters():
        assert torch.equal(net.module.get_parameter(parameter), value), parameter
    assert any(note.startswith(f"{candidates:,} candidates") for note in result.notes)


@pytest.mark.parametrize("strict", [False, True])
def test_with_few_samples_in_view_all_are_right_in_the_end(strict):
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    method = Sic(mode="exact", tiered_asc={"fast": 3, "medium": 8}, strict=strict)
    apply_checked_(method, net, Context.of(task, model))
    x, y = task.train.batch(torch.arange(len(task.train)))
    with torch.no_grad():
        right = model(x).argmax(1) == y
        assert bool((net.module(x).argmax(1) == y)[right].all())
    if strict:  # and each neuron is decided on all of them
        published(model, task)
        assert torch.equal(net.module[1].weight, model[1].weight) or int(right.sum()) > 8


def test_a_limit_of_k_is_kept_and_a_neuron_without_a_candidate_stays_as_it_was():
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    apply_checked_(Sic(mode="exact", max_k_per_neuron=2), net, Context.of(task, model))
    published(model, task, most=2)
    for parameter, value in model.named_parameters():
        assert torch.equal(net.module.get_parameter(parameter), value)
    counts = [len(row[row != 0].unique()) for row in net.module[1].weight]
    assert all(count <= 2 or count == 64 for count in counts)


@pytest.mark.parametrize("name", MODELS)
def test_the_budget_is_kept_and_buys_fewer_values(name):
    model, task = trained(name)
    contexts = Context.of(task, model)
    exact, free = (Artifact.of(model, task.spec) for _ in range(2))
    apply_checked_(Sic(mode="exact"), exact, contexts)
    apply_checked_(
        Sic(error_budget=0.15, held_out=0.0, weighted=False, drop_dead=False, spare_small=False), free, contexts
    )
    x, y = task.train.batch(torch.arange(len(task.train)))
    with torch.no_grad():
        right = model(x).argmax(1) == y
        lost = int((~(free.module(x).argmax(1) == y))[right].sum())
    assert lost <= 0.15 * int(right.sum())

    def values(net):
        return sum(len(e.values) for e in net.encodings.values())

    assert values(free) < values(exact)


def test_same_seed_same_bytes():
    model, task = trained("convolutions")
    weights = []
    for _ in range(2):
        net = Artifact.of(model, task.spec)
        apply_checked_(Sic(), net, Context.of(task, model, seed=3))
        weights.append([p.clone() for p in net.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_constant_neuron_goes_into_the_next_bias():
    model, task = trained("mlp")
    with torch.no_grad():
        model[1].weight[4] = 0.0
        model[1].bias[4] = 0.7
    net = Artifact.of(model, task.spec)
    apply_checked_(Sic(error_budget=0.0, held_out=0.0, weighted=False), net, Context.of(task, model))
    assert bool((net.module[3].weight[:, 4] == 0).all())
    assert not torch.equal(net.module[3].bias, model[3].bias)
    x, y = task.train.batch(torch.arange(len(task.train)))
    with torch.no_grad():
        right = model(x).argmax(1) == y
        assert bool((net.module(x).argmax(1) == y)[right].all())


def test_an_input_that_is_always_zero_loses_its_weights():
    model, task = trained("mlp")
    x, y = task.train.batch(torch.arange(len(task.train)))
    x[:, :, 0, :3] = 0.0
    task = Task.classification(train=(x, y), validation=(x[:30], y[:30]))
    net = Artifact.of(model, task.spec)
    apply_checked_(Sic(held_out=0.0), net, Context.of(task, model))
    assert bool((net.module[1].weight[:, :3] == 0).all())
    exact = Artifact.of(model, task.spec)
    apply_checked_(Sic(mode="exact"), exact, Context.of(task, model))
    assert not bool((exact.module[1].weight[:, :3] == 0).all())


@pytest.mark.parametrize("groups", [1, 2])
def test_second_moments_are_those_of_the_patches(groups):
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1, groups=groups).eval()
    x = torch.randn(5, 4, 7, 7)
    net = Artifact.of(model, Task.classification(train=(x, torch.arange(5) % 2)).spec)
    (node,) = [n for n in graph_of(net).nodes if n.op == "conv"]
    patches = F.unfold(x, 3, padding=1, stride=2).square().mean((0, 2)).reshape(4, 3, 3)
    size = 4 // groups
    wanted = torch.stack([patches[(o // (6 // groups)) * size :][:size] for o in range(6)])
    assert torch.allclose(second_moments(x, node, model.weight), wanted, atol=1e-5)


def test_weights_on_a_grid_are_left_alone_and_said_so():
    from lilliput.methods.quantization.post_training import Quantization

    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model)
    apply_checked_(Quantization(activation_bits=0), net, context)
    result = apply_checked_(Sic(mode="exact"), net, context)
    assert not result.effect
    assert all("consolidate first" in reason for reason in result.skipped.values())


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "fast"},
        {"acceptance_from": "test"},
        {"eval_max": 0},
        {"error_budget": 1.5},
        {"tiered_asc": {"slow": 3}},
        {"tiered_asc": {"fast": 0}},
        {"tiered_asc": 5},
        {"overrides": {"1": {"mode": "exact"}}},
        {"max_passes": 0},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(RecipeError, match="sic"):
        Sic(**settings)
