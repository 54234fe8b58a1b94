"""Two networks side by side: layers see what they would see, and moments are those of real outputs."""

# pyright: reportCallIssue=false, reportOptionalMemberAccess=false

import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.edits import Slice
from lilliput.core.method import Context, apply_checked_
from lilliput.graph.integer import runnable
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, tiny_model, tiny_task
from lilliput.training.lockstep import Lockstep, moments_of
from lilliput.training.moments import moments, patches_of

TASK = tiny_task(48)


def started(name, *methods, edited=False):
    model = tiny_model(name)
    net, context = Artifact.of(model, TASK.spec), Context.of(TASK, model, batch_size=20)
    for method in methods:
        apply_checked_(method, net, context)
    return net, context, Lockstep(net, model, context, edited=edited)


@pytest.mark.parametrize("name", TINY)
def test_a_network_beside_itself_gives_what_it_should(name):
    _, _, lockstep = started(name)
    seen = []

    def visit(turn):
        seen.append(turn.node.name)
        for ours, wanted in zip(turn.outputs(), turn.wanted, strict=True):
            assert torch.equal(ours, wanted)
        return False

    lockstep.run(visit)
    assert seen == [n.name for n in lockstep.graph.nodes if n.op in ("conv", "linear")]


@pytest.mark.parametrize("name", ["batch_norm", "conv1d", "residual"])
def test_a_folded_layer_is_compared_with_its_batch_norm(name):
    _, _, lockstep = started(name, FoldBatchNorm(), edited=True)

    def visit(turn):
        for ours, wanted in zip(turn.outputs(), turn.wanted, strict=True):
            assert torch.allclose(ours, wanted, atol=1e-4)
        return False

    lockstep.run(visit)
    assert not lockstep.missing


def test_removed_channels_are_left_out_of_the_comparison():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    net, context = Artifact.of(model, TASK.spec), Context.of(TASK, model)
    for edit in (
        Slice(path="1.weight", dim=0, index=(7, 2, 5)),
        Slice(path="1.bias", dim=0, index=(7, 2, 5)),
        Slice(path="1.weight", dim=0, index=(2, 0)),
        Slice(path="1.bias", dim=0, index=(2, 0)),
        Slice(path="3.weight", dim=1, index=(5, 7)),
    ):
        edit.replay_(net.module)
        net.edits.append(edit)
    first = []

    def visit(turn):
        if turn.node.module == "1":
            first.extend(torch.allclose(a, b, atol=1e-6) for a, b in zip(turn.outputs(), turn.wanted, strict=True))
        return False

    Lockstep(net, model, context, edited=True).run(visit)
    assert first
    assert all(first)


def test_a_change_is_what_later_layers_read():
    net, _, lockstep = started("linear")
    inputs = {}

    def visit(turn):
        inputs[turn.node.module] = torch.cat(turn.inputs)
        if turn.node.module == "1":
            net.write_("1.weight", torch.zeros(12, 16))
            net.write_("1.bias", torch.full((12,), 2.5))
            return True
        return False

    lockstep.run(visit)
    assert bool((inputs["3"] == 2.5).all())


@pytest.mark.parametrize("name", ["linear", "conv", "grouped"])
def test_layers_of_an_integer_network_read_decoded_integers(name):
    net, context, _ = started(name, Quantization())
    lockstep = Lockstep(net, tiny_model(name), context, edited=True)
    integer = runnable(net)
    x = torch.cat([args[0] for args in lockstep.inputs])
    values = {}
    integer.values((x,), lambda node, value: values.update({node.name: value}))

    def visit(turn):
        assert torch.equal(torch.cat(turn.inputs), values[turn.node.inputs[0]].decode())
        return True

    lockstep.run(visit)


@pytest.mark.parametrize("name", ["conv", "grouped", "conv1d", "linear"])
def test_patches_times_weights_are_the_outputs(name):
    net, _, lockstep = started(name, FoldBatchNorm())

    def visit(turn):
        weight = net.parameter(turn.node.state["weight"]).detach()
        patches = patches_of(turn.node, turn.inputs[0])
        rows = weight.flatten(1).reshape(len(patches), -1, patches.shape[2])
        found = torch.einsum("gpn,gcn->pgc", patches, rows).flatten(1)
        y = next(turn.outputs())
        dim = 1 if turn.node.op == "conv" else -1
        bias = net.parameter(turn.node.state["bias"]).detach()
        assert torch.allclose(found + bias, y.movedim(dim, -1).reshape(found.shape), atol=1e-5)
        return False

    lockstep.run(visit)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", ["grouped", "conv1d", "linear"])
def test_moments_give_the_squared_error_of_other_weights(name, centred):
    net, context, lockstep = started(name, FoldBatchNorm())

    def visit(turn):
        known = moments(turn, context.generator, centred=centred)
        weight = net.parameter(turn.node.state["weight"]).detach()
        other = torch.round(weight * 4) / 4
        state = {turn.node.state["weight"]: other, turn.node.state["bias"]: torch.zeros(len(weight))}
        dim = 1 if turn.node.op == "conv" else -1
        gap = torch.cat(
            [(a - b).movedim(dim, -1).flatten(0, -2) for a, b in zip(turn.wanted, turn.outputs(state), strict=True)]
        )
        gap = gap.double()
        error = (gap - gap.mean(0) if centred else gap).square().mean(0)
        found = known.error(other.flatten(1).double())
        size = other.flatten(1).double().square().sum(1)  # a thousandth of the inputs' variance is damping
        assert bool(((found - error).abs() <= 2e-3 * size + 1e-5).all())
        return False

    lockstep.run(visit)


def test_means_do_not_depend_on_the_batches():
    x = torch.randn((30, 4, 5), generator=torch.Generator().manual_seed(1)) + 100
    mean, variance = moments_of(iter(x.split(7)), 1)
    assert torch.allclose(mean, x.double().mean((0, 2)))
    assert torch.allclose(variance, x.double().var((0, 2), correction=0))
