"""Second-order pruning: so many zeros as asked, and less lost than by magnitude."""

# pyright: reportOptionalOperand=false

import pytest
import torch

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.methods.normalization.batchnorm import FoldBatchNorm, ReestimateBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.second_order.pruning import SecondOrderPruning
from lilliput.methods.second_order.rate_distortion import RateDistortion
from lilliput.testing import TINY, check_artifact, tiny_model, tiny_task

TASK = tiny_task(256)


def applied(model, *methods):
    net = Artifact.of(model, TASK.spec)
    results = [apply_checked_(m, net, Context.of(TASK, model)) for m in methods]
    return net, results[-1]


def zeros(net, result):
    masks = [net.encodings[net.canonical(f"{path}.weight")].mask for path in result.changed]
    return [int((~m).sum()) for m in masks], [m.numel() for m in masks]


@pytest.mark.parametrize("name", TINY)
def test_each_layer_gets_as_many_zeros_as_asked(name):
    net, result = applied(tiny_model(name), SecondOrderPruning(sparsity=0.4, scope="layer"))
    dropped, every = zeros(net, result)
    assert result.changed
    assert dropped == [round(0.4 * n) for n in every]


def test_the_network_gets_as_many_zeros_as_asked():
    net, result = applied(tiny_model("conv"), SecondOrderPruning(sparsity=0.6))
    dropped, every = zeros(net, result)
    assert sum(dropped) == round(0.6 * sum(every))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_it_says_when_not_so_many_can_go(scope):
    net, result = applied(tiny_model("linear"), SecondOrderPruning(sparsity=0.98, scope=scope))
    dropped, every = zeros(net, result)
    wanted = sum(round(0.98 * n) for n in every) if scope == "layer" else round(0.98 * sum(every))
    assert sum(dropped) < wanted
    assert result.notes[0].startswith(f"{sum(dropped):,} weights are zero, {wanted:,} were asked for")
    assert not applied(tiny_model("linear"), SecondOrderPruning(sparsity=0.5, scope=scope))[1].notes


@pytest.mark.parametrize("method", [SecondOrderPruning(), SecondOrderPruning(samples=7), RateDistortion(weight_bits=4)])
def test_samples_too_few_to_fit_weights_to_are_refused(method):
    task = tiny_task(256 if method.samples < 8 else 5)
    model = tiny_model("linear")
    with pytest.raises(RecipeError, match=f"^{method.name}: . samples of train to fit weights to; give at least 8$"):
        apply_checked_(method, Artifact.of(model, task.spec), Context.of(task, model))
    assert apply_checked_(
        SecondOrderPruning(samples=8), Artifact.of(model, task.spec), Context.of(tiny_task(8), model)
    ).effect


@pytest.mark.parametrize("name", ["conv", "residual", "conv1d", "grouped"])
def test_less_is_lost_than_by_magnitude(name):
    model = tiny_model(name)
    x, _ = tiny_task(128, seed=7).data("train").batch(torch.arange(100))
    errors = []
    for method in (SecondOrderPruning(sparsity=0.5, scope="layer"), MagnitudePruning(sparsity=0.5, scope="layer")):
        net, _ = applied(model, FoldBatchNorm(), method)
        with torch.no_grad():
            errors.append(float((net.module(x) - model(x)).square().mean()))
    assert errors[0] < 0.8 * errors[1]


def test_masks_of_before_stay_and_count():
    net, result = applied(
        tiny_model("conv"),
        MagnitudePruning(sparsity=0.3, scope="layer"),
        SecondOrderPruning(sparsity=0.5, scope="layer"),
    )
    first, _ = applied(tiny_model("conv"), MagnitudePruning(sparsity=0.3, scope="layer"))
    dropped, every = zeros(net, result)
    assert dropped == [round(0.5 * n) for n in every]
    for name, e in net.encodings.items():
        assert e.mask is not None
        assert not bool((e.mask & ~first.encodings[name].mask).any())


def test_norms_can_be_reestimated_and_weights_quantized_afterwards():
    model = tiny_model("batch_norm")
    net, _ = applied(model, SecondOrderPruning(), ReestimateBatchNorm(samples=64, batch_size=16), Quantization())
    check_artifact(net, model)


def test_same_seed_same_bytes():
    files = [container.dumps(applied(tiny_model("residual"), SecondOrderPruning())[0]) for _ in range(2)]
    assert files[0] == files[1]


def test_sparsity_of_one_layer_needs_the_scope_layer():
    with pytest.raises(RecipeError, match="compares all layers"):
        SecondOrderPruning(overrides={"fc": {"sparsity": 0.1}})
