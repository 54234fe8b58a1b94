"""Every operation of `graph.operators` in ONNX: `VALUES` compute new numbers, `MOVES` only move them.

Values are written in float32; rounding to a grid is `onnx_build`'s. Moves are the same for float32 and integers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lilliput.core.encoding import Encoding
from lilliput.export.onnx_learned import Functions
from lilliput.export.onnx_writer import Writer
from lilliput.graph.operators import OPERATORS
from lilliput.graph.trace import Graph, Node


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an operation stands: its node, the names of its operands in ONNX, the shape of the first one."""

    writer: Writer
    node: Node
    operands: list[str]
    shape: tuple[int, ...]
    parameters: Mapping[str, str]  # role -> name in ONNX
    encodings: Mapping[str, Encoding]

    def op(self, kind: str, inputs: list[str] | None = None, **attributes: Any) -> str:
        """A node with the name of this place, on its operands unless told otherwise."""
        return self.writer.op(kind, self.operands if inputs is None else inputs, name=self.node.name, **attributes)


@dataclass(frozen=True, kw_only=True)
class Move:
    """A move of the value `source`; `fill` gives the name of a constant of the value's own type."""

    writer: Writer
    node: Node
    source: str
    shape: tuple[int, ...]
    fill: Callable[[float], str]
    before_pool: bool = False


def cannot(node: Node, graph: Graph) -> str | None:
    """Why the node has no form in ONNX, or None."""
    if node.op in ("input", "size", "scalar"):
        return None
    if node.op not in VALUES and node.op not in MOVES and node.op != "slice":
        known = str(node.call) in OPERATORS
        return f"{node.target} with these arguments has no form here" if known else f"{node.target} has no form here"
    if node.op == "batch_norm" and "mean" not in node.state:
        return "it normalizes with the statistics of the batch"
    if (
        node.op == "avg_pool"
        and _overhang(node, graph[node.inputs[0]].shape)
        and node.attributes["count_pad"]
        and _padded(node)
    ):
        return "average pooling with padding and ceil_mode divides by other counts in ONNX"
    return None


def _flat_pads(pads: tuple[tuple[int, int], ...]) -> list[int] | None:
    """All beginnings, then all ends; None where nothing is padded."""
    return [p[0] for p in pads] + [p[1] for p in pads] if any(map(any, pads)) else None


def _unless_one(values: tuple[int, ...]) -> tuple[int, ...] | None:
    return values if any(v != 1 for v in values) else None


def _conv(p: Place) -> str:
    a = p.node.attributes
    attributes = {
        "strides": _unless_one(a["stride"]), "dilations": _unless_one(a["dilation"]), "pads": _flat_pads(a["pads"]),
        "group": a["groups"] if a["groups"] > 1 else None,
    }  # fmt: skip
    inputs = [p.operands[0], p.parameters["weight"], *_present(p, "bias")]
    if not a["transposed"]:
        return p.op("Conv", inputs, **attributes)
    extra = a["output_padding"] if any(a["output_padding"]) else None
    return p.op("ConvTranspose", inputs, **attributes, output_padding=extra)


def _present(p: Place, *roles: str) -> list[str]:
    return [p.parameters[role] for role in roles if role in p.parameters]


def _linear(p: Place) -> str:
    return p.op("Gemm", [p.operands[0], p.parameters["weight"], *_present(p, "bias")], transB=1)


def _batch_norm(p: Place) -> str:
    ones, zeros = (p.writer.constant(np.full(p.shape[1], v, dtype=np.float32)) for v in (1, 0))
    weight, bias = p.parameters.get("weight", ones), p.parameters.get("bias", zeros)
    inputs = [p.operands[0], weight, bias, p.parameters["mean"], p.parameters["variance"]]
    return p.op("BatchNormalization", inputs, epsilon=float(p.node.attributes["eps"]))


def _layer_norm(p: Place) -> str:
    a = p.node.attributes
    weight = p.parameters.get("weight") or p.writer.constant(np.ones(p.shape[-a["dims"] :], dtype=np.float32))
    inputs = [p.operands[0], weight, *_present(p, "bias")]
    return p.op("LayerNormalization", inputs, axis=-a["dims"] if a["dims"] > 1 else None, epsilon=a["eps"])


def _end_pads(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How far the last window reaches over the end of the input, in each spatial dimension."""
    a = node.attributes
    dilation = a.get("dilation", (1,) * len(a["kernel"]))
    sizes = zip(shape[2:], node.shape[2:], a["kernel"], a["stride"], dilation, a["pads"], strict=True)
    return tuple((out - 1) * stride + d * (k - 1) + 1 - size - before for size, out, k, stride, d, (before, _) in sizes)


def _overhang(node: Node, shape: tuple[int, ...]) -> bool:
    """Does `ceil_mode` add a window that reaches over the padding?"""
    ends = zip(_end_pads(node, shape), node.attributes["pads"], strict=True)
    return node.attributes["ceil"] and any(end > after for end, (_, after) in ends)


def _padded(node: Node) -> bool:
    return any(map(any, node.attributes["pads"]))


def _pool_attributes(node: Node, shape: tuple[int, ...]) -> dict[str, Any]:
    """ceil_mode as explicit padding at the end: runtimes differ in how they round it."""
    a = node.attributes
    pads = a["pads"]
    if a["ceil"]:
        pads = tuple((before, max(end, 0)) for (before, _), end in zip(pads, _end_pads(node, shape), strict=True))
    return {"kernel_shape": a["kernel"], "strides": _unless_one(a["stride"]), "pads": _flat_pads(pads),
            "dilations": _unless_one(a.get("dilation", (1,)))}  # fmt: skip


def _avg_pool(p: Place) -> str:
    a = p.node.attributes
    if a["kernel"] == p.shape[2:] and not _padded(p.node):
        return p.op("GlobalAveragePool")
    counted = a["count_pad"] and not _overhang(p.node, p.shape)
    return p.op(
        "AveragePool", **_pool_attributes(p.node, p.shape), count_include_pad=1 if counted and _padded(p.node) else None
    )


def _is_global(node: Node, shape: tuple[int, ...]) -> bool:
    return len(shape) > 2 and node.attributes["dims"] == tuple(range(2, len(shape)))


def _mean(p: Place) -> str:
    """The dimensions stay, so that the rounding comes first; `without_dims` drops them."""
    if _is_global(p.node, p.shape):
        return p.op("GlobalAveragePool")
    return p.op("ReduceMean", [p.operands[0], p.writer.shape(*p.node.attributes["dims"])])


def _op(kind: str, **attributes: Any) -> Callable[[Place], str]:
    return lambda p: p.op(kind, **attributes)


def _with_number(kind: str) -> Callable[[Place], str]:
    return lambda p: p.op(kind, [p.operands[0], p.writer.number(p.node.attributes["value"])])


def _with_attribute(kind: str, ours: str, theirs: str) -> Callable[[Place], str]:
    return lambda p: p.op(kind, None, **{theirs: p.node.attributes[ours]})


def _clamp(p: Place) -> str:
    bounds = [p.node.attributes["low"], p.node.attributes["high"]]
    names = ["" if b is None else p.writer.number(b) for b in bounds]
    return p.op("Clip", [p.operands[0], *(names if bounds[1] is not None else names[:1])])


def _gelu(p: Place) -> str:
    return p.op("Gelu", approximate="tanh" if p.node.attributes["approximate"] == "tanh" else None)


def _silu(p: Place) -> str:
    return p.op("Mul", [p.operands[0], p.writer.op("Sigmoid", p.operands)])


def _learned_function(p: Place) -> str:
    weight, limit = (p.encodings[role].decode() for role in ("weight", "limit"))
    owner = p.encodings["owner"].decode().long() if "owner" in p.encodings else None
    return Functions(writer=p.writer, node=p.node, weight=weight, limit=limit, owner=owner).write(p.operands[0])


VALUES: dict[str, Callable[[Place], str]] = {
    "conv": _conv, "linear": _linear, "batch_norm": _batch_norm, "layer_norm": _layer_norm,
    "avg_pool": _avg_pool, "mean": _mean,
    "add": _op("Add"), "sub": _op("Sub"), "mul": _op("Mul"),
    "add_scalar": _with_number("Add"), "sub_scalar": _with_number("Sub"), "mul_scalar": _with_number("Mul"),
    "concat": _with_attribute("Concat", "dim", "axis"),
    "relu": _op("Relu"), "clamp": _clamp, "sigmoid": _op("Sigmoid"), "tanh": _op("Tanh"),
    "elu": _with_attribute("Elu", "alpha", "alpha"), "gelu": _gelu, "silu": _silu, "hard_swish": _op("HardSwish"),
    "hard_sigmoid": _op("HardSigmoid", alpha=1 / 6), "leaky_relu": _with_attribute("LeakyRelu", "slope", "alpha"),
    "learned_function": _learned_function,
    "softmax": _with_attribute("Softmax", "dim", "axis"), "log_softmax": _with_attribute("LogSoftmax", "dim", "axis"),
}  # fmt: skip


def _reshape(m: Move) -> str:
    if m.node.shape == m.shape:
        return m.source
    if len(m.node.shape) == 2:
        return m.writer.op("Flatten", [m.source], name=m.node.name)
    return m.writer.op("Reshape", [m.source, m.writer.shape(0, *m.node.shape[1:])], name=m.node.name)


def _select(m: Move) -> str:
    a = m.node.attributes
    index = m.writer.constant(np.array(a["index"], dtype=np.int64))
    return m.writer.op("Gather", [m.source, index], name=m.node.name, axis=a["dim"])


def cut(m: Move, cuts: Mapping[int, tuple[int, int, int]]) -> str:
    """Keep start:stop:step of some dimensions."""
    if not cuts:
        return m.source
    starts, stops, steps = zip(*cuts.values(), strict=True)
    inputs = [m.source, m.writer.shape(*starts), m.writer.shape(*stops), m.writer.shape(*cuts)]
    steps = [m.writer.shape(*steps)] if any(s != 1 for s in steps) else []
    return m.writer.op("Slice", inputs + steps, name=m.node.name)


def _permute(m: Move) -> str:
    order = m.node.attributes["order"]
    return (
        m.source
        if order == tuple(range(len(order)))
        else m.writer.op("Transpose", [m.source], name=m.node.name, perm=order)
    )


def _max_pool(m: Move) -> str:
    return m.writer.op("MaxPool", [m.source], name=m.node.name, **_pool_attributes(m.node, m.shape))


def _pad(m: Move) -> str:
    """Before a pool the axes are an input: ONNX Runtime would take zeros for the pool's own padding, which differs."""
    a = m.node.attributes
    axes = [d for d, pads in enumerate(a["pads"]) if any(pads)]
    if not axes:
        return m.source
    pads = [a["pads"][d] for d in axes] if m.before_pool else a["pads"]
    inputs = [m.source, m.writer.shape(*(p[0] for p in pads), *(p[1] for p in pads)), m.fill(a["value"])]
    return m.writer.op("Pad", [*inputs, m.writer.shape(*axes)] if m.before_pool else inputs, name=m.node.name)


def _upsample(m: Move) -> str:
    scales = m.writer.constant(np.array([1, 1, *m.node.attributes["factors"]], dtype=np.float32))
    rules = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return m.writer.op("Resize", [m.source, "", scales], name=m.node.name, **rules)


MOVES: dict[str, Callable[[Move], str]] = {
    "identity": lambda m: m.source, "flatten": _reshape, "reshape": _reshape, "permute": _permute, "select": _select,
    "pad": _pad, "max_pool": _max_pool, "upsample_nearest": _upsample,
}  # fmt: skip
"""All but "slice": several in a row are one `cut`."""


def flat_rows(m: Move) -> str:
    """What a linear layer reads: a matrix, one row for each vector."""
    return m.source if len(m.shape) == 2 else m.writer.op("Reshape", [m.source, m.writer.shape(-1, m.shape[-1])])


def unflat_rows(m: Move) -> str:
    return m.source if len(m.shape) == 2 else m.writer.op("Reshape", [m.source, m.writer.shape(-1, *m.node.shape[1:])])


def without_dims(m: Move) -> str:
    """Drop the dimensions that a mean has left with size 1."""
    return m.source if m.node.attributes["keepdim"] else _reshape(m)


BEFORE = {"linear": flat_rows}
"""Moves of the first operand that an operation needs, done before its grid is taken off."""
AFTER = {"linear": unflat_rows, "mean": without_dims}
"""Moves of the result, done after rounding: a runtime finds rounding only right behind the operation."""
