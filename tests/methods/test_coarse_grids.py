"""Coarse grids: one step for each tensor, in proportion to its weights, and files whose scales take a byte."""

import pytest
import torch
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.coarse import CoarseGrids
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.testing import tiny_model, tiny_task

TASK = tiny_task(48)


def applied(model, *methods):
    net = Artifact.of(model, TASK.spec)
    results = [apply_checked_(m, net, Context.of(TASK, model)) for m in methods]
    return net, results[-1]


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_step_is_a_share_of_the_mean_size_of_kept_weights(share):
    net, _ = applied(tiny_model("conv"), MagnitudePruning(sparsity=0.5), CoarseGrids(step=share))
    before = dict(tiny_model("conv").named_parameters())
    for name, e in net.encodings.items():
        if name.endswith("weight"):
            assert e.grid is not None
            assert e.mask is not None
            wanted = share * float(before[name].detach()[e.mask].abs().mean())
            assert e.grid.scale.numel() == 1
            assert wanted * 0.88 < float(e.grid.scale) < wanted * 1.13


def test_scales_take_a_byte_each_and_come_back():
    net, _ = applied(tiny_model("conv"), CoarseGrids())
    read = container.loads(container.dumps(net))
    sizes = container.sizes(read)
    assert {n: sizes[n]["scale"] for n in net.encodings} == dict.fromkeys(net.encodings, 1)
    for name, e in net.encodings.items():
        assert torch.equal(read.tensors[name].decode(), e.decode())


def test_every_bias_reaches_to_its_largest_entry_or_stays_in_float():
    net, _ = applied(tiny_model("conv"), CoarseGrids(bias_bits=5))
    for name, bias in tiny_model("conv").named_parameters():
        if name.endswith("bias"):
            grid = net.encodings[name].grid
            assert grid is not None
            assert int(grid.bit_width) == 5
            error = (net.parameter(name) - bias).abs().max()
            assert error <= 0.13 * bias.abs().max() + float(grid.scale) / 2
    plain, _ = applied(tiny_model("conv"), CoarseGrids(bias_bits=0))
    assert all(name.endswith("weight") for name in plain.encodings)


def test_shared_values_and_grids_stay():
    net, _ = applied(tiny_model("conv"), WeightClustering(n_clusters=4))
    before = container.dumps(net)
    result = apply_checked_(CoarseGrids(), net, Context.of(TASK, net.module))
    assert not result.changed
    assert container.dumps(net) == before
    first, _ = applied(tiny_model("conv"), CoarseGrids(step=1.0))
    again = apply_checked_(CoarseGrids(step=0.1), first, Context.of(TASK, first.module))
    assert not again.changed


def test_a_tensor_of_zeros_and_a_layer_without_bias_are_stored_as_they_are():
    first = nn.Conv2d(1, 2, 3, bias=False)
    nn.init.zeros_(first.weight)
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(2 * 6 * 6, 3))
    net = Artifact.of(model, TASK.spec)
    apply_checked_(CoarseGrids(), net, Context.of(TASK, model))
    assert not bool(net.parameter("0.weight").any())
    assert "2.bias" in net.encodings


def test_fine_tuning_wins_back_what_the_grids_lose():
    tune = FineTune(epochs=15, batch_size=16, learning_rate=3e-3, step_rate=0.05)
    model = tiny_model("conv")
    lost, _ = applied(model, CoarseGrids(step=2.0))
    tuned, _ = applied(model, CoarseGrids(step=2.0), tune)
    data = TASK.data("validation")
    with torch.no_grad():
        losses = [float(TASK.loss(n.module(data.inputs), data.targets)) for n in (lost, tuned)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("settings", [{"step": 0.0}, {"weight_bits": 1}, {"weight_bits": 9}, {"bias_bits": 1}])
def test_settings_without_sense_are_refused(settings):
    with pytest.raises(RecipeError, match="coarse_grids"):
        CoarseGrids(**settings)
