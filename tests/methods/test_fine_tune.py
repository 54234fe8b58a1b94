"""Fine-tuning trains the stored numbers and nothing else: slots, unselected layers and the caller stay as they are."""

import pytest
import torch
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.testing import tiny_model, tiny_task

TASK = tiny_task(48)
TUNE = FineTune(epochs=2, batch_size=16, learning_rate=1e-2, keep="last")
WEIGHTS = Quantization(weight_bits=4, activation_bits=0)


def applied(model, *methods, task=TASK, seed=0):
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model, seed=seed)
    results = [apply_checked_(m, net, context) for m in methods]
    return net, results[-1]


def score(net, task=TASK):
    data = task.data("validation")
    with torch.no_grad():
        return task.score.value(task.score.statistics(net.module(data.inputs), data.targets))


@pytest.mark.parametrize(
    "fillers",
    [
        (MagnitudePruning(),),
        (WeightClustering(n_clusters=3),),
        (WEIGHTS,),
        (MagnitudePruning(scope="layer"), WeightClustering(n_clusters=3, per="channel"), WEIGHTS),
    ],
    ids=lambda f: "+".join(m.name for m in f),
)
def test_slots_stay_while_the_numbers_in_them_move(fillers):
    before, _ = applied(tiny_model("conv"), *fillers)
    after, result = applied(tiny_model("conv"), *fillers, TUNE)
    assert set(result.changed) == {"0", "4"}
    for name, e in before.encodings.items():
        now = after.encodings[name]
        assert not torch.equal(e.values, now.values)
        assert (e.mask is None) == (now.mask is None)
        if e.mask is not None:
            assert now.mask is not None
            assert torch.equal(e.mask, now.mask)
        if e.grid is not None:
            assert e.grid.same(now.grid)
        if e.sharing is not None:
            assert now.sharing is not None
            assert bool((now.sharing.sizes <= e.sharing.sizes).all())
            labels = e.sharing.rows() if e.mask is None else e.sharing.rows()[e.mask]
            values = now.decode() if e.mask is None else now.decode()[e.mask]
            for label in labels.unique():  # what shared a value shares one still
                assert len(values[labels == label].unique()) == 1


def test_layers_that_are_not_selected_keep_their_bits():
    model = tiny_model("residual")
    net, result = applied(model, FineTune(epochs=1, batch_size=16, include=("second", "head"), keep="last"))
    assert set(result.changed) == {"second", "head"}
    assert set(result.skipped.values()) == {"not selected by include and skip"}
    for name, p in model.named_parameters():
        assert torch.equal(net.parameter(name), p) == (name.split(".")[0] not in ("second", "head"))


class Scaled(nn.Module):
    """A parameter of its own beside a child that is selected."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(x.flatten(1) * self.scale)


def test_a_parent_that_is_not_selected_does_not_freeze_its_children():
    net, result = applied(Scaled(), FineTune(epochs=1, batch_size=16, include=("fc",), keep="last"))
    assert set(result.changed) == {"fc"}
    assert torch.equal(net.parameter("scale"), torch.ones(16))


def test_the_best_epoch_is_never_worse_than_the_start():
    model = tiny_model("linear")
    wild = FineTune(epochs=3, batch_size=16, learning_rate=30.0, optimizer="sgd", distillation=0.0)
    net, result = applied(model, wild)
    assert score(net) >= score(Artifact.of(model, TASK.spec))
    if not result.effect:
        assert set(result.skipped.values()) == {"training kept the weights from before"}
        assert all(torch.equal(net.parameter(n), p) for n, p in model.named_parameters())


def test_training_helps():
    net, _ = applied(tiny_model("linear"), FineTune(epochs=20, batch_size=16, learning_rate=1e-2))
    assert score(net) > 90


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    files = [container.dumps(applied(tiny_model("conv"), TUNE, seed=s)[0]) for s in (0, 0, 1)]
    assert files[0] == files[1] != files[2]


def test_the_original_teaches_and_is_not_changed():
    model = tiny_model("linear")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    taught, _ = applied(model, FineTune(epochs=30, batch_size=16, learning_rate=1e-2, distillation=1.0, keep="last"))
    alone, _ = applied(model, FineTune(epochs=30, batch_size=16, learning_rate=1e-2, distillation=0.0, keep="last"))
    x = TASK.data("validation").inputs
    with torch.no_grad():
        away = [float((n.module(x) - model(x)).square().mean()) for n in (taught, alone)]
    assert away[0] < away[1] / 100
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_frozen_statistics_stay():
    model = tiny_model("batch_norm")
    still, _ = applied(model, FineTune(epochs=1, batch_size=16, batch_norm="freeze", keep="last"))
    moved, _ = applied(model, FineTune(epochs=1, batch_size=16, keep="last"))
    name = "1.running_mean"
    assert torch.equal(still.module.get_buffer(name), model.get_buffer(name))
    assert not torch.equal(moved.module.get_buffer(name), model.get_buffer(name))


def test_without_training_data_nothing_is_trained_and_it_says_so():
    data = TASK.data("validation")
    task = Task.classification(validation=(data.inputs, data.targets))
    _, result = applied(tiny_model("linear"), TUNE, task=task)
    assert not result.effect
    assert result.summary() == "no effect: the task has no training data"


def test_where_nothing_can_be_trained_nothing_is_and_it_says_so():
    _, result = applied(tiny_model("linear").requires_grad_(False), TUNE)
    assert result.summary() == "no effect: its parameters do not require gradients"
    _, result = applied(tiny_model("linear"), FineTune(include=()))
    assert result.summary() == "no effect: not selected by include and skip"


def test_integer_activations_cannot_be_trained_through():
    with pytest.raises(
        RecipeError, match="activations are already on integer grids; put fine_tune before quantization"
    ):
        applied(tiny_model("linear"), Quantization(), TUNE)


def test_tied_weights_stay_tied():
    net, _ = applied(tiny_model("shared"), MagnitudePruning(), TUNE)
    assert net.parameter("tied.weight") is net.parameter("middle.weight")


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"learning_rate": -1.0},
        {"distillation": 1.5},
        {"optimizer": "lbfgs"},
        {"schedule": "linear"},
        {"keep": "first"},
        {"overrides": {"fc": {"epochs": 2}}},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(RecipeError):
        FineTune(**settings)


def test_the_input_spec_of_the_network_stays():
    net, _ = applied(tiny_model("linear"), TUNE)
    assert net.input == InputSpec(shape=(1, 4, 4), layout="CHW")


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_blend_lies_on_the_line_between_before_and_after(share):
    model = tiny_model("residual")
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    ends = [
        applied(model, FineTune(epochs=2, batch_size=16, keep="last", blend=blend))[0].module for blend in (0.0, share)
    ]
    trained, blended = (dict(end.named_parameters()) for end in ends)
    for name, old in start.items():
        wanted = (1 - share) * trained[name].detach() + share * old
        torch.testing.assert_close(blended[name].detach(), wanted, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(trained[name].detach(), old) for name, old in start.items())


def test_what_is_encoded_is_not_blended():
    with pytest.raises(RecipeError, match="blend"):
        applied(tiny_model("residual"), MagnitudePruning(sparsity=0.5), FineTune(epochs=1, blend=0.5))
