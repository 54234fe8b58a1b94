"""Training with integers in the loop computes what `IntegerNet` computes, and learns scales as LSQ says."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.container import dumps
from lilliput.core.encoding import Encoding, Grid, Sharing
from lilliput.core.errors import DataError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph.integer import IntegerNet
from lilliput.graph.trace import graph_of
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, check_artifact, tiny_model, tiny_task
from lilliput.training.fake_quant import Coded, FakeQuant
from lilliput.training.fit import fit
from lilliput.training.learned_steps import SUFFIX, LearnedSteps, step_gradient
from lilliput.training.settings import Factors, FitSettings
from stopped import KilledError, Stop

TASK = tiny_task(48)
SETTINGS = FitSettings(epochs=2, batch_size=16, learning_rate=1e-2, keep="last")


def quantized(name, *methods, **settings):
    model = tiny_model(name)
    net = Artifact.of(model, TASK.spec)
    context = Context.of(TASK, model)
    for method in (*methods, Quantization(**settings)):
        apply_checked_(method, net, context)
    return net


def trained(net, settings=SETTINGS, **more):
    fit(net, TASK, settings, generator=torch.Generator().manual_seed(0), attach=LearnedSteps, **more)
    net.check()
    return net


@pytest.mark.parametrize(
    "settings", [{}, {"signed": True, "weight_bits": 3}, {"weight_bits": 10, "activation_bits": 16}]
)
@pytest.mark.parametrize("name", TINY)
def test_every_value_in_training_is_what_the_integer_program_has(name, settings):
    net = trained(quantized(name, **settings))
    graph, x = graph_of(net), TASK.data("validation").inputs
    integers, seen = IntegerNet(net, graph), {}
    outputs = integers.values((x,), lambda node, value: seen.__setitem__(node.name, value))
    fake = FakeQuant(net, graph)
    assert torch.equal(fake(x), outputs)
    values, compared = {}, 0
    for node in graph.nodes:
        values[node.name] = fake._compute(node, values, x if node.op == "input" else None)
        if isinstance(values[node.name], Coded):
            assert torch.equal(values[node.name].exact().q, seen[node.name].q)
            compared += 1
    assert compared > 1
    check_artifact(net, tiny_model(name), name, retrace=False)


def per_entry(x, step, low, high):
    """Equations 1 to 3 of the paper, for one number."""
    place = x / step
    if place <= low:
        return low
    if place >= high:
        return high
    return -place + math.floor(place + 0.5)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_gradient_of_a_weights_step_is_the_papers(axis):
    generator = torch.Generator().manual_seed(3)
    raw, gradient = torch.randn((4, 5), generator=generator), torch.randn((4, 5), generator=generator)
    n = 1 if axis is None else raw.shape[axis]
    scale = 0.2 + torch.rand(n, generator=generator)
    grid = Grid(scale=scale, zero_point=torch.zeros(n).long(), bit_width=torch.full((n,), 3), axis=axis)
    mask = torch.rand((4, 5), generator=generator) > 0.3
    found = step_gradient(Encoding.of(raw).with_mask(mask).with_grid(grid), raw, gradient)
    wanted = [0.0] * n
    for i in range(4):
        for j in range(5):
            at = 0 if axis is None else (i, j)[axis]
            if mask[i, j]:
                wanted[at] += per_entry(float(raw[i, j]), float(scale[at]), -4, 3) * float(gradient[i, j])
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_weights_that_share_a_value_have_the_gradient_of_their_mean():
    raw = torch.tensor([[0.3, 0.5, 1.2, 1.4]])
    sharing = Sharing(indices=torch.tensor([[0, 0, 1, 1]]), sizes=torch.tensor([2]))
    encoding = Encoding.of(raw).with_sharing(sharing, torch.tensor([0.4, 1.3]))
    encoding = encoding.with_grid(Grid.per_tensor(0.25, 0, 4, signed=True))
    gradient = torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    wanted = 3 * per_entry(0.4, 0.25, -8, 7) + 8 * per_entry(1.3, 0.25, -8, 7)
    assert step_gradient(encoding, raw, gradient).tolist() == pytest.approx([wanted], rel=1e-5)


def test_activation_steps_get_the_gradient_and_the_size_of_the_paper():
    """One linear layer: the gradient of the input's step by hand, and SGD's step of it."""
    net = quantized("no_bias", weight_bits=8)
    attached = LearnedSteps(net)
    x = TASK.data("validation").inputs[:1]
    name = graph_of(net).inputs[0]
    grid = net.activations[name]
    step, zero = float(grid.scale), int(grid.zero_point)
    attached.network(x)[0, 0].backward()
    probe = x.clone().requires_grad_()
    with torch.no_grad():
        codes = grid.quantize(probe)
    flow = torch.autograd.grad(attached.network(probe)[0, 0], probe)[0].reshape(-1)
    attached.pull_()
    inside = (codes.reshape(-1) > 0) & (codes.reshape(-1) < 255)
    assert bool(inside.all())  # so `flow` is the gradient of the rounded input
    wanted = sum(
        per_entry(float(v), step, -zero, 255 - zero) * float(g) for v, g in zip(x.reshape(-1), flow, strict=True)
    )
    ratio = attached.trainable()[name + SUFFIX]
    size = 1 / math.sqrt(16 * (255 - zero))
    assert ratio.grad is not None
    assert float(ratio.grad) == pytest.approx(wanted * size / step, rel=1e-4)
    torch.optim.SGD([ratio], lr=0.1).step()
    attached.project_()
    assert float(attached._view.activations[name].scale) == pytest.approx(step - 0.1 * size * wanted, rel=1e-5)


def test_slots_zero_points_and_widths_stay_while_scales_move():
    fillers = (MagnitudePruning(scope="layer"), WeightClustering(n_clusters=3, per="channel"))
    before = quantized("conv", *fillers, weight_bits=4)
    after = trained(quantized("conv", *fillers, weight_bits=4))
    for name, e in before.encodings.items():
        now = after.encodings[name]
        assert (e.mask is None) == (now.mask is None)
        if e.mask is not None and e.grid and e.sharing:
            assert now.mask is not None
            assert now.grid is not None
            assert now.sharing is not None
            assert torch.equal(e.mask, now.mask)
            assert torch.equal(e.grid.zero_point, now.grid.zero_point)
            assert torch.equal(e.grid.bit_width, now.grid.bit_width)
            assert not torch.equal(e.grid.scale, now.grid.scale)
            assert bool((now.sharing.sizes <= e.sharing.sizes).all())
    for name, grid in before.activations.items():
        now = after.activations[name]
        assert (int(grid.zero_point), int(grid.bit_width)) == (int(now.zero_point), int(now.bit_width))
        assert float(grid.scale) != float(now.scale)


def test_values_that_share_a_grid_share_it_after_training():
    net = trained(quantized("shared"))
    graph = graph_of(net)
    reads = [n.inputs[0] for n in graph.nodes if n.module == "middle"]
    assert len(reads) == 2
    assert len({float(net.activations[name].scale) for name in reads}) == 1
    assert IntegerNet(net, graph).floats == {}


def test_a_frozen_layer_keeps_its_weight_its_bias_and_the_grid_that_it_reads():
    before = quantized("linear")
    still = Factors(learning_rate=0.0)
    after = trained(quantized("linear"), replace(SETTINGS, parameter_groups={"3.weight": still, "3.bias": still}))
    graph = graph_of(before)
    reads = graph["3"].inputs[0]
    assert before.activations[reads].same(after.activations[reads])
    for name in ("3.weight", "3.bias"):
        assert before.encodings[name].same(after.encodings[name])
    assert not before.encodings["1.weight"].same(after.encodings["1.weight"])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_resumed_training_ends_in_the_same_bytes(tmp_path, keep):
    settings, place = replace(SETTINGS, epochs=4, keep=keep), tmp_path / "qat.checkpoint"
    straight = dumps(trained(quantized("residual", weight_bits=3), settings, hooks=[Stop(0)]))
    net = quantized("residual", weight_bits=3)
    untouched = dumps(net)
    with pytest.raises(KilledError):
        trained(net, settings, checkpoint=place, hooks=[Stop(3)])
    assert dumps(net) == untouched
    assert dumps(trained(net, settings, checkpoint=place, hooks=[Stop(0)])) == straight


def test_a_training_that_diverges_leaves_the_network_and_says_so():
    net = quantized("linear")
    untouched = dumps(net)
    inputs = TASK.data("train").inputs
    task = Task.regression(train=(inputs, torch.full((48, 3), 1e38)), validation=(inputs, torch.zeros(48, 3)))
    with pytest.raises(DataError, match=r"loss is inf|NaN or infinity"):
        fit(net, task, SETTINGS, generator=torch.Generator(), attach=LearnedSteps)
    assert dumps(net) == untouched


def test_without_activation_grids_the_plain_module_computes_and_steps_of_weights_learn():
    net = quantized("batch_norm", weight_bits=2, activation_bits=0)
    before = net.encodings["0.weight"].grid
    assert isinstance(LearnedSteps(net).network, nn.Sequential)
    after = trained(net).encodings["0.weight"].grid
    assert after is not None
    assert not after.same(before)


def test_integers_that_move_in_steps_of_their_grids_learn_them_too():
    settings = replace(SETTINGS, step_rate=0.05)
    before, after = quantized("linear", weight_bits=4), trained(quantized("linear", weight_bits=4), settings)
    old, new = before.encodings["1.weight"], after.encodings["1.weight"]
    assert old.grid is not None
    assert not torch.equal(old.values, new.values)
    assert not old.grid.same(new.grid)
    fake, integers, x = FakeQuant(after, graph_of(after)), IntegerNet(after), TASK.data("validation").inputs
    assert torch.equal(fake(x), integers(x))
