"""A folder of C99 that builds by itself: the network, a Makefile, tests, an example and a bench for boards."""

import os
from pathlib import Path

from lilliput.core.errors import UsageError
from lilliput.core.files import explained, write_atomically
from lilliput.core.program import Program
from lilliput.export.c import bench, emulate, guide
from lilliput.export.c.golden import Golden
from lilliput.export.c.interface import Interface
from lilliput.export.c.text import MARK, filled
from lilliput.export.c.writer import Writer

TEST = """/* @NOTE
   The network on golden vectors; exit code 0 if every output is equal. */
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

MAKE = """# @NOTE
# `make test` builds the network for this machine and runs it on golden vectors.
CC ?= cc
CFLAGS ?= -std=c99 -O2 -Wall -Wextra -Werror

@N_test: @N.c @N_test.c @N.h @N_golden.h
	$(CC) $(CFLAGS) @N.c @N_test.c -o $@

@N_example: @N.c @N_io.c @N_example.c @N.h
	$(CC) $(CFLAGS) @N.c @N_io.c @N_example.c -lm -o $@

.PHONY: test example clean
test: @N_test
	./@N_test

example: @N_example

clean:
	rm -f @N_test @N_example emulate/@N.elf emulate/@N-plain.elf bench/@N.elf bench/@N-plain.elf bench/uart.log
"""


def write(
    program: Program,
    folder: Path,
    *,
    name: str = "net",
    interface: Interface | None = None,
    flash: int | None = None,
    ram: int | None = None,
) -> list[Path]:
    """Write the files into `folder`, which exists; gives their paths. Raises `ExportError` and `UsageError`.

    The emulated image is linked for `flash` and `ram` bytes, those of the emulated board if not given. Nothing is
    written where a file of one of the names was made by somebody else.
    """
    limits = {key: value for key, value in (("flash", flash), ("ram", ram)) if value is not None}
    interface = interface or Interface()
    writer = Writer(program, name)
    marks = {
        "@FLAGS": emulate.FLAGS,
        "@LINKED": emulate.LINKED,
        "@MACHINE": emulate.MACHINE,
        "@U": name.upper(),
        "@N": name,
    }
    files = {
        **writer.files(interface),
        f"{name}_golden.h": Golden.of(program, name).header(),
        f"{name}_test.c": filled(TEST, marks),
        **guide.files(program, name, writer.arena, interface),
        "Makefile": filled(MAKE + emulate.MAKE, marks),
        **emulate.files(name, **limits),
        **bench.files(name),
    }
    for file in files:
        check_free(folder, file)
    for file, text in files.items():
        write_atomically(folder / file, text.encode())
    return [folder / file for file in files]


def check_free(folder: Path, file: str) -> None:
    """Raises `UsageError` if what stands at this place is not an earlier export."""
    path, do = folder / file, "move it away, or choose another folder; nothing was changed"
    if path.parent != folder and path.parent.exists() and not path.parent.is_dir():
        raise UsageError(f"write {path.parent}", "a file has this name", do)
    with explained(f"write {path}", do):
        if not os.path.lexists(path):
            return
        if not path.is_file():
            raise UsageError(f"write {path}", "something that is no file has this name", do)
        with path.open("rb") as old:
            ours = MARK.encode() in old.read(100_000)
    if not ours:
        raise UsageError(f"write {path}", "a file of this name is there that Lilliput has not made", do)
