"""From an artifact and its graph to ONNX: QuantizeLinear and DequantizeLinear with the artifact's own grids.

The file computes what `graph.integer` computes, up to how a runtime rounds ties:

- a value on a grid is an int8 or uint8 tensor; arithmetic stands between DequantizeLinear and QuantizeLinear, which
  ONNX Runtime turns into one integer kernel; moves stand on the integers themselves;
- a relu or clamp fused into an operation is a bound on the integers: no node at all where the type saturates there;
- weights are the stored integers, biases int32, each followed by DequantizeLinear; where no integer kernel reads them,
  by operations that a runtime does once at loading. ONNX Runtime would quantize such weights by itself (one scale for
  the tensor, 8 bits) if it saw a layer between DequantizeLinear and QuantizeLinear: a Max of one value hides it.

Whether activations are int8 or uint8 is the target's choice: the same grid, integers and zero point moved by 128.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import ExportError
from lilliput.export.onnx_learned import write_table
from lilliput.export.onnx_operators import AFTER, BEFORE, MOVES, VALUES, Move, Place, cannot, cut
from lilliput.export.onnx_storage import RANGES, Storage, storage
from lilliput.export.onnx_writer import Writer
from lilliput.graph.functions import function
from lilliput.graph.integer import LAYERS, accumulator_scale, fusions
from lilliput.graph.trace import Graph, Node, Ref

JOINING = ("add", "sub", "mul", "concat")


class Builder:
    """Writes the nodes of one graph in order; `integers` says which ONNX value holds a node's integers, and how."""

    def __init__(self, artifact: Artifact, graph: Graph, *, unsigned: bool) -> None:
        self.writer = Writer()
        self.integers: dict[str, tuple[str, Storage]] = {}
        self._artifact, self._graph, self._unsigned = artifact, graph, unsigned
        self._nodes, self._fused, self._readers = graph.by_name, fusions(graph), graph.consumers()
        self._floats: dict[str, str] = {}
        self._cuts: dict[str, tuple[str, dict[int, tuple[int, int, int]]]] = {}
        self._parameters = dict(artifact.module.named_parameters(remove_duplicate=False))
        self._buffers = dict(artifact.module.named_buffers(remove_duplicate=False))

    def model(self, batch: str | int) -> Any:
        """The finished `onnx.ModelProto`."""
        for node in self._graph.nodes:
            reason = cannot(node, self._graph)
            if reason is not None:
                raise ExportError(f"ONNX export of {node.name!r}", f"{reason} ({node.target}, {node.source})",
                                  "write it with operations that `lilliput check` knows")  # fmt: skip
            reason = self._cannot_hold(node)
            if reason is not None:
                raise ExportError(f"ONNX export of {node.name!r}", f"{reason} ({node.target}, {node.source})",
                                  "compute it once, and register the result as a buffer of float32")  # fmt: skip
            self._write(node)
        several = len(self._graph.outputs) > 1
        outputs = {f"output_{i}" if several else "output": name for i, name in enumerate(self._graph.outputs)}
        given: dict[str, str] = {}
        for new, name in outputs.items():
            old = self._float(name)
            if old in self._graph.inputs or old in given:
                self.writer.op("Identity", [given.get(old, old)], output=new)
            else:
                self.writer.rename(old, new)
                given[old] = new
        inputs = {name: name for name in self._graph.inputs}
        shapes = (
            {new: (batch, *self._nodes[name].shape[1:]) for new, name in group.items()} for group in (inputs, outputs)
        )
        return self.writer.model(*shapes)

    def _cannot_hold(self, node: Node) -> str | None:
        """Why the buffers that a node reads cannot stand as float32 constants, or None.

        Beside a float value, torch itself takes integers and booleans as float32. Among themselves they have rules of
        their own (two booleans added are "or").
        """
        buffers = [self._buffers[name] for name in node.state.values() if name in self._buffers]
        if any(b.is_complex() for b in buffers):
            return "it reads a buffer of complex numbers"
        if node.inputs or node.op in ("input", "size", "scalar"):
            return None
        writable = node.op in JOINING and (
            len(buffers) < len(node.state) or any(b.is_floating_point() for b in buffers)
        )
        return None if writable else "it computes with buffers alone"

    def _write(self, node: Node) -> None:
        if node.op in ("size", "scalar") or node.name in self.integers:  # reshapes know their sizes; fused: written
            return
        if node.op == "slice":
            self._record_cut(node)
        elif node.op in MOVES:
            value, own = self._moved(node.inputs[0], MOVES[node.op], node)
            self._set(node.name, value, own)
        elif node.op == "input":
            self._finish(node, node.name)
        elif node.op == "concat" and self._same_grid(node):
            names = [self._held(name)[0] for name in _operands(node)]
            self._set(
                node.name, self.writer.op("Concat", names, name=node.name, axis=node.attributes["dim"]), self._own(node)
            )
        elif node.op == "learned_function" and self._has_table(node):
            self._look_up(node)
        else:
            self._finish(node, VALUES[node.op](self._place(node)))

    def _has_table(self, node: Node) -> bool:
        own, source = self._own(node), self._held(node.inputs[0])[1]
        return own is not None and source is not None and own.is_8_bits and source.is_8_bits

    def _look_up(self, node: Node) -> None:
        own, (value, source) = self._own(node), self._held(node.inputs[0])
        if own is not None and source is not None:
            found = function(node, source.grid, own.grid, self._artifact.module.state_dict())
            offsets = source.offset, own.offset
            self._set(node.name, write_table(self.writer, node, value, found, offsets, own.dtype), own)

    def _place(self, node: Node) -> Place:
        if node.op in BEFORE:
            operands = [self._as_float(*self._moved(node.inputs[0], BEFORE[node.op], node))]
        else:
            operands = [self._operand(name) for name in _operands(node)]
        names = {} if node.op in JOINING else node.state
        encodings = {role: self._encoding(name) for role, name in names.items()}
        integer = self._is_integer(node, encodings)
        written = {} if node.op == "learned_function" else encodings
        parameters = {
            role: self._as_stored(node, role, e) if integer else self._as_folded(e) for role, e in written.items()
        }
        if node.op in LAYERS and not integer and self._own(self._owner(node)):
            operands = [self.writer.op("Max", operands)]  # the maximum of one value: see the docstring of the file
        return Place(
            writer=self.writer,
            node=node,
            operands=operands,
            shape=self._shape(node),
            parameters=parameters,
            encodings=encodings,
        )

    def _is_integer(self, node: Node, encodings: Mapping[str, Encoding]) -> bool:
        """Is it integer arithmetic, and does a runtime have a kernel for it?

        There is none for transposed convolutions, for convolutions whose result stays float32, for more than 8 bits.
        """
        if (
            node.op not in LAYERS
            or node.attributes.get("transposed")
            or any(e.grid is None for e in encodings.values())
        ):
            return False
        if node.op == "conv" and self._own(self._owner(node)) is None:
            return False
        own, weight = self._held(node.inputs[0])[1], encodings["weight"].grid
        if (
            own is None
            or not own.is_8_bits
            or weight is None
            or int(weight.bit_width.max()) > 8
            or weight.axis not in (None, 0)
        ):
            return False
        bias = (
            encodings["bias"].grid if "bias" in encodings else None
        )  # runtimes do not look at its scale: it must be right
        return bias is None or torch.equal(
            *torch.broadcast_tensors(bias.scale, accumulator_scale(own.grid, weight).float())
        )

    def _finish(self, node: Node, value: str) -> None:
        """Round to the node's grid if it has one, within the bounds of the relu or clamp that is fused into it."""
        after, owner = AFTER.get(node.op), self._owner(node)
        own = self._own(owner)
        if own is not None:
            low, high = own.bounds
            if owner is not node:
                below, above = (
                    (0.0, None) if owner.op == "relu" else (owner.attributes["low"], owner.attributes["high"])
                )
                low, high = low if below is None else own.round(below), high if above is None else own.round(above)
            value = self._round(value, own, low, high)
        if after is not None:
            value = after(
                Move(writer=self.writer, node=node, source=value, shape=self._shape(node), fill=self.writer.number)
            )
        self._set(node.name, value, own)
        if own is not None:
            self._set(owner.name, value, own)

    def _owner(self, node: Node) -> Node:
        """Whose grid the result is rounded to: the relu or clamp that is fused into the node, or itself."""
        return self._nodes[self._fused.get(node.name, node.name)]

    def _own(self, node: Node) -> Storage | None:
        grid = self._artifact.activations.get(node.name)
        return None if grid is None else storage(node, grid, unsigned=self._unsigned)

    def _round(self, value: str, own: Storage, low: int, high: int) -> str:
        clipped = (low, high) != RANGES[own.dtype]
        if clipped and not own.is_8_bits:  # runtimes have no Clip for 16 bits
            limits = [self.writer.number(float(own.decode(q))) for q in (low, high)]
            value, clipped = self.writer.op("Clip", [value, *limits]), False
        value = self.writer.op("QuantizeLinear", [value, *self._grid_inputs(own)])
        if clipped:
            value = self.writer.op(
                "Clip", [value, *(self.writer.constant(np.array(q, dtype=own.dtype)) for q in (low, high))]
            )
        return value

    def _grid_inputs(self, own: Storage) -> list[str]:
        """Scale and zero point; the type of the zero point decides the type of the integers."""
        return [
            self.writer.number(float(own.grid.scale)),
            self.writer.constant(np.array(own.zero_point, dtype=own.dtype)),
        ]

    def _set(self, name: str, value: str, own: Storage | None) -> None:
        if own is None:
            self._floats[name] = value
        else:
            self.integers[name] = value, own

    def _held(self, name: str) -> tuple[str, Storage | None]:
        """The ONNX value of a node: its integers if it is on a grid, else its floats."""
        if name in self._cuts and name not in self.integers and name not in self._floats:
            root, cuts = self._cuts[name]
            self._set(name, *self._moved(root, lambda m: cut(m, cuts), self._nodes[name]))
        return self.integers[name] if name in self.integers else (self._floats[name], None)

    def _float(self, name: str) -> str:
        if name not in self._floats:
            self._floats[name] = self._as_float(*self._held(name))
        return self._floats[name]

    def _as_float(self, value: str, own: Storage | None) -> str:
        return value if own is None else self.writer.op("DequantizeLinear", [value, *self._grid_inputs(own)])

    def _moved(self, source: str, move: Callable[[Move], str], node: Node) -> tuple[str, Storage | None]:
        """The source after a move: as integers, or as floats (16-bit kernels for moves are rare)."""
        value, own = self._held(source)
        if own is not None and not own.is_8_bits:
            value, own = self._float(source), None
        fill = self.writer.number if own is None else partial(self._integer, own)
        shape, pooled = self._nodes[source].shape, self._before_pool(node)
        return move(Move(writer=self.writer, node=node, source=value, shape=shape, fill=fill, before_pool=pooled)), own

    def _before_pool(self, node: Node) -> bool:
        readers = self._readers[node.name]
        return any(r.op in ("max_pool", "avg_pool") or (r.op in MOVES and self._before_pool(r)) for r in readers)

    def _integer(self, own: Storage, value: float) -> str:
        return self.writer.constant(np.array(own.round(value), dtype=own.dtype))

    def _record_cut(self, node: Node) -> None:
        """Slices are written when they are read: one operation for several in a row."""
        source, a = node.inputs[0], node.attributes
        root, cuts = self._cuts.get(source, (source, {}))
        if a["dim"] in cuts:
            root, cuts = source, {}
        whole = (0, self._nodes[source].shape[a["dim"]], 1)
        here = (a["start"], a["stop"], a["step"])
        self._cuts[node.name] = root, cuts if here == whole else {**cuts, a["dim"]: here}

    def _same_grid(self, node: Node) -> bool:
        own = self._own(node)
        if own is None or not own.is_8_bits or node.state:
            return False
        held = [self._held(name)[1] for name in node.inputs]
        return all(h is not None and h.grid.same(own.grid) for h in held)

    def _shape(self, node: Node) -> tuple[int, ...]:
        return self._nodes[node.inputs[0]].shape if node.inputs else node.shape

    def _operand(self, name: str) -> str:
        return self._float(name) if name in self._nodes else self._as_folded(self._encoding(name))

    def _encoding(self, name: str) -> Encoding:
        """Of a parameter, or of a buffer, which is plain and float32; on the CPU."""
        known = name in self._parameters
        found = self._artifact.encoding(name) if known else Encoding.of(self._buffers[name].float())
        return found.to(torch.device("cpu"))

    def _as_stored(self, node: Node, role: str, encoding: Encoding) -> str:
        """Integers behind DequantizeLinear, as a runtime's integer kernels want them: int8 weights and int32 biases."""
        grid = encoding.grid
        if grid is None:
            return self._as_folded(encoding)
        integers, zeros = encoding.integers(), grid.zero_point
        dtype = "int8" if grid.signed else "uint8"
        if role == "bias":
            integers, zeros, dtype = integers - grid.spread(zeros, integers.dim()), torch.zeros_like(zeros), "int32"
        inputs = [
            self._array(integers, dtype),
            self._array(grid.scale.reshape(()) if grid.axis is None else grid.scale, "float32"),
        ]
        if bool(zeros.any()) or (node.op == "linear" and role == "weight"):  # without it there is no integer Gemm
            inputs.append(self._array(zeros.reshape(()) if grid.axis is None else zeros, dtype))
        return self.writer.op("DequantizeLinear", inputs, axis=None if grid.axis == 1 else grid.axis)

    def _as_folded(self, encoding: Encoding) -> str:
        """float32; on a grid, the smallest integers, made float32 by operations that runtimes do once, at loading.

        ONNX Runtime does DequantizeLinear at every call: 1.7 times the latency of float32 for a ResNet-20.
        """
        grid, rank = encoding.grid, len(encoding.shape)
        if grid is None:
            return self._array(encoding.decode(), "float32")
        integers = encoding.integers()
        low, high = int(integers.min()), int(integers.max())
        dtype = next((d for d, (a, b) in RANGES.items() if a <= low and high <= b), "int32")
        value = self.writer.op("Cast", [self._array(integers, dtype)], to=1)
        if bool(grid.zero_point.any()):
            value = self.writer.op("Sub", [value, self._array(grid.spread(grid.zero_point, rank), "float32")])
        return self.writer.op("Mul", [value, self._array(grid.spread(grid.scale, rank), "float32")])

    def _array(self, values: Tensor, dtype: str) -> str:
        return self.writer.constant(values.detach().cpu().numpy().astype(dtype))


def _operands(node: Node) -> list[str]:
    """Names of the values, and of the state tensors where an operation takes both, in order."""
    if node.op not in JOINING:
        return [node.inputs[0]]
    return [a.name for a in _flat(node.arguments) if isinstance(a, Ref)]


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        for v in value:
            yield from _flat(v)
    else:
        yield value
