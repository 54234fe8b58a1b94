"""Channel pruning: what goes, how much, what is left; files of the smaller network are files like any other."""

# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lilliput as ll
from coupled_networks import NETS, SHAPE, Net, conv, head, network
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.edits import Slice
from lilliput.core.errors import DataError, RecipeError
from lilliput.core.method import Context, Pass, PassResult, apply_checked_
from lilliput.core.task import Task
from lilliput.export import onnx
from lilliput.graph import stored
from lilliput.graph.coupling import channel_groups, shapes_of
from lilliput.graph.integer import runnable
from lilliput.graph.lower import lower
from lilliput.graph.trace import graph_of
from lilliput.measure.macs import count_macs
from lilliput.measure.runtime import predict, session
from lilliput.methods.clustering.weight_clustering import WeightClustering
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.pruning.channel_plan import Costs
from lilliput.methods.pruning.channel_scores import Subject, costs
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization


def task_for(model: nn.Module, samples: int = 48) -> Task:
    """Random images, labelled by the network itself."""
    x = torch.randn((samples, *SHAPE), generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        y = model(x).flatten(1).argmax(1)
    return Task.classification(train=(x, y), validation=(x[:16], y[:16]))


def after(model: nn.Module, *methods: Pass) -> tuple[Artifact, list[PassResult]]:
    task = task_for(model)
    net = Artifact.of(model, task.spec)
    context = Context.of(task, model)
    return net, [apply_checked_(method, net, context) for method in methods]


def macs(net: Artifact) -> int:
    return int(count_macs(graph_of(net), net).total("macs").value)


@pytest.mark.parametrize("name", ["two layers", "residual", "option A", "depthwise", "concat", "twice", "61 layers"])
def test_half_the_macs_are_gone_and_said_so(name):
    model = network(name)
    net, (result,) = after(model, ChannelPruning(macs=0.5, compensate=name != "61 layers"))
    before = macs(Artifact.of(model, net.input))
    assert macs(net) <= 0.5 * before
    assert result.notes[0] == f"MACs: {before:,} -> {macs(net):,}"
    assert any(isinstance(edit, Slice) for edit in net.edits)
    counted = sum(p.numel() for p in net.module.parameters())
    assert counted < sum(p.numel() for p in model.parameters())
    assert result.notes[1].endswith(f"-> {counted:,}")


@pytest.mark.parametrize("name", NETS)
def test_files_replay_into_a_fresh_module_and_run_without_one(name, tmp_path):
    net, _ = after(network(name), ChannelPruning(amount=0.5, criterion="l1", compensate=False))
    stored.save(net, tmp_path / "net.lil")
    x = net.input.example(3)
    with torch.no_grad():
        wanted = net.module(x)
        fresh = network(name, seed=1)
        assert torch.equal(ll.load(tmp_path / "net.lil", into=fresh)(x), wanted)
        assert torch.equal(ll.load(tmp_path / "net.lil")(x), wanted)
    assert sum(p.numel() for p in fresh.parameters()) > sum(p.numel() for p in net.module.parameters())


@pytest.mark.parametrize("name", ["residual", "option A", "depthwise", "excitation", "series", "transposed"])
def test_exported_files_compute_the_same(name, tmp_path):
    net, _ = after(network(name), ChannelPruning(amount=0.5))
    onnx.export(net, tmp_path / "net.onnx", target="onnx-x86")
    x = net.input.example(3)
    with torch.no_grad():
        wanted = net.module(x).numpy()
    assert np.allclose(predict(session(tmp_path / "net.onnx"), x.numpy()), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_integer_networks_lower_after_and_before(order):
    methods = ChannelPruning(amount=0.5, compensate=False), Quantization()
    net, _ = after(network("residual"), FoldBatchNorm(), *(methods[i] for i in order))
    assert lower(net).operations
    assert net.activations


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_after_clustering_zeros_and_quantization_the_slots_are_those_of_the_slices(per):
    """Nothing is stored anew: what is left decodes to what it was."""
    model = network("residual")
    fillers = MagnitudePruning(sparsity=0.3, scope="layer"), WeightClustering(n_clusters=4, per=per)
    wide = Quantization(weight_per="tensor" if per == "layer" else "channel")
    before, _ = after(model, FoldBatchNorm(), *fillers, wide)
    net, results = after(model, FoldBatchNorm(), *fillers, wide, ChannelPruning(amount=0.5))
    assert results[-1].effect
    index: dict[str, Tensor] = {name: p.detach() for name, p in before.module.named_parameters()}
    for edit in net.edits:
        if isinstance(edit, Slice):
            index[edit.path] = index[edit.path].index_select(edit.dim, torch.tensor(edit.index))
    for name, parameter in net.module.named_parameters():
        assert torch.equal(parameter, index[name]), name
        slots = before.encodings[name], net.encodings[name]
        assert slots[0].grid is not None
        assert slots[1].grid is not None
        assert (slots[0].mask is None, slots[0].sharing is None) == (slots[1].mask is None, slots[1].sharing is None)
    assert {k: g.scale for k, g in net.activations.items()} == {k: g.scale for k, g in before.activations.items()}
    data = container.dumps(net)
    again = container.loads(data).replay(network("residual", seed=2))
    x = net.input.example(4)
    with torch.no_grad():
        assert torch.equal(runnable(again)(x), runnable(net)(x))
    assert len(data) < len(container.dumps(before))


def test_pruning_twice_replays():
    net, _ = after(network("option A"), *[ChannelPruning(amount=0.3, criterion="l2")] * 2)
    again = container.loads(container.dumps(net)).replay(network("option A", seed=1))
    x = net.input.example(2)
    with torch.no_grad():
        assert torch.equal(again.module(x), net.module(x))


def test_tied_layers_stay_tied():
    net, _ = after(network("twice"), ChannelPruning(amount=0.5))
    assert net.module.tied.weight is net.module.middle.weight
    assert net.module.middle.weight.shape == (4, 4)


def test_the_planned_macs_are_those_that_are_counted():
    net = Artifact.of(network("concat"), task_for(network("concat")).spec)
    graph = graph_of(net)
    shapes = shapes_of(net.module.state_dict())
    account, coupling = Costs(graph, shapes), channel_groups(graph, shapes)
    assert account.macs() == sum(int(row["macs"].value) for row in count_macs(graph, net).rows.values())
    for group in coupling.groups:
        if group.made and not group.fixed:
            saved = account.saved(group.channels[0])
            before = account.macs()
            account.remove_(group.channels[0])
            assert account.macs() == before - saved


# criteria, each against its definition


def subject_of(model: nn.Module) -> tuple[Subject, Context]:
    task = task_for(model)
    net = Artifact.of(model, task.spec)
    graph = graph_of(net)
    coupling = channel_groups(graph, shapes_of(net.module.state_dict()))
    context = Context.of(task, model)
    return Subject(net=net, graph=graph, coupling=coupling, context=context), context


def linear() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def test_taylor_is_the_squared_change_of_the_outputs():
    """Of one channel of a layer whose reader gives the outputs this is exact, so the order is that of trying."""
    model = linear()
    subject, context = subject_of(model)
    group = next(g for g in subject.coupling.groups if g.name == "1")
    order = [n for n, _ in costs(subject, [group], "taylor", compensate=False)[group]]
    x = context.task.data("calibration").batch(torch.arange(48))[0]
    with torch.no_grad():
        hidden = F.relu(model[1](model[0](x)))
        change = torch.stack([(hidden[:, c : c + 1] * model[3].weight[:, c]).square().sum(1).mean() for c in range(6)])
    assert order[0] == int(change.argmin())
    assert order[-1] == int(change.argmax())


@pytest.mark.parametrize("compensate", [False, True])
def test_second_order_is_the_error_that_removal_leaves(compensate):
    """Of all pairs of channels the sums over its first two steps are those of a least-squares fit, or of none."""
    model = linear()
    subject, context = subject_of(model)
    group = next(g for g in subject.coupling.groups if g.name == "1")
    steps = costs(subject, [group], "second_order", compensate=compensate)[group]
    x = context.task.data("calibration").batch(torch.arange(48))[0]
    with torch.no_grad():
        hidden = F.relu(model[1](model[0](x))).double()
        hidden = hidden - hidden.mean(0)
    weight = model[3].weight.detach().double()
    wanted = hidden @ weight.t()

    def error(gone: tuple[int, ...]) -> float:
        left = [c for c in range(6) if c not in gone]
        fit = torch.linalg.lstsq(hidden[:, left], wanted).solution if compensate else weight.t()[left]
        return float((hidden[:, left] @ fit - wanted).square().mean(0).sum())

    alone = {c: error((c,)) for c in range(6)}
    first, second = steps[0][0], steps[1][0]
    assert first == min(alone, key=alone.__getitem__)
    pairs = {c: error((first, c)) for c in range(6) if c != first}
    assert second == min(pairs, key=pairs.__getitem__)
    ratio = (steps[0][1] + steps[1][1]) / steps[0][1]
    assert ratio == pytest.approx(pairs[second] / alone[first], rel=0.02)


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_norms_take_the_filters_of_all_layers_that_make_a_channel(criterion, power):
    subject, _ = subject_of(network("residual"))
    module = subject.net.module
    group = next(g for g in subject.coupling.groups if g.name == "a")
    steps = costs(subject, [group], criterion, compensate=False)[group]
    norms = sum(w.detach().abs().pow(power).flatten(1).sum(1) for w in (module.a.weight, module.c.weight)) ** (
        1 / power
    )
    assert [n for n, _ in steps] == norms.argsort().tolist()
    assert [c for _, c in steps] == pytest.approx((2 * norms / norms.mean()).sort().values.tolist(), rel=1e-4)


def test_batchnorm_takes_scales_and_leaves_groups_without():
    net, (result,) = after(network("residual"), ChannelPruning(criterion="batchnorm", amount=0.5))
    assert net.module.a.out_channels == 4
    assert net.module.b.out_channels == 6
    model = network("residual")
    sums = model.bn.weight.abs() + model.bn2.weight.abs()
    kept = next(e.index for e in net.edits if isinstance(e, Slice) and e.path == "bn.weight")
    assert set(kept) == set(sums.argsort()[4:].tolist())
    assert "b" in result.changed  # it reads what has gone


# how much


def test_amount_is_a_share_of_each_group_and_overrides_are_of_its_first_layer():
    net, _ = after(network("residual"), ChannelPruning(amount=0.25, overrides={"b": {"amount": 0.5}}))
    assert (net.module.a.out_channels, net.module.b.out_channels) == (6, 3)


def test_multiples_are_kept_where_more_are_left():
    net, _ = after(network("residual"), ChannelPruning(amount=0.4, multiple=4, criterion="l2"))
    assert net.module.a.out_channels == 8  # 5 is no multiple
    assert net.module.b.out_channels == 4
    net, _ = after(network("residual"), ChannelPruning(amount=0.6, multiple=4, criterion="l2"))
    assert net.module.a.out_channels == 3  # less than one block: any number will do
    net, _ = after(network("residual"), ChannelPruning(macs=0.6, multiple=4, criterion="l2"))
    assert net.module.a.out_channels in (8, 4, 3, 2, 1)
    assert net.module.b.out_channels in (4, 3, 2, 1, 6)


def counted_by_lanes(inputs: int, outputs: int, lanes: int) -> float:
    """MACs of a linear layer as a runtime with vectors counts them, by the formula in the documents."""
    up = [n if n % lanes == 0 else n + lanes - n % lanes for n in (inputs, outputs)]
    return up[1] * (up[0] if inputs >= lanes else math.ceil(1.25 * (inputs + lanes / 8)))


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3])
def test_lanes_leave_the_widest_layer_of_so_many_vectors(share):
    """Of all widths that fill vectors, or less than one: the widest with `share` of the MACs, in both counts."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 56), nn.ReLU(), nn.Linear(56, 5)).eval()
    counted = [counted_by_lanes(192, n, 16) + counted_by_lanes(n, 5, 16) for n in range(57)]
    widths = [*range(1, 16), 16, 32, 48, 56]
    fits = [n for n in widths if counted[n] <= share * counted[56] and n <= share * 56]
    net, (result,) = after(model, ChannelPruning(macs=share, lanes=16, criterion="l2"))
    assert net.module[1].out_features == max(fits)
    assert result.effect


@pytest.mark.parametrize("name", ["residual", "depthwise", "grouped", "transposed", "series", "twice"])
def test_macs_by_lanes_are_whole_vectors_of_each_layer(name):
    """Against what each call of each layer says of itself when it runs."""
    model, lanes = network(name), 4
    total = 0.0

    def seen(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += counted_by_lanes(module.in_features, module.out_features, lanes)
            return
        places = math.prod((inputs[0] if "Transpose" in type(module).__name__ else output).shape[2:])
        taps = math.prod(module.kernel_size)
        if module.groups == module.in_channels > 1:
            total += places * taps * math.ceil(module.out_channels / lanes) * lanes
        else:
            parts = module.in_channels // module.groups, module.out_channels // module.groups
            total += places * taps * module.groups * counted_by_lanes(*parts, lanes)

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d))]
    handles = [layer.register_forward_hook(seen) for layer in layers]
    net = Artifact.of(network(name), task_for(network(name)).spec)
    with torch.no_grad():
        model(net.input.example(1))
    for handle in handles:
        handle.remove()
    graph, shapes = graph_of(net), shapes_of(net.module.state_dict())
    account = Costs(graph, shapes, lanes=lanes)
    assert account.macs() == total
    assert account.plain() == Costs(graph, shapes).macs() < total


@pytest.mark.parametrize("lanes", [4, 8])
def test_lanes_leave_whole_vectors_or_less_than_one(lanes):
    def code(n, x):
        x = F.relu(n.a(x))
        return head(F.relu(x + n.c(F.relu(n.b(x)))), n.fc)

    model = Net(code, a=conv(3, 24), b=conv(24, 32), c=conv(32, 24), fc=nn.Linear(24, 5)).eval()
    net, _ = after(model, ChannelPruning(macs=0.5, lanes=lanes))
    widths = net.module.a.out_channels, net.module.b.out_channels
    assert all(n % lanes == 0 or n < lanes for n in widths)
    assert widths != (24, 32)
    assert net.module.fc.in_features == widths[0] == net.module.c.out_channels


def test_one_channel_stays_at_least():
    net, _ = after(network("two layers"), ChannelPruning(amount=0.99, most=1.0))
    assert net.module[1].out_features == 1
    assert net.module(net.input.example(2)).shape == (2, 5)


def test_more_than_can_go_is_refused_and_nothing_is_changed():
    model = network("residual")
    task = task_for(model)
    net = Artifact.of(model, task.spec)
    before = container.dumps(net)
    with pytest.raises(RecipeError, match=r"channel_pruning: .* MACs asked for, and .* left when all that may go"):
        apply_checked_(ChannelPruning(max_macs=10), net, Context.of(task, model))
    assert container.dumps(net) == before


def test_no_effect_is_said_when_nothing_is_removed():
    for method in (ChannelPruning(amount=0.0), ChannelPruning(macs=1.0), ChannelPruning(most=0.0)):
        net, (result,) = after(network("residual"), method)
        assert not result.effect
        assert not net.edits
    model = Net(lambda n, x: head(n.a(x).view(-1, 4, 8, 8), n.fc), a=conv(3, 4), fc=nn.Linear(4, 2)).eval()
    _, (result,) = after(model, ChannelPruning(amount=0.5))
    assert not result.effect
    assert "counts its channels" in result.skipped["a"]


def test_skipped_layers_keep_every_group_that_touches_them():
    net, (result,) = after(network("residual"), ChannelPruning(amount=0.5, skip=("c",)))
    assert not result.effect  # both groups end in c
    assert "'c'" in result.skipped["a"]
    net, _ = after(network("depthwise"), ChannelPruning(amount=0.5, skip=("0",), criterion="l2"))
    assert net.module[0].out_channels == 8
    assert net.module[5].out_channels == 2


def test_networks_without_their_code_are_refused_with_a_remedy(tmp_path):
    net, _ = after(network("two layers"))
    stored.save(net, tmp_path / "net.lil")
    alone = stored.stored_artifact(container.read(tmp_path / "net.lil"))
    model = network("two layers")
    with pytest.raises(RecipeError, match="load the file into the model's class"):
        apply_checked_(ChannelPruning(), alone, Context.of(task_for(model), model))


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "luck"}, {"amount": 1.0}, {"macs": 0.5, "max_macs": 10}, {"multiple": 0},
        {"lanes": 0, "macs": 0.5}, {"lanes": 16}, {"lanes": 16, "amount": 0.5},
        {"overrides": {"a": {"criterion": "l1"}}}, {"macs": 0.5, "overrides": {"a": {"amount": 0.1}}},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings):
    with pytest.raises(RecipeError):
        ChannelPruning(**settings)


# least squares


@pytest.mark.parametrize("name", ["residual", "option A", "concat", "grouped", "series"])
def test_compensation_brings_the_outputs_nearer(name):
    model = network(name)
    x = task_for(model).data("calibration").batch(torch.arange(48))[0]
    gaps: list[float] = []
    for compensate in (False, True):
        net, _ = after(model, ChannelPruning(amount=0.5, criterion="l2", compensate=compensate))
        with torch.no_grad():
            gaps.append(float((net.module(x) - model(x)).square().mean()))
    assert gaps[1] < 0.7 * gaps[0]


def test_a_channel_that_is_a_copy_costs_nothing():
    """Its readers take the weights of the copy over: outputs stay as they were."""
    model = linear()
    with torch.no_grad():
        for source, copy in ((0, 3), (1, 4), (2, 5)):
            model[1].weight[copy], model[1].bias[copy] = model[1].weight[source], model[1].bias[source]
    net, _ = after(model, ChannelPruning(amount=0.5, criterion="second_order"))
    x = task_for(model).data("calibration").batch(torch.arange(48))[0]
    with torch.no_grad():
        assert net.module[1].out_features == 3
        assert torch.allclose(net.module(x), model(x), atol=0.02 * float(model(x).abs().max()))


def test_all_orders_with_folding_give_networks_of_the_same_shape():
    shapes = set()
    for order in itertools.permutations((FoldBatchNorm(), ChannelPruning(amount=0.5, criterion="l2"))):
        net, _ = after(network("residual"), *order)
        shapes.add(tuple(tuple(p.shape) for _, p in sorted(net.module.named_parameters())))
    assert len(shapes) == 1


class Named(nn.Module):
    """Its outputs are a dictionary, of six numbers a sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"answer": self.head(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))}


def named_task(samples: int = 24, **more: Any) -> Task:
    x = torch.randn((samples, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    return Task.classification((x, torch.zeros(samples).long()), validation=(x, torch.zeros(samples).long()), **more)


def answer(model: Any, batch: Any) -> Tensor:
    return model(batch[0])["answer"]


def test_a_dictionary_of_outputs_needs_a_forward_of_the_task() -> None:
    net = Artifact.of(Named(), named_task().spec)
    with pytest.raises(DataError, match=r"^outputs of the model: dict for 24 inputs; let forward\(model, batch\)"):
        apply_checked_(ChannelPruning(), net, Context.of(named_task(), Named()))
    task = named_task(forward=answer)
    assert apply_checked_(ChannelPruning(), net, Context.of(task, Named())).changed


@pytest.mark.parametrize("criterion", ["taylor", "second_order"])
def test_batches_of_any_size_choose_the_same_channels(criterion: str) -> None:
    model, task = Named(), named_task(forward=answer)
    net = Artifact.of(model, task.spec)
    graph = graph_of(net)
    coupling = channel_groups(graph, shapes_of(net.module.state_dict()))
    groups = [group for group in coupling.groups if group.made and not group.fixed]
    found = []
    for size in (1, 7, 24):
        context = Context.of(task, model, batch_size=size)
        subject = Subject(net=net, graph=graph, coupling=coupling, context=context)
        found.append(costs(subject, groups, criterion, compensate=True))
    assert groups
    for other in found[1:]:
        for group in groups:
            assert [n for n, _ in other[group]] == [n for n, _ in found[0][group]]
            assert [c for _, c in other[group]] == pytest.approx([c for _, c in found[0][group]], rel=1e-3)


def test_too_few_samples_to_judge_channels_by_are_refused() -> None:
    model, task = Named(), named_task(samples=7, forward=answer)
    with pytest.raises(RecipeError, match=r"^channel_pruning: 7 samples to judge channels by; give at least 8$"):
        apply_checked_(ChannelPruning(), Artifact.of(model, task.spec), Context.of(task, model))
    net = Artifact.of(model, task.spec)
    assert apply_checked_(ChannelPruning(criterion="l2", compensate=False), net, Context.of(task, model)).changed
