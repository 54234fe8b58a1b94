"""Circuits of Cartesian genetic programming: a grid of functions that compute integers from integers.

Miller and Thomson (2000); for circuits Vasicek and Bidlo (2011). Pins 0.. are the inputs, the next ones the nodes,
column after column. A node of column c reads pins of the `levels_back` columns before it, and inputs where these
columns reach beyond the first one; so do outputs, as if they were one more column. A row of data is a set of input
values: each pin holds as many values as there are rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lilliput.ops.cartesian_functions import COUNT, DRAWN, READS, Ints, evaluate, limits

Genes = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """`levels_back` = columns lets nodes read everything before them, columns + 1 outputs too."""

    inputs: int
    outputs: int
    rows: int
    columns: int
    levels_back: int
    bits: int = 8

    def __post_init__(self) -> None:
        limits(self.bits)
        for name in ("inputs", "outputs", "rows", "columns", "levels_back"):
            if getattr(self, name) < 1:
                raise ValueError(f"a grid needs at least one of {name}, not {getattr(self, name)}")
        if self.inputs + self.nodes + self.outputs >= 1 << 27:
            raise ValueError("a grid has fewer than 2^27 pins")

    @property
    def nodes(self) -> int:
        return self.rows * self.columns

    def sources(self) -> tuple[Ints, Ints]:
        """For each column, the outputs last: the first pin that may be read, and how many from there on."""
        column = np.arange(self.columns + 1)
        window = np.maximum(column - self.levels_back, 0)
        first = np.where(column < self.levels_back, 0, self.inputs + window * self.rows)
        return first, self.inputs + column * self.rows - first


@dataclass(frozen=True, kw_only=True)
class Circuit:
    """`nodes` [nodes, 3]: pins a and b, and the function of each node; `outputs`: the pin of each output."""

    shape: Shape
    nodes: Genes
    outputs: Genes

    def __post_init__(self) -> None:
        shape = self.shape
        if self.nodes.shape != (shape.nodes, 3) or self.outputs.shape != (shape.outputs,):
            raise ValueError(f"a circuit of {shape.nodes} nodes and {shape.outputs} outputs has other arrays")
        first, count = shape.sources()
        place = np.repeat(np.arange(shape.columns), shape.rows)
        pins = np.concatenate([self.nodes[:, :2].T.reshape(-1), self.outputs])
        columns = np.concatenate([place, place, np.full(shape.outputs, shape.columns)])
        behind = (pins < first[columns]) | (pins >= first[columns] + count[columns])
        if behind.any():
            raise ValueError(f"{int(behind.sum())} sources lie where their column cannot read")
        if len(self.nodes) and not 0 <= self.nodes[:, 2].min() <= self.nodes[:, 2].max() < COUNT:
            raise ValueError(f"functions are 0 to {COUNT - 1}")

    def active(self) -> npt.NDArray[np.bool_]:
        """Which nodes an output depends on."""
        inputs = self.shape.inputs
        marked = np.zeros(inputs + self.shape.nodes, dtype=bool)
        marked[self.outputs] = True
        for node in range(self.shape.nodes - 1, -1, -1):
            if marked[inputs + node]:
                marked[self.nodes[node, : READS[self.nodes[node, 2]]]] = True
        return marked[inputs:]

    def run(self, inputs: npt.ArrayLike) -> Ints:
        """Outputs [rows of data, outputs] for inputs [rows of data, inputs]; only active nodes are computed."""
        given = np.asarray(inputs, dtype=np.int64)
        low, high = limits(self.shape.bits)
        if given.ndim != 2 or given.shape[1] != self.shape.inputs or (given < low).any() or (given > high).any():
            raise ValueError(f"inputs must be rows of {self.shape.inputs} numbers of {self.shape.bits} bits")
        values = np.zeros((self.shape.inputs + self.shape.nodes, len(given)), dtype=np.int64)
        values[: self.shape.inputs] = given.T
        row = np.arange(len(given))
        for node in np.flatnonzero(self.active()):
            a, b, function = self.nodes[node]
            values[self.shape.inputs + node] = evaluate(int(function), values[a], values[b], self.shape.bits, row)
        return values[self.outputs].T


def random_circuit(shape: Shape, generator: np.random.Generator) -> Circuit:
    """Every pin that may be read, and every function that mutations choose, with equal chances."""
    first, count = shape.sources()
    place = np.repeat(np.arange(shape.columns), shape.rows)

    def pins(columns: Any) -> Ints:
        return first[columns] + generator.integers(count[columns])

    functions = np.asarray(DRAWN)[generator.integers(len(DRAWN), size=shape.nodes)]
    nodes = np.stack([pins(place), pins(place), functions], axis=1).astype(np.int32)
    return Circuit(shape=shape, nodes=nodes, outputs=pins(np.full(shape.outputs, shape.columns)).astype(np.int32))
