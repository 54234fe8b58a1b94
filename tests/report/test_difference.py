"""Differences: decibels by layer as by hand, and exactly the samples that flipped."""

import math

import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph.integer import runnable
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.report.difference import Difference, difference
from lilliput.testing import tiny_model, tiny_task

TASK = tiny_task(48)


def compressed(model, *methods):
    net = Artifact.of(model, TASK.spec)
    for method in methods:
        apply_checked_(method, net, Context.of(TASK, model))
    return net


def decibels(wanted, found):
    wanted, found = wanted.double(), found.double()
    return 10 * math.log10(float(wanted.square().sum()) / float((found - wanted).square().sum()))


def test_decibels_are_those_of_the_layers_outputs():
    model = tiny_model("linear")
    net = compressed(model, MagnitudePruning(sparsity=0.3))
    x = TASK.data("validation").inputs
    with torch.no_grad():
        expected = {
            "1": decibels(model.get_submodule("1")(x.flatten(1)), net.module.get_submodule("1")(x.flatten(1))),
            "3": decibels(model(x), net.module(x)),
        }
    assert difference(net, model, TASK).sqnr == pytest.approx(expected, rel=1e-4)


def test_an_untouched_network_is_exact_and_flips_nothing():
    model = tiny_model("residual")
    found = difference(compressed(model), model, TASK)
    assert set(found.sqnr) == {"first", "second", "add", "mean", "head"}
    assert all(math.isinf(v) for v in found.sqnr.values())
    assert (found.lost, found.gained, found.samples) == ([], [], 48)
    assert "exact" in str(found)


def test_folded_layers_are_compared_with_their_norm():
    """A convolution with a folded BatchNorm gives what the BatchNorm gave, not what the convolution gave."""
    model = tiny_model("residual")
    found = difference(compressed(model, FoldBatchNorm()), model, TASK)
    assert all(v > 90 for v in found.sqnr.values())
    fine = difference(compressed(model, FoldBatchNorm(), Quantization()), model, TASK)
    assert set(fine.sqnr) == set(found.sqnr)
    assert all(20 < v < 60 for v in fine.sqnr.values())
    coarse = difference(compressed(model, FoldBatchNorm(), Quantization(weight_bits=4)), model, TASK)
    assert coarse.sqnr["first"] < fine.sqnr["first"]


def test_flipped_samples_are_named():
    model = tiny_model("linear")
    net = compressed(model, MagnitudePruning(sparsity=0.8))
    found = difference(net, model, TASK)
    x, y = TASK.data("validation").inputs, TASK.data("validation").targets
    with torch.no_grad():
        before, now = model(x).argmax(1) == y, runnable(net)(x).argmax(1) == y
    assert found.lost == [i for i in range(48) if before[i] and not now[i]]
    assert found.gained == [i for i in range(48) if now[i] and not before[i]]
    assert len(found.lost) + len(found.gained) > 0
    assert found.verdict == f"accuracy {100 * before.float().mean():.2f}% -> {100 * now.float().mean():.2f}%"
    assert f"lost: {len(found.lost)} samples" in str(found)


def test_how_weights_are_stored_stands_beside():
    net = compressed(tiny_model("linear"), WeightClustering(n_clusters=4), Quantization(weight_bits=4))
    found = difference(net, tiny_model("linear"), TASK)
    assert found.encodings == {"1": "4 shared values, 4 bits", "3": "4 shared values, 4 bits"}


def test_the_original_is_left_as_it_was():
    model = tiny_model("batch_norm").train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    difference(compressed(model, FoldBatchNorm(), Quantization()), model, TASK)
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_any_role_and_any_task_will_do():
    x = torch.randn((30, 4), generator=torch.Generator().manual_seed(0))
    task = Task.regression(train=(x, x[:, :2]), validation=(x[:9], x[:9, :2]), test=(x[:5], x[:5, :2]))
    model = nn.Linear(4, 2)
    net = Artifact.of(model, task.spec)
    found = difference(net, model, task, role="test", samples=3)
    assert (found.samples, found.role) == (5, "test")
    assert found.verdict.startswith("MAE ")


def test_long_lists_of_samples_are_cut_and_dead_layers_have_no_signal():
    text = str(
        Difference(
            sqnr={"a": -math.inf, "b": 12.345},
            encodings={"b": "8 bits"},
            lost=list(range(25)),
            gained=[],
            samples=50,
            role="validation",
            verdict="accuracy 90% -> 40%",
        )
    )
    assert "18, 19, ...)" in text
    assert "20" not in text.splitlines()[-1]
    assert [line.split() for line in text.splitlines()[2:4]] == [["a", "-inf"], ["b", "12.3", "8", "bits"]]
