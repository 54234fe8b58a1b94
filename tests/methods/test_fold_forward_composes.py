"""A BatchNorm that goes forward, with what comes before and after it: pruning, quantization, reports."""

import copy
import math

import pytest
import torch
from torch import nn

from folding import fill_
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.edits import Fold
from lilliput.core.method import Context, apply_checked_
from lilliput.graph.integer import IntegerNet
from lilliput.graph.trace import graph_of
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.nn.models.lenet import MNISTCNN
from lilliput.report.difference import difference
from lilliput.training.lockstep import Lockstep
from lowered import task_of

TASK = task_of((1, 10, 10))


def small(seed=0):
    """Both norms go forward: through a pooling into a convolution, through an average into a linear layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            nn.Conv2d(1, 8, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(8, affine=False), nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(6), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(6, 3),
        ]  # fmt: skip
        return fill_(nn.Sequential(*layers), seed)


def applied(model, *methods, task=TASK):
    net, context = Artifact.of(model, task.spec), Context.of(task, model)
    return net, [apply_checked_(method, net, context) for method in methods]


def outputs(module, count=12):
    x = torch.randn((count, 1, 10, 10), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return module(x)


def test_what_went_where_is_said():
    _, (result,) = applied(small(), FoldBatchNorm())
    assert result.changed == {"4": "took in 2", "2": "folded into 4", "9": "took in 6", "6": "folded into 9"}
    assert result.skipped == {"0": "not a BatchNorm, and none goes into it"}


def test_a_norm_without_parameters_that_stays_says_why():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4, affine=False)).eval()
    _, (result,) = applied(model, FoldBatchNorm())
    assert not result.effect
    assert result.skipped["2"].endswith("; forward: it is an output of the network")


def test_a_layer_that_is_skipped_takes_nothing_in():
    net, (result,) = applied(small(), FoldBatchNorm(skip=("9",)))
    assert result.skipped["6"] == "not selected by include and skip"
    assert [edit.norm for edit in net.edits if isinstance(edit, Fold)] == ["2"]


def test_the_network_of_self_compression_keeps_its_function_and_no_norm():
    task = task_of((1, 28, 28), samples=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = fill_(MNISTCNN(), 0)
    net, (result,) = applied(model, FoldBatchNorm(), task=task)
    assert result.changed["norm1"] == "folded into conv3"
    assert result.changed["norm2"] == "folded into classifier"
    assert "batch_norm" not in [node.op for node in graph_of(net).nodes]
    x = task.data("validation").inputs
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(x.double())
        assert float((net.module(x) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("fold_first", [True, False])
def test_channels_are_removed_before_or_after_and_the_file_replays_it(fold_first):
    """Before it, the norm itself loses channels; after it, the bias that it left has them."""
    model = small()
    order = [FoldBatchNorm(), ChannelPruning(amount=0.4)]
    net, _ = applied(model, *(order if fold_first else order[::-1]))
    assert net.module.get_submodule("0").get_parameter("weight").shape[0] < 8
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.module.modules())
    again = container.loads(container.dumps(net)).replay(copy.deepcopy(model))
    assert torch.equal(outputs(again.module), outputs(net.module))


def test_folding_a_pruned_network_leaves_its_function_as_it_is():
    net, _ = applied(small(), ChannelPruning(amount=0.4))
    wanted = outputs(copy.deepcopy(net.module))
    apply_checked_(FoldBatchNorm(), net, Context.of(TASK, net.module))
    assert len([edit for edit in net.edits if isinstance(edit, Fold)]) == 2
    assert torch.allclose(outputs(net.module), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_pruned_and_quantized_it_runs_in_integers_alone():
    net, _ = applied(small(), FoldBatchNorm(), MagnitudePruning(sparsity=0.3), Quantization())
    integer = IntegerNet(net)
    assert integer.floats == {}
    again = container.loads(container.dumps(net)).replay(small(1))
    assert torch.equal(outputs(IntegerNet(again)), outputs(integer))


def test_layers_are_compared_with_themselves_and_unscaled_values_not_at_all():
    model = small()
    net, _ = applied(model, FoldBatchNorm())
    found = difference(net, model, TASK).sqnr
    assert set(found) == {"0", "4", "9"}  # not 7, the average of what is no longer scaled
    assert found["0"] == math.inf
    assert all(v > 90 for v in found.values())


def test_lockstep_compares_layers_with_themselves():
    model = small()
    net, _ = applied(model, FoldBatchNorm())
    lockstep = Lockstep(net, model, Context.of(TASK, model, batch_size=20), edited=True)
    seen = []

    def visit(turn):
        seen.append(turn.node.name)
        for ours, wanted in zip(turn.outputs(), turn.wanted, strict=True):
            assert torch.allclose(ours, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        return False

    lockstep.run(visit)
    assert seen == ["0", "4", "9"]
    assert lockstep.missing == {}
