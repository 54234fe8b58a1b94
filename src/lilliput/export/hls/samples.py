"""Golden vectors for a test bench: inputs, what the interpreter makes of them inside, and at the end."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lilliput.core.program import Ints, Operation, Program
from lilliput.export.hls.constants import Part
from lilliput.export.hls.names import Names
from lilliput.graph.interpreter import quantize_input, run

VECTORS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """`inside`: {operation: its results}, in the order of the header's `samples_inter_0`, `samples_inter_1`, ..."""

    inputs: Ints
    inside: dict[str, Ints]
    outputs: Ints


def codes_of(program: Program, inputs: npt.NDArray[np.floating[Any]] | None) -> Ints:
    """Of real samples; without them both ends of the range, and noise."""
    if inputs is not None:
        return quantize_input(program, inputs)
    value = program.values[program.input]
    ends = np.stack([np.full(value.shape, end) for end in (value.low, value.high)])
    noise = np.random.default_rng(0).integers(value.low, value.high + 1, (VECTORS - len(ends), *value.shape))
    return np.concatenate([ends, noise])


def samples(program: Program, names: Names, found: list[Part], codes: Ints) -> Samples:
    """Inside a ResMLP what `embed` and each block give, elsewhere what each operation with constants gives."""
    wanted = [p.operation.output for p in found if p.operation.output not in program.outputs]
    if names.is_resmlp:
        wanted = [path for path in wanted if path == "embed" or re.fullmatch(r"blocks\.[0-9]+/add_1", path)]
    seen: dict[str, Ints] = {}

    def look(o: Operation, q: Ints) -> None:
        if o.output in wanted:
            seen[o.output] = q

    outputs = run(program, codes, visit=look)[0]
    inside = {path: seen[path] for path in wanted}
    if names.is_resmlp:
        size = program.operations[0].attributes["kernel"][0]
        codes = as_patches(codes, size)
        inside = {path: q.reshape(*q.shape[:2], -1).transpose(0, 2, 1) for path, q in inside.items()}
    return Samples(inputs=codes, inside=inside, outputs=outputs)


def as_patches(pictures: Ints, size: int) -> Ints:
    """[n, channels, rows, columns] as [n, patches, numbers]: pixel after pixel, each with its channels."""
    n, channels, rows, columns = pictures.shape
    parts = pictures.reshape(n, channels, rows // size, size, columns // size, size)
    return parts.transpose(0, 2, 4, 3, 5, 1).reshape(n, -1, size * size * channels)
