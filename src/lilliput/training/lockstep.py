"""Two networks side by side on the calibration samples: one that is being compressed, and one to compare with.

Node by node, all samples at a time. When a layer's turn comes, everything before it is already as it will be, so what
it reads carries the errors of the layers before; what it should give comes from the other network. The layer may then
be changed, and the run goes on with the changed one. Each network is run once, however many layers it has.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.device import device_of, moved
from lilliput.core.edits import Edit, Slice
from lilliput.core.method import Context
from lilliput.core.task import Batch, Task
from lilliput.graph.fold import values_after
from lilliput.graph.integer import IntegerNet, Quantized
from lilliput.graph.layers import output_axis
from lilliput.graph.trace import Graph, Node, evaluate, graph_of, trace

LAYERS = ("conv", "linear")
State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """A layer's turn. Lists have one tensor for each batch; `wanted` is empty where `missing` says why."""

    node: Node
    inputs: list[Tensor]
    wanted: list[Tensor]
    missing: str
    state: State = field(repr=False)
    rest: Callable[[State], Iterator[Any]] = field(repr=False)

    def outputs(self, state: State | None = None) -> Iterator[Tensor]:
        """What the layer gives, now or with other parameters; of integer networks the accumulator, not rounded."""
        for x in self.inputs:
            yield evaluate(self.node, {self.node.inputs[0]: x}, {**self.state, **(state or {})})

    def means(self) -> tuple[Tensor, Tensor]:
        """float64 [channels] each: mean and variance of what the layer gives now."""
        return moments_of(self.outputs(), channel_dim(self.node))

    def wanted_means(self) -> tuple[Tensor, Tensor]:
        """The same of what it should give."""
        return moments_of(iter(self.wanted), channel_dim(self.node))


def moments_of(batches: Iterator[Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """float64 [channels] each: mean and variance over all other dimensions; batches joined as Chan et al. (1979) do."""
    count, mean, spread = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        rows = batch.movedim(dim, 0).flatten(1).double()
        n, m = rows.shape[1], rows.mean(1)
        around = (rows - m[:, None]).square().sum(1)
        if count == 0:
            count, mean, spread = n, m, around
        else:
            gap = m - mean
            spread = spread + around + gap.square() * (count * n / (count + n))
            mean, count = mean + gap * (n / (count + n)), count + n
    return mean, spread / max(count, 1)


class Lockstep:
    """`net` beside `original`; `edited` says that `original` is the network before `net.edits`.

    Then the output of a folded BatchNorm is what its layer is compared with, and channels that were removed are left
    out. Both networks run where `net` is, on the first `samples` of the calibration role, or on all.
    """

    def __init__(
        self, net: Artifact, original: nn.Module, context: Context, *, edited: bool, samples: int | None = None
    ) -> None:
        place = device_of(net.module) or torch.device("cpu")
        module = original if device_of(original) in (place, None) else copy.deepcopy(original).to(place)
        self.net = net
        self.graph = graph_of(net)
        self.other = trace(module, net.input.example(2)) if edited and net.edits else self.graph
        self.partners, self.missing = _partners(net, self.graph, self.other, edited=edited)
        self.inputs = _inputs(module, context, place, samples)
        self._state, self._other_state = _state(net.module), _state(module)

    def run(self, visit: Callable[[Turn], bool]) -> None:
        """`visit(turn)` for every layer in order; it returns whether it has changed the artifact."""

        def theirs(node: Node, values: Mapping[str, Any], x: Tensor | None) -> Any:
            return evaluate(node, values, self._other_state) if x is None else x

        def ours(node: Node, values: Mapping[str, Any], x: Tensor | None) -> Any:
            if integer is not None:
                return integer.compute(node, values, x)
            return evaluate(node, values, self._state) if x is None else x

        integer = IntegerNet(self.net, self.graph) if self.net.activations else None
        reference = Run(self.other, self.inputs, theirs, held=[name for name, _ in self.partners.values()])
        run = Run(self.graph, self.inputs, ours)
        with torch.no_grad():
            for node in self.graph.nodes:
                if node.op in LAYERS and visit(self._turn(node, run, reference)) and integer is not None:
                    integer = IntegerNet(self.net, self.graph)
                run.step()

    def _turn(self, node: Node, run: "Run", reference: "Run") -> Turn:
        wanted: list[Tensor] = []
        if node.name in self.partners:
            partner, index = self.partners[node.name]
            wanted = [v if index is None else v.index_select(channel_dim(node), index) for v in reference.take(partner)]
        later = self.graph.nodes[run.at :]

        def rest(state: State) -> Iterator[Any]:
            for values in run.values:
                here = dict(values)
                for n in later:
                    here[n.name] = evaluate(n, here, {**self._state, **state})
                yield self.graph.result(tuple(here[name] for name in self.graph.outputs))

        return Turn(
            node=node,
            inputs=[_float(values[node.inputs[0]]) for values in run.values],
            wanted=wanted,
            missing=self.missing.get(node.name, ""),
            state=self._state,
            rest=rest,
        )


class Run:
    """One network on all batches, node by node. Values go after their last reader; the `held` ones are for `take`."""

    def __init__(
        self,
        graph: Graph,
        inputs: list[tuple[Tensor, ...]],
        compute: Callable[[Node, Mapping[str, Any], Tensor | None], Any],
        held: Sequence[str] = (),
    ) -> None:
        self.graph, self.compute, self.at = graph, compute, 0
        self.given = [dict(zip(graph.inputs, args, strict=True)) for args in inputs]
        self.values: list[dict[str, Any]] = [{} for _ in inputs]
        self.left = Counter([name for n in graph.nodes for name in n.inputs] + [*graph.outputs, *held])

    def step(self) -> None:
        node = self.graph.nodes[self.at]
        self.at += 1
        for given, values in zip(self.given, self.values, strict=True):
            values[node.name] = self.compute(node, values, given.get(node.name))
        for name in node.inputs:
            self._release(name)

    def take(self, name: str) -> list[Any]:
        while name not in self.values[0]:
            self.step()
        found = [values[name] for values in self.values]
        self._release(name)
        return found

    def _release(self, name: str) -> None:
        self.left[name] -= 1
        if not self.left[name]:
            for values in self.values:
                del values[name]


class _Recorder(nn.Module):
    """Stands in for the network and notes what it is called with."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, list[tuple[Tensor, ...]]()

    def forward(self, *inputs: Tensor) -> Any:
        self.calls.append(inputs)
        return self.module(*inputs)


def channel_dim(node: Node) -> int:
    """The dimension of a layer's output that counts its channels."""
    return 1 if node.op == "conv" else -1


def _inputs(module: nn.Module, context: Context, place: torch.device, samples: int | None) -> list[tuple[Tensor, ...]]:
    """What the task gives the network for each calibration batch."""
    data = context.task.data("calibration")
    order = torch.arange(len(data) if samples is None else min(samples, len(data)))
    return calls_of(module, context.task, data.batches(context.batch_size, order), place)


def calls_of(module: nn.Module, task: Task, batches: Iterable[Batch], place: torch.device) -> list[tuple[Tensor, ...]]:
    """What the task gives the network for each batch."""
    recorder = _Recorder(module).eval()
    with torch.no_grad():
        for x, y in batches:
            task.forward(recorder, moved((x, y), place))
    return recorder.calls


def _partners(
    net: Artifact, graph: Graph, other: Graph, *, edited: bool
) -> tuple[dict[str, tuple[str, Tensor | None]], dict[str, str]]:
    """({layer's node: (node of the other graph, which of its channels)}, {layer's node: why it has none})."""
    edits = net.edits if edited else []
    theirs, after = other.by_name, values_after(other, edits)
    found: dict[str, tuple[str, Tensor | None]] = {}
    missing: dict[str, str] = {}
    for node in graph.nodes:
        if node.op not in LAYERS:
            continue
        partner = theirs.get(after.get(node.name, node.name))
        if partner is None:
            missing[node.name] = "the original network has no such layer"
            continue
        index = _kept(net, node, edits)
        dim = channel_dim(node)
        channels = partner.shape[dim] if index is None else len(index)
        if channels != node.shape[dim]:
            missing[node.name] = f"it has {node.shape[dim]} channels, the original {partner.shape[dim]}"
        else:
            found[node.name] = partner.name, None if index is None else index.to(device_of(net.module) or "cpu")
    return found, missing


def _kept(net: Artifact, node: Node, edits: Sequence[Edit]) -> Tensor | None:
    """Which of the original's output channels are left; None for all."""
    axis = output_axis(net.module.get_submodule(node.module)) if node.module else None
    index: Tensor | None = None
    for edit in edits:
        if isinstance(edit, Slice) and edit.path == node.state.get("weight") and edit.dim == axis:
            chosen = torch.tensor(edit.index, dtype=torch.int64)
            index = chosen if index is None else index[chosen]
    return index


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by every name; they share memory with the module's."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: t.detach() for name, t in tensors}


def _float(value: Any) -> Any:
    return value.decode() if isinstance(value, Quantized) else value
