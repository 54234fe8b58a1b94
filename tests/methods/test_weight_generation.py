"""The pass: what the weights are afterwards, what the file holds of it, and what passes after it may do."""

import shutil
import subprocess
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lilliput as ll
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import RecipeError
from lilliput.core.grid import Grid
from lilliput.core.method import Context, apply_checked_
from lilliput.export.c import project
from lilliput.graph.integer import runnable
from lilliput.graph.interpreter import decode, quantize_input, run
from lilliput.graph.lower import lower
from lilliput.methods.weight_generation.codebook import clustered
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.selection import of_layer
from lilliput.methods.weight_generation.sizing import Sizes
from lilliput.testing import tiny_model, tiny_task

TASK = tiny_task(96)
LAYERS = ("0", "2", "5")


def model():
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()


def applied(*passes, module=None, seed=0) -> tuple[Artifact, Any]:
    """(network, the last result)"""
    net = Artifact.of(model() if module is None else module, TASK.spec)
    results = [
        apply_checked_(each, net, replace(Context.of(TASK, net.module), generator=torch.Generator().manual_seed(seed)))
        for each in passes
    ]
    return net, results[-1]


def made(net) -> dict[str, Any]:
    return {name: e for name, e in net.encodings.items() if e.bank is not None}


def integers(encoding):
    """Of the weights that are left."""
    live = torch.ones(encoding.shape, dtype=torch.bool) if encoding.mask is None else encoding.mask
    grid = encoding.grid
    return encoding.integers()[live & (grid.spread(grid.bit_width, len(encoding.shape)) > 0)]


def at(net, name) -> Any:
    return net.encoding(name)


def in_bits(net, name, bits):
    """Signed integers, a scale and a width for each output channel."""
    weight, width = net.parameter(name), torch.tensor(bits)
    reach = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-6)
    scale = reach / (2.0 ** (width.clamp(min=2) - 1) - 1)
    net.encode_(name, Encoding.of(weight).with_grid(Grid(scale=scale, zero_point=0 * width, bit_width=width, axis=0)))


@pytest.mark.parametrize("solver", ["clusters", "free"])
@pytest.mark.parametrize("share", ["network", "layer"])
@pytest.mark.parametrize("values", [1, 5, 16])
def test_there_are_at_most_so_many_values_and_each_weight_has_the_nearest(values, share, solver):
    net, result = applied(ll.WeightGeneration(values=values, share=share, solver=solver))
    before, _ = applied(ll.WeightGeneration(solver="exact"))  # the same grids, every integer kept
    banks = {id(e.bank): e.bank for e in made(net).values()}
    assert len(banks) == (1 if share == "network" else len(LAYERS))
    assert set(result.changed) == set(LAYERS)
    for name, encoding in made(net).items():
        known = encoding.bank.values
        assert len(known) <= values
        real = at(before, name).integers().reshape(-1, 1)
        least = (real - known).abs().amin(1)
        assert torch.equal((integers(encoding).reshape(-1) - real.reshape(-1)).abs(), least)


def test_exact_keeps_every_integer():
    net, _ = applied(ll.WeightGeneration(solver="exact"))
    for name, encoding in made(net).items():
        off = (encoding.decode() - model().get_parameter(name).detach()).abs()
        assert bool((off <= encoding.grid.spread(encoding.grid.scale, len(encoding.shape)) * 0.5001).all())


@pytest.mark.parametrize("share", ["network", "layer"])
def test_what_is_read_again_computes_the_same(share):
    net, _ = applied(ll.MagnitudePruning(sparsity=0.3), ll.WeightGeneration(share=share), ll.Quantization())
    again = container.loads(container.dumps(net)).replay(model())
    assert all(at(again, name).same(e) for name, e in net.encodings.items())
    x = TASK.data("validation").batch(torch.arange(32))[0]
    with torch.no_grad():
        assert torch.equal(runnable(again)(x), runnable(net)(x))


def test_a_circuit_of_several_layers_is_in_the_file_once():
    one, _ = applied(ll.WeightGeneration(values=40))
    own = one.copy()
    for name, encoding in made(one).items():  # the same values, from another circuit for each layer
        net = encoding.bank.netlist
        spare = replace(net, outputs=net.outputs[::-1] if name == "2.weight" else net.outputs[1:] + net.outputs[:1])
        if name != "0.weight":
            own.encode_(name, replace(encoding, bank=replace(encoding.bank, netlist=spare)))
    contents = container.loads(container.dumps(one))
    circuits = [s for streams in contents.streams.values() for s in streams if s.slot == "circuit"]
    (packed,) = {e.bank.netlist.pack() for e in made(one).values()}
    assert [s.raw_bits for s in circuits] == [8 * len(packed)]
    assert len(container.dumps(own)) > len(container.dumps(one)) + 1.5 * len(packed)
    banks = [contents.tensors[f"{layer}.weight"].bank for layer in LAYERS]
    assert banks[0] is banks[1]
    assert banks[0] is banks[2]


def test_given_layers_keep_every_weight_and_are_inputs():
    net, result = applied(ll.WeightGeneration(given="0", values=30))
    kept = at(net, "0.weight")
    assert kept.bank is None
    assert result.skipped["0"] == "its weights are given"
    off = (kept.decode() - model().get_parameter("0.weight").detach()).abs()
    assert bool((off <= kept.grid.spread(kept.grid.scale, 4) * 0.5001).all())
    bank = at(net, "2.weight").bank
    assert bank.netlist.inputs > 0
    assert set(bank.inputs) <= set(kept.integers().reshape(-1).tolist())
    assert at(net, "5.weight").bank is bank


def test_given_constants_are_inputs_too():
    net, _ = applied(ll.WeightGeneration(given="= -77, 53", solver="free", values=12))
    inputs = at(net, "0.weight").bank.inputs
    assert inputs
    assert set(inputs) <= {-77, 53}


@pytest.mark.parametrize(("given", "wanted"), [("core", "outer"), ("outer", "core")])
def test_core_from_outer_and_the_other_way(given, wanted):
    pass_ = ll.WeightGeneration(given=f"2 {given} 1", wanted=f"2 {wanted} 1", values=6)
    net, result = applied(pass_)
    before, _ = applied(ll.WeightGeneration(include=("2",), solver="exact"))
    old, new = at(before, "2.weight").integers(), at(net, "2.weight").integers()
    stays = torch.zeros(old.shape, dtype=torch.bool)
    stays[:, :, 1, 1] = True
    stays = stays if given == "core" else ~stays
    assert torch.equal(new[stays], old[stays])
    assert not torch.equal(new[~stays], old[~stays])
    (account,) = result.statistics["circuits"]
    assert account["weights"] == int((~stays).sum())
    assert account["values"] <= 6
    assert {layer: result.skipped[layer] for layer in ("0", "5")} == dict.fromkeys(("0", "5"), "not wanted")


def test_a_layer_is_made_whole_or_the_rest_is_asked_for():
    with pytest.raises(RecipeError, match="are neither given nor wanted; a layer is made whole"):
        applied(ll.WeightGeneration(wanted="2 core 1", values=4))
    _, result = applied(ll.WeightGeneration(given="2 core 1", values=4))
    assert result.skipped == {"2": "partly given, and none of the rest wanted"}
    with pytest.raises(
        RecipeError, match=r"weight_generation, given and wanted weights: .* in both; give each weight once"
    ):
        applied(ll.WeightGeneration(given="2", wanted="2"))
    with pytest.raises(RecipeError, match="it has no grid; select the layers that are given, too"):
        applied(ll.WeightGeneration(given="0", skip=("0",)))


def test_a_circuit_of_a_layer_makes_what_this_layer_wants():
    """Also where one expression names several layers."""
    plain, first = applied(ll.WeightGeneration(share="layer", values=5))
    named, second = applied(ll.WeightGeneration(share="layer", values=5, wanted="*"))
    assert first.statistics == second.statistics
    assert all(named.encoding(name).same(e) for name, e in plain.encodings.items())
    assert [of_layer("conv* core 3", path) for path in ("conv2", "head")] == ["conv2 core 3", None]
    assert of_layer("= 3", "conv2") is None


def test_overrides_are_of_their_layers():
    net, _ = applied(
        ll.WeightGeneration(share="layer", values=4, overrides={"2": {"values": 9, "weight_per": "tensor"}})
    )
    sizes = {name: len(e.bank.values) for name, e in made(net).items()}
    assert sizes["2.weight"] == 9
    assert max(sizes["0.weight"], sizes["5.weight"]) <= 4
    assert at(net, "2.weight").grid.axis is None
    assert at(net, "0.weight").grid.axis == 0


def stored_bits(result):
    return sum(row["stored_bits"] for row in result.statistics["circuits"])


def loss_of(net):
    x, y = TASK.data("calibration").batch(torch.arange(96))
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net.module(x), y))


@pytest.fixture(scope="module")
def trained():
    return applied(ll.FineTune(epochs=15, batch_size=16, learning_rate=0.01))[0].module


def test_a_larger_loss_takes_fewer_bits_and_is_kept(trained):
    before, bits = loss_of(Artifact.of(trained, TASK.spec)), list[int]()
    for most in (0.001, 0.02, 0.2):
        net, result = applied(ll.WeightGeneration(share="layer", values=128, max_loss=most, samples=96), module=trained)
        bits.append(stored_bits(result))
        assert loss_of(net) <= before + most + 0.001  # and what the grids of 8 bits have moved
    assert bits[0] > bits[1] > bits[2]


class Uneven(nn.Module):
    """Two layers of the same weights, of which one counts a hundredth in the answer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.loud, self.quiet = nn.Linear(16, 3), nn.Linear(16, 3)
        self.quiet.load_state_dict(self.loud.state_dict())

    def forward(self, x):
        x = x.flatten(1)
        return self.loud(x) + 0.01 * self.quiet(x)


def test_the_layer_whose_errors_cost_more_gets_more_values():
    method = ll.WeightGeneration(share="layer", values=48, max_loss=0.01, samples=96)
    net, _ = applied(method, module=Uneven().eval())
    loud, quiet = (len(at(net, f"{name}.weight").bank.values) for name in ("loud", "quiet"))
    assert loud >= 3 * quiet


def test_training_moves_weights_among_the_values_and_lowers_the_loss():
    start, _ = applied(ll.WeightGeneration(values=6))
    tuned, _ = applied(ll.WeightGeneration(values=6), ll.FineTune(epochs=6, batch_size=16, learning_rate=0.02))
    moved = 0
    for name, encoding in made(tuned).items():
        bank = at(start, name).bank
        assert encoding.bank.same(bank)
        assert set(integers(encoding).tolist()) <= set(bank.values.tolist())
        moved += int((integers(encoding) != integers(at(start, name))).sum())
    assert moved > 0
    assert loss_of(tuned) < 0.9 * loss_of(start)


@pytest.mark.parametrize(
    "after", [(), (ll.QuantizationAwareTraining(epochs=2, batch_size=16),)], ids=["quantized", "trained on integers"]
)
def test_activations_get_integers_and_the_circuit_stays(after):
    start, _ = applied(ll.WeightGeneration(values=9))
    net, _ = applied(ll.WeightGeneration(values=9), ll.Quantization(), *after)
    assert net.activations
    for name, encoding in made(start).items():
        bank = at(net, name).bank
        assert bank is not None, name
        assert bank.same(encoding.bank)
        assert set(integers(at(net, name)).tolist()) <= set(encoding.bank.values.tolist())


def test_weights_that_are_gone_take_no_part():
    net = Artifact.of(model(), TASK.spec)
    in_bits(net, "2.weight", [8, 0, 8, 8, 6, 0])
    mask = torch.rand((3, 96), generator=torch.Generator().manual_seed(0)) < 0.5
    net.encode_("5.weight", at(net, "5.weight").with_mask(mask))
    result: Any = apply_checked_(ll.WeightGeneration(values=7, share="layer"), net, Context.of(TASK, net.module))
    weights = {row["layers"][0]: row["weights"] for row in result.statistics["circuits"]}
    assert weights == {"0": 54, "2": 4 * 54, "5": int(mask.sum())}
    second = at(net, "2.weight")
    assert bool((second.decode()[[1, 5]] == 0).all())
    assert len(integers(second).unique()) <= 7
    assert int(second.integers()[4].abs().max()) <= 32  # of 6 bits
    assert bool((at(net, "5.weight").decode()[~mask] == 0).all())
    gone = Artifact.of(model(), TASK.spec)
    in_bits(gone, "2.weight", [0] * 6)
    result = apply_checked_(ll.WeightGeneration(), gone, Context.of(TASK, gone.module))
    assert result.skipped == {"2": "all its weights are pruned"}


@pytest.mark.parametrize("module", ["grouped", "conv1d", "shared", "widths"])
def test_the_program_and_its_c_are_exact(module, tmp_path):
    """Depthwise, grouped and linear layers; scales for each channel; pruned weights; channels of few bits and none."""
    net = Artifact.of(model() if module == "widths" else tiny_model(module), TASK.spec)
    if module == "widths":
        in_bits(net, "2.weight", [8, 0, 4, 8, 6, 0])
    passes = ll.FoldBatchNorm(), ll.MagnitudePruning(sparsity=0.3), ll.WeightGeneration(values=11), ll.Quantization()
    for method in passes:
        apply_checked_(method, net, Context.of(TASK, net.module))
    assert len(made(net)) >= 2
    program = lower(net)
    x = TASK.data("validation").batch(torch.arange(16))[0]
    with torch.no_grad():
        expected = runnable(net)(x).numpy()
    found = decode(program.values[program.outputs[0]], run(program, quantize_input(program, x.numpy()))[0])
    assert np.array_equal(found, expected)
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("gcc or make is not installed")
    project.write(program, tmp_path)
    done = subprocess.run(["make", "-s", "test"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_given_weights_that_several_circuits_read_count_once():
    _, result = applied(ll.WeightGeneration(share="layer", given="0", solver="exact"))
    first, second = result.statistics["circuits"]
    assert first["given_bits"] == second["given_bits"] == 8 * 54
    plain = -(-(first["plain_bits"] + second["plain_bits"] - 8 * 54) // 8)
    assert plain == sum(p.numel() for p in model().parameters() if p.dim() > 1)
    assert f"({plain:,} plain" in result.notes[0]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"wanted": "given", "given": "0"}, "'given': a file cannot keep weights and make them"),
        ({"max_loss": 0.1, "solver": "exact"}, "max_loss: solver 'exact'; use clusters or free"),
        ({"max_loss": 0.1, "importance": "none"}, "max_loss: importance 'none'; use importance: fisher"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, found):
    with pytest.raises(RecipeError, match=found):
        ll.WeightGeneration(**settings)


def test_a_loss_that_is_no_number_keeps_nothing():
    sizes = Sizes.of([Problem.of_values([], [1, 2, 9])], [clustered], most=[3])
    assert sizes.keeping(lambda solutions: float("nan"), 1.0) is None
    assert sizes.keeping(lambda solutions: 0.0, 1.0) is not None
