"""Channels that have no bits left: which ones, what they still give, and their removal."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.edits import Slice
from lilliput.core.method import layers
from lilliput.core.task import Data
from lilliput.graph.coupling import Coupling, Group, channel_groups, shapes_of
from lilliput.graph.removal import owners_of, probe, remove_, why_not
from lilliput.graph.trace import Graph, Node, graph_of, run

SAMPLES = 256


def coupling_of(net: Artifact) -> tuple[Graph, Coupling]:
    graph = graph_of(net)
    return graph, channel_groups(graph, shapes_of(net.module.state_dict()))


def dead_channels(net: Artifact, coupling: Coupling) -> dict[Group, list[int]]:
    """Channels (their places in the group) that no weight makes any more, one less than all of a group at most."""
    found: dict[Group, list[int]] = {}
    for group in coupling.groups:
        if group.fixed or not group.made:
            continue
        dead = [k for k, channel in enumerate(group.channels) if _nothing(net, group, channel)]
        if len(dead) == len(group.channels):
            dead = dead[1:]
        if dead:
            found[group] = dead
    return found


def _nothing(net: Artifact, group: Group, channel: Mapping[tuple[str, int], tuple[int, ...]]) -> bool:
    for (name, dim), index in channel.items():
        if (name, dim) not in group.made:
            continue
        parameter = net.parameter(name)
        if parameter.dim() > 1 and bool(
            parameter.detach().index_select(dim, torch.tensor(index, device=parameter.device)).any()
        ):
            return False
    return True


def remove_dead_(
    net: Artifact, data: Data, selects: Callable[[str], bool] = lambda _: True
) -> tuple[list[Slice], dict[str, int]]:
    """Take dead channels out; what they still gave on `data`, a constant, moves into the biases of their readers.

    Exact where the reader has a bias and does not pad. Returns the edits and how many channels each group lost. Groups
    that the network's own code counts on stay, and those with a layer that is not selected.
    """
    graph, coupling = coupling_of(net)
    known = layers(net)
    dead = {
        group: found
        for group, found in dead_channels(net, coupling).items()
        if all(selects(path) for path in owners_of(net.module, group.tensors) if path in known)
        and not probe(net, graph, coupling, group)
    }
    numbers = [coupling.first(group) + k for group, found in dead.items() for k in found]
    if not numbers or why_not(net, graph, coupling, numbers):
        return [], {}
    _absorb_(net, graph, coupling, set(numbers), data)
    edits = remove_(net, [group.channels[k] for group, found in dead.items() for k in found])
    return edits, {group.name: len(found) for group, found in dead.items()}


def _absorb_(net: Artifact, graph: Graph, coupling: Coupling, numbers: set[int], data: Data) -> None:
    """Give readers the mean of what these channels give them."""
    means: dict[str, Tensor] = {}
    values: dict[str, Any] = {}

    def visit(node: Node, value: Any) -> Any:
        values[node.name] = value
        return value

    x = data.batch(torch.arange(min(SAMPLES, len(data))))[0].to(net.device)
    with torch.no_grad():
        run(graph, net.module.state_dict(), x, visit=visit)
        for name in coupling.readers:
            value = values[graph[name].inputs[0]]
            dim = 1 if graph[name].op == "conv" else value.dim() - 1
            means[name] = value.movedim(dim, 0).flatten(1).double().mean(1)
        for name, channels in coupling.readers.items():
            node = graph[name]
            gone = torch.tensor([int(n) in numbers for n in channels], dtype=torch.bool, device=net.device)
            bias = node.state.get("bias")
            grouped = node.attributes.get("groups", 1) > 1 or node.attributes.get("transposed")
            if not bool(gone.any()) or bias is None or net.canonical(bias) in net.encodings or grouped:
                continue
            weight = net.parameter(node.state["weight"]).detach().double()
            given = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
            shift = given[:, gone] @ means[name][gone]
            net.write_(bias, (net.parameter(bias).detach().double() + shift).float())
