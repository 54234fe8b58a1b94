"""What a network computes for one sample, operation by operation: multiplies and additions apart, MACs, parameters.

Conventions, for one output of a convolution or linear layer that sums n weighted inputs:

- n MACs; n multiplies; n - 1 additions, one more with a bias. Taps that read padding count, as in torch's own counter.
- *effective*: only with weights that are not zero (neither pruned nor rounded to zero); a bias of zero is not added.
- *product of sums*: inputs that meet the same shared weight are added first, so a multiply for each distinct value that
  is not zero. Groups of m inputs take m - 1 additions each, g groups g - 1 more, and a bias that is not zero one: as
  many as the effective ones. A row of zeros takes none. Without shared weights the multiplies are the effective ones.

Comparisons of a max pooling count as additions. Functions of one value (relu, sigmoid), softmax and moves count
nothing; nor does what reads only parameters: it is computed once. How many values go through functions of one value is
a column of its own: what one costs depends on where it runs (a comparison, a look-up, a line, an exponential).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.cost import CostTable, Measurement
from lilliput.core.encoding import Encoding
from lilliput.core.errors import UsageError
from lilliput.graph.operators import MOVES, POINTWISE
from lilliput.graph.trace import Graph, Node

COLUMNS = (
    "macs",
    "effective_macs",
    "multiplies",
    "effective_multiplies",
    "product_of_sums_multiplies",
    "additions",
    "effective_additions",
    "parameters",
    "kept_parameters",
    "nonzero_parameters",
    "function_parameters",
    "function_values",
    "learned_values",
)
"""`kept`: what a file stores (not masked, more than 0 bits); `nonzero`: what is not 0, kept or not. `function_values`
go through functions of one value (a ReLU too), `learned_values` through those with parameters (`function_parameters`).
"""

LAYERS = ("conv", "linear")
FREE = (*MOVES, *POINTWISE, "concat", "softmax", "log_softmax", "getitem", "input", "size")
SUMS = ("add", "sub", "add_scalar", "sub_scalar")
PRODUCTS = ("mul", "mul_scalar")
REDUCTIONS = ("avg_pool", "max_pool", "mean", "batch_norm", "layer_norm")
MOVING_TARGETS = (
    "view",
    "reshape",
    "flatten",
    "permute",
    "transpose",
    "slice",
    "select",
    "expand",
    "chunk",
    "split",
    "split_with_sizes",
    "unbind",
    "stack",
    "roll",
    "flip",
    "lift_fresh_copy",
    "pad",
)
"""Calls outside `OPERATORS`' words (other axes, several results) that compute nothing either."""


def count_macs(graph: Graph, artifact: Artifact) -> CostTable:
    """A row for each operation, and for parameters that no operation reads; columns are `COLUMNS`, for a batch of 1.

    A module that runs twice has its operations counted twice and its parameters once, like tied parameters. An
    operation without a rule counts 0, and the note of its `macs` says so (see `uncounted`).
    """
    counter = _Counter(graph, artifact)
    rows: dict[str, dict[str, int]] = {}
    for node in graph.nodes:
        if node.op not in ("input", "size"):
            rows[node.name] = dict.fromkeys(COLUMNS, 0) | counter.operations(node)
    for layer, name in counter.owned():
        cells, parameter = rows.setdefault(layer, dict.fromkeys(COLUMNS, 0)), counter.parameters[name]
        encoding = artifact.encodings.get(name)
        cells["parameters"] += parameter.numel()
        cells["kept_parameters"] += parameter.numel() if encoding is None else _kept(encoding)
        cells["nonzero_parameters"] += int(torch.count_nonzero(parameter))
        cells["function_parameters"] += parameter.numel() if counter.is_function(layer) else 0
    notes = {node.name: f"{node.target} is not counted" for node in uncounted(graph)}
    return CostTable.of(
        (layer, Measurement(name, value, "", "counted", note=notes.get(layer, "") if name == "macs" else ""))
        for layer, cells in rows.items()
        for name, value in cells.items()
    )


def of_layers(table: CostTable, graph: Graph) -> CostTable:
    """The rows of convolutions and linear layers alone: without pools, norms, sums and products of values."""
    layers = {node.name for node in graph.nodes if node.op in LAYERS}
    return CostTable({name: row for name, row in table.rows.items() if name in layers})


def uncounted(graph: Graph) -> list[Node]:
    """Operations that `count_macs` has no rule for."""
    known = (*LAYERS, *FREE, *SUMS, *PRODUCTS, *REDUCTIONS)
    return [n for n in graph.nodes if n.op not in known and not _moves(n.target)]


def _moves(target: str) -> bool:
    """Also Python's own operators, which compute sizes: "<built-in function mul>"."""
    parts = target.split(".")
    if parts[0] != "aten":
        return target.startswith("<")
    return parts[1] in MOVING_TARGETS or parts[1].startswith("sym_")


@dataclass(frozen=True)
class _Weights:
    """`rows` [outputs, weights of one output]; None where the weight is computed by the network itself."""

    count: int
    rows: Tensor | None
    shared: bool


class _Counter:
    """The operations of one network, and who owns its parameters."""

    def __init__(self, graph: Graph, artifact: Artifact) -> None:
        self.nodes = graph.by_name
        self.artifact = artifact
        self.parameters = dict(artifact.module.named_parameters(remove_duplicate=False))
        self.tensors: dict[str, Tensor] = self.parameters | dict(artifact.module.named_buffers(remove_duplicate=False))
        self.shared = {id(self.parameters[name]) for name, e in artifact.encodings.items() if e.sharing is not None}
        self.constant: set[str] = set()
        for node in graph.nodes:
            if node.op != "input" and all(name in self.constant for name in node.inputs):
                self.constant.add(node.name)

    def owned(self) -> list[tuple[str, str]]:
        """(row, parameter's first name): under the first operation that reads it, else under its module."""
        readers: dict[int, str] = {}
        for node in self.nodes.values():
            for name in node.state.values():
                if name in self.parameters:
                    readers.setdefault(id(self.parameters[name]), node.name)
        first = self.artifact.module.named_parameters()
        return [(readers.get(id(p)) or name.rpartition(".")[0] or name, name) for name, p in first]

    def is_function(self, row: str) -> bool:
        return row in self.nodes and self.nodes[row].op in POINTWISE

    def operations(self, node: Node) -> dict[str, int]:
        if node.name in self.constant:
            return {}
        if node.op in LAYERS:
            return self._layer(node)
        multiplies, additions = self._elementwise(node)
        values = math.prod(node.shape) if node.op in POINTWISE else 0
        return {
            "function_values": values,
            "learned_values": values if node.state else 0,
            "multiplies": multiplies,
            "effective_multiplies": multiplies,
            "product_of_sums_multiplies": multiplies,
            "additions": additions,
            "effective_additions": additions,
        }

    def _elementwise(self, node: Node) -> tuple[int, int]:
        n = math.prod(node.shape)
        if node.op in SUMS:
            return 0, n
        if node.op in PRODUCTS:
            return n, 0
        if node.op == "batch_norm":
            return n, n
        if node.op == "layer_norm":  # mean, deviation, its square, variance; not the root and division of each row
            return n * (2 + ("weight" in node.state)), n * (3 + ("bias" in node.state))
        if node.op == "max_pool":
            return 0, n * (math.prod(node.attributes["kernel"]) - 1)
        if node.op == "avg_pool":
            return n, n * (math.prod(node.attributes["kernel"]) - 1)
        if node.op == "mean":
            return n, math.prod(self.nodes[node.inputs[0]].shape) - n
        return 0, 0

    def _layer(self, node: Node) -> dict[str, int]:
        weights, bias = self._weights(node), self.tensors.get(node.state.get("bias", ""))
        has_bias = "bias" in node.state
        runs, outputs = self._runs(node), math.prod(node.shape)
        macs = runs * weights.count
        additions = max(macs + outputs * (has_bias - 1), 0)
        effective_macs, effective_additions, products = macs, additions, macs
        if weights.rows is not None:
            used = torch.count_nonzero(weights.rows, dim=1)
            each = outputs // max(len(used), 1)  # a transposed convolution has more outputs than runs
            biased = torch.full_like(used, has_bias) if bias is None else (bias != 0).long()
            effective_macs = products = runs * int(used.sum())
            effective_additions = int((runs * used + each * (biased - 1)).clamp(min=0).sum())
            if weights.shared:
                products = int(torch.minimum(runs * used, each * _distinct(weights.rows)).sum())
        return {
            "macs": macs,
            "effective_macs": effective_macs,
            "multiplies": macs,
            "effective_multiplies": effective_macs,
            "product_of_sums_multiplies": products,
            "additions": additions,
            "effective_additions": effective_additions,
        }

    def _runs(self, node: Node) -> int:
        """How often each weight is used."""
        if node.op == "linear":
            return math.prod(node.shape[:-1])
        return math.prod(self.nodes[node.inputs[0]].shape[2:] if node.attributes["transposed"] else node.shape[2:])

    def _weights(self, node: Node) -> _Weights:
        name = node.state["weight"]
        if name in self.nodes:
            return _Weights(math.prod(self.nodes[name].shape), None, shared=False)
        if name not in self.tensors:
            raise UsageError(
                f"operations of {node.name!r}", f"the network has no tensor {name!r}", "trace the artifact's own module"
            )
        weight = self.tensors[name].detach()
        shared = id(self.tensors[name]) in self.shared
        if node.attributes.get("transposed"):  # [in, out / groups, ...] -> [out, in / groups, ...]
            groups = node.attributes["groups"]
            weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
        return _Weights(weight.numel(), weight.flatten(1), shared)


def _distinct(rows: Tensor) -> Tensor:
    """int64 [rows]: how many different values other than 0 each row has."""
    ordered = rows.sort(dim=1).values
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.count_nonzero(new & (ordered != 0), dim=1)


def _kept(encoding: Encoding) -> int:
    kept = torch.ones(encoding.shape, dtype=torch.bool, device=encoding.values.device)
    if encoding.mask is not None:
        kept = kept & encoding.mask
    if encoding.grid is not None:
        kept = kept & (encoding.grid.spread(encoding.grid.bit_width, len(encoding.shape)) > 0)
    return int(torch.count_nonzero(kept))
