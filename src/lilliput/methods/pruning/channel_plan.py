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
    """A layer's MACs are `runs` times the size of its weight; `inputs` and `outputs` are dimensions of it."""

    runs: int
    inputs: int
    outputs: int
    groups: int


class Costs:
    """The MACs of a network while channels go from it, without tracing it again.

    With `lanes` as a runtime that computes that many channels at once counts them: outputs, and inputs from a vector
    on, rounded up to whole vectors; fewer inputs are read one by one, which takes longer for each. Measured for ONNX
    Runtime by `benchmarks/conv_widths.py`.
    """

    def __init__(self, graph: Graph, shapes: Mapping[str, Sequence[int]], *, lanes: int = 1) -> None:
        self.lanes = lanes
        self.sizes: dict[str, list[int]] = {}
        self.layers: dict[str, Layer] = {}
        for node in graph.nodes:
            if node.op not in ("conv", "linear"):
                continue
            turned = bool(node.attributes.get("transposed"))
            if node.op == "linear":
                runs = math.prod(node.shape[1:-1])
            else:
                runs = math.prod(graph[node.inputs[0]].shape[2:] if turned else node.shape[2:])
            name, groups = node.state["weight"], int(node.attributes.get("groups", 1))
            self.sizes[name] = list(shapes[name])
            before = self.layers[name].runs if name in self.layers else 0
            self.layers[name] = Layer(runs=before + runs, inputs=int(not turned), outputs=int(turned), groups=groups)

    def macs(self) -> int:
        """As the runtime counts them."""
        return sum(self._counted(name, size) for name, size in self.sizes.items())

    def plain(self) -> int:
        """Without lanes."""
        return sum(self.layers[name].runs * math.prod(size) for name, size in self.sizes.items())

    def saved(self, channel: Channel) -> int:
        """By a channel more; below 0 where what is left is slower."""
        fewer: dict[str, dict[int, int]] = {}
        for (name, dim), index in channel.items():
            if name in self.sizes:
                fewer.setdefault(name, {})[dim] = len(index)
        total = 0
        for name, dims in fewer.items():
            size = self.sizes[name]
            left = [n - dims.get(d, 0) for d, n in enumerate(size)]
            total += self._counted(name, size) - self._counted(name, left)
        return total

    def remove_(self, channel: Channel) -> None:
        for (name, dim), index in channel.items():
            if name in self.sizes:
                self.sizes[name][dim] -= len(index)

    def _counted(self, name: str, size: Sequence[int]) -> int:
        layer, counted = self.layers[name], list(size)
        if self.lanes > 1:
            first = size[0]
            depthwise = layer.groups > 1 and size[1] == 1
            each = 1 if depthwise or layer.groups == 1 else layer.groups
            counted[0] = first // each
            if not depthwise:
                counted[layer.inputs] = read_by_lanes(counted[layer.inputs], self.lanes)
                counted[layer.outputs] = rounded_up(counted[layer.outputs], self.lanes)
            else:
                counted[0] = rounded_up(first, self.lanes)
            counted[0] *= each
        return layer.runs * math.prod(counted)


def rounded_up(count: int, lanes: int) -> int:
    return -(-count // lanes) * lanes


def read_by_lanes(count: int, lanes: int) -> int:
    """Of fewer inputs than a vector each takes 5/4, and an eighth of a vector is added for their other layout."""
    return rounded_up(count, lanes) if count >= lanes else -(-5 * (8 * count + lanes) // 32)


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

    As many at a time as leave a `multiple`; one by one where no more than that are left. With lanes MACs are those that
    the runtime counts, of which the same share must be left too; as many go at a time as cost least for each of them.
    Where the target cannot be met, all that may go. `costs` is kept up.
    """
    chosen: dict[Group, list[int]] = {group: [] for group in steps}
    limits = {group: most_of(group, shapes, most) for group in steps}
    left = _sizes(steps, shapes)
    order = list(steps)

    def offer(group: Group) -> tuple[float, Channel, list[int]] | None:
        """(cost for each MAC, what goes, the channels) of the next removal from a group."""
        done, kept = len(chosen[group]), len(group.channels) - len(chosen[group])
        best: tuple[float, Channel, list[int]] | None = None
        for count in _counts(kept, limits[group] - done, multiple, costs.lanes):
            numbers = [number for number, _ in steps[group][done : done + count]]
            together = merged(group, numbers)
            gain = costs.saved(together)
            if gain <= 0 or not _fits(together, left):
                continue
            price = sum(cost for _, cost in steps[group][done : done + count]) / gain
            if best is None or price < best[0]:
                best = price, together, numbers
        return best

    heap = [(found[0], i) for i, group in enumerate(order) if (found := offer(group)) is not None]
    heapq.heapify(heap)
    before, counted = costs.plain(), costs.macs()
    while heap and (costs.plain() > target or costs.macs() * before > target * counted):
        _, i = heapq.heappop(heap)
        found = offer(order[i])
        if found is None:
            continue
        price, together, numbers = found
        if heap and price > heap[0][0]:  # other groups have made it dearer
            heapq.heappush(heap, (price, i))
            continue
        costs.remove_(together)
        _take_(together, left)
        chosen[order[i]].extend(numbers)
        later = offer(order[i])
        if later is not None:
            heapq.heappush(heap, (later[0], i))
    return chosen


def _counts(kept: int, most: int, multiple: int, lanes: int) -> list[int]:
    """How many channels may go at a time."""
    if lanes == 1:
        step = 1 if kept <= multiple else kept % multiple or multiple
        return [step] if step <= most else []
    reach = 2 * max(lanes, multiple)  # a smaller number of vectors is nearer than that
    return [n for n in range(1, min(most, reach) + 1) if kept - n < multiple or (kept - n) % multiple == 0]


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
