"""SIC decides as the published algorithm does, candidate by candidate; its budget mode loses no more than it may."""

# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOptionalIterable=false, reportOptionalSubscript=false

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lilliput.core.artifact import Artifact
from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, apply_checked_
from lilliput.core.task import Task
from lilliput.graph.trace import graph_of
from lilliput.methods.consolidation.inputs import second_moments
from lilliput.methods.consolidation.sic import Sic
from lilliput.ops.clustering import optimal_1d
from patterned import MODELS, trained


def published(model, task, most=10**6):
    """The algorithm as it is published: a full forward of all samples for each candidate. Gives the candidates."""
    x, y = task.train.batch(torch.arange(len(task.train)))
    candidates = 0
    with torch.no_grad():
        right = model(x).argmax(1) == y
        x, y = x[right], y[right]
        for module in model.modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                continue
            for row in module.weight.movedim(int(isinstance(module, nn.ConvTranspose2d)), 0):
                before = row.clone()
                live = before != 0
                values = before[live].double().numpy()
                for k in range(max(1, min(len(np.unique(values)) - 1, most)) + 1):
                    row.zero_()
                    if k:
                        found = optimal_1d(values, k)
                        row[live] = torch.from_numpy(found.centroids[found.labels]).float()
                    candidates += 1
                    if bool((model(x).argmax(1) == y).all()):
                        break
                else:
                    row.copy_(before)
    return candidates


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{}, {"tiered_asc": {"fast": 7, "medium": 1000}}, {"strict": True}])
def test_exact_mode_takes_the_decisions_of_the_published_algorithm(name, settings):
    model, task = trained(name)
    net = Artifact.of(model, task.spec)
    result = apply_checked_(Sic(mode="exact", **settings), net, Context.of(task, model))
    candidates = published(model, task)
    for parameter, value in model.named_parameters():
        assert torch.equal(net.module.get_parameter(parameter), value), parameter
    assert any(note.startswith(f"{candidates:,} candidates") for note in result.notes)
    plain = [note for note in result.notes if note.startswith("by forwards")]
    assert bool(plain) == (name == "twice")
    assert all("up, again" in note for note in plain)


@pytest.mark.parametrize("strict", [False, True])
def test_with_few_samples_in_view_all_are_right_in_the_end(strict):
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    method = Sic(mode="exact", tiered_asc={"fast": 3, "medium": 8}, strict=strict)
    apply_checked_(method, net, Context.of(task, model))
    x, y = task.train.batch(torch.arange(len(task.train)))
    with torch.no_grad():
        right = model(x).argmax(1) == y
        assert bool((net.module(x).argmax(1) == y)[right].all())
    if strict:  # and each neuron is decided on all of them
        published(model, task)
        assert torch.equal(net.module[1].weight, model[1].weight) or int(right.sum()) > 8


def test_a_limit_of_k_is_kept_and_a_neuron_without_a_candidate_stays_as_it_was():
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    apply_checked_(Sic(mode="exact", max_k_per_neuron=2), net, Context.of(task, model))
    published(model, task, most=2)
    for parameter, value in model.named_parameters():
        assert torch.equal(net.module.get_parameter(parameter), value)
    counts = [len(row[row != 0].unique()) for row in net.module[1].weight]
    assert all(count <= 2 or count == 64 for count in counts)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weighting", ["margins", "inputs", "none"])
def test_the_budget_is_kept_and_buys_fewer_bits(name, weighting):
    model, task = trained(name)
    context = Context.of(task, model)
    first, free = (Artifact.of(model, task.spec) for _ in range(2))
    apply_checked_(Sic(error_budget=0.15, held_out=0.0, weighting=weighting), first, context)
    result = apply_checked_(Sic(error_budget=0.15, held_out=0.0, weighting=weighting, finish=True), free, context)
    x, y = task.train.batch(torch.arange(len(task.train)))
    with torch.no_grad():
        right = model(x).argmax(1) == y
        kept = int((free.module(x).argmax(1) == y)[right].sum())
    assert kept >= 0.85 * int(right.sum())
    assert result.notes[0].startswith(f"{kept} of {int(right.sum())} samples of train keep their class")
    assert stored_bits(free) <= stored_bits(first) < 16 * sum(p.numel() for p in model.parameters() if p.dim() > 1)


def stored_bits(net):
    """Entropy of the indices of each neuron, and 16 bits for each value."""
    bits = 0.0
    for name, e in net.encodings.items():
        weight = net.module.get_parameter(name)
        for row in weight.movedim(e.sharing.axis, 0):
            _, counts = torch.unique(row, return_counts=True)
            bits += float((counts * torch.log2(row.numel() / counts)).sum()) + 16 * int((row.unique() != 0).sum())
    return bits


def test_a_budget_of_nothing_loses_nothing():
    model, task = trained("convolutions")
    net = Artifact.of(model, task.spec)
    result = apply_checked_(Sic(error_budget=0.0, held_out=0.0), net, Context.of(task, model))
    x, y = task.train.batch(torch.arange(len(task.train)))
    with torch.no_grad():
        right = model(x).argmax(1) == y
        assert bool((net.module(x).argmax(1) == y)[right].all())
    assert result.effect
    assert any(len(p[p != 0].unique()) < p.numel() for p in net.module.parameters() if p.dim() > 1)


def test_what_the_search_does_not_see_is_judged_too():
    model, task = trained("mlp", samples=600)
    net = Artifact.of(model, task.spec)
    result = apply_checked_(Sic(error_budget=0.1, held_out=0.5), net, Context.of(task, model))
    (note,) = [n for n in result.notes if "did not see" in n]
    right, of = (int(part) for part in note.split(" that")[0].split(" of "))
    assert of - right <= 0.1 * of + 1.5 * (0.1 * of) ** 0.5


def test_same_seed_same_bytes():
    model, task = trained("convolutions")
    weights = []
    for _ in range(2):
        net = Artifact.of(model, task.spec)
        apply_checked_(Sic(), net, Context.of(task, model, seed=3))
        weights.append([p.clone() for p in net.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_constant_neuron_goes_into_the_next_bias():
    model, task = trained("mlp")
    with torch.no_grad():
        model[1].weight[4] = 0.0
        model[1].bias[4] = 0.7
    net = Artifact.of(model, task.spec)
    apply_checked_(Sic(error_budget=0.0, held_out=0.0), net, Context.of(task, model))
    assert bool((net.module[3].weight[:, 4] == 0).all())
    assert not torch.equal(net.module[3].bias, model[3].bias)
    x, y = task.train.batch(torch.arange(len(task.train)))
    with torch.no_grad():
        right = model(x).argmax(1) == y
        assert bool((net.module(x).argmax(1) == y)[right].all())


def test_an_input_that_is_always_zero_loses_its_weights():
    model, task = trained("mlp")
    x, y = task.train.batch(torch.arange(len(task.train)))
    x[:, :, 0, :3] = 0.0
    task = Task.classification(train=(x, y), validation=(x[:30], y[:30]))
    net = Artifact.of(model, task.spec)
    apply_checked_(Sic(held_out=0.0), net, Context.of(task, model))
    assert bool((net.module[1].weight[:, :3] == 0).all())
    exact = Artifact.of(model, task.spec)
    apply_checked_(Sic(mode="exact"), exact, Context.of(task, model))
    assert not bool((exact.module[1].weight[:, :3] == 0).all())


@pytest.mark.parametrize("groups", [1, 2])
def test_second_moments_are_those_of_the_patches(groups):
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1, groups=groups).eval()
    x = torch.randn(5, 4, 7, 7)
    net = Artifact.of(model, Task.classification(train=(x, torch.arange(5) % 2)).spec)
    (node,) = [n for n in graph_of(net).nodes if n.op == "conv"]
    patches = F.unfold(x, 3, padding=1, stride=2).square().mean((0, 2)).reshape(4, 3, 3)
    size = 4 // groups
    wanted = torch.stack([patches[(o // (6 // groups)) * size :][:size] for o in range(6)])
    assert torch.allclose(second_moments(x, node, model.weight), wanted, atol=1e-5)


@pytest.mark.parametrize("mode", ["exact", "budget"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_weights_on_a_grid_stay_on_it(mode, per):
    from lilliput.methods.quantization.post_training import Quantization

    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model)
    apply_checked_(Quantization(activation_bits=0, weight_per=per), net, context)
    grids = {name: e.grid for name, e in net.encodings.items()}
    result = apply_checked_(Sic(mode=mode), net, context)
    assert set(result.changed) == {"1", "3", "5"}
    for path in result.changed:
        e = net.encoding(f"{path}.weight")
        assert e.grid is not None
        assert e.grid.same(grids[f"{path}.weight"])
        assert e.sharing is not None
    if mode == "exact":
        x, y = task.train.batch(torch.arange(len(task.train)))
        with torch.no_grad():
            right = model(x).argmax(1) == y
            assert bool((net.module(x).argmax(1) == y)[right].all())


def active_oracle(model, x, threshold):
    """{layer: bool [inputs]} of the network as it is: is |x| above 0.01 in so many samples?"""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(lambda _, a, n=name: found.__setitem__(n, a[0])))
    model(x)
    for hook in hooks:
        hook.remove()
    return {name: (value.abs() > 0.01).float().mean(0) >= threshold for name, value in found.items()}


def test_quiet_weights_follow_the_active_ones():
    model, task = trained("mlp")
    x, y = task.train.batch(torch.arange(len(task.train)))
    x[: len(x) // 2, :, 0] = 0.0
    task = Task.classification(train=(x, y), validation=(x[:30], y[:30]))
    net = Artifact.of(model, task.spec)
    settings = {"enable": True, "calibration_fraction": 1.0, "threshold": 0.8}
    apply_checked_(Sic(mode="exact", sasic=settings), net, Context.of(task, model))
    with torch.no_grad():
        right = model(x).argmax(1) == y
        active = active_oracle(model, x[right], 0.8)["1"]
        assert 2 <= int(active.sum()) <= 0.95 * len(active)
        for before, after in zip(model[1].weight.detach(), net.module[1].weight.detach(), strict=True):
            k = len(after[active].unique())
            if k in (1, len(before[active].unique())) or not bool(after.any()):
                continue
            wanted = optimal_1d(before.detach()[active].double().numpy(), k)
            assert np.allclose(np.sort(after[active].unique().numpy()), wanted.centroids, atol=1e-6)
            nearest = np.abs(before.double().numpy()[:, None] - wanted.centroids).argmin(1)
            assert np.allclose(after.numpy(), wanted.centroids[nearest], atol=1e-6)


def test_a_sweep_tries_only_so_many_values_of_k():
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    result = apply_checked_(Sic(mode="exact", k_sweep=4, track_k_trials=True), net, Context.of(task, model))
    for row in result.statistics["layers"].values():
        assert max(row["k_trials_list"]) <= 5  # and zero
    tried = {a["clusters"] for a in result.statistics["convergence"] if a["layer"] == "1"}
    assert tried <= {0, 1, 22, 42, 43, 63}


def test_passes_end_when_they_change_nothing_more():
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    result = apply_checked_(Sic(mode="exact", max_passes=50), net, Context.of(task, model))
    passes = result.statistics["passes"]
    assert 2 <= len(passes) < 50
    counts = [p["unique_weights"] for p in passes]
    assert counts == sorted(counts, reverse=True)
    assert passes[-1]["max_weight_change"] == 0 or counts[-1] == counts[-2]
    once = Artifact.of(model, task.spec)
    large = apply_checked_(Sic(mode="exact", max_passes=50, min_pass_weight_delta=1e9), once, Context.of(task, model))
    assert len(large.statistics["passes"]) == 1


def test_a_neuron_without_patience_rests():
    model, task = trained("mlp")
    trials = []
    for patience in (0, 1):
        net = Artifact.of(model, task.spec)
        method = Sic(mode="exact", max_passes=3, max_k_per_neuron=1, neuron_patience=patience)
        result = apply_checked_(method, net, Context.of(task, model))
        trials.append(result.statistics["sic"]["total_k_trials"])
        reasons = {a["reason"] for a in result.statistics["convergence"]}
        assert ("frozen_by_patience" in reasons) == bool(patience)
    assert trials[1] < trials[0]


def test_values_that_are_equal_when_rounded_become_one():
    model, task = trained("mlp")
    net = Artifact.of(model, task.spec)
    method = Sic(mode="exact", merge_after_clustering=True, rounding_decimals=1)
    result = apply_checked_(method, net, Context.of(task, model))
    merged = [note for note in result.notes if "equal" in note]
    assert merged
    for row in net.module[1].weight if "made one" in merged[0] else ():
        values = row[row != 0].unique()
        assert len(values) == len(torch.round(values.double() * 10).unique())
    x, y = task.train.batch(torch.arange(len(task.train)))
    with torch.no_grad():
        right = model(x).argmax(1) == y
        assert bool((net.module(x).argmax(1) == y)[right].all())


@pytest.mark.parametrize("settings", [{"mode": "exact"}, {"error_budget": 0.1}])
def test_an_interrupted_run_goes_on_to_the_same_weights(settings, tmp_path, monkeypatch):
    from lilliput.methods.consolidation import sic as module

    model, task = trained("convolutions")
    whole = Artifact.of(model, task.spec)
    apply_checked_(Sic(**settings), whole, Context.of(task, model))
    written, write = [], module.write_checkpoint

    def stop(*args):
        write(*args)
        written.append(args)
        if len(written) == 2:
            raise KeyboardInterrupt

    context = Context.of(task, model)
    context.checkpoint = tmp_path / "x.checkpoint"
    monkeypatch.setattr(module, "write_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        apply_checked_(Sic(**settings), Artifact.of(model, task.spec), context)
    monkeypatch.setattr(module, "write_checkpoint", write)
    context = Context.of(task, model)
    context.checkpoint = tmp_path / "x.checkpoint"
    net = Artifact.of(model, task.spec)
    result = apply_checked_(Sic(**settings), net, context)
    for name, value in whole.module.named_parameters():
        assert torch.equal(net.module.get_parameter(name), value)
    assert context.evaluator.uses["train"] >= len(result.statistics["convergence"]) // 2


def test_the_product_of_sums_answers_like_the_dense_network():
    model, task = trained("convolutions")
    net = Artifact.of(model, task.spec)
    method = Sic(mode="exact", enable_product_of_sums=True)
    data = apply_checked_(method, net, Context.of(task, model)).statistics["product_of_sums"]
    assert data["same"] == data["samples"] > 100
    assert 0 <= data["largest_difference"] <= 1e-4 * data["largest_output"]
    values = {"a": 16, "b": 16, "depth": 16, "head": 1}  # places of each layer
    wanted = sum(
        places * sum(len(row[row != 0].unique()) for row in net.module.get_submodule(path).weight)
        for path, places in values.items()
    )
    assert data["product_of_sums_multiplies"] == wanted


def test_statistics_count_what_is_in_the_network():
    model, task = trained("convolutions")
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model)
    data = apply_checked_(Sic(mode="exact", track_k_trials=True), net, context).statistics
    for path, row in data["layers"].items():
        weight = net.module.get_submodule(path).weight
        ks = [len(r[r != 0].unique()) for r in weight]
        assert row["final_unique_weights"] == sum(ks)
        assert row["k_histogram"] == {str(k): ks.count(k) for k in sorted(set(ks))}
        assert row["zero_weights_after"] == int((weight == 0).sum())
        assert row["neurons_zero"] == ks.count(0)
        assert row["operations"]["product_of_sums_multiplies"] <= row["operations"]["multiplies"]
        accepted = [a for a in data["convergence"] if a["layer"] == path and a["success"]]
        assert {a["neuron"]: a["clusters"] for a in accepted} == {
            i: k for i, k in enumerate(ks) if i in {a["neuron"] for a in accepted}
        }
        assert sum(row["k_trials_list"]) == row["total_k_trials"]
    assert data["sic"]["total_k_trials"] == sum(r["total_k_trials"] for r in data["layers"].values())
    assert data["acceptance"]["right"] == data["acceptance"]["samples"] == data["acceptance"]["of"]
    assert context.evaluator.uses["train"] == data["sic"]["total_k_trials"]
    json.dumps(data)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "fast"},
        {"acceptance_from": "test"},
        {"eval_max": 0},
        {"error_budget": 1.5},
        {"tiered_asc": {"slow": 3}},
        {"tiered_asc": {"fast": 0}},
        {"tiered_asc": 5},
        {"overrides": {"1": {"mode": "exact"}}},
        {"max_passes": 0},
        {"sasic": {"statistic": "max"}},
        {"sasic": {"speed": 1}},
        {"sasic": True},
        {"k_sweep": 0},
        {"weighting": "fisher"},
        {"overrides": {"1": {"error_budget": 0.1}}},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(RecipeError, match="sic"):
        Sic(**settings)
