"""What of a network is probed: layers, the groups of channels that can go, and layers that channels couple."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.errors import UsageError
from lilliput.core.method import WEIGHTED, Context, layers
from lilliput.graph.coupling import Channel, Coupling, Group, channel_groups, shapes_of
from lilliput.graph.layers import output_axis
from lilliput.graph.removal import owners_of, probe, removed_places
from lilliput.graph.trace import Graph, StoredNetwork, graph_of
from lilliput.methods.pruning.channel import ChannelPruning
from lilliput.methods.pruning.channel_plan import Costs, for_amount
from lilliput.methods.pruning.channel_scores import Steps, Subject, costs


@dataclass(kw_only=True, eq=False)
class Subjects:
    """`weights[layer]`; `groups[name]` whose channels can go; `coupled[name]`: layers that make one group's channels.

    `left` says of layers and groups why they are not among them. `steps`: the order in which channels go.
    """

    net: Artifact
    graph: Graph
    coupling: Coupling
    weights: dict[str, str]
    groups: dict[str, Group]
    coupled: dict[str, tuple[str, ...]]
    left: dict[str, str]
    steps: dict[Group, Steps] = field(default_factory=dict[Group, Steps])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self.net.module.state_dict(keep_vars=True))

    def axis(self, layer: str) -> int | None:
        return output_axis(self.net.module.get_submodule(layer))

    def order_(self, context: Context, samples: int) -> None:
        """Find in which order channels go, by the criterion that channel pruning takes by itself."""
        subject = Subject(net=self.net, graph=self.graph, coupling=self.coupling, context=context)
        groups = list(self.groups.values())
        if groups:
            self.steps = costs(subject, groups, ChannelPruning().criterion, compensate=True, samples=samples)

    def channels(self, levels: Mapping[str, float | None]) -> list[Channel]:
        """That go when each group loses its share, as `channel_pruning` with these amounts takes them."""
        amounts = {self.groups[name]: level for name, level in levels.items() if level}
        chosen = for_amount({group: self.steps[group] for group in amounts}, self.shapes, amounts)
        return [group.channels[n] for group, numbers in chosen.items() for n in numbers]

    def ignoring(self, channels: Sequence[Channel]) -> dict[str, Tensor]:
        """Weights with which the layers that mix channels ignore these."""
        state = {name: t.detach() for name, t in self.net.module.state_dict(keep_vars=True).items()}
        read = {place for group in self.coupling.groups for place in group.read}
        found: dict[str, Tensor] = {}
        for (name, dim), index in removed_places(channels).items():
            if (name, dim) in read:
                weight: Tensor = found[name] if name in found else state[name]
                found[name] = weight.index_fill(dim, torch.tensor(sorted(index), device=weight.device), 0.0)
        return found

    def macs(self, channels: Sequence[Channel] = ()) -> int:
        account = Costs(self.graph, self.shapes)
        account.remove_({place: tuple(index) for place, index in removed_places(channels).items()})
        return account.macs()


def subjects_of(net: Artifact, kinds: Sequence[str]) -> Subjects:
    graph = graph_of(net)
    coupling = channel_groups(graph, shapes_of(net.module.state_dict(keep_vars=True)))
    weights, left = _weights(net, graph)
    if not weights:
        found = (
            "; ".join(f"{path}: {reason}" for path, reason in left.items()) or "the network has no layer with weights"
        )
        raise UsageError("analyse", found, "give it a network with convolutions or linear layers")
    groups: dict[str, Group] = {}
    coupled: dict[str, tuple[str, ...]] = {}
    for group in coupling.groups:
        if not group.made:
            continue
        inside = owners_of(net.module, {name for name, dim in group.places if (name, dim) not in group.read})
        owners = tuple(path for path in weights if path in inside)
        name = _unused(group.name, coupled if len(owners) > 1 else {})
        if len(owners) > 1 and owners not in coupled.values():
            coupled[name] = owners
        if "channels" not in kinds:
            continue
        without_code = isinstance(net.module, StoredNetwork)
        reason = "the network was loaded without its code" if without_code else probe(net, graph, coupling, group)
        if reason:
            left[f"channels of {group.name}"] = reason
        else:
            groups[_unused(group.name, groups)] = group
    return Subjects(net=net, graph=graph, coupling=coupling, weights=weights, groups=groups, coupled=coupled, left=left)


def _weights(net: Artifact, graph: Graph) -> tuple[dict[str, str], dict[str, str]]:
    """({layer that runs: its weight}, {other layer: why not})."""
    running = {node.module for node in graph.nodes if node.op in ("conv", "linear")}
    weights: dict[str, str] = {}
    left: dict[str, str] = {}
    for path, module in layers(net).items():
        if not isinstance(module, WEIGHTED):
            continue
        weight = net.canonical(f"{path}.weight" if path else "weight")
        if weight in weights.values():
            left[path] = "it shares its weight with another layer"
        elif path not in running:
            left[path] = "it does not run"
        else:
            weights[path] = weight
    return weights, left


def _unused(name: str, taken: Mapping[str, object]) -> str:
    """The name, or with a number where several groups begin in one layer."""
    number = 2
    found = name
    while found in taken:
        found, number = f"{name} #{number}", number + 1
    return found
