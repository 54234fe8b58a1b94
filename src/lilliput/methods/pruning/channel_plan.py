"""Which channels go, for a share of each group or for a number of MACs."""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lilliput.graph.coupling import Channel, Coupling, Group, Place
from lilliput.graph.trace import Graph
from lilliput.methods.pruning.channel_scores import Steps


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer's MACs are `runs` times the size of its weight."""

    weight: str
    runs: int


class Costs:
    """The MACs of a network while channels go from it, without tracing it again."""

    def __init__(self, graph: Graph, shapes: Mapping[str, Sequence[int]]) -> None:
        self.sizes: dict[str, list[int]] = {}
        self.layers: list[Layer] = []
        for node in graph.nodes:
            if node.op not in ("conv", "linear"):
                continue
            if node.op == "linear":
                runs = math.prod(node.shape[1:-1])
            else:
                turned = node.attributes["transposed"]
                runs = math.prod(graph[node.inputs[0]].shape[2:] if turned else node.shape[2:])
            self.sizes[node.state["weight"]] = list(shapes[node.state["weight"]])
            self.layers.append(Layer(weight=node.state["weight"], runs=runs))
        self.runs = {name: sum(layer.runs for layer in self.layers if layer.weight == name) for name in self.sizes}

    def macs(self) -> int:
        return sum(runs * math.prod(self.sizes[name]) for name, runs in self.runs.items())

    def saved(self, channel: Channel) -> int:
        """By a channel more."""
        fewer: dict[str, dict[int, int]] = {}
        for (name, dim), index in channel.items():
            if name in self.sizes:
                fewer.setdefault(name, {})[dim] = len(index)
        total = 0
        for name, dims in fewer.items():
            size = self.sizes[name]
            left = [n - dims.get(d, 0) for d, n in enumerate(size)]
            total += self.runs[name] * (math.prod(size) - math.prod(left))
        return total

    def remove_(self, channel: Channel) -> None:
        for (name, dim), index in channel.items():
            if name in self.sizes:
                self.sizes[name][dim] -= len(index)


def most_of(group: Group, shapes: Mapping[str, Sequence[int]], share: float) -> int:
    """How many channels of a group may go: a share of them, and never the last slice of a tensor."""
    fewest = min((shapes[name][dim] - 1) // len(group.channels[0][name, dim]) for name, dim in group.places)
    return max(0, min(fewest, math.floor(share * len(group.channels) + 1e-9)))


def for_macs(
    costs: Costs,
    steps: Mapping[Group, Steps],
    shapes: Mapping[str, Sequence[int]],
    target: int,
    *,
    most: float = 1.0,
    multiple: int = 1,
) -> dict[Group, list[int]]:
    """The channels of each group that go until `target` MACs are left: always those that cost least for each MAC.

    As many at a time as leave a `multiple`; one by one where no more than that are left. Where the target
    cannot be met, all that may go. `costs` is kept up.
    """
    chosen: dict[Group, list[int]] = {group: [] for group in steps}
    limits = {group: most_of(group, shapes, most) for group in steps}
    left = _sizes(steps, shapes)
    order = list(steps)

    def offer(group: Group) -> tuple[float, Channel, list[int]] | None:
        """(cost for each MAC, what goes, the channels) of the next removal from a group."""
        done, kept = len(chosen[group]), len(group.channels) - len(chosen[group])
        count = 1 if kept <= multiple else kept % multiple or multiple
        if done + count > limits[group]:
            return None
        numbers = [number for number, _ in steps[group][done : done + count]]
        together = merged(group, numbers)
        gain = costs.saved(together)
        if not gain or not _fits(together, left):
            return None
        return sum(cost for _, cost in steps[group][done : done + count]) / gain, together, numbers

    heap = [(found[0], i) for i, group in enumerate(order) if (found := offer(group)) is not None]
    heapq.heapify(heap)
    total = costs.macs()
    while total > target and heap:
        _, i = heapq.heappop(heap)
        found = offer(order[i])
        if found is None:
            continue
        price, together, numbers = found
        if heap and price > heap[0][0]:  # other groups have made it dearer
            heapq.heappush(heap, (price, i))
            continue
        total -= costs.saved(together)
        costs.remove_(together)
        _take_(together, left)
        chosen[order[i]].extend(numbers)
        later = offer(order[i])
        if later is not None:
            heapq.heappush(heap, (later[0], i))
    return chosen


def for_amount(
    steps: Mapping[Group, Steps],
    shapes: Mapping[str, Sequence[int]],
    amounts: Mapping[Group, float],
    *,
    multiple: int = 1,
) -> dict[Group, list[int]]:
    """That share of each group, rounded.

    Fewer where a tensor would be empty, or where more than a `multiple` is left that is none.
    """
    left = _sizes(steps, shapes)
    chosen: dict[Group, list[int]] = {}
    for group, order in steps.items():
        n = len(group.channels)
        count = round(amounts[group] * n)
        while count > 0 and not (
            (n - count <= multiple or (n - count) % multiple == 0)
            and _fits(merged(group, [number for number, _ in order[:count]]), left)
        ):
            count -= 1
        chosen[group] = [number for number, _ in order[:count]]
        _take_(merged(group, chosen[group]), left)
    return chosen


def merged(group: Group, numbers: Sequence[int]) -> Channel:
    """What goes with several channels of a group."""
    return {place: tuple(i for n in numbers for i in group.channels[n][place]) for place in group.places}


def _sizes(groups: Iterable[Group], shapes: Mapping[str, Sequence[int]]) -> dict[Place, int]:
    return {place: shapes[place[0]][place[1]] for group in groups for place in group.places}


def _fits(channel: Channel, left: Mapping[Place, int]) -> bool:
    return all(left[place] > len(index) for place, index in channel.items())


def _take_(channel: Channel, left: dict[Place, int]) -> None:
    for place, index in channel.items():
        left[place] -= len(index)


def numbers_of(coupling: Coupling, chosen: Mapping[Group, Sequence[int]]) -> list[int]:
    return sorted(coupling.first(group) + n for group, found in chosen.items() for n in found)
