"""What goes together, held to networks that are run: with zeros in the place of channels, and without the channels."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coupled_networks import NETS, SHAPE, Net, conv, head, network
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.edits import Slice
from lilliput.graph.coupling import Coupling, Group, channel_groups, shapes_of
from lilliput.graph.removal import probe, slices_of, why_not
from lilliput.graph.trace import Graph, graph_of

PRUNABLE = {
    "two layers": {"1": 8},
    "residual": {"a": 8, "b": 6},
    "option A": {"a": 4, "b": 6},
    "depthwise": {"0": 8, "5": 4, "8": 6},
    "grouped": {"0": 4, "2": 2, "4": 2},
    "concat": {"a": 4, "b": 5, "c": 6},
    "excitation": {"a": 8, "down": 4},
    "spatial": {"a": 8, "b": 4},
    "series": {"1": 8, "4": 6},
    "transposed": {"0": 8, "2": 3, "7": 4},
    "scaled": {"a": 6},
    "twice": {"enter": 8},
    "61 layers": {"0": 4} | {f"{i}.a": 6 for i in range(1, 30)},
}
"""{layer that makes them: how many channels}, counted by hand; of grouped layers, those that all groups lose."""


@functools.cache
def found(name: str) -> tuple[Artifact, Graph, Coupling]:
    net = Artifact.of(network(name), InputSpec(shape=SHAPE))
    graph = graph_of(net)
    return net, graph, channel_groups(graph, shapes_of(net.module.state_dict()))


def removable(name: str) -> list[Group]:
    net, graph, coupling = found(name)
    return [g for g in coupling.groups if g.made and not probe(net, graph, coupling, g)]


@pytest.mark.parametrize("name", NETS)
def test_groups_are_those_counted_by_hand(name):
    assert {group.name: len(group.channels) for group in removable(name)} == PRUNABLE[name]


@pytest.mark.parametrize("name", NETS)
def test_without_the_slices_the_network_computes_what_it_does_with_zeros_there(name):
    net, _, _ = found(name)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((4, *SHAPE), generator=generator)
    for group in removable(name):
        zeroed, smaller = copy.deepcopy(net.module), copy.deepcopy(net.module)
        some = torch.randperm(len(group.channels), generator=generator)[: max(1, len(group.channels) // 2)].tolist()
        gone = [group.channels[i] for i in some]
        with torch.no_grad():
            for channel in gone:  # all that the channel is made of, and all that reads it
                for (tensor, dim), index in channel.items():
                    if (tensor, dim) in group.read:
                        zeroed.get_parameter(tensor).index_fill_(dim, torch.tensor(index), 0.0)
            for edit in slices_of(net.module.state_dict(), gone):
                edit.replay_(smaller)
            wanted, answer = zeroed(x), smaller(x)
        assert torch.allclose(wanted, answer, rtol=1e-4, atol=1e-5), group.name
        assert not torch.allclose(wanted, net.module(x), rtol=1e-4, atol=1e-5)
        sizes = (sum(t.numel() for t in m.state_dict().values()) for m in (smaller, net.module))
        assert next(sizes) < next(sizes)


@pytest.mark.parametrize("name", ["two layers", "residual", "option A", "excitation", "concat"])
def test_zeroing_what_makes_a_channel_zeroes_the_channel(name):
    """Where functions keep zero: zeros in all slices of the group, and the slices removed, are the same network."""
    net, _, _ = found(name)
    x = torch.randn((4, *SHAPE), generator=torch.Generator().manual_seed(5))
    for group in removable(name):
        zeroed, smaller = copy.deepcopy(net.module), copy.deepcopy(net.module)
        with torch.no_grad():
            for (tensor, dim), index in group.channels[-1].items():
                if (tensor, dim) not in group.read:
                    zeroed.state_dict()[tensor].index_fill_(dim, torch.tensor(index), 0.0)
            for edit in slices_of(net.module.state_dict(), [group.channels[-1]]):
                edit.replay_(smaller)
            assert torch.allclose(zeroed(x), smaller(x), rtol=1e-4, atol=1e-5), group.name


@pytest.mark.parametrize("name", ["two layers", "residual", "option A", "depthwise", "concat", "series", "scaled"])
def test_what_a_channel_reaches_is_what_the_next_layer_loses(name):
    """By trying: other weights in the layer that makes a channel move these inputs of the next layer, no others."""
    net, _, _ = found(name)
    x = torch.randn((4, *SHAPE), generator=torch.Generator().manual_seed(7))
    for group in removable(name):
        module = copy.deepcopy(net.module)
        seen: list[tuple[str, torch.Tensor]] = []
        for path, layer in module.named_modules():
            if (f"{path}.weight", 1) in group.read:
                layer.register_forward_pre_hook(lambda _m, args, path=path, seen=seen: seen.append((path, args[0])))
        for channel in group.channels:
            seen.clear()
            with torch.no_grad():
                module(x)
                first, before = seen[0]
                seen.clear()
                for tensor, dim in group.made:
                    if tensor.rpartition(".")[0] != group.name:
                        continue
                    weight = module.get_parameter(tensor)
                    kept = weight.clone()
                    index = torch.tensor(channel[tensor, dim])
                    weight.index_copy_(dim, index, 0.1 + 2 * kept.index_select(dim, index))
                    module(x)
                    weight.copy_(kept)
            moved = (seen[0][1] - before).abs().movedim(1, 0).flatten(1).amax(1) > 1e-5
            assert set(torch.nonzero(moved).flatten().tolist()) <= set(channel[f"{first}.weight", 1]), group.name
            assert bool(moved.any()), group.name


def refused(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> dict[str, str]:
    net = Artifact.of(model, InputSpec(shape=shape))
    graph = graph_of(net)
    coupling = channel_groups(graph, shapes_of(net.module.state_dict()))
    return {g.name: probe(net, graph, coupling, g) for g in coupling.groups if g.made}


def test_outputs_and_zero_channels_of_shortcuts_stay():
    assert refused(network("option A")) == {
        "a": "", "b": "", "c": "pad adds channels of a fixed number", "fc": "it is an output of the network",
    }  # fmt: skip


def test_what_meets_an_input_stays():
    model = Net(lambda n, x: head(n.b(x + n.a(x)), n.fc), a=conv(3, 3), b=conv(3, 4), fc=nn.Linear(4, 2))
    assert refused(model)["a"] == "it is an input of the network"


def test_code_that_counts_channels_is_found_by_running_it():
    flat = Net(lambda n, x: n.fc(F.avg_pool2d(n.a(x), 8).view(-1, 4)), a=conv(3, 4), fc=nn.Linear(4, 2))
    assert "counts its channels: without one it stops" in refused(flat)["a"]

    def padded(n, x):
        more = (8 - n.a(x).shape[1]) // 2  # the number of zeros follows the number of channels: a silent mistake
        return head(F.pad(n.a(x), (0, 0, 0, 0, more, 8 - n.a(x).shape[1] - more)) + n.b(x), n.fc)

    reasons = refused(Net(padded, a=conv(3, 4), b=conv(3, 8), fc=nn.Linear(8, 2)))
    assert "counts its channels" in reasons["a"]


def test_slices_by_number_and_operations_without_a_word_are_named():
    model = Net(lambda n, x: head(n.a(x)[:, 1:4], n.fc), a=conv(3, 6), fc=nn.Linear(3, 2))
    assert refused(model)["a"] == "slice takes channels by their numbers"
    model = Net(lambda n, x: head(torch.cumsum(n.a(x), 1), n.fc), a=conv(3, 4), fc=nn.Linear(4, 2))
    assert (
        refused(model)["a"] == "cumsum (aten.cumsum.default) is not an operation that channels can be followed through"
    )
    model = Net(lambda n, x: n.fc(n.norm(head(x, n.a))), a=nn.Linear(3, 6), norm=nn.LayerNorm(6), fc=nn.Linear(6, 2))
    assert refused(model)["a"] == "norm computes with all channels together"


def test_a_map_that_is_spread_over_channels_stays():
    assert refused(network("spatial"))["map"] == "mul spreads it over channels"


def test_the_only_channel_stays():
    model = Net(lambda n, x: head(n.b(n.a(x)), n.fc), a=conv(3, 1), b=conv(1, 4), fc=nn.Linear(4, 2))
    assert refused(model)["a"] == "it is the only channel"


def test_several_groups_at_once_are_the_gated_network():
    for name in NETS:
        net, graph, coupling = found(name)
        numbers = [coupling.first(g) + i for g in removable(name) for i in range(len(g.channels) // 2)]
        assert why_not(net, graph, coupling, numbers) == "", name


def test_nothing_is_changed_by_asking():
    net, graph, coupling = found("residual")
    before = {name: t.clone() for name, t in net.module.state_dict().items()}
    for group in coupling.groups:
        probe(net, graph, coupling, group)
    assert all(torch.equal(t, before[name]) for name, t in net.module.state_dict().items())
    assert not any(isinstance(edit, Slice) for edit in net.edits)
