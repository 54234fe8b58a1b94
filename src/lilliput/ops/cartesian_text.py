"""Circuits as text, in the form in which circuits of this kind are published.

`{inputs,outputs,columns,rows,sources of a node,levels back,rows of data}`, `([pin]a,b,function)` for each node, then
`(pin,...)` of the outputs. Identity is function 100 there.
"""

import re

import numpy as np

from lilliput.ops.cartesian import Circuit, Shape
from lilliput.ops.cartesian_functions import IDENTITY

PUBLISHED_IDENTITY = 100
HEAD = re.compile(r"\{(\d+(?:,\d+){6})\}")
NODE = re.compile(r"\(\[(\d+)\](\d+),(\d+),(\d+)\)")
OUTPUTS = re.compile(r"\((\d+(?:,\d+)*)\)")
LONGEST = 9
"""Digits of a number: no grid needs more."""


def written(circuit: Circuit, rows_of_data: int = 1) -> str:
    shape = circuit.shape
    numbers = shape.inputs, shape.outputs, shape.columns, shape.rows, 2, shape.levels_back, rows_of_data
    nodes = "".join(
        f"([{shape.inputs + k}]{a},{b},{PUBLISHED_IDENTITY if f == IDENTITY else f})"
        for k, (a, b, f) in enumerate(circuit.nodes.tolist())
    )
    return f"{{{','.join(map(str, numbers))}}}{nodes}({','.join(map(str, circuit.outputs.tolist()))})"


def read(text: str, bits: int = 8) -> Circuit:
    """ValueError for what is no circuit, or none of two sources for each node."""
    text = "".join(text.split())
    head, wrong = HEAD.match(text), ValueError("this is not the text of a circuit")
    if head is None or re.search(rf"\d{{{LONGEST + 1}}}", text):
        raise wrong
    inputs, outputs, columns, rows, sources, levels_back, _ = map(int, head[1].split(","))
    if sources != 2:
        raise ValueError(f"nodes with {sources} sources are not supported, only with 2")
    shape = Shape(inputs=inputs, outputs=outputs, rows=rows, columns=columns, levels_back=levels_back, bits=bits)
    at, nodes = head.end(), []
    while (node := NODE.match(text, at)) is not None:
        pin, a, b, function = map(int, node.groups())
        if pin != inputs + len(nodes) or function == IDENTITY:
            raise wrong
        nodes.append((a, b, IDENTITY if function == PUBLISHED_IDENTITY else function))
        at = node.end()
    last = OUTPUTS.fullmatch(text, at)
    if last is None or not nodes:
        raise wrong
    pins = np.array([int(pin) for pin in last[1].split(",")], dtype=np.int32)
    return Circuit(shape=shape, nodes=np.array(nodes, dtype=np.int32), outputs=pins)
