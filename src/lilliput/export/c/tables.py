"""The constants of a network in C: arrays and records, equal ones once, and the bytes that they take."""

from collections.abc import Sequence

import numpy as np

from lilliput.core.errors import ExportError
from lilliput.core.program import Ints, Program, Rescale

PER_LINE = 20
FUNCTION = "t"
"""The role of tables and points of functions of one value."""
SIZES = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4}
POINTER = 4
SHORT = 1 << 15
MOST_DIMENSIONS = 4

TYPES = """
typedef struct {
  @D planes, rows, columns;           /* of the input */
  @D channels, out_rows, out_columns; /* of the output */
  @D kernel_rows, kernel_columns, stride_rows, stride_columns, step_rows, step_columns;
  @D top, left, groups;
  @D zero;                            /* of the input */
} @N_window_t;

typedef struct {
  const int32_t *multiplier; /* one, or one for each channel */
@OFFSET  @D zero, low, high;
  uint8_t shift, per_channel;
} @N_rescale_t;

typedef struct {
  int32_t stride[4];
  @D size[4], from[4], step[4], limit[4], divide[4];
} @N_walk_t;
"""
OFFSET = "  const int32_t *offset; /* for each channel, or 0 */\n"


class Tables:
    """Collects constants; each method gives the expression that stands for one."""

    def __init__(self, name: str, program: Program) -> None:
        self.name = name
        self.texts: list[str] = []
        self.bytes = self.function_bytes = 0
        self.known: dict[tuple[str, str], str] = {}
        rescales = [r for o in program for r in o.rescale]
        self.offsets = any(r.offset is not None for r in rescales)
        numbers = [n for v in program.values.values() for n in (*v.shape, v.zero_point)]
        numbers += [n for r in rescales for n in (r.zero_point, r.low, r.high)]
        numbers += [
            n for o in program for key in ("dims", "pads", "kernel", "dilation") for n in _flat(o.attributes.get(key))
        ]
        self.dimension = "int16_t" if all(-SHORT <= n < SHORT for n in numbers) else "int32_t"

    @property
    def types(self) -> str:
        return TYPES.replace("@OFFSET", OFFSET if self.offsets else "").replace("@D", self.dimension)

    def array(self, values: Ints, kind: str, role: str, *, aligned: bool = False) -> str:
        """A constant array."""
        flat = [str(v) for v in np.asarray(values).reshape(-1).tolist()]
        lines = ",\n  ".join(", ".join(flat[i : i + PER_LINE]) for i in range(0, len(flat), PER_LINE))
        place = f" {self.name.upper()}_ALIGNED" if aligned else ""
        head = f"static const {kind} @[{len(flat)}]{place}"
        return self._once(head, f"{{\n  {lines}}}", role, len(flat) * SIZES[kind])

    def bias(self, values: Ints | None) -> str:
        """The bias of a layer, in the smallest words, and whether these have 32 bits."""
        if values is None:
            return "0, 0"
        short = bool((np.abs(values) < SHORT).all())
        return f"{self.array(values, 'int16_t' if short else 'int32_t', 'b')}, {int(not short)}"

    def rescale(self, r: Rescale) -> str:
        multiplier, shift = common_shift(r)
        parts = [self.array(multiplier, "int32_t", "m")]
        if self.offsets:
            parts.append("0" if r.offset is None else self.array(r.offset, "int32_t", "o"))
        numbers = (r.zero_point, r.low, r.high, shift, int(len(multiplier) > 1))
        size = POINTER * len(parts) + 3 * SIZES[self.dimension] + 2
        return self._record("rescale", [*parts, *map(str, numbers)], "r", -(-size // 4) * 4)

    def window(self, fields: Sequence[int]) -> str:
        return self._record("window", [str(n) for n in fields], "p", len(fields) * SIZES[self.dimension])

    def walk(self, stride: Sequence[int], rows: Sequence[Sequence[int]]) -> str:
        """Of a copy: `rows` are size, from, step, limit and divide."""
        parts = ["{" + ", ".join(map(str, row)) + "}" for row in (stride, *rows)]
        return self._record("walk", parts, "d", 16 + 4 * len(rows) * SIZES[self.dimension])

    def _record(self, kind: str, parts: Sequence[str], role: str, size: int) -> str:
        return "&" + self._once(f"static const {self.name}_{kind}_t @", "{" + ", ".join(parts) + "}", role, size)

    def _once(self, head: str, body: str, role: str, size: int) -> str:
        if (head, body) not in self.known:
            name = self.known[(head, body)] = f"{self.name}_{role}{len(self.texts)}"
            self.texts.append(f"{head.replace('@', name)} = {body};\n")
            self.bytes += size
            self.function_bytes += size if role == FUNCTION else 0
        return self.known[(head, body)]


def common_shift(r: Rescale) -> tuple[Ints, int]:
    """The same rescaling with one shift: multipliers of smaller shifts are doubled as often as it takes."""
    shift = int(r.shift.max())
    multiplier = r.multiplier * (np.int64(1) << np.minimum(shift - r.shift, 32))
    if multiplier.max(initial=0) > (1 << 31) - 1:
        found = f"shifts from {r.shift.min()} to {shift} with multipliers of up to {r.multiplier.max()}"
        raise ExportError("export to C", found, "use one shift for all channels of an operation")
    return multiplier, shift


def _flat(value: object) -> list[int]:
    if isinstance(value, (tuple, list)):
        return [n for item in value for n in _flat(item)]
    return [value] if isinstance(value, int) else []
