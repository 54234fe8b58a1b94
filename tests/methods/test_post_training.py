"""Quantization: weights within half a step, biases in accumulators, ranges that err least; odd channels included."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.target import Target
from lilliput.core.task import Task
from lilliput.graph.integer import IntegerNet, grids_of, runnable
from lilliput.graph.trace import trace
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import LARGEST_BIAS, Quantization
from lilliput.testing import TINY, tiny_model, tiny_task

TASK = tiny_task(48)
WEIGHTS_ONLY = Quantization(activation_bits=0)


def applied(model, *methods, task=TASK, target=None):
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model, target=target or Target())
    results = [apply_checked_(m, net, context) for m in methods]
    return net, results[-1]


def linear(weight, bias=None):
    """A network of one layer with these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def task_of(features, outputs, *, spread=1.0):
    x = spread * torch.randn((64, features), generator=torch.Generator().manual_seed(0))
    return Task.classification(train=(x, torch.arange(64) % outputs))


def random_weight(seed, scale_spread=3.0):
    """Rows of very different size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((5, 7), generator=generator) * 10 ** (scale_spread * torch.rand((5, 1), generator=generator) - 2)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 999), st.integers(2, 8), st.sampled_from(["channel", "tensor"]), st.booleans(), st.integers(-9, 9)
)
def test_weights_lie_within_half_a_step_and_zero_is_exact(seed, bits, per, symmetric, shift):
    weight = random_weight(seed) + shift / 10
    weight[0, 0] = 0.0
    method = Quantization(weight_bits=bits, weight_per=per, symmetric=symmetric, activation_bits=0)
    net, _ = applied(linear(weight), method, task=task_of(7, 5))
    encoding = net.encodings["weight"]
    grid = encoding.grid
    assert grid is not None
    assert grid.scale.numel() == (5 if per == "channel" else 1)
    half = grid.scale.double().reshape(-1, 1) / 2
    assert bool(((encoding.decode().double() - weight.double()).abs() <= half * (1 + 1e-6)).all())
    assert float(encoding.decode()[0, 0]) == 0.0
    low, high = (bound.reshape(-1, 1) for bound in grid.range())
    q = encoding.integers()
    assert bool(((low <= q) & (q <= high)).all())
    assert bool((grid.zero_point == 0).all()) or not symmetric
    assert int(q.max() - q.min()) < 2**bits - (1 if symmetric else 0)


def test_a_symmetric_scale_takes_the_largest_weight_of_the_channel_to_the_last_code():
    weight = random_weight(1)
    net, _ = applied(linear(weight), WEIGHTS_ONLY, task=task_of(7, 5))
    grid = net.encodings["weight"].grid
    assert grid is not None
    assert torch.allclose(grid.scale, weight.abs().amax(1) / 127, rtol=1e-6)
    assert net.encodings["weight"].integers().abs().amax(1).tolist() == [127] * 5


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_mse_range_never_errs_more_than_min_max(bits, symmetric, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((6, 200), generator=generator) ** 3
    error = {}
    for choice in ("min_max", "mse"):
        method = Quantization(weight_bits=bits, symmetric=symmetric, weight_range=choice, activation_bits=0)
        net, _ = applied(linear(weight), method, task=task_of(200, 6))
        error[choice] = (net.parameter("weight").detach().double() - weight.double()).square().sum(1)
    assert bool((error["mse"] <= error["min_max"] * (1 + 1e-9)).all())
    if bits < 5:
        assert float(error["mse"].sum()) < float(error["min_max"].sum())


def test_percentiles_cut_outliers_and_help_where_tails_are_long():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((4, 500), generator=generator)
    weight[:, 0] = 40.0
    wide, _ = applied(linear(weight), Quantization(weight_bits=4, activation_bits=0), task=task_of(500, 4))
    cut, _ = applied(
        linear(weight),
        Quantization(weight_bits=4, activation_bits=0, weight_range="percentile", percentile=99.5),
        task=task_of(500, 4),
    )
    bulk = [float((net.parameter("weight").detach() - weight)[:, 1:].square().sum()) for net in (wide, cut)]
    assert bulk[1] < bulk[0] / 20
    assert float(cut.parameter("weight").detach().max()) < 5


def test_a_channel_of_zeros_stays_zero_and_harms_nobody():
    weight = random_weight(2)
    weight[3] = 0.0
    bias = torch.randn(5, generator=torch.Generator().manual_seed(0))
    net, result = applied(linear(weight, bias), Quantization(), task=task_of(7, 5))
    assert bool((net.parameter("weight")[3] == 0).all())
    assert "stays in float" not in " ".join(result.notes)
    x = task_of(7, 5).data("train").inputs
    with torch.no_grad():
        found = runnable(net)(x)
    assert float((found[:, 3] - bias[3]).abs().max()) < 1e-5
    assert torch.allclose(found, F.linear(x, weight, bias), atol=0.05 * float(weight.abs().max()))


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_a_layer_that_is_all_pruned_gives_its_bias_exactly(per):
    bias = torch.tensor([1.0, -0.3, 0.0, 1e-3, 20.0])
    net, _ = applied(linear(torch.zeros(5, 7), bias), Quantization(weight_per=per), task=task_of(7, 5))
    with torch.no_grad():
        found = runnable(net)(task_of(7, 5).data("train").inputs)
    assert float((found - bias).abs().max()) < 20 / LARGEST_BIAS


def test_a_huge_bias_coarsens_its_own_channel_only_and_stays_integer():
    weight = random_weight(3, scale_spread=0.0)
    weight[1] *= 1e-7
    bias = torch.tensor([0.1, 500.0, -0.2, 0.0, 0.3])
    plain, _ = applied(linear(weight), Quantization(), task=task_of(7, 5))
    net, result = applied(linear(weight, bias), Quantization(), task=task_of(7, 5))
    before, after = plain.encodings["weight"].grid, net.encodings["weight"].grid
    assert before is not None
    assert after is not None
    assert (after.scale > before.scale).tolist() == [False, True, False, False, False]
    assert int(net.encodings["bias"].integers().abs().max()) <= LARGEST_BIAS + 1
    assert len(result.notes) == 1
    assert IntegerNet(net).floats == {}
    x = task_of(7, 5).data("train").inputs
    with torch.no_grad():
        assert torch.allclose(runnable(net)(x)[:, 1], F.linear(x, weight, bias)[:, 1], atol=1e-3)


def test_weights_of_a_coarsened_channel_are_rounded_once():
    """From the float weight straight to the coarser grid: two roundings would miss the nearest code."""
    weight = random_weight(4, scale_spread=0.0)
    bias = torch.full((5,), 3e4)
    net, _ = applied(linear(weight, bias), Quantization(), task=task_of(7, 5))
    encoding = net.encodings["weight"]
    assert encoding.grid is not None
    assert torch.equal(encoding.integers(), encoding.grid.quantize(weight))


class TiedBiases(nn.Module):
    """One weight, two layers, biases of very different size."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        with torch.no_grad():
            self.a.weight[2] = 0.0
            self.b.bias.fill_(1e5)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


def test_tied_weights_get_one_grid_that_serves_both_biases():
    net, result = applied(TiedBiases(), Quantization(), task=task_of(6, 6))
    assert len(result.notes) == 1
    assert IntegerNet(net).floats == {}


@pytest.mark.parametrize("name", TINY)
def test_biases_lie_within_half_a_step_of_their_accumulator(name):
    model = tiny_model(name)
    net, _ = applied(model, FoldBatchNorm(), Quantization())
    folded, _ = applied(model, FoldBatchNorm())
    graph = trace(net.module, net.input.example(2))
    grids = grids_of(graph, net.activations)
    seen = 0
    for node in graph.nodes:
        bias = net.encodings.get(node.state.get("bias", ""))
        if node.op in ("conv", "linear") and bias is not None and bias.grid is not None:
            weight = net.encodings[net.canonical(node.state["weight"])].grid
            assert weight is not None
            unit = grids[node.inputs[0]].scale * weight.scale
            assert torch.equal(bias.grid.scale, unit.reshape(bias.grid.scale.shape))
            error = (bias.decode().double() - folded.parameter(node.state["bias"]).double()).abs()
            assert bool((error <= unit.double() * 0.5001).all())
            seen += 1
    assert seen or name == "no_bias"


def test_without_activations_only_weights_change():
    model = tiny_model("conv")
    net, result = applied(model, WEIGHTS_ONLY)
    assert net.activations == {}
    assert set(net.encodings) == {"0.weight", "4.weight"}
    assert result.changed == {"0": "8 bits per channel", "4": "8 bits per channel"}
    assert runnable(net) is net.module


def test_one_bit_is_left_unused_where_the_target_asks_for_it():
    target = Target("onnx-x86", reduce_range=True)
    for bits, used in ((8, 7), (6, 6)):
        net, _ = applied(tiny_model("linear"), Quantization(weight_bits=bits), target=target)
        for name in ("1.weight", "3.weight"):
            grid = net.encodings[name].grid
            assert grid is not None
            assert set(grid.bit_width.tolist()) == {used}
            assert int(net.encodings[name].integers().abs().max()) <= 2 ** (used - 1) - 1


@pytest.mark.parametrize(
    ("target", "own", "signed"),
    [("onnx-x86", None, False), ("onnx-arm", None, True), ("cortex-m4", None, True), ("onnx-x86", True, True)],
)
def test_activations_are_signed_as_the_target_wants_unless_told(target, own, signed):
    net, result = applied(tiny_model("linear"), Quantization(signed=own), target=Target(target))
    assert {g.signed for g in net.activations.values()} == {signed}
    assert result.notes == (f"2 values on 8-bit grids ({'signed' if signed else 'unsigned'})",)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_activation_grids_have_the_bits_that_were_asked_for(bits):
    net, _ = applied(tiny_model("conv"), Quantization(activation_bits=bits))
    assert {int(g.bit_width) for g in net.activations.values()} == {bits}


@pytest.mark.parametrize("target", ["onnx-x86", "cortex-m4"])
def test_wide_activations_are_signed_with_zero_point_0_unless_told(target):
    net, result = applied(tiny_model("conv"), Quantization(activation_bits=16), target=Target(target))
    assert {(g.signed, int(g.zero_point)) for g in net.activations.values()} == {(True, 0)}
    assert "16-bit grids (signed)" in result.notes[0]
    net, _ = applied(tiny_model("conv"), Quantization(activation_bits=16, signed=False), target=Target(target))
    assert {g.signed for g in net.activations.values()} == {False}


@pytest.mark.parametrize(("weights", "activations"), [(12, 8), (16, 8), (8, 16)])
def test_wide_biases_cost_weights_no_bits(weights, activations):
    """Steps of wide sums are small: biases are stored in more of them than an encoding holds, as powers of two."""
    model = tiny_model("linear")
    with torch.no_grad():
        model.get_parameter("1.bias").copy_(torch.linspace(-9, 9, 12))
        wanted, weight = (model.get_parameter(f"1.{name}").clone() for name in ("bias", "weight"))
    net, _ = applied(model, Quantization(weight_bits=weights, activation_bits=activations))
    assert float((net.encodings["1.bias"].decode() - wanted).abs().max()) < 9 / 2**21
    error = (net.encodings["1.weight"].decode() - weight).abs().max()
    assert float(error) < 0.51 * float(weight.abs().max()) / (2 ** (weights - 1) - 1)
    assert IntegerNet(net).floats == {}


def test_a_layer_whose_sums_may_not_fit_says_so():
    _, result = applied(tiny_model("linear"), Quantization(weight_bits=16, activation_bits=16))
    assert "1 stays in float: its sums may need more than 32 bits" in result.notes


def test_min_max_activations_hold_every_calibration_value():
    model = tiny_model("linear")
    net, _ = applied(model, Quantization(activation_range="min_max"))
    x = TASK.data("calibration").inputs
    grid = net.activations["input"]
    assert float((grid.dequantize(grid.quantize(x)) - x).abs().max()) <= float(grid.scale) / 2 * 1.0001


def test_pruned_and_shared_weights_keep_mask_and_clusters():
    net, _ = applied(tiny_model("conv"), MagnitudePruning(), WeightClustering(n_clusters=4), Quantization())
    for name in ("0.weight", "4.weight"):
        e = net.encodings[name]
        assert e.mask is not None
        assert e.sharing is not None
        assert e.grid is not None
        assert e.grid.scale.numel() == 1  # one table, one scale
        assert bool((e.decode()[~e.mask] == 0).all())
        assert len(e.decode()[e.mask].unique()) <= 4


def test_weights_on_a_grid_keep_it():
    once, _ = applied(tiny_model("conv"), Quantization(weight_bits=4, activation_bits=0))
    twice, result = applied(tiny_model("conv"), Quantization(weight_bits=4, activation_bits=0), WEIGHTS_ONLY)
    assert all(e.same(twice.encodings[n]) for n, e in once.encodings.items())
    assert not result.effect
    assert set(result.skipped.values()) == {"its weight is on a grid already (4 bits per channel)"}


def test_settings_of_weights_count_by_layer():
    method = Quantization(weight_bits=8, overrides={"3": {"weight_bits": 3, "weight_per": "tensor"}})
    net, _ = applied(tiny_model("linear"), method)
    described = {n: net.encodings[f"{n}.weight"].describe() for n in ("1", "3")}
    assert described == {"1": "8 bits per channel", "3": "3 bits"}


def test_a_layer_that_is_not_selected_runs_in_float_between_grids():
    model = tiny_model("linear")
    net, result = applied(model, Quantization(skip=("1",)))
    assert result.skipped == {"1": "not selected by include and skip"}
    assert "1 stays in float: its weight is not quantized" in result.notes
    assert torch.equal(net.parameter("1.weight"), model.get_parameter("1.weight"))
    assert IntegerNet(net).floats == {"1": "its weight or bias has no integer grid"}


def test_calibration_reads_the_calibration_role_only():
    class Counting(torch.utils.data.Dataset):
        def __init__(self):
            self.read = 0

        def __len__(self):
            return 40

        def __getitem__(self, i):
            self.read += 1
            return TASK.data("train").inputs[i], 0

    train, validation, test = Counting(), Counting(), Counting()
    task = Task.classification(train, validation, test, input=InputSpec(shape=(1, 4, 4)))
    applied(tiny_model("linear"), Quantization(), task=task)
    assert train.read > 0
    assert validation.read == test.read == 0


@pytest.mark.parametrize(
    "settings_",
    [
        {"weight_bits": 1},
        {"weight_bits": 17},
        {"activation_bits": 1},
        {"activation_bits": 17},
        {"weight_bits": 9, "weight_range": "output"},
        {"weight_per": "row"},
        {"weight_range": "max"},
        {"activation_range": "entropy"},
        {"percentile": 40.0},
    ],
)
def test_settings_out_of_range_are_refused(settings_):
    with pytest.raises(RecipeError, match="quantization"):
        Quantization(**settings_)


def output_error(net, model, task=TASK):
    x = torch.cat([x for x, _ in task.data("calibration").batches(64)])
    with torch.no_grad():
        return float((runnable(net)(x) - model(x)).square().mean())


@pytest.mark.parametrize("name", ["linear", "no_bias", "conv", "residual", "grouped"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_searched_outputs_err_less_than_those_of_the_plain_ranges(name, bits, per):
    model = tiny_model(name)
    settings = {"weight_bits": bits, "activation_bits": 0, "weight_per": per}
    errors = []
    for more in ({}, {"weight_range": "mse"}, {"weight_range": "output", "rounding": "output"}):
        net, _ = applied(model, FoldBatchNorm(), Quantization(**settings, **more))
        errors.append(output_error(net, model))
    assert errors[2] < min(errors[:2])


@pytest.mark.parametrize("first", [MagnitudePruning(sparsity=0.5, scope="layer"), WeightClustering(n_clusters=5)])
def test_searched_integers_leave_masks_and_tables_as_they_are(first):
    model = tiny_model("grouped")
    before, _ = applied(model, first)
    searched = Quantization(weight_bits=4, weight_range="output", rounding="output", size_weight=0.01)
    net, _ = applied(model, first, searched)
    for name, old in before.encodings.items():
        new = net.encodings[name]
        assert old.mask is None or torch.equal(old.mask, new.mask)
        assert old.sharing is None or new.sharing.sizes.le(old.sharing.sizes).all()
    assert not IntegerNet(net).floats


def test_other_ranges_may_stand_beside_searched_ones():
    method = Quantization(
        weight_bits=3, weight_range="output", overrides={"head": {"weight_range": "min_max", "weight_bits": 8}}
    )
    net, result = applied(tiny_model("residual"), FoldBatchNorm(), method)
    assert set(result.changed) == {"first", "second", "head"}
    head = net.encodings["head.weight"]
    assert torch.equal(head.grid.scale, (head.decode().abs().amax(1) / 127))


def test_layers_that_search_cannot_serve_are_quantized_too():
    model = nn.Sequential(nn.ConvTranspose2d(1, 3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(192, 3)).eval()
    net, result = applied(model, Quantization(weight_range="output", rounding="output"))
    assert set(result.changed) == {"0", "3"}
    assert not IntegerNet(net).floats


@pytest.mark.parametrize("settings", [{"rounding": "output"}, {"size_weight": 0.1}, {"rounding": "stochastic"}])
def test_settings_of_the_search_need_the_search(settings):
    with pytest.raises(RecipeError):
        Quantization(**settings)
