"""Folding leaves the function as it is; re-estimated statistics are those of the samples."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import DataError, RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.methods.normalization.batchnorm import FoldBatchNorm, ReestimateBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import tiny_model, tiny_task

TASK = tiny_task(48)


def applied(model, *methods, task=TASK, spec=None, seed=0):
    net = Artifact.of(model, spec or task.spec)
    results = [apply_checked_(m, net, Context.of(task, model, seed=seed)) for m in methods]
    return net, results[-1]


@pytest.mark.parametrize("name", ["batch_norm", "conv1d", "residual"])
def test_the_folded_network_computes_the_same_with_fewer_modules(name):
    model = tiny_model(name)
    net, result = applied(model, FoldBatchNorm())
    x = torch.randn((32, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(net.module(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in net.module.modules())
    assert result.effect
    again = container.loads(container.dumps(net)).replay(copy.deepcopy(model))
    with torch.no_grad():
        assert torch.equal(again.module(x), net.module(x))


def test_every_layer_is_accounted_for():
    _, result = applied(tiny_model("residual"), FoldBatchNorm())
    assert result.changed == {
        "first": "took in norm1",
        "norm1": "folded into first",
        "second": "took in norm2",
        "norm2": "folded into second",
    }
    assert result.skipped == {"head": "not a BatchNorm, and none goes into it"}


def test_only_selected_norms_are_folded():
    net, result = applied(tiny_model("residual"), FoldBatchNorm(skip=("norm2",)))
    assert set(result.changed) == {"first", "norm1"}
    assert result.skipped["norm2"] == "not selected by include and skip"
    assert isinstance(net.module.get_submodule("norm2"), nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ((FoldBatchNorm(), FoldBatchNorm()), "there is no BatchNorm"),
        ((MagnitudePruning(), FoldBatchNorm()), "the weight of 0 is already encoded"),
        ((Quantization(), FoldBatchNorm()), "the weight of 0 is already encoded"),
    ],
)
def test_a_norm_that_cannot_be_folded_any_more_says_why(methods, reason):
    _, result = applied(tiny_model("batch_norm"), *methods)
    assert not result.effect
    assert any(found.startswith(reason) for found in result.skipped.values())


def test_folding_in_float_under_quantized_activations_is_refused():
    model = tiny_model("batch_norm")
    net, result = applied(model, Quantization(skip=("0",)), FoldBatchNorm())
    assert result.skipped["1"] == "activations are already quantized: fold first"
    assert not net.edits


def inputs_of_norm(model, data):
    """What reaches the norm of "batch_norm", float64."""
    with torch.no_grad():
        return model.get_submodule("0")(data).double()


def test_statistics_of_one_batch_are_its_mean_and_unbiased_variance():
    model = tiny_model("batch_norm")
    net, result = applied(model, ReestimateBatchNorm(samples=1000, batch_size=1000))
    seen = inputs_of_norm(model, TASK.data("train").inputs)
    norm = net.module.get_submodule("1")
    assert torch.allclose(norm.get_buffer("running_mean").double(), seen.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(norm.get_buffer("running_var").double(), seen.var((0, 2, 3)), rtol=1e-5)
    assert int(norm.get_buffer("num_batches_tracked")) == 1
    assert result.changed == {"1": "statistics of 1000 samples at most"}
    assert result.skipped == {"0": "not a BatchNorm", "4": "not a BatchNorm"}


def test_batches_count_equally_and_follow_from_the_seed():
    model = tiny_model("batch_norm")
    net, _ = applied(model, ReestimateBatchNorm(samples=40, batch_size=12), seed=7)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(7))[:36]  # 40, without the part of a batch
    parts = [inputs_of_norm(model, TASK.data("train").inputs[rows]) for rows in order.split(12)]
    norm = net.module.get_submodule("1")
    means, variances = (
        torch.stack([f(p) for p in parts]).mean(0) for f in (lambda p: p.mean((0, 2, 3)), lambda p: p.var((0, 2, 3)))
    )
    assert torch.allclose(norm.get_buffer("running_mean").double(), means, atol=1e-6)
    assert torch.allclose(norm.get_buffer("running_var").double(), variances, rtol=1e-5)
    other, _ = applied(model, ReestimateBatchNorm(samples=40, batch_size=12), seed=8)
    assert not torch.equal(other.module.get_buffer("1.running_mean"), norm.get_buffer("running_mean"))


def test_later_norms_see_what_the_earlier_ones_give_in_training():
    """Each norm is measured with the batch statistics of those before it, as in training."""
    model = tiny_model("residual")
    net, _ = applied(model, ReestimateBatchNorm(samples=1000, batch_size=1000))
    reference = copy.deepcopy(model).train()
    for m in reference.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    with torch.no_grad():
        order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
        reference(TASK.data("train").inputs[order])
    for name, buffer in reference.named_buffers():
        if "running" in name:
            assert torch.allclose(net.module.get_buffer(name), buffer, rtol=1e-4, atol=1e-6)


def test_nothing_but_statistics_changes_and_the_norms_are_put_back():
    model = tiny_model("residual")
    net, _ = applied(model, ReestimateBatchNorm(samples=48, batch_size=16))
    assert all(torch.equal(net.parameter(n), p) for n, p in model.named_parameters())
    for module in net.module.modules():
        assert not module.training
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.1


def test_only_selected_norms_are_measured():
    model = tiny_model("residual")
    net, result = applied(model, ReestimateBatchNorm(include=("norm2",)))
    assert set(result.changed) == {"norm2"}
    assert torch.equal(net.module.get_buffer("norm1.running_mean"), model.get_buffer("norm1.running_mean"))
    assert not torch.equal(net.module.get_buffer("norm2.running_mean"), model.get_buffer("norm2.running_mean"))


def test_without_training_data_validation_data_serve():
    x, y = TASK.data("validation").inputs, TASK.data("validation").targets
    model = tiny_model("batch_norm")
    net, _ = applied(model, ReestimateBatchNorm(), task=Task.classification(validation=(x, y)))
    assert torch.allclose(
        net.module.get_buffer("1.running_mean").double(), inputs_of_norm(model, x).mean((0, 2, 3)), atol=1e-6
    )


def test_the_norms_are_put_back_after_an_error():
    x = torch.linspace(-1, 1, 128).reshape(8, 1, 4, 4)
    x[5] = torch.nan
    task = Task.classification(train=(x, torch.zeros(8).long()), validation=(x[:4], torch.zeros(4).long()))
    net = Artifact.of(tiny_model("batch_norm"), InputSpec(shape=(1, 4, 4)))
    with pytest.raises(DataError, match="NaN or infinity in the inputs"):
        apply_checked_(ReestimateBatchNorm(batch_size=2), net, Context.of(task, net.module))
    norm = net.module.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert (norm.training, norm.momentum) == (False, 0.1)


@pytest.mark.parametrize("settings", [{"samples": 1}, {"batch_size": 1}, {"overrides": {"*": {"samples": 5}}}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(RecipeError, match="reestimate_batchnorm"):
        ReestimateBatchNorm(**settings)


def test_statistics_are_those_of_augmented_samples():
    """As in training: of inputs that are doubled, deviations are doubled."""
    model = tiny_model("residual")
    plain, doubled = tiny_task(), replace(tiny_task(), augment=lambda x, generator: 2 * x)
    variances = []
    for task in (plain, doubled):
        net = Artifact.of(model, task.spec)
        apply_checked_(ReestimateBatchNorm(samples=64, batch_size=16), net, Context.of(task, model))
        variances.append(net.module.get_buffer("norm1.running_var").clone())
    torch.testing.assert_close(variances[1], 4 * variances[0], rtol=1e-4, atol=1e-6)
