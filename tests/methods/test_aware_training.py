"""Quantization-aware training beats rounding on the same grids, and its learned scales help."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps
from lilliput.core.errors import RecipeError
from lilliput.core.guard import evaluate
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph.integer import runnable
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.testing import check_artifact, tiny_model, tiny_task
from lilliput.zoo.registry import open_model

TASK = tiny_task(48)
SHORT = QuantizationAwareTraining(epochs=1, batch_size=16, learning_rate=1e-2, keep="last")
NARROW = Quantization(weight_bits=2, activation_bits=2, weight_range="mse")
DIGITS = QuantizationAwareTraining(epochs=5, batch_size=64, learning_rate=3e-3)


def applied(model, *methods, task=TASK, seed=0):
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model, seed=seed)
    results = [apply_checked_(m, net, context) for m in methods]
    return net, results[-1]


@cache
def digits():
    return open_model("digits-cnn")


@cache
def loss_and_score(step_rate):
    """Of what the file computes, on validation, at 2 bits each; None: rounded, not trained. In float: 98.1%."""
    model, task = digits()
    methods = () if step_rate is None else (replace(DIGITS, step_rate=step_rate),)
    net, _ = applied(model, FoldBatchNorm(), NARROW, *methods, task=task)
    found = evaluate(runnable(net), task, task.data("validation"), "validation", None, 256, torch.device("cpu"))
    targets = torch.as_tensor(task.data("validation").targets)
    return float(torch.nn.functional.cross_entropy(found.outputs, targets)), task.score.value(found.rows)


def test_training_beats_rounding_on_the_same_grids():
    assert loss_and_score(None)[1] < 60
    assert loss_and_score(1.0)[1] > 88


def test_learned_steps_help_at_two_bits():
    assert loss_and_score(1.0)[0] < 0.9 * loss_and_score(0.0)[0]


def test_after_quantization_training_starts_from_the_grids_that_are_there():
    rounded, _ = applied(tiny_model("conv"), Quantization(weight_bits=5, activation_bits=6))
    net, result = applied(tiny_model("conv"), Quantization(weight_bits=5, activation_bits=6), SHORT)
    assert set(result.changed) == {"0", "4"}
    for name, grid in rounded.activations.items():
        assert int(net.activations[name].bit_width) == 6
        assert float(net.activations[name].scale) == pytest.approx(float(grid.scale), rel=0.2)
    assert all(int(net.encodings[n].grid.bit_width.max()) == 5 for n in ("0.weight", "4.weight"))


def test_without_grids_it_makes_those_that_it_is_asked_for():
    net, result = applied(tiny_model("conv"), replace(SHORT, weight_bits=3, activation_bits=5, weight_per="tensor"))
    assert {int(g.bit_width) for g in net.activations.values()} == {5}
    assert net.encodings["0.weight"].grid.axis is None
    assert int(net.encodings["0.weight"].grid.bit_width) == 3
    assert "3 bits" in result.changed["0"]
    assert "trained for 1 epochs" in result.changed["0"]


def test_without_steps_every_scale_stays():
    before, _ = applied(tiny_model("residual"), FoldBatchNorm(), Quantization())
    after, result = applied(tiny_model("residual"), FoldBatchNorm(), Quantization(), replace(SHORT, step_rate=0.0))
    assert all(grid.same(after.activations[name]) for name, grid in before.activations.items())
    weights = [n for n in before.encodings if n.endswith("weight")]
    assert all(before.encodings[n].grid.same(after.encodings[n].grid) for n in weights)
    assert any(not torch.equal(before.encodings[n].values, after.encodings[n].values) for n in weights)
    assert any("scales of 0 of" in note for note in result.notes)


def test_zeros_and_shared_values_stay():
    fillers = (MagnitudePruning(sparsity=0.5, scope="layer"), WeightClustering(n_clusters=4))
    before, _ = applied(tiny_model("linear"), *fillers)
    after, _ = applied(tiny_model("linear"), *fillers, SHORT)
    for name, e in before.encodings.items():
        assert torch.equal(e.mask, after.encodings[name].mask)
        assert int(after.encodings[name].sharing.sizes.max()) <= 4
    check_artifact(after, tiny_model("linear"))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    files = [dumps(applied(tiny_model("conv"), SHORT, seed=s)[0]) for s in (0, 0, 1)]
    assert files[0] == files[1] != files[2]


def test_the_best_epoch_is_never_worse_than_rounding():
    wild = QuantizationAwareTraining(epochs=2, batch_size=16, learning_rate=10.0, optimizer="sgd", distillation=0.0)
    rounded, _ = applied(tiny_model("linear"), Quantization(weight_bits=4))
    net, _ = applied(tiny_model("linear"), Quantization(weight_bits=4), wild)
    data = TASK.data("validation")
    scores = [TASK.score.value(TASK.score.statistics(runnable(n)(data.inputs), data.targets)) for n in (rounded, net)]
    assert scores[1] >= scores[0]


def test_a_norm_that_is_left_is_named_and_its_statistics_stay():
    net, result = applied(tiny_model("batch_norm"), SHORT)
    assert any("put fold_batchnorm before" in note for note in result.notes)
    assert torch.equal(net.module.get_buffer("1.running_mean"), tiny_model("batch_norm").get_buffer("1.running_mean"))


def test_fine_tuning_on_integer_grids_is_refused_and_points_here():
    with pytest.raises(RecipeError, match="or use quantization_aware_training"):
        applied(tiny_model("conv"), Quantization(), FineTune(epochs=1))


def test_without_training_data_nothing_is_rounded_either():
    data = TASK.data("validation")
    net, result = applied(tiny_model("linear"), SHORT, task=Task.classification(validation=(data.inputs, data.targets)))
    assert result.summary() == "no effect: the task has no training data"
    assert not net.encodings


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"weight_bits": 1}, "weight_bits"),
        ({"activation_bits": 17}, "activation_bits"),
        ({"weight_per": "row"}, "weight_per"),
        ({"step_rate": -1.0}, "step_rate"),
        ({"epochs": 0}, "epochs"),
        ({"overrides": {"fc": {"weight_bits": 8}}}, "overrides"),
    ],
)
def test_settings_are_checked(settings, found):
    with pytest.raises(RecipeError, match=found):
        QuantizationAwareTraining(**settings)
