"""Quantization-aware training beats rounding on the same grids, and its learned scales help."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps
from lilliput.core.errors import RecipeError
from lilliput.core.guard import evaluate
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.data.digits import read_digits
from lilliput.data.roles import by_role
from lilliput.graph.integer import runnable
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.testing import check_artifact, tiny_model, tiny_task

TASK = tiny_task(48)
SHORT = QuantizationAwareTraining(epochs=1, batch_size=16, learning_rate=1e-2, keep="last")
DIGITS = QuantizationAwareTraining(epochs=15, batch_size=64, learning_rate=5e-3)


def applied(model, *methods, task=TASK, seed=0):
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model, seed=seed)
    results = [apply_checked_(m, net, context) for m in methods]
    return net, results[-1]


@cache
def digits():
    """A small perceptron that knows handwritten digits (95.6% in float), and its task."""
    roles = by_role(read_digits())
    train, validation = ((roles[role][0].float() / 16, roles[role][1]) for role in ("train", "validation"))
    task = Task.classification(train, validation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)
        )
    float_training = FineTune(epochs=30, learning_rate=1e-2, batch_size=64, distillation=0.0)
    return applied(model, float_training, task=task)[0].module, task


@cache
def loss_and_score(bits, scale_rate):
    """Of what the file computes, on validation; scale_rate None: rounded, not trained."""
    model, task = digits()
    rounding = Quantization(weight_bits=bits, activation_bits=bits, weight_range="mse")
    training = () if scale_rate is None else (replace(DIGITS, scale_rate=scale_rate),)
    net, _ = applied(model, rounding, *training, task=task)
    found = evaluate(runnable(net), task, task.data("validation"), "validation", None, 256, torch.device("cpu"))
    assert found.outputs is not None
    targets = torch.as_tensor(task.data("validation").targets)
    return float(nn.functional.cross_entropy(found.outputs, targets)), task.score.value(found.rows)


@pytest.mark.parametrize(("bits", "loss", "gain"), [(4, 0.95, 0.5), (2, 0.75, 5.0)])
def test_training_beats_rounding_on_the_same_grids(bits, loss, gain):
    rounded, tuned = loss_and_score(bits, None), loss_and_score(bits, 1.0)
    assert tuned[0] < loss * rounded[0]
    assert tuned[1] > rounded[1] + gain


def test_learned_steps_help_at_two_bits():
    learned, still = loss_and_score(2, 1.0), loss_and_score(2, 0.0)
    assert learned[0] < still[0]
    assert learned[1] >= still[1]


def grid_of(net, name):
    grid = net.encodings[name].grid
    assert grid is not None
    return grid


def test_after_quantization_training_starts_from_the_grids_that_are_there():
    rounded, _ = applied(tiny_model("conv"), Quantization(weight_bits=5, activation_bits=6))
    net, result = applied(tiny_model("conv"), Quantization(weight_bits=5, activation_bits=6), SHORT)
    assert set(result.changed) == {"0", "4"}
    for name, grid in rounded.activations.items():
        assert int(net.activations[name].bit_width) == 6
        assert float(net.activations[name].scale) == pytest.approx(float(grid.scale), rel=0.2)
    assert all(int(grid_of(net, n).bit_width.max()) == 5 for n in ("0.weight", "4.weight"))


def test_without_grids_it_makes_those_that_it_is_asked_for():
    net, result = applied(tiny_model("conv"), replace(SHORT, weight_bits=3, activation_bits=5, weight_per="tensor"))
    assert {int(g.bit_width) for g in net.activations.values()} == {5}
    assert grid_of(net, "0.weight").axis is None
    assert int(grid_of(net, "0.weight").bit_width) == 3
    assert "3 bits" in result.changed["0"]
    assert "trained for 1 epochs" in result.changed["0"]


def test_activations_that_stay_in_float_are_said():
    weights_only = Quantization(weight_bits=5, activation_bits=0)
    net, result = applied(tiny_model("conv"), weights_only, SHORT)
    assert not net.activations
    assert "activations stay in float, as weights were on grids already; put quantization before" in result.notes
    _, silent = applied(tiny_model("conv"), weights_only, replace(SHORT, activation_bits=0))
    assert silent.notes == ()


def test_without_steps_every_scale_stays():
    before, _ = applied(tiny_model("residual"), FoldBatchNorm(), Quantization())
    after, result = applied(tiny_model("residual"), FoldBatchNorm(), Quantization(), replace(SHORT, scale_rate=0.0))
    assert all(grid.same(after.activations[name]) for name, grid in before.activations.items())
    weights = [n for n in before.encodings if n.endswith("weight")]
    assert all(grid_of(before, n).same(grid_of(after, n)) for n in weights)
    assert any(not torch.equal(before.encodings[n].values, after.encodings[n].values) for n in weights)
    assert any("scales of 0 of" in note for note in result.notes)


def test_zeros_and_shared_values_stay():
    fillers = (MagnitudePruning(sparsity=0.5, scope="layer"), WeightClustering(n_clusters=4))
    before, _ = applied(tiny_model("linear"), *fillers)
    after, _ = applied(tiny_model("linear"), *fillers, SHORT)
    for name, e in before.encodings.items():
        now = after.encodings[name]
        assert e.mask is not None
        assert now.mask is not None
        assert now.sharing is not None
        assert torch.equal(e.mask, now.mask)
        assert int(now.sharing.sizes.max()) <= 4
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
        ({"scale_rate": -1.0}, "scale_rate"),
        ({"epochs": 0}, "epochs"),
        ({"precision": "bfloat16"}, "precision"),
        ({"overrides": {"fc": {"weight_bits": 8}}}, "overrides"),
    ],
)
def test_settings_are_checked(settings, found):
    with pytest.raises(RecipeError, match=found):
        QuantizationAwareTraining(**settings)
