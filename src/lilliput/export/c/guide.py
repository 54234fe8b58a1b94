"""The README of a generated folder, and the example in it: a whole program that is fed raw numbers."""

import math

from lilliput.core.program import Program
from lilliput.export.c.interface import Interface, answer, c_type
from lilliput.export.c.text import filled

EXAMPLE = """/* @NOTE
   Reads samples of float32 and prints what the network says: `make example`. */
#include <stdio.h>
#include "@N.h"

int main(int argc, char **argv) {
  static float x[@U_INPUTS];
  static @N_in_t in[@U_INPUTS];
  static @N_out_t out[@U_OUTPUTS];@MORE
  FILE *file = argc > 1 ? fopen(argv[1], "rb") : stdin;
  if (!file) return 2;
  while (fread(x, sizeof x, 1, file)) {
    @N_quantize_input(x, in);
    @N_run(in, out);
@SAY
  }
  return 0;
}
"""

CLASS = '    printf("%d\\n", @N_classify(out));'
ANOMALY = '    printf("%d %.9g\\n", @N_is_anomaly(in, out), (double)@N_score(in, out));'
PLACES = """    for (int i = 0; i < @U_PLACES; i++)
      printf("%d%c", @N_classify_at(out, i), i + 1 < @U_PLACES ? ' ' : '\\n');"""
REAL = """    @N_dequantize_output(out, y);
    for (int i = 0; i < @U_OUTPUTS; i++) printf("%.9g%c", (double)y[i], i + 1 < @U_OUTPUTS ? ' ' : '\\n');"""

README = """# @N: a neural network in integer C99

Input: @INPUTS x `@X` (@IN_BYTES bytes). Output: @OUTPUTS x `@Y` (@OUT_BYTES bytes). Static arena: @ARENA bytes.
`make size` prints flash and RAM for a Cortex-M4.

| file | what it is |
|---|---|
| `@N.h`, `@N.c` | the network: integers, `stdint.h`, nothing else; no allocation, no library |
| `@N_io.c` | floats to codes, outputs to answers; only for those who have floats@MATH |
| `@N_golden.h`, `@N_test.c` | inputs with the outputs that they must give, and a test: `make test` |
| `@N_example.c` | a whole program: `make example` |
| `emulate/` | the test on an emulated Cortex-M4, with instructions and stack: `make emulate` |
| `bench/` | the test on your board, with cycles: its README has how |

Compile `@N.c` and, if you want it, `@N_io.c` into your firmware. Then:

```c
@CODE```

Without buffers of your own: `@N_run(@N_input(), @N_output())`. These are places in the arena; a run writes over its
input.

Weights lie as int8, int16, 4 bits (two to the byte), or 4-bit codes and a table of their values. Cores with DSP
instructions (Cortex-M4, M7, M33 with its extension) use them, but for codes; `-D@U_PLAIN` leaves them out. The integers
are the same.

A real input x becomes floor(x / scale + 1/2) + zero point, in double, saturated; NaN counts as 0. Sums are rescaled
with one rounding, to nearest, halves up: every machine gives the same integers.

`lilliput verify .` runs the golden vectors on all that a machine can run; `lilliput verify . --uart log.txt` reads the
log of a board.

@NOTE
"""


def files(program: Program, name: str, arena: int, interface: Interface) -> dict[str, str]:
    x, y = program.values[program.input], program.values[program.outputs[0]]
    inputs, outputs = math.prod(x.shape), math.prod(y.shape)
    kind = answer(program, interface)
    say = {"anomaly": ANOMALY, "class": CLASS, "classes": PLACES, "numbers": REAL}[kind]
    names = {"@U": name.upper(), "@N": name}
    more = "\n  static float y[@U_OUTPUTS];" if kind == "numbers" else ""
    code = filled(EXAMPLE.replace("@SAY", say).replace("@MORE", more), names)
    marks = {
        **names,
        "@INPUTS": str(inputs),
        "@OUTPUTS": str(outputs),
        "@IN_BYTES": f"{inputs * x.bits // 8:,}",
        "@OUT_BYTES": f"{outputs * y.bits // 8:,}",
        "@X": c_type(x),
        "@Y": c_type(y),
        "@ARENA": f"{arena:,}",
        "@MATH": ", and `math.h`" if program.tail else "",
        "@CODE": code.partition("*/\n")[2],
    }
    return {f"{name}_example.c": code, "README.md": filled(README, marks)}
