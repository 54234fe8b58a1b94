"""Weight clustering finds the best values that so few can be, for a layer or for each channel."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.encoding import Encoding, Grid
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.methods.clustering.weight_clustering import WeightClustering, cluster
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.testing import tiny_model, tiny_task

TASK = tiny_task(16)
numbers = st.floats(-8, 8, width=16)


def least_error(values, k):
    """By trying every way to cut the sorted values into at most k stretches."""
    line = sorted(values)
    best = float("inf")
    for count in range(1, min(k, len(line)) + 1):
        for cuts in itertools.combinations(range(1, len(line)), count - 1):
            ends = [0, *cuts, len(line)]
            parts = [line[a:b] for a, b in itertools.pairwise(ends)]
            best = min(best, sum(sum((v - sum(p) / len(p)) ** 2 for v in p) for p in parts))
    return best


def applied(model, *methods, shape=(1, 4, 4)):
    net = Artifact.of(model, InputSpec(shape=shape))
    results = [apply_checked_(m, net, Context.of(TASK, model)) for m in methods]
    return net, results[-1]


def squared_error(encoding, values):
    return float((encoding.decode().double() - values.double()).square().sum())


@settings(deadline=None)
@given(st.lists(numbers, min_size=8, max_size=8), st.integers(1, 5))
def test_a_layer_is_clustered_as_well_as_brute_force_can(values, k):
    weight = torch.tensor(values).reshape(2, 2, 1, 2)
    after = cluster(Encoding.of(weight), k, None)
    assert after.sharing is not None
    assert int(after.sharing.sizes) == len(after.values) <= k
    assert squared_error(after, weight) == pytest.approx(least_error(values, k), rel=1e-5, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(numbers, min_size=18, max_size=18), st.integers(1, 3), st.integers(0, 1))
def test_each_channel_is_clustered_as_well_as_brute_force_can(values, k, axis):
    weight = torch.tensor(values).reshape(3, 3, 2)
    after = cluster(Encoding.of(weight), k, axis)
    for channel in range(3):
        row, found = weight.select(axis, channel), after.decode().select(axis, channel)
        error = float((row.double() - found.double()).square().sum())
        assert error == pytest.approx(least_error(row.flatten().tolist(), k), rel=1e-5, abs=1e-9)
        assert len(found.unique()) <= k


@settings(deadline=None, max_examples=40)
@given(st.lists(numbers, min_size=8, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8), st.integers(1, 3))
def test_masked_weights_stay_zero_and_cost_no_cluster(values, kept, k):
    weight, mask = torch.tensor(values).reshape(2, 4), torch.tensor(kept).reshape(2, 4)
    after = cluster(Encoding.of(weight).with_mask(mask), k, None)
    assert bool((after.decode()[~mask] == 0).all())
    chosen = weight[mask]
    if len(chosen):
        error = float((after.decode()[mask].double() - chosen.double()).square().sum())
        assert error == pytest.approx(least_error(chosen.tolist(), k), rel=1e-5, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-127, 127), min_size=8, max_size=8), st.integers(1, 4), st.integers(-3, 3))
def test_on_a_grid_integers_are_clustered_and_centroids_are_integers(codes, k, zero):
    grid = Grid.per_tensor(0.03, zero, 8, signed=True)
    weight = Encoding.of(torch.zeros(2, 4)).with_grid(grid, torch.tensor(codes).reshape(2, 4))
    after = cluster(weight, k, None)
    assert after.grid is not None
    assert after.grid.same(grid)
    assert not after.values.is_floating_point()
    assert len(after.integers().unique()) <= k
    exact = cluster(Encoding.of(torch.tensor(codes).float().reshape(2, 4)), k, None).decode()
    assert float((after.integers() - exact).abs().max()) <= 0.5 + 1e-4


def test_enough_clusters_change_no_weight():
    model = tiny_model("linear")
    net, result = applied(model, WeightClustering(n_clusters=1000))
    assert all(torch.equal(p, net.parameter(n)) for n, p in model.named_parameters())
    assert result.changed == {"1": "192 shared values", "3": "36 shared values"}


def test_neurons_are_output_channels_also_of_transposed_convolutions():
    model = nn.Sequential(nn.ConvTranspose2d(3, 2, 2), nn.Conv2d(2, 4, 1, groups=2))
    by_channel, _ = applied(model, WeightClustering(n_clusters=2, per="channel"), shape=(3, 4, 4))
    by_neuron, _ = applied(model, WeightClustering(n_clusters=2, per="neuron"), shape=(3, 4, 4))
    for name, axis, slices in (("0.weight", 1, 2), ("1.weight", 0, 4)):
        encoding = by_channel.encodings[name]
        assert encoding.same(by_neuron.encodings[name])
        assert encoding.sharing is not None
        assert (encoding.sharing.axis, len(encoding.sharing.sizes)) == (axis, slices)


def test_clusters_are_sorted_distinct_and_all_used():
    net, _ = applied(tiny_model("residual"), MagnitudePruning(), WeightClustering(n_clusters=4, per="channel"))
    for encoding in net.encodings.values():
        assert encoding.sharing is not None
        assert encoding.mask is not None
        start = 0
        rows = encoding.sharing.rows()[encoding.mask]
        for size in encoding.sharing.sizes.tolist():
            table = encoding.values[start : start + size]
            assert bool((table.diff() > 0).all())
            assert size == 1 or set(range(start, start + size)) <= set(rows.tolist())
            start += size


def test_a_channel_that_is_all_pruned_keeps_one_unused_value():
    weight = torch.tensor([[1.0, 2, 3, 9], [4, 5, 6, 7], [-1, 0, 8, 9]])
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    after = cluster(Encoding.of(weight).with_mask(mask), 2, 0)
    assert after.sharing is not None
    assert after.sharing.sizes.tolist() == [2, 1, 2]
    assert bool((after.decode()[1] == 0).all())
    assert after.encode(after.decode()).same(after)


def test_clustering_again_is_no_effect_with_a_reason():
    _, result = applied(tiny_model("linear"), *[WeightClustering(n_clusters=4)] * 2)
    assert result.summary() == "no effect: it has no more than 4 values already"


def test_quantization_after_clustering_keeps_the_clusters():
    net, _ = applied(tiny_model("batch_norm"), FoldBatchNorm(), WeightClustering(n_clusters=4), Quantization())
    for name in ("0.weight", "4.weight"):
        assert len(net.parameter(name).unique()) <= 4


def test_settings_count_by_layer():
    own = {"3": {"n_clusters": 2, "per": "channel"}}
    net, _ = applied(tiny_model("linear"), WeightClustering(n_clusters=8, overrides=own))
    assert {n: len(e.values) for n, e in net.encodings.items()} == {"1.weight": 8, "3.weight": 3 * 2}


def test_more_clusters_than_memory_allows_is_an_error_with_a_remedy():
    weight = torch.linspace(0, 1, 40_000).reshape(200, 200)
    with pytest.raises(RecipeError, match=r"weight_clustering: 20000 clusters of 40000 points .*; use fewer clusters"):
        cluster(Encoding.of(weight), 20_000, None)


@pytest.mark.parametrize("settings_", [{"n_clusters": 0}, {"n_clusters": 65536}, {"per": "row"}])
def test_settings_out_of_range_are_refused(settings_):
    with pytest.raises(RecipeError, match="weight_clustering"):
        WeightClustering(**settings_)
