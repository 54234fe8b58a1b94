"""The memory that a microcontroller would need, planned: one static arena for all activations, constants in flash.

RAM is what the arena takes when operations run in the graph's order, one sample at a time:

- A value takes 1 byte an element on a grid of up to 8 bits, 2 up to 16, else 4 (float32, or an int32 accumulator).
- A layer or add and the relu or clamp that alone reads it are one operation. Reshapes share their input's bytes.
- Functions of one value, BatchNorm and sums and products of two values write over an input that nothing reads later.
- Input and output lie in the arena too; the input may be overwritten once it has been read.

Not included: scratch memory of kernels (im2col, patches), the stack, code.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lilliput.core.artifact import Artifact
from lilliput.core.cost import CostTable, Measurement
from lilliput.graph.integer import TABLES, fusions, grids_of
from lilliput.graph.trace import Graph, Node
from lilliput.measure.flash import count_flash, element_bytes

ALIGNMENT = 4
"""Offsets and sizes are multiples of it: an accumulator must lie on a word."""

SCRATCH = "im2col and kernel scratch not included"
VIEWS = ("identity", "reshape", "flatten")
IN_PLACE = (*TABLES, "batch_norm", "add", "sub", "mul")


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """`size` bytes of the arena from `offset`, in use from step `first` to step `last`, both included.

    Steps are positions in `Graph.nodes`; outputs are in use for one step more than there are nodes. `values` are the
    nodes whose results live here, one after the other.
    """

    values: tuple[str, ...]
    size: int
    first: int
    last: int
    offset: int = 0

    @property
    def end(self) -> int:
        return self.offset + self.size

    def meets(self, other: "Buffer") -> bool:
        """Are both in use at the same time?"""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """`lower_bound_bytes` is what is alive at `peak_step` (a node's name): no placement of these buffers needs less."""

    ram_bytes: int
    lower_bound_bytes: int
    peak_step: str
    buffers: tuple[Buffer, ...]
    constants: CostTable

    @property
    def flash_bytes(self) -> int:
        return int(self.constants.total("flash").value)

    def measurements(self) -> dict[str, Measurement]:
        return {
            "ram": Measurement("ram", self.ram_bytes, "B", "planned", note=SCRATCH),
            "ram_lower_bound": Measurement("ram_lower_bound", self.lower_bound_bytes, "B", "planned", note=SCRATCH),
            "flash": Measurement("flash", self.flash_bytes, "B", "planned", note="constants; code not included"),
        }


def plan_memory(graph: Graph, artifact: Artifact) -> MemoryPlan:
    """RAM and flash of the artifact as it is: integers where it has grids, 4 bytes for everything else."""
    grids = grids_of(graph, artifact.activations)
    sizes = {node.name: element_bytes(grids.get(node.name)) for node in graph.nodes}
    buffers = place(lifetimes(graph, sizes))
    step, bound = peak(buffers)
    return MemoryPlan(
        ram_bytes=max((b.end for b in buffers), default=0),
        lower_bound_bytes=bound,
        peak_step=graph.nodes[step].name,
        buffers=tuple(buffers),
        constants=count_flash(graph, artifact, grids),
    )


def lifetimes(graph: Graph, element_sizes: Mapping[str, int]) -> list[Buffer]:
    """The buffers that the graph's values need, not placed yet; `element_sizes` are bytes an element of each value."""
    last, clips = _last_reads(graph), set(fusions(graph).values())
    nodes, home = graph.by_name, dict[str, int]()
    buffers: list[Buffer] = []
    for step, node in enumerate(graph.nodes):
        if node.op in ("size", "scalar", "several"):
            continue
        size = _aligned(math.prod(node.shape) * element_sizes[node.name])
        sources = [nodes[name] for name in node.inputs if name in home]
        if node.op in VIEWS or node.name in clips:
            hosts = [s for s in sources if element_sizes[s.name] == element_sizes[node.name]]
        elif node.op in IN_PLACE:
            hosts = [s for s in sources if s.shape == node.shape and element_sizes[s.name] >= element_sizes[node.name]]
            hosts = [s for s in hosts if buffers[home[s.name]].last == step]
        else:
            hosts = list[Node]()
        if not hosts:
            first = 0 if node.op == "input" else step
            home[node.name] = len(buffers)
            buffers.append(Buffer(values=(node.name,), size=size, first=first, last=last[node.name]))
        else:
            home[node.name] = host = home[hosts[0].name]
            old = buffers[host]
            buffers[host] = replace(old, values=(*old.values, node.name), last=max(old.last, last[node.name]))
    return buffers


def place(buffers: Iterable[Buffer]) -> list[Buffer]:
    """Offsets such that no two buffers in use together overlap; the smallest arena of three greedy orders.

    Each order puts one buffer after the other into the tightest gap between those it meets: large ones first (as
    TensorFlow Lite for Microcontrollers does), long-lived ones first, or in order of time. Not always optimal.
    """
    given = list(buffers)
    orders = (
        lambda i: (-given[i].size, given[i].first),
        lambda i: (-(given[i].last - given[i].first), -given[i].size),
        lambda i: (given[i].first, -given[i].size),
    )
    plans = [_placed(given, sorted(range(len(given)), key=order)) for order in orders]
    return min(plans, key=lambda plan: max((b.end for b in plan), default=0))


def peak(buffers: Sequence[Buffer]) -> tuple[int, int]:
    """(step, bytes) where most is in use; the first such step."""
    alive = {b.first: sum(other.size for other in buffers if other.first <= b.first <= other.last) for b in buffers}
    return max(alive.items(), key=lambda item: (item[1], -item[0]), default=(0, 0))


def _placed(given: list[Buffer], order: list[int]) -> list[Buffer]:
    done: dict[int, Buffer] = {}
    for i in order:
        near = sorted((b for b in done.values() if b.meets(given[i])), key=lambda b: b.offset)
        best, slack, top = None, math.inf, 0
        for b in near:
            gap = b.offset - top
            if given[i].size <= gap < slack:
                best, slack = top, gap
            top = max(top, b.end)
        done[i] = replace(given[i], offset=top if best is None else best)
    return [done[i] for i in range(len(given))]


def _last_reads(graph: Graph) -> dict[str, int]:
    """The last step that reads each value; outputs are read after the end, parts of several results when taken."""
    last = dict.fromkeys(graph.outputs, len(graph.nodes))
    for step in reversed(range(len(graph.nodes))):
        node = graph.nodes[step]
        own = last.setdefault(node.name, step)
        if node.op != "size":
            for name in node.inputs:
                last[name] = max(last.get(name, 0), own if node.op in ("scalar", "several") else step)
    return last


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
