"""Bias correction: channels get the original's mean and spread, whatever was done to the weights."""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOptionalMemberAccess=false

import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph.integer import IntegerNet, accumulator_scale
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.bias_correction import BiasCorrection
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import check_artifact, tiny_model, tiny_task

TASK = tiny_task(96)
COARSE = (
    Quantization(weight_bits=2, activation_bits=0),
    Quantization(weight_bits=3, activation_bits=0, weight_per="tensor"),
    MagnitudePruning(sparsity=0.5, scope="layer"),
    WeightClustering(n_clusters=3),
    WeightClustering(n_clusters=2, per="channel"),
)


def applied(name, *methods, task=TASK):
    model = tiny_model(name)
    net, context = Artifact.of(model, task.spec), Context.of(task, model)
    results = [apply_checked_(m, net, context) for m in methods]
    return model, net, results[-1]


def outputs(module, path, task=TASK):
    """Of one layer, over the calibration samples; from the module itself, with a hook."""
    seen = []
    handle = module.get_submodule(path).register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    with torch.no_grad():
        for x, _ in task.data("calibration").batches(64):
            module(x)
    handle.remove()
    return torch.cat(seen).movedim(1, 0).flatten(1).double()


PLACES = {
    "linear": {"1": "1", "3": "3"},
    "conv": {"0": "0", "4": "4"},
    "residual": {"first": "norm1", "second": "norm2", "head": "head"},
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("coarse", COARSE, ids=lambda m: f"{m.name}-{len(m.settings())}")
def test_each_channel_has_the_original_s_mean(name, coarse):
    model, net, result = applied(name, FoldBatchNorm(), coarse, BiasCorrection(match="mean"))
    assert set(result.changed) == set(PLACES[name])
    for layer, place in PLACES[name].items():
        wanted, found = outputs(model, place), outputs(net.module, layer)
        assert torch.allclose(found.mean(1), wanted.mean(1), atol=1e-5)
    check_artifact(net, model)


@pytest.mark.parametrize("name", PLACES)
def test_each_channel_has_the_original_s_spread_where_it_has_a_scale_of_its_own(name):
    model, net, _ = applied(name, FoldBatchNorm(), Quantization(weight_bits=4, activation_bits=0), BiasCorrection())
    for layer, place in PLACES[name].items():
        wanted, found = outputs(model, place), outputs(net.module, layer)
        assert torch.allclose(found.std(1), wanted.std(1), rtol=1e-3)
        assert torch.allclose(found.mean(1), wanted.mean(1), atol=1e-5)


@pytest.mark.parametrize("coarse", COARSE, ids=lambda m: f"{m.name}-{len(m.settings())}")
def test_integers_indices_and_masks_stay(coarse):
    _, before, _ = applied("residual", FoldBatchNorm(), coarse)
    model, after, result = applied("residual", FoldBatchNorm(), coarse, BiasCorrection())
    assert result.changed
    for name, old in before.encodings.items():
        new = after.encodings[name]
        assert old.mask is None or torch.equal(old.mask, new.mask)
        assert old.sharing is None or torch.equal(old.sharing.indices, new.sharing.indices)
        assert old.grid is None or torch.equal(old.integers(), new.integers())
    check_artifact(after, model)


@pytest.mark.parametrize("name", ["linear", "conv", "residual", "grouped"])
@pytest.mark.parametrize("match", ["mean", "mean_and_spread"])
def test_biases_of_integer_networks_stay_on_their_accumulators_scale(name, match):
    task = TASK
    model, net, result = applied(name, FoldBatchNorm(), Quantization(weight_bits=3), BiasCorrection(match=match))
    assert result.changed
    integer = IntegerNet(net)
    assert not integer.floats
    for node in integer.graph.nodes:
        if "bias" in node.state:
            weight, bias = (net.encodings[node.state[role]] for role in ("weight", "bias"))
            source = integer._grids[node.inputs[0]]
            assert torch.equal(bias.grid.scale, accumulator_scale(source, weight.grid))
    check_artifact(net, model)
    x = torch.cat([x for x, _ in task.data("calibration").batches(64)])
    worse = applied(name, FoldBatchNorm(), Quantization(weight_bits=3))[1]
    with torch.no_grad():
        wanted, ours, plain = model(x), integer(x), IntegerNet(worse)(x)
    assert float((ours - wanted).mean(0).abs().max()) < float((plain - wanted).mean(0).abs().max())


def test_an_unchanged_network_needs_no_correction():
    _, net, result = applied("residual", FoldBatchNorm(), BiasCorrection())
    assert not result.changed
    assert set(result.skipped.values()) <= {"its outputs have the original's means already"}
    assert not net.encodings


def test_layers_that_cannot_be_corrected_say_why():
    _, _, result = applied("no_bias", Quantization(weight_bits=2, activation_bits=0), BiasCorrection())
    assert "fold_batchnorm" in result.skipped["1"]
    _, _, result = applied("shared", Quantization(weight_bits=2, activation_bits=0), BiasCorrection(skip=("head",)))
    assert set(result.changed) == {"enter"}
    assert "more than once" in result.skipped["middle"]
    assert result.skipped["head"] == "not selected by include and skip"


def test_a_channel_whose_weights_are_all_gone_keeps_its_mean():
    layer = nn.Linear(6, 2)
    x = torch.rand((64, 6), generator=torch.Generator().manual_seed(0)) + 1
    task = Task.classification(train=(x, torch.arange(64) % 2))
    net, context = Artifact.of(layer, task.spec), Context.of(task, layer)
    mask = torch.ones((2, 6), dtype=torch.bool)
    mask[0] = False
    net.encode_("weight", net.encoding("weight").with_mask(mask))
    apply_checked_(BiasCorrection(), net, context)
    data = torch.cat([b for b, _ in task.data("calibration").batches(64)])
    with torch.no_grad():
        assert torch.allclose(net.module(data).mean(0), layer(data).mean(0), atol=1e-5)
        assert bool((net.module.weight[0] == 0).all())


def test_unknown_settings_are_refused():
    with pytest.raises(RecipeError, match="match"):
        BiasCorrection(match="median")
