"""Golden vectors: inputs, and what the network makes of them; as `net_golden.h`, and read back from it.

The header is the only place that has them: boards and hosts compile it, `verify` reads it. Whoever edits it changes the
fingerprint. What is read may be anything: it is taken apart as text, checked, and never run.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lilliput.core.errors import ArtifactError, UsageError
from lilliput.core.files import explained
from lilliput.core.program import Program
from lilliput.export.c.interface import c_type
from lilliput.export.c.text import filled
from lilliput.graph.interpreter import run

RANDOM_VECTORS = 8
PER_LINE = 20
LARGEST_FILE = 200_000_000
END = "_golden.h"

HEADER = """/* @NOTE
   Inputs, and what the network makes of them. */
#ifndef @U_GOLDEN_H
#define @U_GOLDEN_H
#include "@N.h"

#define @N_golden_count @COUNT
static const @N_in_t @N_golden_inputs[@COUNT][@U_INPUTS] = {
@INPUTS};
static const @N_out_t @N_golden_outputs[@COUNT][@U_OUTPUTS] = {
@OUTPUTS};
#endif
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Golden:
    """`inputs` and `outputs`, [vectors, numbers], little-endian in the words of C."""

    name: str
    inputs: npt.NDArray[np.integer]
    outputs: npt.NDArray[np.integer]

    @staticmethod
    def of(program: Program, name: str) -> "Golden":
        """Both ends of the range, zero and seeded noise, and what the interpreter makes of them."""
        x, y = program.values[program.input], program.values[program.outputs[0]]
        ends = [np.full(x.shape, end) for end in (x.low, x.high, min(max(x.zero_point, x.low), x.high))]
        noise = np.random.default_rng(0).integers(x.low, x.high + 1, (RANDOM_VECTORS, *x.shape))
        codes = np.concatenate([np.stack(ends), noise])
        results = run(program, codes)[0]
        return Golden(
            name=name,
            inputs=codes.reshape(len(codes), -1).astype(_word(c_type(x))),
            outputs=results.reshape(len(codes), -1).astype(_word(c_type(y))),
        )

    @property
    def fingerprint(self) -> int:
        """CRC-32 of all inputs and outputs."""
        return zlib.crc32(self.outputs.tobytes(), zlib.crc32(self.inputs.tobytes()))

    @property
    def sums(self) -> tuple[int, ...]:
        """CRC-32 of the outputs of each vector."""
        return tuple(zlib.crc32(row.tobytes()) for row in self.outputs)

    def header(self) -> str:
        marks = {"@COUNT": str(len(self.inputs)), "@INPUTS": _rows(self.inputs), "@OUTPUTS": _rows(self.outputs)}
        return filled(HEADER, {**marks, "@U": self.name.upper(), "@N": self.name})


def read(folder: Path) -> Golden:
    """The vectors of a folder that `project.write` has written.

    Raises `UsageError` if there are none, or of several networks, and `ArtifactError` if they are not as written.
    """
    asked = f"read {folder}"
    with explained(asked, "check the path"):
        names = sorted(path.name.removesuffix(END) for path in folder.iterdir() if path.name.endswith(END))
    if len(names) != 1:
        found = "no golden vectors in it" if not names else f"golden vectors of {len(names)} networks"
        raise UsageError(asked, found, "give a folder that lilliput export --to c has written, of one network")
    name = names[0]
    path = folder / f"{name}{END}"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,30}", name):
        raise ArtifactError(asked, f"the name {name!r}", "export the network again")
    header, vectors = text_of(folder / f"{name}.h"), text_of(path)
    parts: dict[str, npt.NDArray[np.integer]] = {}
    for part, kind, size in (("inputs", "in", "INPUTS"), ("outputs", "out", "OUTPUTS")):
        word = re.search(rf"typedef (u?int(?:8|16|32)_t) {name}_{kind}_t;", header)
        length = re.search(rf"#define {name.upper()}_{size} (\d{{1,9}})\b", header)
        count = re.search(rf"#define {name}_golden_count (\d{{1,9}})\b", vectors)
        if word is None or length is None or count is None:
            raise ArtifactError(f"read {path}", f"{part} without type or size", "export the network again")
        parts[part] = _numbers(vectors, f"{name}_golden_{part}", word[1], int(count[1]), int(length[1]), path)
    return Golden(name=name, inputs=parts["inputs"], outputs=parts["outputs"])


def text_of(path: Path) -> str:
    return bytes_of(path).decode("ascii", errors="replace")


def bytes_of(path: Path) -> bytes:
    """A file that is no larger than an export writes it. Raises `ArtifactError`."""
    if not path.is_file():
        raise ArtifactError(f"read {path}", "no such file", "export the network again")
    with explained(f"read {path}", "check the path"):
        if path.stat().st_size > LARGEST_FILE:
            raise ArtifactError(f"read {path}", f"more than {LARGEST_FILE:,} bytes", "export the network again")
        return path.read_bytes()


def _numbers(text: str, name: str, word: str, rows: int, columns: int, path: Path) -> npt.NDArray[np.integer]:
    """The table `name`, [rows, columns]."""
    asked, do = f"read {path}", "export the network again"
    _, _, rest = text.partition(f" {name}[")
    body, end, _ = rest.partition(" = {")[2].partition(";")
    items = body.replace("{", " ").replace("}", " ").replace(",", " ").split()
    if not end or len(items) != rows * columns or not items:
        raise ArtifactError(asked, f"{name} has {len(items)} numbers in place of {rows} x {columns}", do)
    limits = np.iinfo(_word(word))
    wrong = next((i for i in items if re.fullmatch(r"-?[0-9]{1,10}", i) is None), None)
    wrong = wrong or next((i for i in items if not limits.min <= int(i) <= limits.max), None)
    if wrong is not None:
        raise ArtifactError(asked, f"{name} holds {wrong[:20]!r}, which is no {word}", do)
    return np.array(items, dtype=np.int64).reshape(rows, columns).astype(_word(word))


def _word(kind: str) -> np.dtype[np.integer]:
    return np.dtype(kind.removesuffix("_t")).newbyteorder("<")


def _rows(values: npt.NDArray[np.integer]) -> str:
    lines: list[str] = []
    for row in values.tolist():
        parts = [", ".join(map(str, row[i : i + PER_LINE])) for i in range(0, len(row), PER_LINE)]
        lines.append("  {" + ",\n   ".join(parts) + "},\n")
    return "".join(lines)
