"""What calibration sees, and the ranges and grids that follow from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import DataError, UsageError
from lilliput.core.task import CALIBRATION_SAMPLES, Task
from lilliput.graph.integer import integer_values
from lilliput.graph.trace import run, trace
from lilliput.nn.models.digits import DigitsCNN
from lilliput.training.calibrate import BINS, Observation, activation_grid, choose_range, observe_ranges

RELU = Artifact.of(nn.ReLU(), InputSpec(shape=(1,)))
RELU_GRAPH = trace(RELU.module, torch.zeros(2, 1))


def task_of(kind, samples):
    return kind(samples, samples)  # with validation data, all training samples can be picked for calibration


def observation_of(values):
    """The observation of these numbers, as inputs of a network."""
    rows = values.reshape(-1, 1) if len(values) <= CALIBRATION_SAMPLES else values.reshape(100, -1)
    task = task_of(Task.regression, (rows, rows))
    return observe_ranges(RELU, task, ["input"], batch_size=70, graph=RELU_GRAPH)["input"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    images = torch.rand(90, 1, 8, 8)
    task = task_of(Task.classification, (images, torch.arange(90) % 10))
    return Artifact.of(DigitsCNN(), task.spec), task


def test_every_value_is_seen_once_in_its_part(network):
    net, task = network
    graph = trace(net.module, net.input.example(2))
    nodes = integer_values(graph)
    seen = observe_ranges(net, task, nodes, batch_size=32)
    assert list(seen) == nodes
    values = {}

    def keep(node, value):
        values[node.name] = value.flatten()
        return value

    with torch.no_grad():
        run(graph, net.module.state_dict(), task.data("calibration").batch(torch.arange(90))[0], visit=keep)
    for name in nodes:
        got, wanted = seen[name], values[name]
        assert got.total == wanted.numel()
        assert (got.low, got.high) == pytest.approx((float(wanted.min()), float(wanted.max())), abs=1e-6)
        histogram = torch.histc(wanted, BINS, min=got.low, max=got.high).long()
        assert int((got.counts.cumsum(0) - histogram.cumsum(0)).abs().max()) <= 2  # values on an edge
        assert float(got.counts.double() @ got.means) == pytest.approx(float(wanted.double().sum()), rel=1e-4)


def test_batches_do_not_matter_and_the_network_is_left_alone(network):
    net, task = network
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    one, other = (observe_ranges(net, task, ["input", "relu"], batch_size=b) for b in (90, 7))
    for name, got in one.items():
        assert (got.low, got.high) == pytest.approx((other[name].low, other[name].high), abs=1e-5)
    assert torch.equal(one["input"].counts, other["input"].counts)
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    assert not any(m._forward_hooks for m in net.module.modules())


def test_values_that_share_a_grid_are_seen_together(network):
    net, task = network
    apart = observe_ranges(net, task, ["input", "relu"])
    seen = observe_ranges(net, task, ["input", "relu"], shared={"relu": "input"})
    assert seen["relu"] is seen["input"]
    assert seen["input"].low == min(o.low for o in apart.values())
    assert seen["input"].high == max(o.high for o in apart.values())
    assert seen["input"].total == sum(o.total for o in apart.values())


def test_the_task_says_how_a_batch_meets_the_network(network):
    net, task = network
    doubled = replace(task, forward=lambda model, batch: model(2 * batch[0]))
    assert (
        observe_ranges(net, doubled, ["input"])["input"].high == 2 * observe_ranges(net, task, ["input"])["input"].high
    )


@given(seed=st.integers(0, 1000), percent=st.sampled_from([90.0, 99.0, 99.9, 100.0]), shape=st.sampled_from("nut"))
@settings(max_examples=30, deadline=None)
def test_percentiles_are_those_of_numpy_to_one_part_of_the_histogram(seed, percent, shape):
    rng = np.random.default_rng(seed)
    draw = {"n": rng.standard_normal, "u": rng.random, "t": lambda n: rng.standard_t(3, n)}[shape]
    values = draw(500).astype(np.float32)
    observation = observation_of(torch.from_numpy(values))
    low, high = choose_range(observation, "percentile", percentile=percent)
    part = (observation.high - observation.low) / BINS * 1.001
    wanted_high = np.percentile(values, percent, method="inverted_cdf")
    wanted_low = -np.percentile(-values, percent, method="inverted_cdf")
    assert wanted_low - part <= low <= wanted_low
    assert wanted_high <= high <= wanted_high + part
    assert observation.low <= low <= high <= observation.high


def test_min_max_is_exact_and_so_is_the_hundredth_percentile():
    values = torch.randn(300, generator=torch.Generator().manual_seed(0))
    observation = observation_of(values)
    ends = (float(values.min()), float(values.max()))
    assert choose_range(observation, "min_max") == ends
    assert choose_range(observation, "percentile", percentile=100.0) == ends


def squared_error(values, grid):
    return float((grid.dequantize(grid.quantize(values)) - values).double().square().sum())


@given(seed=st.integers(0, 1000), bits=st.sampled_from([2, 4, 8]), relu=st.booleans(), signed=st.booleans())
@settings(max_examples=30, deadline=None)
def test_mse_is_near_the_least_error_of_all_shares(seed, bits, relu, signed):
    values = torch.from_numpy(np.random.default_rng(seed).standard_t(3, 500).astype(np.float32))
    values = values.relu() if relu else values
    observation = observation_of(values)
    found = squared_error(values, activation_grid(observation, "mse", bit_width=bits, signed=signed))
    best = min(
        squared_error(
            values,
            activation_grid(
                replace(observation, low=observation.low * s, high=observation.high * s),
                "min_max",
                bit_width=bits,
                signed=signed,
            ),
        )
        for s in np.arange(1, 101) / 100
    )
    assert found <= 1.02 * best
    assert found <= 1.02 * squared_error(values, activation_grid(observation, "min_max", bit_width=bits, signed=signed))


def test_outliers_are_clipped_by_mse_but_not_by_min_max():
    values = torch.cat([torch.randn(19_999, generator=torch.Generator().manual_seed(0)), torch.tensor([100.0])])
    observation = observation_of(values)
    low, high = choose_range(observation, "mse", bit_width=4)
    assert low > -10
    assert high < 50
    assert choose_range(observation, "min_max")[1] == 100


@pytest.mark.parametrize("method", ["min_max", "percentile", "mse"])
def test_relu_puts_zero_at_the_bottom_of_the_grid(method):
    observation = observation_of(torch.randn(400, generator=torch.Generator().manual_seed(0)).relu())
    assert observation.low == 0
    assert choose_range(observation, method, percentile=99.0)[0] == 0
    assert int(activation_grid(observation, method, signed=False).zero_point) == 0
    assert int(activation_grid(observation, method, signed=True).zero_point) == -128


@pytest.mark.parametrize("signed", [True, False])
def test_zero_is_on_every_grid_exactly(signed):
    for values in (torch.tensor([3.0, 4.0]), torch.tensor([-2.0, -1.0]), torch.zeros(2), torch.tensor([-1.0, 0.5])):
        for method in ("min_max", "percentile", "mse"):
            grid = activation_grid(observation_of(values), method, signed=signed)
            assert float(grid.dequantize(grid.quantize(torch.zeros(1)))) == 0
            assert squared_error(values, grid) < 2e-4


def test_a_symmetric_grid_has_zero_in_the_middle():
    observation = observation_of(torch.tensor([-1.0, 0.25]))
    assert int(activation_grid(observation, signed=True, symmetric=True).zero_point) == 0
    assert int(activation_grid(observation, signed=False, symmetric=True).zero_point) == 128


def test_errors_say_which_value_is_broken(network):
    net, task = network
    broken = net.copy()
    with torch.no_grad():
        broken.parameter("linear.bias")[0] = torch.inf
    with pytest.raises(DataError, match="calibrate 'linear': NaN or infinity"):
        observe_ranges(broken, task, ["input", "linear"])
    with pytest.raises(UsageError, match="'nowhere': the network has no such node"):
        observe_ranges(net, task, ["nowhere"])


def test_wrong_choices_are_errors():
    observation = observation_of(torch.randn(20))
    with pytest.raises(UsageError, match="'entropy': it is not known; use one of min_max, percentile, mse"):
        choose_range(observation, "entropy")
    with pytest.raises(UsageError, match="percentile 50"):
        choose_range(observation, "percentile", percentile=50)
    with pytest.raises(UsageError, match="activations of 1 bits"):
        activation_grid(observation, bit_width=1, signed=True)
    empty = Observation(low=0.0, high=0.0, counts=torch.zeros(BINS).long(), means=torch.zeros(BINS).double())
    with pytest.raises(DataError, match="no values"):
        activation_grid(empty, signed=True)
