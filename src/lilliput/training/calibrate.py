"""Calibration: which values a network computes, and a grid for each.

Two passes over the calibration role: first the lowest and highest value, then a histogram between them. Ranges are
chosen from the histogram, so memory does not grow with the data. Zero is always on the grid.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.artifact import Artifact
from lilliput.core.device import as_device, moved
from lilliput.core.encoding import Grid
from lilliput.core.errors import DataError, UsageError
from lilliput.core.progress import SILENT, Progress
from lilliput.core.task import Task
from lilliput.graph.trace import Graph, Node, graph_of, run
from lilliput.ops.affine import (
    FEWEST_BITS,
    MOST_BITS,
    affine_parameters,
    dequantize_rows,
    quantize_rows,
)
from lilliput.ops.fixed_point import integer_range

BINS = 2048
SHARES = 100
METHODS = ("min_max", "percentile", "mse")


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """All values of one node: their ends, and how many lie in each of `BINS` equal parts between them.

    `means` holds the mean of the values in each part (0 in empty ones): a spike at zero stays exactly at zero.
    """

    low: float
    high: float
    counts: Tensor  # int64 [BINS]
    means: Tensor  # float64 [BINS]

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def edge(self, i: int) -> float:
        """Lower end of part i; `edge(BINS)` is `high`."""
        return self.high if i == BINS else self.low + (self.high - self.low) * i / BINS


def observe_ranges(
    net: Artifact,
    task: Task,
    nodes: Sequence[str],
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    progress: Progress = SILENT,
    graph: Graph | None = None,
    shared: Mapping[str, str] | None = None,
) -> dict[str, Observation]:
    """What the float network computes at these nodes of its graph, over the calibration role. `net` is not changed.

    Nodes that `shared` maps to another one are observed together with it: both get what all of them compute.
    Raises `DataError` if a value is NaN or infinite, `UsageError` for a node that the graph does not have.
    """
    place = as_device(device)
    graph = graph or graph_of(net)
    for name in nodes:
        if name not in graph.by_name:
            raise UsageError(
                f"calibrate node {name!r}", "the network has no such node", "use the names of integer_values"
            )
    tensors = [*net.module.named_parameters(remove_duplicate=False), *net.module.named_buffers(remove_duplicate=False)]
    state = {name: t.detach().to(place) for name, t in tensors}
    data, wanted = task.data("calibration"), {name: (shared or {}).get(name, name) for name in nodes}
    leaders = dict.fromkeys(wanted.values())
    ends: dict[str, tuple[float, float]] = {}
    counts = {name: torch.zeros(BINS, dtype=torch.int64, device=place) for name in leaders}
    sums = {name: torch.zeros(BINS, dtype=torch.float64, device=place) for name in leaders}

    def widen(name: str, x: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(f"calibrate {name!r}", "NaN or infinity", "look for broken weights or samples")
        known = ends.get(name, (low, high))
        ends[name] = min(low, known[0]), max(high, known[1])

    def count(name: str, x: Tensor) -> None:
        low, high = ends[name]
        factor = BINS / (high - low) if high > low else 0.0
        flat = x.reshape(-1)
        part = ((flat - low) * factor).long().clamp_(0, BINS - 1)
        counts[name] += torch.bincount(part, minlength=BINS)
        sums[name] += torch.bincount(part, weights=flat.double(), minlength=BINS)

    with torch.no_grad(), progress.task("calibrate", 2 * len(data)) as advance:
        for look in (widen, count):
            watched = _Watched(graph, state, wanted, look)
            for x, y in data.batches(batch_size):
                task.forward(watched, moved((x, y), place))
                advance(len(x))
    missing = [name for name in leaders if name not in ends]
    if missing:
        raise DataError(f"calibrate {missing[0]!r}", "no values", "give calibration data with at least one sample")
    found = {
        name: Observation(
            low=ends[name][0],
            high=ends[name][1],
            counts=counts[name].cpu(),
            means=(sums[name] / counts[name].clamp(min=1)).cpu(),
        )
        for name in leaders
    }
    return {name: found[leader] for name, leader in wanted.items()}


class _Watched(nn.Module):
    """Stands in for the network: runs its graph and shows the wanted values, each under the name it is observed as."""

    def __init__(
        self, graph: Graph, state: dict[str, Tensor], wanted: Mapping[str, str], look: Callable[[str, Tensor], None]
    ) -> None:
        super().__init__()
        self.graph, self.state, self.wanted, self.look = graph, state, wanted, look

    def forward(self, *inputs: Tensor) -> Any:
        return run(self.graph, self.state, *inputs, visit=self._visit)

    def _visit(self, node: Node, value: Any) -> Any:
        if node.name in self.wanted and value.numel():
            self.look(self.wanted[node.name], value)
        return value


def choose_range(
    observation: Observation,
    method: str,
    *,
    percentile: float = 99.99,
    bit_width: int = 8,
    signed: bool = False,
    symmetric: bool = False,
    power_of_two: bool = False,
) -> tuple[float, float]:
    """(low, high) to represent.

    - "min_max": all values.
    - "percentile": from both sides, the value at rank ceil(percentile / 100 * n), as in `ops.affine`, taken to the
      outer end of its part of the histogram: never less than was asked for.
    - "mse": the least squared error of a grid of `bit_width` bits, clipping included: both ends shrunk by one share
      of 1.00, 0.99, ... 0.01, then the lower end alone, then the upper; the widest of equal ones.
    """
    if observation.total == 0:
        raise DataError("a range", "no values were observed", "calibrate on at least one sample")
    if method == "min_max":
        return observation.low, observation.high
    if method == "percentile":
        return _percentile(observation, percentile)
    if method != "mse":
        raise UsageError(f"range method {method!r}", "it is not known", f"use one of {', '.join(METHODS)}")
    _check_bits(bit_width)
    shares = torch.arange(SHARES, 0, -1, dtype=torch.float64) / SHARES
    ends = torch.tensor([min(observation.low, 0.0), max(observation.high, 0.0)], dtype=torch.float64)
    low, high = ends
    grid = {"bit_width": bit_width, "signed": signed, "symmetric": symmetric, "power_of_two": power_of_two}
    low, high = _least_error(observation, low * shares, high * shares, **grid)
    if low < 0 < high and not symmetric:
        low, high = _least_error(observation, low * shares, high.expand(SHARES), **grid)
        low, high = _least_error(observation, low.expand(SHARES), high * shares, **grid)
    return float(low), float(high)


def activation_grid(
    observation: Observation,
    method: str = "min_max",
    *,
    percentile: float = 99.99,
    bit_width: int = 8,
    signed: bool,
    symmetric: bool = False,
    power_of_two: bool = False,
) -> Grid:
    """One affine grid for the whole tensor. Where no value is negative, zero is the lowest code, unless symmetric.

    `power_of_two`: its scale is one.
    """
    _check_bits(bit_width)
    kind: dict[str, Any] = {
        "bit_width": bit_width,
        "signed": signed,
        "symmetric": symmetric,
        "power_of_two": power_of_two,
    }
    low, high = choose_range(observation, method, percentile=percentile, **kind)
    scale, zero_point = affine_parameters(
        torch.tensor([low], dtype=torch.float64),
        torch.tensor([high], dtype=torch.float64),
        **kind,
    )
    return Grid.per_tensor(float(scale), int(zero_point), bit_width, signed=signed)


def _percentile(observation: Observation, percent: float) -> tuple[float, float]:
    if not 50 < percent <= 100:
        raise UsageError(f"percentile {percent}", "not above 50 and at most 100", "use for example 99.99")
    n = observation.total
    rank = math.ceil(percent * n / 100 - 1e-9)
    upto = observation.counts.cumsum(0)
    first, last = (int(torch.searchsorted(upto, torch.tensor(r))) for r in (n + 1 - rank, rank))
    return observation.edge(first), observation.edge(last + 1)


def _least_error(
    observation: Observation,
    low: Tensor,
    high: Tensor,
    *,
    bit_width: int,
    signed: bool,
    symmetric: bool,
    power_of_two: bool,
) -> tuple[Tensor, Tensor]:
    """The candidate (low[i], high[i]) with the least squared error over the histogram; the first of equal ones."""
    scale, zero_point = affine_parameters(
        low, high, bit_width=bit_width, signed=signed, symmetric=symmetric, power_of_two=power_of_two
    )
    filled = observation.counts > 0
    values, weights = observation.means[filled].expand(len(low), -1), observation.counts[filled].double()
    codes = quantize_rows(values, scale, zero_point, *integer_range(bit_width, signed=signed))
    error = ((dequantize_rows(codes, scale, zero_point) - values).square() * weights).sum(1)
    best = int(error.argmin())
    return low[best], high[best]


def _check_bits(bit_width: int) -> None:
    if not FEWEST_BITS <= bit_width <= MOST_BITS:
        raise UsageError(f"activations of {bit_width} bits", "out of range", f"use {FEWEST_BITS} to {MOST_BITS} bits")
