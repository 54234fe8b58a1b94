"""Cross-layer equalization: the same function, and ranges that are equal on both sides of every channel."""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.equalization import CrossLayerEqualization
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, check_artifact, tiny_model, tiny_task

EQUALIZATION = CrossLayerEqualization()


def equalized(model, shape=(1, 4, 4), methods=(EQUALIZATION,)):
    x = torch.randn((32, *shape), generator=torch.Generator().manual_seed(0))
    task = Task.classification(train=(x, torch.arange(32) % 3))
    model = model.eval()
    net, context = Artifact.of(model, task.spec), Context.of(task, model)
    results = [apply_checked_(m, net, context) for m in methods]
    with torch.no_grad():
        assert torch.allclose(net.module(x), model(x), rtol=1e-3, atol=1e-4 * float(model(x).abs().max()))
    return net, results[-1]


def uneven(model, seed=0, decades=3.0):
    """Channels of very different sizes, as in networks with depthwise convolutions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            sizes = 10 ** (decades * (torch.rand(parameter.shape[0], generator=generator) - 0.5))
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * sizes.reshape(-1, *[1] * (parameter.dim() - 1))
            )
    return model


def chain(*layers):
    return lambda: nn.Sequential(*(make() for make in layers))


def conv(*sizes, **settings):
    return lambda: nn.Conv2d(*sizes, **settings)


def linear(*sizes):
    return lambda: nn.Linear(*sizes)


CHAINS = {
    "mlp": chain(nn.Flatten, linear(16, 12), nn.ReLU, linear(12, 8), nn.LeakyReLU, linear(8, 3)),
    "conv": chain(conv(1, 6, 3, padding=1), nn.ReLU, conv(6, 5, 3), nn.ReLU, nn.Flatten, linear(20, 3)),
    "depthwise": chain(conv(1, 6, 1), nn.ReLU, conv(6, 6, 3, groups=6), nn.ReLU, conv(6, 3, 2), nn.Flatten),
    "grouped": chain(conv(1, 6, 1), nn.ReLU, conv(6, 9, 3, groups=3), nn.ReLU, conv(9, 3, 2), nn.Flatten),
    "pooled": chain(
        conv(1, 6, 3, padding=1),
        nn.ReLU,
        lambda: nn.MaxPool2d(2),
        lambda: nn.ZeroPad2d(1),
        conv(6, 4, 2),
        lambda: nn.AvgPool2d(3),
        nn.Flatten,
        linear(4, 3),
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_function_stays_and_both_sides_have_equal_ranges(chain, seed):
    model = uneven(CHAINS[chain](), seed)
    net, result = equalized(model)
    owners = [m for m in net.module if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert len(result.changed) == len(owners)
    for first, second in itertools.pairwise(owners):
        ours = first.weight.detach().flatten(1).abs().amax(1)
        weight = second.weight.detach().abs()
        groups = getattr(second, "groups", 1)
        by_group = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)  # group, output, input, rest
        by_input = by_group.amax((1, 3)).reshape(-1)
        theirs = by_input.reshape(len(ours), -1).amax(1)
        assert torch.allclose(ours, theirs, rtol=1e-2)


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_networks_compute_the_same(name):
    model = tiny_model(name)
    net, result = equalized(model, methods=(FoldBatchNorm(), CrossLayerEqualization()))
    assert bool(result.changed) == (name in ("linear", "no_bias", "conv", "batch_norm", "grouped"))
    check_artifact(net, model)


def test_a_grid_for_the_whole_tensor_errs_as_if_channels_had_never_been_uneven():
    """Channels 1,000 times larger in one layer and smaller in the next: the function is that of the even network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        even = CHAINS["depthwise"]().eval()
    model = copy.deepcopy(even)
    factor = torch.logspace(-1.5, 1.5, 6)
    with torch.no_grad():
        model[0].weight.mul_(factor.reshape(-1, 1, 1, 1))
        model[0].bias.mul_(factor)
        model[2].weight.div_(factor.reshape(-1, 1, 1, 1))
    x = torch.randn((64, 1, 4, 4), generator=torch.Generator().manual_seed(5))
    task = Task.classification(train=(x, torch.arange(64) % 3))
    errors = []
    for start, methods in ((even, ()), (model, ()), (model, (EQUALIZATION,)), (even, (EQUALIZATION,))):
        net, context = Artifact.of(start, task.spec), Context.of(task, start)
        for method in (*methods, Quantization(weight_per="tensor", activation_bits=0)):
            apply_checked_(method, net, context)
        with torch.no_grad():
            errors.append(float((net.module(x) - even(x)).square().mean()))
    assert errors[1] > 30 * errors[0]
    assert errors[2] < 3 * errors[0]
    assert errors[2] == pytest.approx(errors[3], rel=0.5)


class Twice(nn.Module):
    """The value between the first two layers has two readers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.a(x.flatten(1)))
        return self.c(F.relu(self.b(x)) + x)


def test_what_several_nodes_read_or_no_factor_passes_is_skipped_with_the_reason():
    _, result = equalized(Twice())
    assert result.skipped["a"] == "several nodes read its output"
    assert "add" in result.skipped["b"]
    clipped = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU6(), nn.Linear(4, 3))
    assert "clamp" in equalized(clipped)[1].skipped["1"]
    normed = tiny_model("batch_norm")
    assert "fold_batchnorm" in equalized(normed)[1].skipped["0"]
    tied = equalized(tiny_model("shared"))[1]
    assert "more than once" in tied.skipped["middle"]


def test_linear_layers_on_the_last_of_three_dimensions_are_balanced_and_convolutions_after_them_are_not():
    tokens = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Flatten())
    assert set(equalized(uneven(tokens), shape=(5, 4))[1].changed) == {"0", "2"}
    across = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Conv1d(5, 2, 1), nn.Flatten())
    assert "another dimension" in equalized(across, shape=(5, 4))[1].skipped["0"]


def test_encoded_weights_are_left_alone_and_quantized_networks_refused():
    model, task = tiny_model("linear"), tiny_task()
    net, context = Artifact.of(model, task.spec), Context.of(task, model)
    apply_checked_(MagnitudePruning(), net, context)
    result = apply_checked_(CrossLayerEqualization(), net, context)
    assert not result.changed
    assert "put cross_layer_equalization first" in result.skipped["1"]
    apply_checked_(Quantization(), net, context)
    with pytest.raises(RecipeError, match="before quantization"):
        apply_checked_(CrossLayerEqualization(), net, context)


def test_channels_without_weights_on_one_side_keep_their_size():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].weight[0] = 0
        model[3].weight[:, 1] = 0
    net, _ = equalized(model)
    assert torch.equal(net.module[1].bias[:2], model[1].bias[:2])
