"""A folder of C99 that builds by itself: the network, a Makefile, and a test against golden vectors."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lilliput.core.files import write_atomically
from lilliput.core.program import Program
from lilliput.export.c import emulate
from lilliput.export.c.writer import PER_LINE, Writer
from lilliput.graph.interpreter import run

RANDOM_VECTORS = 8

GOLDEN = """/* Made by Lilliput: inputs, and what the network makes of them. */
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

TEST = """/* Made by Lilliput: the network on golden vectors; exit code 0 if every output is equal. */
#include "@N_golden.h"
#include <stdio.h>

int main(void) {
  static @N_out_t found[@U_OUTPUTS];
  int wrong = 0;
  for (int n = 0; n < @N_golden_count; n++) {
    @N_run(@N_golden_inputs[n], found);
    for (int i = 0; i < @U_OUTPUTS; i++) wrong += found[i] != @N_golden_outputs[n][i];
  }
  printf("%d vectors, %d outputs differ\\n", @N_golden_count, wrong);
  return wrong != 0;
}
"""

MAKE = """# Made by Lilliput. `make test` builds the network for this machine and runs it on golden vectors.
CC ?= cc
CFLAGS ?= -std=c99 -O2 -Wall -Wextra -Werror

@N_test: @N.c @N_test.c @N.h @N_golden.h
	$(CC) $(CFLAGS) @N.c @N_test.c -o $@

.PHONY: test clean
test: @N_test
	./@N_test

clean:
	rm -f @N_test emulate/@N.elf
"""


def golden(program: Program) -> tuple[np.ndarray, np.ndarray]:
    """Input codes and what the interpreter makes of them: both ends of the range, zero, and seeded noise."""
    value = program.values[program.input]
    ends = [np.full(value.shape, end) for end in (value.low, value.high, value.zero_point)]
    noise = np.random.default_rng(0).integers(value.low, value.high + 1, (RANDOM_VECTORS, *value.shape))
    codes = np.concatenate([np.stack(ends), noise])
    return codes, run(program, codes)[0]


def write(
    program: Program,
    folder: Path,
    *,
    name: str = "net",
    labels: Iterable[str] = (),
    flash: int | None = None,
    ram: int | None = None,
) -> list[Path]:
    """Write the files into `folder`, which exists; gives their paths. Raises `ExportError` and `UsageError`.

    The emulated image is linked for `flash` and `ram` bytes, those of the emulated board if not given.
    """
    limits = {key: value for key, value in (("flash", flash), ("ram", ram)) if value is not None}
    files = dict(Writer(program, name).files(labels))
    codes, results = golden(program)
    marks = {
        "@COUNT": str(len(codes)),
        "@INPUTS": _rows(codes),
        "@OUTPUTS": _rows(results),
        "@U": name.upper(),
        "@N": name,
    }
    files[f"{name}_golden.h"] = emulate.filled(GOLDEN, marks)
    files[f"{name}_test.c"] = emulate.filled(TEST, marks)
    files["Makefile"] = emulate.filled(MAKE + emulate.MAKE, marks)
    files |= emulate.files(name, **limits)
    (folder / "emulate").mkdir(exist_ok=True)
    for file, text in files.items():
        write_atomically(folder / file, text.encode())
    return [folder / file for file in files]


def _rows(values: np.ndarray) -> str:
    lines: list[str] = []
    for row in values.reshape(len(values), -1).tolist():
        parts = [", ".join(map(str, row[i : i + PER_LINE])) for i in range(0, len(row), PER_LINE)]
        lines.append("  {" + ",\n   ".join(parts) + "},\n")
    return "".join(lines)
