"""An analysis measures what a layer's change does to the outputs, and proposes what the guard bears."""

# pyright: reportCallIssue=false

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.auto.analyse import LEVELS, analyse, plan
from lilliput.core.errors import UsageError
from lilliput.core.task import Data, Task
from lilliput.testing import tiny_model, tiny_task
from lilliput.zoo.registry import open_model


def changed(model, path, keep):
    """The model with the smallest weights of a layer at zero, but for `keep` of them."""
    other = copy.deepcopy(model)
    weight = other.get_submodule(path).weight
    with torch.no_grad():
        order = torch.argsort(weight.abs().flatten(), stable=True)
        weight.view(-1)[order[: len(order) - keep]] = 0.0
    return other


@pytest.mark.parametrize("name", ["conv", "residual", "grouped"])
def test_divergence_is_that_of_the_network_with_the_changed_layer(name):
    model, task = tiny_model(name), tiny_task()
    found = analyse(model, task, kinds=["sparsity"], samples=10**6)
    x = task.data("calibration").batch(torch.arange(len(task.data("calibration"))))[0]
    for path, row in found.of("sparsity").items():
        size = model.get_submodule(path).weight.numel()
        for probe in row:
            other = changed(model, path, size - round(probe.level * size))
            with torch.no_grad():
                wanted, outputs = F.log_softmax(model(x), 1), F.log_softmax(other(x), 1)
            parts = (wanted.exp() * (wanted - outputs)).sum(1).split(256)
            assert probe.divergence == pytest.approx(
                float(torch.stack([p.mean() for p in parts]).mean()), rel=1e-3, abs=1e-7
            )
            assert probe.effect


def test_the_proposals_keep_what_the_guard_asks_for(monkeypatch):
    model, task = open_model("digits-cnn")
    before = copy.deepcopy(model.state_dict())
    reads, batch = [], Data.batch

    def noted(self, index):
        reads.append(self)
        return batch(self, index)

    monkeypatch.setattr(Data, "batch", noted)
    found = analyse(model, task, max_drop="2pt", samples=64)
    assert [p.kind for p in found.proposals] == list(LEVELS)
    for proposal in found.proposals:
        assert proposal.drop <= 2.0
        assert any(level is not None for level in proposal.levels.values())
        for layer, level in proposal.levels.items():
            row = found.of(proposal.kind)[layer]
            below = [p.level for p in row if p.effect and p.divergence <= proposal.threshold]
            assert level == (below[-1] if below else None)
    assert reads
    assert not any(data is task.test for data in reads)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    for layer, row in found.of("bits").items():
        assert row[0].divergence < row[-1].divergence, layer
        assert [p.coded_bytes for p in row] == sorted((p.coded_bytes for p in row), reverse=True)


def test_a_change_that_changes_nothing_is_named():
    model, task = tiny_model("linear"), tiny_task()
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(torch.where(layer.weight > 0, 0.5, -0.5))
    found = analyse(model, task, kinds=["clusters"], samples=32, max_drop=100.0)
    (name,) = [n for n, m in model.named_modules() if m is layer]
    row = found.of("clusters")[name]
    assert all(not p.effect and p.divergence == 0 for p in row)
    assert found.proposals[0].levels[name] is None
    assert "no effect" in str(found)


def test_numbers_without_classes_are_compared_by_squares():
    x = torch.randn((80, 4), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).eval()
    task = Task.regression(train=(x, x[:, :1]), validation=(x[:20], x[:20, :1]))
    found = analyse(model, task, kinds=["sparsity"], samples=10**6, max_drop=10.0)
    assert found.measure == "mean squared error"
    probe = found.of("sparsity")["0"][2]
    with torch.no_grad():
        data = task.data("calibration").batch(torch.arange(len(task.data("calibration"))))[0]
        other = changed(model, "0", 32 - round(probe.level * 32))
        assert probe.divergence == pytest.approx(float(F.mse_loss(other(data), model(data))), rel=1e-3)


def test_a_plan_says_what_will_be_done():
    model, task = open_model("digits-cnn")
    found = plan(model, task, kinds=["bits", "channels"], samples=16)
    work = {name: work for name, work, _ in found.stages}
    probes = analyse(model, task, kinds=["bits", "channels"], samples=16).probes
    layers, groups = (work[name] for name in ("4 layers, 1 sets of coupled ones", "2 groups of channels"))
    assert layers == f"{sum(p.kind == 'bits' for p in probes)} probes"
    assert groups == f"{sum(p.kind == 'channels' for p in probes)} probes"
    assert work["scores on validation, at most"] == "11 scores"
    assert found.seconds == pytest.approx(sum(seconds for _, _, seconds in found.stages))
    assert all(seconds > 0 for _, _, seconds in found.stages)


@pytest.mark.parametrize(
    "settings",
    [{"kinds": ["speed"]}, {"kinds": []}, {"samples": 0}, {"kinds": ["channels"], "max_bytes": 99}, {"max_bytes": 9}],
)
def test_wrong_arguments_are_refused(settings):
    model, task = tiny_model("linear"), tiny_task()
    with pytest.raises(UsageError, match="analyse"):
        analyse(model, task, **settings)


def test_a_network_without_weighted_layers_is_refused():
    with pytest.raises(UsageError, match=r"^analyse: the network has no layer with weights; give it"):
        analyse(nn.Sequential(nn.Flatten(), nn.ReLU()), tiny_task())
