"""Magnitude pruning drops exactly as many weights as asked, and exactly the right ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning, lamp_scores, smallest
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import TINY, tiny_model, tiny_task

TASK = tiny_task(16)
SCOPES = ("global", "layer", "lamp")
few = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=12)
sparsities = st.floats(0, 0.999)


def pruned(model, *methods):
    net = Artifact.of(model, TASK.spec)
    results = [apply_checked_(m, net, Context.of(TASK, model)) for m in methods]
    return net, results[-1]


def masks_of(net):
    return {n: e.mask for n, e in net.encodings.items() if e.mask is not None}


def weights_of(model):
    """Of layers whose weights are compressed, tied ones once."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    found = {
        id(m.weight): (f"{p}.weight", m.weight.detach())
        for p, m in reversed(list(model.named_modules()))
        if isinstance(m, kinds)
    }
    return dict(reversed(found.values()))


@given(few)
def test_lamp_scores_are_those_of_a_plain_loop(values):
    w = torch.tensor(values).reshape(1, -1)
    squares = sorted(((v * v, i) for i, v in enumerate(values)))
    expected = [0.0] * len(values)
    for place, (square, i) in enumerate(squares):
        remaining = sum(s for s, _ in squares[place:])
        expected[i] = square / remaining if remaining else 0.0
    assert lamp_scores(w).tolist() == [pytest.approx(expected, rel=1e-12)]


@given(st.lists(st.floats(-1e3, 1e3, width=32).filter(lambda v: abs(v) > 1e-3), min_size=1, max_size=20))
def test_the_best_score_of_a_layer_is_one_and_scores_grow_with_magnitude(values):
    scores, magnitudes = lamp_scores(torch.tensor(values)), torch.tensor(values).abs()
    assert float(scores.max()) == 1.0
    order = torch.argsort(magnitudes, stable=True)
    assert bool((scores[order].diff() >= 0).all())


@given(few, st.data())
def test_the_smallest_are_exactly_so_many_and_of_equal_ones_the_first(values, data):
    count = data.draw(st.integers(0, len(values)))
    expected = sorted(range(len(values)), key=lambda i: (values[i], i))[:count]
    assert torch.nonzero(smallest(torch.tensor(values), count)).flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", TINY)
@settings(max_examples=8, deadline=None)
@given(sparsity=sparsities)
def test_sparsity_is_exact(name, scope, sparsity):
    model = tiny_model(name)
    net, result = pruned(model, MagnitudePruning(sparsity=sparsity, scope=scope))
    masks, weights = masks_of(net), weights_of(model)
    dropped = {n: int((~masks[n]).sum()) if n in masks else 0 for n in weights}
    if scope == "layer":
        assert dropped == {n: round(sparsity * w.numel()) for n, w in weights.items()}
    else:
        assert sum(dropped.values()) == round(sparsity * sum(w.numel() for w in weights.values()))
    assert set(masks) <= set(weights)
    assert len(result.changed) == sum(count > 0 for count in dropped.values())


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_what_is_dropped_is_never_larger_than_what_is_kept(scope):
    model = tiny_model("grouped")
    net, _ = pruned(model, MagnitudePruning(sparsity=0.37, scope=scope))
    masks, weights = masks_of(net), weights_of(model)
    groups = [list(weights)] if scope == "global" else [[n] for n in weights]
    for names in groups:
        kept = torch.cat([weights[n][masks[n]] for n in names]).abs()
        dropped = torch.cat([weights[n][~masks[n]] for n in names]).abs()
        assert float(dropped.max()) <= float(kept.min())


def test_lamp_keeps_the_largest_weight_of_every_layer():
    model = tiny_model("conv")
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1e-3)
    weights = weights_of(model)
    total, layers = sum(w.numel() for w in weights.values()), len(weights)
    net, _ = pruned(model, MagnitudePruning(sparsity=1 - (layers + 0.1) / total, scope="lamp"))
    assert {n: int(m.sum()) for n, m in masks_of(net).items()} == dict.fromkeys(weights, 1)
    everything, _ = pruned(model, MagnitudePruning(sparsity=1 - (layers + 0.1) / total, scope="global"))
    assert int(masks_of(everything)["0.weight"].sum()) == 0


@pytest.mark.parametrize("scope", SCOPES)
@settings(max_examples=10, deadline=None)
@given(first=sparsities, second=sparsities)
def test_masks_only_grow(scope, first, second):
    model = tiny_model("conv")
    once, _ = pruned(model, MagnitudePruning(sparsity=first, scope=scope))
    twice, _ = pruned(model, *(MagnitudePruning(sparsity=s, scope=scope) for s in (first, second)))
    straight, _ = pruned(model, MagnitudePruning(sparsity=max(first, second), scope=scope))
    for name, mask in masks_of(once).items():
        assert not bool((masks_of(twice)[name] & ~mask).any())
    assert sum(int((~m).sum()) for m in masks_of(twice).values()) == sum(
        int((~m).sum()) for m in masks_of(straight).values()
    )


def test_kept_weights_keep_their_bits_and_biases_are_untouched():
    model = tiny_model("residual")
    net, _ = pruned(model, MagnitudePruning(sparsity=0.5))
    masks = masks_of(net)
    for name, p in model.named_parameters():
        now = net.parameter(name).detach()
        assert torch.equal(now, torch.where(masks[name], p, 0.0) if name in masks else p)


def test_only_selected_layers_are_pruned_and_overrides_count():
    model = tiny_model("linear")
    method = MagnitudePruning(sparsity=0.5, scope="layer", overrides={"*": {"sparsity": 0.25}, "3": {"sparsity": 0.75}})
    net, _ = pruned(model, method)
    assert {n: float((~m).float().mean()) for n, m in masks_of(net).items()} == {"1.weight": 0.25, "3.weight": 0.75}
    net, result = pruned(model, MagnitudePruning(sparsity=0.5, skip=("3",)))
    assert list(masks_of(net)) == ["1.weight"]
    assert result.skipped == {"3": "not selected by include and skip"}
    assert result.changed == {"1": "50.0% zero"}


def test_pruning_nothing_is_no_effect_with_a_reason():
    _, result = pruned(tiny_model("linear"), MagnitudePruning(sparsity=0.0))
    assert not result.effect
    assert result.summary() == "no effect: none of its weights is among the smallest"


def test_pruning_again_as_much_is_no_effect():
    _, result = pruned(tiny_model("linear"), *[MagnitudePruning(sparsity=0.5)] * 2)
    assert not result.effect


def test_a_shared_weight_is_counted_and_pruned_once():
    net, result = pruned(tiny_model("shared"), MagnitudePruning(sparsity=0.5, scope="layer"))
    assert int((~masks_of(net)["middle.weight"]).sum()) == 32
    assert result.skipped == {"tied": "shares its weight with middle"}
    assert torch.equal(net.parameter("tied.weight"), net.parameter("middle.weight"))


def test_quantized_weights_are_pruned_on_their_grid():
    net, _ = pruned(tiny_model("batch_norm"), FoldBatchNorm(), Quantization(), MagnitudePruning(sparsity=0.5))
    for encoding in (net.encodings["0.weight"], net.encodings["4.weight"]):
        assert encoding.grid is not None
        assert encoding.mask is not None
        assert bool((encoding.decode()[~encoding.mask] == 0).all())


def test_a_layer_of_zeros_goes_first_and_divides_by_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 3))
    with torch.no_grad():
        model.get_parameter("1.weight").zero_()
    net = Artifact.of(model, InputSpec(shape=(1, 4, 4)))
    apply_checked_(MagnitudePruning(sparsity=64 / 76, scope="lamp"), net, Context.of(TASK, model))
    assert {n: int((~m).sum()) for n, m in masks_of(net).items()} == {"1.weight": 64}


@pytest.mark.parametrize("settings_", [{"sparsity": 1.0}, {"sparsity": -0.1}, {"scope": "row"}, {"sparsity": True}])
def test_settings_out_of_range_are_refused(settings_):
    with pytest.raises(RecipeError, match="magnitude_pruning"):
        MagnitudePruning(**settings_)
