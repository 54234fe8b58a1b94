"""Two C++ headers of constants: `NAME_parameters.h`, and `NAME_samples.h` with golden vectors.

The form is that of the headers that the FPGA designs of PSA-Compress read (ACM TRETS, https://doi.org/10.1145/3705926).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lilliput.core.errors import ExportError, UsageError
from lilliput.core.files import write_atomically
from lilliput.core.program import Ints, Program
from lilliput.export.c.project import check_free
from lilliput.export.c.text import filled
from lilliput.export.hls.constants import Constant, Part, integer, parts
from lilliput.export.hls.names import Names
from lilliput.export.hls.samples import codes_of, samples

PER_LINE = 24

PARAMETERS = """/* @NOTE
   The constants of an integer network. Of a layer NAME that reads codes x, for each output channel c:

     sum = NAME_w[c] . (x - NAME_in_z) + NAME_sum_b[c]
     y = ((sum * NAME_m[c] + (1 << NAME_s[c] >> 1)) >> NAME_s[c]) + NAME_b[c] + NAME_z
     saturated to NAME_low..NAME_high

   What is not there is 0 (in_z, sum_b, b, z), 1 (m), or -128 and 127 (low, high); without s, y is the sum. Padding is
   NAME_in_z. Sums are proved to fit into 32 bits; products with m take 64.

   Of a sum of two values with s alone, each is shifted by its own s, rounded, and then they are added. With m they are
   multiplied, added, and shifted once. w, b and s of a shortcut (res_affine) are a factor for the first of the two.
   A function is, for a code x, with i = x - first (first is the lowest code if it is not there), s = NAME_lerp_lut_s:

     T[i >> s] + (((T[(i >> s) + 1] - T[i >> s]) * (i & ((1 << s) - 1)) + (1 << s >> 1)) >> s)

   which for s = 0 is T[i]. Its points are one more than intervals: the last one is read, too. T is NAME_lerp_lut, or
   its row of the channel; with NAME_lerp_lut_row that says which row is the channel's. */
#ifndef @GUARD
#define @GUARD
#include "ap_int.h"
@BODY
#endif
"""
SAMPLES = """/* @NOTE
   Inputs, what the network makes of them inside, and its outputs. */
#ifndef @GUARD
#define @GUARD
#include "ap_int.h"
@BODY
#endif
"""


def write(
    program: Program, folder: Path, *, name: str = "net", inputs: npt.NDArray[np.floating[Any]] | None = None
) -> list[Path]:
    """Write both headers into `folder`, which exists; gives their paths. Raises `ExportError` and `UsageError`.

    `inputs` are real samples [n, ...]; without them the vectors are both ends of the range, and noise. Nothing is
    written where a file of one of the names was made by somebody else.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,30}", name):
        raise UsageError("export to HLS", f"the name {name!r}", "use letters, digits and _")
    if len(program.outputs) != 1:
        raise ExportError("export to HLS", f"{len(program.outputs)} outputs", "give the network one output")
    names = Names.for_program(program)
    found = parts(program, names)
    vectors = samples(program, names, found, codes_of(program, inputs))
    arrays: list[tuple[str, str, Ints]] = [("the input", "samples_input", vectors.inputs)]
    arrays += [(path, f"samples_inter_{i}", q) for i, (path, q) in enumerate(vectors.inside.items())]
    arrays.append((program.outputs[0], "samples_output", vectors.outputs))
    files = {
        f"{name}_parameters.h": (PARAMETERS, "\n".join(_part(program, part) for part in found)),
        f"{name}_samples.h": (SAMPLES, "\n".join(_commented(path, [integer(own, q)]) for path, own, q in arrays)),
    }
    for file in files:
        check_free(folder, file)
    for file, (text, body) in files.items():
        marks = {"@GUARD": re.sub(r"\W", "_", file).upper(), "@BODY": body}
        write_atomically(folder / file, filled(text, marks).encode())
    return [folder / file for file in files]


def multiplying(program: Program) -> list[str]:
    """The operations whose rescaling is more than a right shift."""
    return [p.operation.output for p in parts(program, Names.for_program(program)) if p.multiplies]


def _part(program: Program, part: Part) -> str:
    o = part.operation
    shapes = [_dims(program.values[value].shape) or "[1]" for value in (*o.inputs, o.output)]
    reads = " and ".join(f"{path} {shape}" for path, shape in zip(o.inputs, shapes, strict=False))
    form = "".join(
        f", {key} {'x'.join(map(str, o.attributes[key]))}"
        for key in ("kernel", "stride", "dilation")
        if set(o.attributes.get(key, (1,))) != {1}
    )
    pads = o.attributes.get("pads", ())
    if o.kind in ("conv", "sum_pool") and any(any(pad) for pad in pads):
        form += f", padding {' '.join(f'{p}+{q}' for p, q in pads)}"
    if o.attributes.get("groups", 1) != 1:
        form += f", {o.attributes['groups']} groups"
    return _commented(f"{o.output}: {o.kind}{form}; {reads} to {shapes[-1]}", part.constants)


def _commented(text: str, constants: tuple[Constant, ...] | list[Constant]) -> str:
    """Names of modules may be anything: what could end a comment, or go on behind it, is not written."""
    safe = re.sub(r"[^A-Za-z0-9_ .,:;+/\[\]-]", "_", text)
    return "\n".join([f"\n// {safe}", *map(_declared, constants)])


def _declared(constant: Constant) -> str:
    dims = _dims(constant.values.shape)
    return f"const {constant.type} {constant.name}{dims} = {_nested(constant.values)};"


def _dims(shape: tuple[int, ...]) -> str:
    return "".join(f"[{n}]" for n in shape)


def _nested(values: Ints) -> str:
    if values.ndim == 0:
        return str(int(values))
    if values.ndim > 1:
        return "{\n" + ",\n".join(map(_nested, values)) + "}"
    texts = list(map(str, values.tolist()))
    lines = [", ".join(texts[i : i + PER_LINE]) for i in range(0, len(texts), PER_LINE)]
    return "{" + ",\n ".join(lines) + "}"
