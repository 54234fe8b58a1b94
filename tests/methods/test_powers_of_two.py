"""Quantization on powers of two: every rescaling of a layer is a right shift, in training too."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.export.hls.header import multiplying
from lilliput.graph import stored
from lilliput.graph.aligned import aligned
from lilliput.graph.integer import IntegerNet, runnable
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.aware_training import QuantizationAwareTraining
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, check_artifact, tiny_model, tiny_task
from lilliput.training.power_of_two_steps import PowersOfTwo, on_powers_of_two
from lowered import quantized, quantized_tiny, task_of

SHIFTS = Quantization(requantization="power_of_two")
TRAINING = QuantizationAwareTraining(
    epochs=4,
    batch_size=16,
    learning_rate=1e-2,
    scale_rate=10.0,
    weight_bits=8,
    keep="last",
    requantization="power_of_two",
)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_network_rescales_by_right_shifts(name, bits):
    net = quantized_tiny(name, Quantization(weight_bits=bits, activation_bits=bits, requantization="power_of_two"))
    assert on_powers_of_two(net)
    program = lower(net)
    assert all(value.zero_point == 0 for value in program.values.values())
    assert multiplying(program) == []
    assert all(o.rescale or o.kind in ("table", "max_pool", "reshape", "slice", "pad") for o in program)
    x = net.input.example(9)
    codes = run(program, quantize_input(program, x.numpy()))[0]
    assert np.array_equal(decode(program.values[program.outputs[0]], codes), runnable(net)(x).numpy())


def test_biases_are_on_the_scale_of_the_output():
    net = quantized_tiny("residual", SHIFTS)
    for layer, value in {"first": "relu", "second": "second", "head": "head"}.items():
        grid = net.encodings[f"{layer}.bias"].grid
        assert grid is not None
        assert float(grid.scale) == float(net.activations[value].scale)


def test_the_file_holds_it():
    net = quantized_tiny("residual", SHIFTS)
    x = net.input.example(9)
    for data in (stored.dumps(net), stored.dumps(net, names=False), container.dumps(net)):
        contents = container.loads(data)
        again = stored.stored_artifact(contents) if contents.wiring else contents.replay(tiny_model("residual"))
        assert torch.equal(runnable(again)(x), runnable(net)(x))
    check_artifact(net, tiny_model("residual"), "residual")


class Chain(nn.Module):
    """Sums of sums: the first is read three times, by sums that need coarser and coarser scales."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        for layer, factor in ((self.a, 1), (self.b, 7), (self.c, 40)):
            nn.init.constant_(layer.weight, factor / 6)

    def forward(self, x):
        y = x + self.a(x)
        z = y - self.b(y)
        return torch.tanh(z + torch.relu(self.c(y))) + z


def test_what_is_added_is_never_coarser_than_the_sum():
    net = quantized(Chain().eval(), task_of((6,)), SHIFTS)
    graph = graph_of(net)
    scale = {name: float(grid.scale) for name, grid in net.activations.items()}
    assert scale["add"] == scale["a"] >= scale["input"]
    assert scale["sub"] == scale["b"] >= scale["add"]
    assert scale["add_1"] >= max(scale["sub"], scale["relu"])
    assert all(grid.same(net.activations[n]) for n, grid in aligned(net, graph).items())


def test_an_average_keeps_the_scale_of_what_it_reads():
    net = quantized_tiny("residual", SHIFTS)
    assert float(net.activations["mean"].scale) == float(net.activations["relu_1"].scale)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"weight_range": "output"}, "weight_range: output"),
        ({"symmetric": False}, "symmetric: false"),
        ({"signed": False}, "signed: false"),
        ({"overrides": {"first": {"requantization": "multiplier"}}}, "requantization counts for the whole network"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, found):
    with pytest.raises(RecipeError, match=found):
        Quantization(requantization="power_of_two", **settings)
    with pytest.raises(RecipeError, match="quantization requantization"):
        Quantization(requantization="shift")


@pytest.mark.parametrize("first", [(), (SHIFTS,)])
@pytest.mark.parametrize("name", ["residual", "grouped", "shared"])
def test_training_ends_on_powers_of_two_with_other_scales(name, first):
    model, task = tiny_model(name), tiny_task(48)
    net = Artifact.of(model, task.spec)
    for method in (FoldBatchNorm(), *first):
        apply_checked_(method, net, Context.of(task, model))
    start = copy.deepcopy(net)
    apply_checked_(TRAINING, net, Context.of(task, model))
    assert on_powers_of_two(net)
    assert multiplying(lower(net)) == []
    if first:
        moved = [not grid.same(start.activations[n]) for n, grid in net.activations.items()]
        weights = [(e.grid, start.encodings[n].grid) for n, e in net.encodings.items() if n.endswith("weight")]
        moved += [grid is not None and not grid.same(old) for grid, old in weights]
        assert any(moved)
    x = net.input.example(9)
    again = stored.stored_artifact(container.loads(stored.dumps(net)))
    assert torch.equal(runnable(again)(x), runnable(net)(x))


def test_what_trains_is_what_the_integers_compute():
    net = quantized_tiny("residual", SHIFTS)
    x = net.input.example(7)
    attached = PowersOfTwo(net)
    assert torch.equal(attached.network(x), IntegerNet(net)(x))


def test_training_from_other_grids_is_refused():
    net = quantized_tiny("residual")
    with pytest.raises(RecipeError, match="grids of other scales; give quantization before it the same setting"):
        apply_checked_(TRAINING, net, Context.of(tiny_task(48), tiny_model("residual")))
