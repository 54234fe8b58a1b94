"""Mixed precision: the file fits, the choice is the best of all, and it is what quantization then does."""

# pyright: reportCallIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false

import itertools

import pytest
import torch
from torch import nn

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.streams import size_bits
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.mixed_precision import MixedPrecision, _choose
from lilliput.methods.quantization.post_training import Quantization
from lilliput.pipeline.recipe import Recipe, Step, from_data
from lilliput.testing import check_artifact, tiny_task

TASK = tiny_task(96)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (16, 40, 60, 30, 3)
        layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers[:-1]).eval()


def applied(*methods, model=None):
    model = model or network()
    net, context = Artifact.of(model, TASK.spec), Context.of(TASK, model)
    results = [apply_checked_(m, net, context) for m in methods]
    return net, results[-1]


FAST = {"weight_range": "min_max", "activation_bits": 0, "samples": 32}


@pytest.mark.parametrize("limit", [2600, 3400, 4500])
def test_the_file_is_within_its_budget_and_uses_it(limit):
    model = network()
    net, result = applied(MixedPrecision(max_bytes=limit, **FAST), model=model)
    size = len(container.dumps(net, strip=True))
    assert 0.9 * limit < size <= limit
    assert f"{size:,} bytes" in result.notes[-1]
    check_artifact(net, model)


def test_average_bits_count_coded_bits_of_the_weights():
    net, _ = applied(MixedPrecision(average_bits=5.0, activation_bits=8, samples=32, choices=(3, 5, 7)))
    weights = [e for n, e in net.encodings.items() if n.endswith("weight")]
    assert sum(size_bits(e) for e in weights) <= 5.0 * sum(e.values.numel() for e in weights)
    assert net.activations


def test_without_a_budget_there_are_four_bits_a_weight():
    asked, plain = (applied(MixedPrecision(**more, **FAST))[0] for more in ({"average_bits": 4.0}, {}))
    assert container.dumps(asked) == container.dumps(plain)


def test_the_choice_is_the_best_of_all_assignments():
    model = network()
    net, context = Artifact.of(model, TASK.spec), Context.of(TASK, model)
    method = MixedPrecision(average_bits=5.0, choices=(2, 4, 6, 8), **FAST)
    free = {path: f"{path}.weight" for path in ("1", "3", "5", "7")}
    table = method._candidates(net, context, free)
    assert list(table) == list(free)
    for budget in (11_200, 14_000, 20_000, 30_000):
        picked = _choose(table, budget)
        fitting = [c for c in itertools.product(*table.values()) if sum(x.coded_bits for x in c) <= budget]
        best = min(sum(x.loss for x in c) for c in fitting)
        assert sum(c.loss for c in picked.values()) == pytest.approx(best)


def test_losses_are_those_of_the_network_with_one_layer_quantized():
    model = network()
    net, context = Artifact.of(model, TASK.spec), Context.of(TASK, model)
    method = MixedPrecision(average_bits=5.0, choices=(3,), **FAST)
    table = method._candidates(net, context, {"3": "3.weight"})
    alone = Artifact.of(model, TASK.spec)
    apply_checked_(Quantization(weight_bits=3, activation_bits=0, include=("3",)), alone, context)
    x = TASK.data("calibration").batch(torch.arange(32))[0]
    with torch.no_grad():
        hidden, wanted = model[:3](x), model(x)
        shift = (model[3](hidden) - alone.module[3](hidden)).mean(0)
        found = model[4:](alone.module[3](hidden) + shift)
    divergence = (wanted.softmax(1) * (wanted.log_softmax(1) - found.log_softmax(1))).sum(1).mean()
    assert table["3"][0].loss == pytest.approx(float(divergence), rel=1e-3)
    assert table["3"][0].coded_bits == size_bits(alone.encodings["3.weight"])


def test_layers_that_matter_less_get_fewer_bits():
    """In one network what the first layer gives hardly counts: the weights behind it are small against their bias."""
    widths = []
    for factor in (1.0, 0.001):
        model = network()
        with torch.no_grad():
            model[3].weight.mul_(factor)
            model[3].bias.copy_(torch.randn(60, generator=torch.Generator().manual_seed(1)))
        net, _ = applied(MixedPrecision(average_bits=5.0, **FAST), model=model)
        widths.append([int(net.encodings[f"{i}.weight"].grid.bit_width.max()) for i in (1, 5)])
    (first, third), (first_small, third_small) = widths
    assert first_small < first
    assert third_small >= third


def test_a_budget_that_no_choice_meets_is_refused_and_leaves_the_network():
    model = network()
    net, context = Artifact.of(model, TASK.spec), Context.of(TASK, model)
    before = container.dumps(net)
    with pytest.raises(RecipeError, match="smallest choice"):
        apply_checked_(MixedPrecision(max_bytes=500, **FAST), net, context)
    assert container.dumps(net) == before


def test_weights_on_grids_and_layers_left_out_keep_what_they_have():
    first = Quantization(weight_bits=7, activation_bits=0, include=("1",))
    net, result = applied(first, MixedPrecision(average_bits=4.0, skip=("7",), **FAST))
    assert int(net.encodings["1.weight"].grid.bit_width.max()) == 7
    assert "on a grid already" in result.skipped["1"]
    assert "7.weight" not in net.encodings
    assert set(result.changed) == {"3", "5"}


def test_it_works_after_folding_and_in_recipes():
    method = MixedPrecision(max_bytes=10_000, choices=(4, 8), samples=16)
    recipe = Recipe(steps=(Step(passes=(FoldBatchNorm(), method)),))
    assert from_data(recipe.to_data()) == recipe


@pytest.mark.parametrize(
    "settings",
    [{"max_bytes": 9, "average_bits": 3.0}, {"max_bytes": 9, "choices": ()}, {"max_bytes": 9, "choices": (1,)},
     {"max_bytes": 9, "overrides": {"*": {"samples": 3}}}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(RecipeError):
        MixedPrecision(**settings)
