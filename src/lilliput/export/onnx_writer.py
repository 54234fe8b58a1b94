"""One ONNX graph in the making: short names, each constant once, no text that a runtime does not read."""

import importlib.util
from typing import Any

import numpy as np

from lilliput.core.errors import MissingExtraError

OPSET, IR_VERSION = 21, 10
"""Opset 21 is the first that quantizes to 16 bits. ONNX Runtime reads both since 1.18."""


class Writer:
    """Collects nodes and constants in the order of execution."""

    def __init__(self) -> None:
        if importlib.util.find_spec("onnx") is None:
            raise MissingExtraError("ONNX export", "the package onnx is not installed", "pip install 'lilliput[onnx]'")
        self.nodes: list[Any] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], tuple[str, np.ndarray]] = {}
        self._names: set[str] = set()
        self._temporaries = 0

    def constant(self, value: np.ndarray) -> str:
        """The name of an initializer with these numbers."""
        value = np.ascontiguousarray(value) if value.ndim else value
        key = (value.dtype.str, value.shape, value.tobytes())
        name, _ = self.constants.setdefault(key, (f"c{len(self.constants)}", value))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, dtype=np.float32))

    def shape(self, *values: int) -> str:
        """Sizes, axes, pads: a list of int64."""
        return self.constant(np.array(values, dtype=np.int64))

    def op(self, kind: str, inputs: list[str], *, output: str = "", name: str = "", **attributes: Any) -> str:
        """Append a node with one output; gives the output's name.

        Attributes that are None are left out, and so is a `name` that another node has.
        """
        from onnx import helper

        if not output:
            output, self._temporaries = f"t{self._temporaries}", self._temporaries + 1
        given = {key: value for key, value in attributes.items() if value is not None}
        own = None if not name or name in self._names else name
        self._names.add(name)
        self.nodes.append(helper.make_node(kind, inputs, [output], name=own, **given))
        return output

    def rename(self, old: str, new: str) -> None:
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new

    def model(self, inputs: dict[str, tuple[Any, ...]], outputs: dict[str, tuple[Any, ...]]) -> Any:
        """An `onnx.ModelProto`. `inputs` and `outputs` are shapes of float32 values; a dimension may be a name."""
        from onnx import TensorProto, helper, numpy_helper

        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.values()],
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="lilliput")
