"""Pruning under an acceptance set decides as a plain loop with a full forward for each candidate."""

# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOptionalSubscript=false, reportArgumentType=false, reportIndexIssue=false, reportOptionalMemberAccess=false, reportOptionalOperand=false, reportCallIssue=false

import json

import pytest
import torch
from torch import nn

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.consolidation import pruning as module
from lilliput.methods.consolidation.pruning import AcceptancePruning, bisect, ranks
from lilliput.methods.consolidation.sic import Sic
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from patterned import MODELS, trained

SEQUENTIAL, LAYER, VALUES = "per_neuron_sequential", "per_layer_binary_search", "per_neuron_binary_values"
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def data(task):
    return task.train.batch(torch.arange(len(task.train)))


class Oracle:
    """The strategies as they are published: weights in place, a full forward of all samples for each candidate."""

    def __init__(self, model, x, y):
        self.model, self.x, self.y, self.candidates = model, x, y, 0

    def good(self):
        self.candidates += 1
        return bool((self.model(self.x).argmax(1) == self.y).all())

    def sequential(self, values):
        """`values`: a view, changed in place."""
        flat = [(abs(float(v)), i) for i, v in enumerate(values.flatten()) if v != 0]
        for _, i in sorted(flat):
            place = torch.unravel_index(torch.tensor(i), values.shape)
            before = values[place].clone()
            values[place] = 0.0
            if not self.good():
                values[place] = before
                return

    def bisected(self, tensors, groups):
        """`groups`: lists of (tensor, flat number), the smallest first; how many of these can be zero?"""
        before = [t.clone() for t in tensors]

        def put(count):
            for t, old in zip(tensors, before, strict=True):
                t.copy_(old)
            for group in groups[:count]:
                for t, i in group:
                    t[torch.unravel_index(torch.tensor(i), t.shape)] = 0.0

        low, high = 0, len(groups)
        while low < high:
            middle = (low + high + 1) // 2
            put(middle)
            if self.good():
                low = middle
            else:
                high = middle - 1
        put(low)

    def smallest(self, tensors):
        every = [(abs(float(v)), n, i) for n, t in enumerate(tensors) for i, v in enumerate(t.flatten()) if v != 0]
        self.bisected(tensors, [[(tensors[n], i)] for _, n, i in sorted(every)])

    def values(self, row):
        flat = row.flatten().tolist()
        names = sorted({v for v in flat if v != 0}, key=lambda v: (abs(v), v))
        self.bisected([row], [[(row, i) for i, v in enumerate(flat) if v == name] for name in names])

    def run(self, strategy, include_bias, max_passes):
        for _ in range(max_passes):
            before = [p.clone() for p in self.model.parameters()]
            for layer in (m for m in self.model.modules() if isinstance(m, LAYERS)):
                biases = [layer.bias] if include_bias and layer.bias is not None else []
                if strategy == LAYER:
                    self.smallest([layer.weight, *biases])
                    continue
                for row in layer.weight.movedim(int(isinstance(layer, nn.ConvTranspose2d)), 0):
                    (self.sequential if strategy == SEQUENTIAL else self.values)(row)
                for bias in biases:
                    (self.sequential(bias) if strategy == SEQUENTIAL else self.smallest([bias]))
            if all(torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True)):
                return


def oracle(model, task, start=None, *, strategy=SEQUENTIAL, include_bias=False, max_passes=1):
    """What `start` (else the model) becomes, and the number of candidates; all that both get right stays right."""
    x, y = data(task)
    start = model if start is None else start
    with torch.no_grad():
        right = (model(x).argmax(1) == y) & (start(x).argmax(1) == y)
        found = Oracle(start, x[right], y[right])
        found.run(strategy, include_bias, max_passes)
    return found


def pruned(model, task, net=None, **settings):
    net = Artifact.of(model, task.spec) if net is None else net
    return net, apply_checked_(AcceptancePruning(**settings), net, Context.of(task, model))


def same(net, model):
    return [n for n, value in model.named_parameters() if not torch.equal(net.module.get_parameter(n), value)] == []


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"include_bias": True, "max_passes": 3, "tiered_asc": {"fast": 7}},
        {"strategy": LAYER},
        {"strategy": LAYER, "include_bias": True, "max_passes": 2},
        {"strategy": VALUES},
        {"strategy": VALUES, "include_bias": True, "tiered_asc": {"fast": 5}},
    ],
    ids=lambda s: "-".join(str(v) for v in s.values()) or "default",
)
def test_decisions_are_those_of_a_plain_loop(name, settings):
    model, task = trained(name)
    net, result = pruned(model, task, **settings)
    wanted = oracle(model, task, **{k: v for k, v in settings.items() if k != "tiered_asc"})
    assert same(net, model)
    assert f"{wanted.candidates:,} candidates" in result.notes
    assert f"{len(wanted.x)} of {len(wanted.x)} samples of train keep their class" in result.notes
    assert result.effect


@pytest.mark.parametrize("strategy", [SEQUENTIAL, LAYER, VALUES])
def test_with_few_samples_in_view_all_are_right_in_the_end(strategy):
    model, task = trained("mlp")
    net, result = pruned(model, task, strategy=strategy, tiered_asc={"fast": 2, "medium": 4})
    x, y = data(task)
    with torch.no_grad():
        right = model(x).argmax(1) == y
        assert bool((net.module(x).argmax(1) == y)[right].all())
    assert any(row["searched_again"] for row in result.statistics["layers"].values())
    assert result.effect


@pytest.mark.parametrize("strategy", [SEQUENTIAL, VALUES])
@pytest.mark.parametrize("before", [Sic(mode="exact"), WeightClustering(n_clusters=5, per="channel")])
def test_after_sharing_the_shared_values_stay_and_the_mask_grows(strategy, before):
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    apply_checked_(before, net, Context.of(task, model))
    start, encodings = net.copy().module, dict(net.encodings)
    net, result = pruned(model, task, net, strategy=strategy)
    wanted = oracle(model, task, start, strategy=strategy)
    assert same(net, start)
    assert f"{wanted.candidates:,} candidates" in result.notes
    for path in result.changed:
        old, new = encodings[f"{path}.weight"], net.encoding(f"{path}.weight")
        assert new.sharing is not None
        for a, b in zip(old.decode(), new.decode(), strict=True):
            assert set(b[b != 0].tolist()) <= set(a.tolist())
        kept = torch.ones(old.shape, dtype=torch.bool) if old.mask is None else old.mask
        assert bool((kept | ~new.mask).all())
        assert int(new.mask.sum()) < int(kept.sum())
        assert torch.equal(new.mask, new.decode() != 0)


def test_whole_shared_values_leave_with_binary_values():
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    apply_checked_(WeightClustering(n_clusters=6, per="channel"), net, Context.of(task, model))
    old = net.encoding("1.weight").decode()
    net, result = pruned(model, task, net, strategy=VALUES)
    assert "1" in result.changed
    for a, b in zip(old, net.module[1].weight, strict=True):
        gone = set(a[(a != 0) & (b == 0)].tolist())
        assert not gone & set(b[b != 0].tolist())
        assert all(abs(v) <= min([abs(w) for w in b[b != 0].tolist()], default=1e9) for v in gone)


@pytest.mark.parametrize("settings", [{"activation_bits": 0}, {"activation_bits": 0, "weight_per": "tensor"}, {}])
@pytest.mark.parametrize("include_bias", [False, True])
def test_weights_on_a_grid_stay_on_it(settings, include_bias):
    model, task = trained("convolutions")
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model)
    apply_checked_(FoldBatchNorm(), net, context)
    apply_checked_(Quantization(weight_bits=4, **settings), net, context)
    start, encodings = net.copy().module, dict(net.encodings)
    net, result = pruned(model, task, net, include_bias=include_bias)
    oracle(model, task, start, include_bias=include_bias)
    assert same(net, start)
    assert result.effect
    for name, e in net.encodings.items():
        assert e.grid.same(encodings[name].grid), name
        live = e.decode() != 0
        assert torch.equal(e.integers()[live], encodings[name].integers()[live])
    assert any("integer activations" in note for note in result.notes) == (settings == {})


def test_samples_that_were_lost_before_are_left_out_and_counted():
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    apply_checked_(MagnitudePruning(sparsity=0.9, scope="layer"), net, Context.of(task, model))
    start = net.copy().module
    x, y = data(task)
    with torch.no_grad():
        first = model(x).argmax(1) == y
        lost = int((first & (start(x).argmax(1) != y)).sum())
    assert lost
    net, result = pruned(model, task, net)
    wanted = oracle(model, task, start)
    assert same(net, start)
    assert f"{lost} samples that the original gets right had been lost before" in result.notes
    assert f"{len(wanted.x)} of {len(wanted.x)} samples of train keep their class" in result.notes


@pytest.mark.parametrize("strategy", [SEQUENTIAL, LAYER, VALUES])
def test_where_nothing_can_go_it_says_no_effect(strategy):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
    x = torch.tensor([[[1.0, 0.9]], [[0.9, 1.0]], [[0.1, -1.0]], [[-1.0, 0.1]]])
    with torch.no_grad():
        y = model(x).argmax(1)
    net, result = pruned(model, Task.classification(train=(x, y), validation=(x, y)), strategy=strategy)
    assert not result.effect
    assert set(result.skipped) == {"1"}
    assert net.encodings == {}
    assert torch.equal(net.module[1].weight, torch.eye(2))
    assert not any(row["success"] for row in result.statistics["convergence"])
    assert result.statistics["pruning"]["zeros_after"] == result.statistics["pruning"]["zeros_before"]


def test_a_second_run_of_the_same_search_finds_nothing_and_a_layer_of_zeros_is_named():
    model, task = trained("mlp")
    with torch.no_grad():
        model[3].weight.zero_()
        model[5].bias.copy_(torch.tensor([1.0, 0.5, 0.2]))
    x, _ = data(task)
    with torch.no_grad():
        y = model(x).argmax(1)
    task = Task.classification(train=(x, y), validation=(x[:30], y[:30]))
    net, first = pruned(model, task, max_passes=9)
    assert first.skipped["3"] == "all of it is zero"
    assert set(first.changed) == {"1", "5"}  # only biases count
    assert bool((net.module[1].weight == 0).all())
    _, second = pruned(model, task, net, max_passes=9)
    assert not second.effect
    assert len(second.statistics["passes"]) == 1


def test_biases_stay_without_include_bias_and_a_bias_of_two_layers_always():
    model, task = trained("mlp")
    model[1], model[3] = nn.Linear(64, 8), nn.Linear(8, 8)
    with torch.no_grad():
        for layer in (model[1], model[3], model[5]):
            layer.weight.copy_(torch.linspace(-1, 1, layer.weight.numel()).sin().view_as(layer.weight))
            layer.bias.fill_(1e-6)
    for tied in (False, True):
        if tied:
            model[3].bias = model[1].bias
        for include_bias in (False, True):
            net, result = pruned(model, task, include_bias=include_bias)
            gone = [bool((net.module[i].bias == 0).all()) for i in (1, 3, 5)]
            assert gone == [include_bias and not tied, include_bias and not tied, include_bias]
            assert ("biases became zero" in result.changed.get("3", "")) == gone[1]


def test_overrides_give_a_layer_its_own_strategy():
    model, task = trained("mlp")
    mixed, result = pruned(model, task, overrides={"1": {"strategy": LAYER}}, skip=("3", "5"))
    alone, _ = pruned(model, task, strategy=LAYER, include=("1",))
    assert torch.equal(mixed.module[1].weight, alone.module[1].weight)
    assert result.statistics["layers"]["1"]["strategy"] == LAYER
    assert set(result.changed) == {"1"}


@pytest.mark.parametrize("stop", [2, 5])
def test_an_interrupted_run_goes_on_to_the_same_weights(stop, tmp_path, monkeypatch):
    model, task = trained("convolutions")
    whole, result = pruned(model, task, include_bias=True, max_passes=3)
    written, write = [], module.write_checkpoint

    def interrupted(*args):
        write(*args)
        written.append(args)
        if len(written) == stop:
            raise KeyboardInterrupt

    method, context = AcceptancePruning(include_bias=True, max_passes=3), Context.of(task, model)
    context.checkpoint = tmp_path / "x.checkpoint"
    monkeypatch.setattr(module, "write_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply_checked_(method, Artifact.of(model, task.spec), context)
    net = Artifact.of(model, task.spec)
    monkeypatch.setattr(module, "write_checkpoint", write)
    again = apply_checked_(method, net, context)
    assert same(net, whole.module)
    assert again.notes == result.notes
    assert [p["became_zero"] for p in again.statistics["passes"]] == [
        p["became_zero"] for p in result.statistics["passes"]
    ]


def test_statistics_count_what_is_in_the_network():
    model, task = trained("convolutions")
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model)
    found = apply_checked_(AcceptancePruning(include_bias=True), net, context).statistics
    rows = found["convergence"]
    for path, row in found["layers"].items():
        weight, bias = net.module.get_submodule(path).weight, net.module.get_submodule(path).bias
        assert row["zero_weights_after"] == int((weight == 0).sum())
        assert row["zero_biases_after"] == int((bias == 0).sum())
        mine = [r for r in rows if r["layer"] == path]
        assert row["candidates"] == sum(r["candidates"] for r in mine)
        assert sum(r["became_zero"] for r in mine) == row["zero_weights_after"] + row["zero_biases_after"]
        assert all(r["success"] == (r["became_zero"] > 0) for r in mine)
    assert found["pruning"]["candidates"] == context.evaluator.uses["train"] == sum(r["candidates"] for r in rows)
    assert found["acceptance"]["right"] == found["acceptance"]["of"] == found["acceptance"]["samples"]
    assert found["passes"][0]["became_zero"] == found["pruning"]["zeros_after"]
    json.dumps(found)


def test_it_works_without_classes():
    x = torch.linspace(-1, 1, 60)[:, None]
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).eval()
    with torch.no_grad():
        target = model(x)
    task = Task.regression(train=(x, target), validation=(x, target), tolerance=0.1)
    net, result = pruned(model, task)
    assert result.notes[0] == "60 of 60 samples of train stay right"
    with torch.no_grad():
        assert float((net.module(x) - target).abs().max()) <= 0.1 + 1e-6


def test_ranks_are_in_ascending_size_and_shared_values_in_one_step():
    values = torch.tensor([0.5, 0.0, -0.25, 0.5, -0.5, 0.25])
    assert ranks(values)[0].tolist() == [2, 5, 0, 3, 4, 1]
    assert ranks(values, shared=True)[0].tolist() == [3, 4, 0, 3, 2, 1]
    assert ranks(torch.zeros(3))[1] == 0


@pytest.mark.parametrize("most", [0, 1, 7, 100])
def test_bisection_finds_the_border(most):
    for border in range(most + 1):
        count, tried = bisect(most, lambda n, border=border: n <= border)
        assert count == border
        assert tried <= most.bit_length()


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "per_neuron"},
        {"acceptance_from": "test"},
        {"eval_max": 0},
        {"max_passes": 0},
        {"tiered_asc": {"slow": 3}},
        {"tiered_asc": {"medium": 0}},
        {"tiered_asc": 5},
        {"overrides": {"1": {"eval_max": 5}}},
        {"overrides": {"1": {"strategy": "all"}}},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(RecipeError, match="acceptance_pruning"):
        AcceptancePruning(**settings)
