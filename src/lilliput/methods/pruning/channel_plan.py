"""Which channels go, for a share of each group or for a number of MACs."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lilliput.graph.coupling import Coupling, Group, Place
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

    def saved(self, channel: Mapping[Place, tuple[int, ...]]) -> int:
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

    def remove_(self, channel: Mapping[Place, tuple[int, ...]]) -> None:
        for (name, dim), index in channel.items():
            if name in self.sizes:
                self.sizes[name][dim] -= len(index)


def most_of(group: Group, shapes: Mapping[str, Sequence[int]], share: float) -> int:
    """How many channels of a group may go: a share of them, and never the last slice of a tensor."""
    fewest = min((shapes[name][dim] - 1) // len(group.channels[0][name, dim]) for name, dim in group.places)
    return max(0, min(fewest, math.floor(share * len(group.channels) + 1e-9)))


def for_macs(
    costs: Costs, steps: Mapping[Group, Steps], shapes: Mapping[str, Sequence[int]], most: float, target: int
) -> dict[Group, list[int]]:
    """The channels of each group that go until `target` MACs are left: always the one that costs least for each MAC.

    Where the target cannot be met, all that may go.
    """
    chosen: dict[Group, list[int]] = {group: [] for group in steps}
    limits = {group: most_of(group, shapes, most) for group in steps}
    left = {place: shapes[place[0]][place[1]] for group in steps for place in group.places}
    order = list(steps)
    total = costs.macs()

    def price(group: Group) -> float | None:
        done = len(chosen[group])
        if done >= limits[group]:
            return None
        number, cost = steps[group][done]
        channel = group.channels[number]
        gain = costs.saved(channel)
        if not gain or any(left[place] <= len(index) for place, index in channel.items()):
            return None
        return cost / gain

    heap: list[tuple[float, int]] = []
    for i, group in enumerate(order):
        first = price(group)
        if first is not None:
            heap.append((first, i))
    heapq.heapify(heap)
    while total > target and heap:
        _, i = heapq.heappop(heap)
        group = order[i]
        now = price(group)  # other groups may have made it dearer
        if now is None:
            continue
        if heap and now > heap[0][0]:
            heapq.heappush(heap, (now, i))
            continue
        number = steps[group][len(chosen[group])][0]
        channel = group.channels[number]
        total -= costs.saved(channel)
        costs.remove_(channel)
        for place, index in channel.items():
            left[place] -= len(index)
        chosen[group].append(number)
        later = price(group)
        if later is not None:
            heapq.heappush(heap, (later, i))
    return chosen


def for_amount(
    steps: Mapping[Group, Steps], shapes: Mapping[str, Sequence[int]], amounts: Mapping[Group, float]
) -> dict[Group, list[int]]:
    """That share of each group, rounded."""
    left = {place: shapes[place[0]][place[1]] for group in steps for place in group.places}
    chosen: dict[Group, list[int]] = {}
    for group, order in steps.items():
        chosen[group] = []
        for number, _ in order[: round(amounts[group] * len(group.channels))]:
            channel = group.channels[number]
            if all(left[place] > len(index) for place, index in channel.items()):
                chosen[group].append(number)
                for place, index in channel.items():
                    left[place] -= len(index)
    return chosen


def numbers_of(coupling: Coupling, chosen: Mapping[Group, Sequence[int]]) -> list[int]:
    return sorted(coupling.first(group) + n for group, found in chosen.items() for n in found)
