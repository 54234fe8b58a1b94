"""Channels of coupled groups: what is probed with ignored channels is what the smaller network computes."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coupled_networks import SHAPE, Net, conv, head, network
from lilliput.auto.analyse import analyse
from lilliput.auto.analysis import measure
from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import tiny_model, tiny_task


def images(samples: int = 32) -> torch.Tensor:
    return torch.randn((samples, *SHAPE), generator=torch.Generator().manual_seed(11))


def task_for(model: nn.Module, kind: str = "regression") -> Task:
    """What the network itself gives is what is wanted."""
    x = images()
    with torch.no_grad():
        y = model(x)
    if kind == "classification":
        return Task.classification(train=(x, y.argmax(1)), validation=(x, y.argmax(1)))
    return Task.regression(train=(x, y), validation=(x, y))


def calibration(task: Task) -> torch.Tensor:
    data = task.data("calibration")
    return data.batch(torch.arange(len(data)))[0]


def kl(outputs: torch.Tensor, wanted: torch.Tensor) -> float:
    ours, theirs = (F.log_softmax(v, 1) for v in (outputs, wanted))
    return float((theirs.exp() * (theirs - ours)).sum(1).mean())


def without(model: nn.Module, task: Task, name: str, share: float) -> tuple[Artifact, list[int]]:
    """The network that is really smaller, and (channels gone, channels) of the group."""
    net = Artifact.of(model, task.spec)
    method = ChannelPruning(amount=0.0, overrides={name: {"amount": share}}, compensate=False)
    result = apply_checked_(method, net, Context.of(task, model))
    return net, dict((result.statistics or {}).get("channels", {})).get(name, [0, 0])


NAMES = ["two layers", "residual", "option A", "depthwise", "grouped", "concat", "excitation", "series", "transposed",
         "scaled", "twice"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_ignored_channels_are_the_smaller_network(name):
    model = network(name)
    task = task_for(model)
    found = analyse(model, task, kinds=["channels"], samples=10**6, max_drop=10.0)
    rows = found.of("channels")
    assert rows
    x = calibration(task)
    for group, row in rows.items():
        for probe in (row[0], row[3]):
            net, (gone, _) = without(model, task, group, probe.level)
            assert probe.effect == (gone > 0), (group, probe.level)
            with torch.no_grad():
                wanted = float(F.mse_loss(net.module(x), model(x)))
            assert probe.divergence == pytest.approx(wanted, rel=1e-3, abs=1e-7), (group, probe.level)
            assert probe.macs == int(count_macs(graph_of(net), net).total("macs").value)


def test_what_is_kept_changes_nothing(monkeypatch):
    monkeypatch.setattr(measure, "MOST_KEPT", 0)
    model, task = tiny_model("residual"), tiny_task()
    found = analyse(model, task, samples=64, max_drop="30pt", max_bytes=400)
    monkeypatch.undo()
    usual = analyse(model, task, samples=64, max_drop="30pt", max_bytes=400)
    assert (found.probes, found.proposals, found.allocation) == (usual.probes, usual.proposals, usual.allocation)


def test_classes_are_compared_by_divergence_and_levels_without_effect_are_named():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 5)).eval()
    task = task_for(model, "classification")
    found = analyse(model, task, kinds=["channels"], samples=10**6, max_drop="90pt")
    row = found.of("channels")["1"]
    assert [p.effect for p in row] == [False, True, True, True, True, True]  # 10% of 4 channels is none
    assert row[0].divergence == 0.0
    assert "no effect" in str(found)
    net, _ = without(model, task, "1", row[-1].level)
    x = calibration(task)
    with torch.no_grad():
        assert row[-1].divergence == pytest.approx(kl(net.module(x), model(x)), rel=1e-3)
    assert set(row[-1].layers) == {"1", "3"}


def test_the_proposal_is_a_network_that_the_guard_accepts():
    model = network("residual")
    task = task_for(model, "classification")
    found = analyse(model, task, kinds=["channels"], samples=10**6, max_drop="20pt")
    (proposal,) = found.proposals
    shares = {name: {"amount": level} for name, level in proposal.levels.items() if level}
    assert shares
    net = Artifact.of(model, task.spec)
    apply_checked_(ChannelPruning(amount=0.0, overrides=shares, compensate=False), net, Context.of(task, model))
    assert proposal.macs == int(count_macs(graph_of(net), net).total("macs").value) < found.macs
    x, y = task.data("validation").batch(torch.arange(32))
    with torch.no_grad():
        right = 100 * float((net.module(x).argmax(1) == y).float().mean())
    assert proposal.score == pytest.approx(right)
    assert proposal.drop <= 20.0
    assert proposal.coded_bytes < found.coded_bytes


def test_layers_that_channels_couple_are_probed_together():
    model = network("residual")
    task = task_for(model)
    found = analyse(model, task, kinds=["bits"], samples=10**6, max_drop=10.0)
    assert set(found.of("bits")) == {"a", "b", "c", "fc"}
    (name,) = found.coupled("bits")
    assert name == "a"
    x = calibration(task)
    for probe in found.coupled("bits")[name]:
        assert probe.layers == ("a", "c")
        net = Artifact.of(model, task.spec)
        method = Quantization(include=("a", "c"), weight_bits=int(probe.level), weight_range="mse", activation_bits=0)
        apply_checked_(method, net, Context.of(task, model))
        with torch.no_grad():
            wanted = float(F.mse_loss(net.module(x), model(x)))
        assert probe.divergence == pytest.approx(wanted, rel=1e-3, abs=1e-9)
        apart = [p for p in found.probes if p.layer in ("a", "c") and p.level == probe.level and not p.coupled]
        assert probe.coded_bytes == pytest.approx(sum(p.coded_bytes for p in apart))
    assert "coupled layers together\na (2 layers)" in str(found)


def test_groups_that_must_stay_are_named_with_the_reason():
    model = network("two layers")
    found = analyse(model, task_for(model), kinds=["channels"], samples=8, max_drop=10.0)
    assert list(found.of("channels")) == ["1"]
    assert found.left == {"channels of 3": "it is an output of the network"}
    assert "not probed: channels of 3: it is an output of the network" in str(found)


def test_code_that_counts_its_channels_keeps_them():
    model = Net(lambda n, x: head(F.relu(n.a(x)).view(-1, 4, 8, 8), n.fc), a=conv(3, 4), fc=nn.Linear(4, 2)).eval()
    found = analyse(model, task_for(model), kinds=["channels"], samples=8, max_drop=10.0)
    assert "counts its channels" in found.left["channels of a"]
    assert not found.probes
    assert not found.proposals


def test_a_network_of_61_layers_is_probed_in_all_of_its_parts():
    model = network("61 layers")
    found = analyse(model, task_for(model), kinds=["channels", "sparsity"], samples=4, max_drop=10.0)
    assert len(found.of("sparsity")) == 60
    assert len(found.of("channels")) == 30
    (coupled,) = found.coupled("sparsity").values()
    assert len(coupled[0].layers) == 30
    assert all(p.effect for row in found.of("sparsity").values() for p in row)


def test_without_labels_agreement_decides():
    """Other labels, the same analysis."""
    model, task = tiny_model("residual"), tiny_task()
    x, y = task.data("train").batch(torch.arange(64))
    before = copy.deepcopy(model.state_dict())
    found = [
        analyse(model, Task.classification(train=(x, t), validation=(x, t)), agreement="90%", max_bytes=400, samples=64)
        for t in (y, torch.zeros_like(y))
    ]
    assert found[0].probes == found[1].probes
    assert found[0].proposals == found[1].proposals
    assert found[0].allocation == found[1].allocation
    assert found[0].score_name == "agreement"
    assert all(p.score >= 90.0 for p in found[0].proposals)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_reconstructions_are_compared_by_squares():
    x = torch.randn((60, 6), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6)).eval()
    labels = torch.arange(20) % 2
    task = Task.anomaly(train=(x, torch.zeros(60)), validation=(x[:20] + 4 * labels[:, None], labels))
    found = analyse(model, task, kinds=["channels", "clusters"], samples=10**6, max_drop=0.5)
    assert found.measure == "mean squared error"
    probe = found.of("channels")["0"][3]
    net, (gone, total) = without(model, task, "0", probe.level)
    assert (gone, total) == (5, 10)
    data = calibration(task)
    with torch.no_grad():
        assert probe.divergence == pytest.approx(float(F.mse_loss(net.module(data), model(data))), rel=1e-3)
