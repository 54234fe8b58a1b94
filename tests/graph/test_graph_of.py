import torch
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.method import Context, apply_checked_
from lilliput.graph import trace as module
from lilliput.graph.trace import graph_of
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.testing import tiny_model, tiny_task


def counted(monkeypatch):
    calls = []
    original = module.trace
    monkeypatch.setattr(module, "trace", lambda *a: calls.append(1) or original(*a))
    return calls


def test_a_structure_is_traced_once_for_all_copies(monkeypatch):
    calls = counted(monkeypatch)
    net = Artifact.of(tiny_model("batch_norm"), tiny_task().spec)
    first = graph_of(net)
    other = net.copy()
    with torch.no_grad():
        other.parameter("0.weight").zero_()
    assert graph_of(net) is graph_of(other) is first
    assert len(calls) == 1


def test_another_structure_is_traced_again(monkeypatch):
    calls = counted(monkeypatch)
    net = Artifact.of(tiny_model("batch_norm"), tiny_task().spec)
    before = net.copy()
    assert "1" in {node.module for node in graph_of(net).nodes}
    apply_checked_(FoldBatchNorm(), net, Context.of(tiny_task(), before.module))
    assert "1" not in {node.module for node in graph_of(net).nodes}
    assert "1" in {node.module for node in graph_of(before).nodes}
    assert len(calls) == 2


def test_another_input_or_replaced_module_is_traced_again():
    net = Artifact.of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), InputSpec(shape=(1, 8, 8)))
    small = graph_of(net)
    net.input = InputSpec(shape=(1, 9, 9))
    assert graph_of(net).nodes[-1].shape != small.nodes[-1].shape
    net.module.add_module("1", nn.Hardtanh())
    assert graph_of(net).nodes[-1].op == "clamp"
