"""Removing channels: what a network without them computes, the edits that take them out, and whether its code copes.

A removed channel is one that every layer which mixes channels ignores. `gated` computes that on the whole network, so
it is what the smaller one is compared with before anything is changed.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.edits import Slice
from lilliput.graph.coupling import Channel, Coupling, Group, Place
from lilliput.graph.trace import Graph, Node, evaluate, run

TOLERANCE = 1e-3
"""Of the largest output: two orders above what float32 sums in another order give in networks of 60 layers."""


def removed_places(channels: Iterable[Channel]) -> dict[Place, set[int]]:
    """Which indices of which dimensions go with all of these channels."""
    gone: dict[Place, set[int]] = {}
    for channel in channels:
        for place, index in channel.items():
            gone.setdefault(place, set()).update(index)
    return gone


def slices_of(state: Mapping[str, Tensor], channels: Iterable[Channel]) -> list[Slice]:
    """The edits, in the order of the state's names."""
    gone = removed_places(channels)
    order = {name: i for i, name in enumerate(state)}
    edits: list[Slice] = []
    for name, dim in sorted(gone, key=lambda place: (order[place[0]], place[1])):
        left = [i for i in range(state[name].shape[dim]) if i not in gone[name, dim]]
        edits.append(Slice(path=name, dim=dim, index=tuple(left)))
    return edits


def gated(
    graph: Graph,
    coupling: Coupling,
    state: Mapping[str, Tensor],
    gates: Tensor,
    *args: Tensor,
    visit: Callable[[Node, Any], Any] | None = None,
) -> Any:
    """The network in which channel k counts `gates[..., k]` times; gates [channels] or [samples, channels]."""

    def instead(node: Node) -> Callable[[Mapping[str, Any]], Any]:
        numbers = coupling.readers[node.name].to(gates.device)

        def compute(values: Mapping[str, Any]) -> Any:
            name = node.inputs[0]
            x = values[name]
            dim = 1 if node.op == "conv" else x.dim() - 1
            factors = gates[..., numbers]
            shape = [1] * x.dim()
            shape[dim] = len(numbers)
            if factors.dim() == 2:
                shape[0] = len(factors)
            return evaluate(node, {**values, name: x * factors.reshape(shape)}, state)

        return compute

    readers = {name: instead(graph[name]) for name in coupling.readers}
    return run(graph, state, *args, visit=visit, instead=readers)


def why_not(net: Artifact, graph: Graph, coupling: Coupling, channels: Iterable[int]) -> str:
    """Why the network's own code does not cope without these channels (by number); "" if it does. Changes nothing."""
    numbers = list(channels)
    count = sum(len(g.channels) for g in coupling.groups)
    module = net.module
    state = {name: t.detach() for name, t in module.state_dict(keep_vars=True).items()}
    gates = torch.ones(count, device=net.device)
    gates[numbers] = 0.0
    x = net.input.example(2).to(net.device)
    smaller = copy.deepcopy(module).eval()
    for edit in slices_of(state, [coupling.channel(n) for n in numbers]):
        edit.replay_(smaller)
    with torch.no_grad():
        wanted = _tensors(gated(graph, coupling, state, gates, x))
        try:
            found = _tensors(smaller(x))
        except Exception as error:  # noqa: BLE001 - a forward may raise anything
            return (
                f"the network's code counts its channels: without one it stops ({' '.join(str(error).split())[:120]})"
            )
    if len(wanted) != len(found) or any(a.shape != b.shape for a, b in zip(wanted, found, strict=True)):
        return "the network's code counts its channels: without one its outputs have another shape"
    for a, b in zip(wanted, found, strict=True):
        if float((a - b).abs().max()) > TOLERANCE * max(1e-3, float(a.abs().max())):
            return "the network's code counts its channels: without one it computes something else"
    return ""


def probe(net: Artifact, graph: Graph, coupling: Coupling, group: Group) -> str:
    """Why none of a group's channels can be removed; "" if they can: the first and the last are tried."""
    if group.fixed:
        return group.fixed
    if not any(_left(net, channel) for channel in group.channels):
        return "it is the only channel"
    first = coupling.first(group)
    for number in dict.fromkeys((first, first + len(group.channels) - 1)):
        if _left(net, coupling.channel(number)):
            reason = why_not(net, graph, coupling, [number])
            if reason:
                return reason
    return ""


def _left(net: Artifact, channel: Channel) -> bool:
    """Is something left of every tensor without the channel?"""
    state = net.module.state_dict()
    return all(state[name].shape[dim] > len(index) for (name, dim), index in channel.items())


def _tensors(value: Any) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def remove_(net: Artifact, channels: Iterable[Channel]) -> list[Slice]:
    """Take the channels out of the network and its encodings; the edits are recorded, and given back."""
    edits = slices_of(net.module.state_dict(keep_vars=True), channels)
    for edit in edits:
        net.slice_(edit)
    return edits


def owners_of(module: nn.Module, tensors: Iterable[str]) -> set[str]:
    """The paths of all modules that hold one of the tensors, under whatever name."""
    named = module.state_dict(keep_vars=True)
    wanted = {id(named[name]) for name in tensors}
    return {name.rpartition(".")[0] for name, t in named.items() if id(t) in wanted}
