"""Which channels must be removed together, and why others cannot be.

Every value of the graph gets a label for each of its entries: the channel that the entry belongs to. Moves (reshape,
slice, concatenation, flatten) move labels as they move values; where two values meet (a sum, a depthwise convolution, a
second call, a tied weight) their labels become one. What is left are channels with all the slices of parameters and
buffers that go with them. Removing such slices gives what the network computes when every layer that mixes channels
ignores them (`graph.removal`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lilliput.graph.operators import POINTWISE
from lilliput.graph.semantics import RULES
from lilliput.graph.trace import Graph, Node, operands

Place = tuple[str, int]
"""A tensor and one of its dimensions."""
Channel = Mapping[Place, tuple[int, ...]]
"""Which indices of which dimensions go with the channel."""

SCALARS = ("add_scalar", "sub_scalar", "mul_scalar", "div_scalar", "rsub_scalar", "pow_scalar")
ALONE = (*(word for word in POINTWISE if word not in ("prelu", "learned_function")), *SCALARS, "identity")
SPATIAL = ("max_pool", "avg_pool", "upsample_nearest")
REDUCTIONS = ("mean", "amax", "argmax")
JOINING = ("add", "sub", "mul")


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Channels whose slices lie in the same dimensions of the same tensors, as many for each.

    `name` is the first layer that makes them, `made` where layers make them, `read` where layers mix them. `fixed` says
    why they must stay; it is empty where they can be removed.
    """

    name: str
    channels: tuple[Channel, ...]
    made: frozenset[Place]
    read: frozenset[Place]
    fixed: str = ""

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(self.channels[0])

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name, _ in self.places))


@dataclass(frozen=True, kw_only=True, eq=False)
class Coupling:
    """`groups`, in the order of their first layers.

    `readers[node]` has, for each input channel of a layer that mixes channels (each feature of a linear one), the
    number of its channel, counted through all groups.
    """

    groups: tuple[Group, ...]
    readers: Mapping[str, Tensor] = field(repr=False)

    def first(self, group: Group) -> int:
        """The number of the group's first channel."""
        return sum(len(g.channels) for g in self.groups[: self.groups.index(group)])

    def channel(self, number: int) -> Channel:
        for group in self.groups:
            if number < len(group.channels):
                return group.channels[number]
            number -= len(group.channels)
        raise IndexError(number)


def channel_groups(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> Coupling:
    """The groups of a network; `shapes` are those of its parameters and buffers, by the names that the graph uses."""
    reader = _Reader(shapes)
    for node in graph.nodes:
        reader.read(node)
    for name in graph.outputs:
        if name in reader.labels:
            reader.fix(reader.labels[name], "it is an output of the network")
    return reader.result()


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in state.items()}


class _Reader:
    """Labels are numbers of a union-find; slices of tensors are labels too."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.labels: dict[str, Tensor] = {}
        self.parent: list[int] = []
        self.reasons: dict[int, str] = {}
        self.slices: dict[tuple[str, int, int], int] = {}
        self.makers: list[tuple[int, str]] = []
        self.made: set[Place] = set()
        self.mixed: set[Place] = set()
        self.inputs: dict[str, Tensor] = {}

    # labels

    def new(self, count: int, reason: str = "") -> Tensor:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        if reason:
            self.reasons.update(dict.fromkeys(range(start, start + count), reason))
        return torch.arange(start, start + count)

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def join(self, a: Tensor, b: Tensor) -> None:
        """Entry by entry, of tensors that broadcast."""
        a, b = _thin(*torch.broadcast_tensors(a, b))
        pairs = torch.unique(torch.stack([a.reshape(-1), b.reshape(-1)]), dim=1)
        for x, y in pairs.t().tolist():
            first, second = self.root(x), self.root(y)
            if first != second:
                self.parent[second] = first
                reason = self.reasons.pop(second, "")
                if reason:
                    self.reasons.setdefault(first, reason)

    def fix(self, labels: Tensor, reason: str) -> None:
        for label in torch.unique(_thin(labels)[0]).tolist():
            self.reasons.setdefault(self.root(label), reason)

    def roots(self, labels: Tensor) -> Tensor:
        """The same labels, each as the root of what it was joined with."""
        found, place = torch.unique(labels, return_inverse=True)
        return torch.tensor([self.root(x) for x in found.tolist()], dtype=torch.int64)[place]

    def varies(self, labels: Tensor, dim: int) -> bool:
        if labels.stride(dim) == 0 or labels.shape[dim] == 1:
            return False
        return bool((labels != labels.narrow(dim, 0, 1)).any())

    def along(self, labels: Tensor, dim: int) -> Tensor:
        """[n]: one label for each index of a dimension; what an index has several labels for becomes one."""
        rows = _thin(labels)[0].movedim(dim, 0)
        rows = rows.expand(labels.shape[dim], *rows.shape[1:]).reshape(labels.shape[dim], -1)
        self.join(rows, rows[:, :1])
        return rows[:, 0]

    def tie(self, labels: Tensor, tensor: str | None, dim: int, *, repeat: Sequence[int] | None = None) -> None:
        """Index i of a dimension of a tensor goes with label i, or with label `repeat[i]`."""
        if tensor is None:
            return
        own: list[int] = []
        for i in range(self.shapes[tensor][dim]):
            key = (tensor, dim, i)
            if key not in self.slices:
                self.slices[key] = int(self.new(1))
            own.append(self.slices[key])
        wanted = labels if repeat is None else labels[torch.tensor(repeat)]
        self.join(torch.tensor(own), wanted)

    # nodes

    def read(self, node: Node) -> None:
        known = [self.labels[name] for name in node.inputs if name in self.labels]
        if node.op in ("size", "scalar"):
            return
        if node.op == "input":
            channels = self.new(node.shape[1] if len(node.shape) > 1 else 1, "it is an input of the network")
            self.labels[node.name] = _spread(channels, node.shape)
        elif node.op in JOINING and known:
            self._join(node)
        elif node.op == "concat" and len(known) == len(node.arguments[0]):
            self.labels[node.name] = torch.cat(known, node.attributes["dim"])
        elif node.op in RULES_OF_ONE and len(known) == 1:
            RULES_OF_ONE[node.op](self, node, known[0])
        else:
            self._unknown(node, known)

    def _same(self, node: Node, x: Tensor) -> None:
        self.labels[node.name] = x

    def _moved(self, node: Node, x: Tensor) -> None:
        self.labels[node.name] = RULES[node.op]([x], {}, node.attributes)

    def _taken(self, node: Node, x: Tensor) -> None:
        if self.varies(x, node.attributes["dim"]):
            self.fix(x, f"{node.name} takes channels by their numbers")
        self._moved(node, x)

    def _spatial(self, node: Node, x: Tensor) -> None:
        self.labels[node.name] = _spread(self.along(x, 1), node.shape)

    def _normalized(self, node: Node, x: Tensor) -> None:
        if self.varies(x, node.attributes["dim"]):
            self.fix(x, f"{node.name} computes with all channels together")
        self.labels[node.name] = x

    def _unknown(self, node: Node, known: Iterable[Tensor]) -> None:
        reason = f"{node.name} ({node.target}) is not an operation that channels can be followed through"
        for labels in known:
            self.fix(labels, reason)
        for name in node.state.values():
            for dim in range(len(self.shapes.get(name, ()))):
                self.tie(self.new(self.shapes[name][dim], reason), name, dim)
        self.labels[node.name] = _spread(self.new(1, reason), node.shape)

    def _output(self, node: Node, channels: Tensor, dim: int) -> None:
        self.labels[node.name] = _spread(channels, node.shape, dim)
        self.makers.extend((label, node.layer) for label in channels.tolist())

    def _conv(self, node: Node, x: Tensor) -> None:
        weight, bias, groups = node.state["weight"], node.state.get("bias"), int(node.attributes["groups"])
        transposed = bool(node.attributes["transposed"])
        source = self.along(x, 1)
        inputs, outputs = len(source), node.shape[1]
        if groups == inputs and groups > 1:  # depthwise: a channel, and what is made of it, is a group
            each = outputs // groups
            owner = [o // each for o in range(outputs)]
            self.tie(source, weight, 0, repeat=None if transposed else owner)
            self.tie(source, bias, 0, repeat=owner)
            self._output(node, source[torch.tensor(owner)], 1)
            return
        made, read = ((weight, 1), (weight, 0)) if transposed else ((weight, 0), (weight, 1))
        out = self.new(outputs)
        if groups > 1:  # every group must lose as many: channels of the same place in their groups go together
            self.join(source.reshape(groups, -1), source.reshape(groups, -1)[:1])
            self.join(out.reshape(groups, -1), out.reshape(groups, -1)[:1])
        per_source, per_out = source.reshape(groups, -1)[0], out.reshape(groups, -1)[0]
        self.tie(source if transposed else per_source, *read)
        self.tie(per_out if transposed else out, *made)
        self.tie(out, bias, 0)
        self._mixes(node, source, read, made)
        self._output(node, out, 1)

    def _linear(self, node: Node, x: Tensor) -> None:
        weight = node.state["weight"]
        source, out = self.along(x, x.dim() - 1), self.new(node.shape[-1])
        self.tie(source, weight, 1)
        self.tie(out, weight, 0)
        self.tie(out, node.state.get("bias"), 0)
        self._mixes(node, source, (weight, 1), (weight, 0))
        self._output(node, out, len(node.shape) - 1)

    def _mixes(self, node: Node, source: Tensor, read: Place, made: Place) -> None:
        self.inputs[node.name] = source
        self.mixed.add(read)
        self.made.add(made)

    def _by_channel(self, node: Node, x: Tensor) -> None:
        """A parameter for each channel, or one for all."""
        channels = self.along(x, 1)
        for name in node.state.values():
            if self.shapes[name] == (len(channels),) and (node.op == "batch_norm" or len(channels) > 1):
                self.tie(channels, name, 0)
        self.labels[node.name] = x

    def _learned_function(self, node: Node, x: Tensor) -> None:
        """A function for each channel goes with it; one for all stays."""
        channels, weight = self.along(x, node.attributes["dim"]), node.state["weight"]
        rows = self.shapes[weight][0]
        if "owner" in node.state:  # which function a channel has goes with it; the functions stay
            self.tie(channels, node.state["owner"], 0)
            self.labels[node.name] = x
            return
        if 1 < rows < len(channels):
            self.fix(channels, f"{node.name} has functions for groups of channels")
        if rows == len(channels) > 1:
            self.tie(channels, weight, 0)
            if self.shapes[node.state["limit"]] == (rows,):
                self.tie(channels, node.state["limit"], 0)
        self.labels[node.name] = x

    def _layer_norm(self, node: Node, x: Tensor) -> None:
        last = range(x.dim() - node.attributes["dims"], x.dim())
        if any(self.varies(x, d) for d in last):
            self.fix(x, f"{node.name} computes with all channels together")
        self.labels[node.name] = x

    def _reduce(self, node: Node, x: Tensor) -> None:
        dims = node.attributes["dims"] if "dims" in node.attributes else (node.attributes["dim"],)
        if any(self.varies(x, d) for d in dims):
            self.fix(x, f"{node.name} computes with all channels together")
        for d in sorted(dims, reverse=True):
            x = x.narrow(d, 0, 1) if node.attributes["keepdim"] else x.select(d, 0)
        self.labels[node.name] = x

    def _pad(self, node: Node, x: Tensor) -> None:
        """Places added to an image belong to its channels. Channels added by a number stay."""
        for dim, (before, after) in enumerate(node.attributes["pads"]):
            if not before and not after:
                continue
            size = x.shape[dim]
            if dim == 1 or self.varies(x, dim):
                shape = [1] * x.dim()
                reason = f"{node.name} adds channels of a fixed number"
                ends = []
                for count in (before, after):
                    shape[dim] = count
                    new = self.new(count, reason).reshape(shape)
                    ends.append(new.expand(*[count if d == dim else s for d, s in enumerate(x.shape)]))
                x = torch.cat([ends[0], x, ends[1]], dim)
            elif x.stride(dim) == 0 or size == 1:
                x = x.narrow(dim, 0, 1).expand(
                    *[size + before + after if d == dim else s for d, s in enumerate(x.shape)]
                )
            else:
                x = x.index_select(dim, torch.arange(-before, size + after).clamp(0, size - 1))
        self.labels[node.name] = x

    def _join(self, node: Node) -> None:
        refs = [ref.name for ref in operands(node)]
        values = [self.labels[name] for name in refs if name in self.labels]
        if not values:
            return
        result = values[0] if len(values) == 1 else self._meet(node, *values)
        for name in refs:
            if name not in self.labels:
                result = self._with_tensor(node, result, name)
        self.labels[node.name] = result

    def _meet(self, node: Node, a: Tensor, b: Tensor) -> Tensor:
        """A value that is spread over the channels of the other must stay; channels that meet are one."""
        rank = max(a.dim(), b.dim())
        a, b = (t.reshape([1] * (rank - t.dim()) + list(t.shape)) for t in (a, b))
        narrow = [
            any(x.shape[d] == 1 and y.shape[d] > 1 and self.varies(y, d) for d in range(1, rank))
            for x, y in ((a, b), (b, a))
        ]
        reason = f"{node.name} spreads it over channels"
        for labels, spread in zip((a, b), narrow, strict=True):
            if spread:
                self.fix(labels, reason)
        if all(narrow):
            return _spread(self.new(1, reason), node.shape)
        if not any(narrow):
            self.join(a, b)
        return (b if narrow[0] else a).expand(node.shape)

    def _with_tensor(self, node: Node, x: Tensor, name: str) -> Tensor:
        shape = self.shapes[name]
        rank = len(node.shape)
        lead = rank - len(shape)
        x = x.reshape([1] * (rank - x.dim()) + list(x.shape))
        if any(shape[k] > 1 and x.shape[lead + k] == 1 and lead + k > 0 for k in range(len(shape))):
            reason = f"{node.name} spreads it over channels"
            self.fix(x, reason)
            x = _spread(self.new(1, reason), node.shape)
        for k, size in enumerate(shape):
            if size > 1 and self.varies(x, lead + k):
                self.tie(self.along(x, lead + k), name, k)
        return x.expand(node.shape)

    # what was found

    def result(self) -> Coupling:
        found: dict[int, dict[Place, list[int]]] = {}
        for (name, dim, index), label in self.slices.items():
            found.setdefault(self.root(label), {}).setdefault((name, dim), []).append(index)
        makers: dict[int, str] = {}
        for label, layer in self.makers:
            makers.setdefault(self.root(label), layer)
        order = {root: i for i, root in enumerate(makers)}
        grouped: dict[tuple[frozenset[tuple[Place, int]], str], list[int]] = {}
        for root in sorted(found, key=lambda r: (order.get(r, len(order)), r)):
            counts = frozenset((place, len(index)) for place, index in found[root].items())
            grouped.setdefault((counts, self.reasons.get(root, "")), []).append(root)
        groups: list[Group] = []
        numbers: dict[int, int] = {}
        for (counts, reason), roots in grouped.items():
            places = {place for place, _ in counts}
            roots.sort(key=lambda r: [sorted(found[r][p]) for p in sorted(places)])
            numbers.update({root: len(numbers) + i for i, root in enumerate(roots)})
            groups.append(
                Group(
                    name=makers.get(roots[0], ""),
                    channels=tuple({p: tuple(sorted(found[r][p])) for p in sorted(places)} for r in roots),
                    made=frozenset(places & self.made),
                    read=frozenset(places & self.mixed),
                    fixed=reason,
                )
            )
        readers = {
            name: torch.tensor([numbers[r] for r in self.roots(source).tolist()])
            for name, source in self.inputs.items()
        }
        return Coupling(groups=tuple(groups), readers=readers)


RULES_OF_ONE: dict[str, Callable[[_Reader, Node, Tensor], None]] = {
    "conv": _Reader._conv,
    "linear": _Reader._linear,
    "batch_norm": _Reader._by_channel,
    "prelu": _Reader._by_channel,
    "learned_function": _Reader._learned_function,
    "layer_norm": _Reader._layer_norm,
    "pad": _Reader._pad,
    **dict.fromkeys(ALONE, _Reader._same),
    **dict.fromkeys(SPATIAL, _Reader._spatial),
    **dict.fromkeys(REDUCTIONS, _Reader._reduce),
    **dict.fromkeys(("softmax", "log_softmax"), _Reader._normalized),
    **dict.fromkeys(("slice", "select"), _Reader._taken),
    **dict.fromkeys(("reshape", "permute"), _Reader._moved),
}
"""What a word with one operand does to labels."""


def _spread(channels: Tensor, shape: Sequence[int], dim: int = 1) -> Tensor:
    """Labels of a value that has these channels in a dimension: nothing is copied."""
    if len(channels) == 1:
        return channels.reshape([1] * len(shape)).expand(tuple(shape))  # of no dimensions where a node gives several
    return channels.reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(*shape)


def _thin(*labels: Tensor) -> tuple[Tensor, ...]:
    """Without the repetitions that all of them have."""
    found = list(labels)
    for d in range(found[0].dim()):
        if all(t.stride(d) == 0 for t in found):
            found = [t.narrow(d, 0, 1) for t in found]
    return tuple(found)
