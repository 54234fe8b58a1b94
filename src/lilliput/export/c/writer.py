"""An integer program as C99: `net.h`, `net.c` (no float, no library, no allocation) and `net_io.c` (floats in and out).

The arena is packed by liveness (`measure.memory.place`); input and output belong to the caller. All names begin with
a prefix, so that several networks link into one firmware.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lilliput.core.errors import ExportError, UsageError
from lilliput.core.program import LARGEST_SUM, Ints, Operation, Program, Rescale, Value
from lilliput.export.c.kernels import HELPERS, KERNELS
from lilliput.measure.memory import Buffer, place

LAYERS = ("conv", "conv_transposed", "linear")
SHARED = ("reshape",)
PER_LINE = 20
MOST_DIMENSIONS = 4


def c_type(value: Value) -> str:
    return f"{'' if value.signed else 'u'}int{value.bits}_t" if value.bits < 32 else "int32_t"


def word(values: Ints) -> str:
    """The smallest signed type for integers."""
    most = int(np.abs(values).max(initial=0))
    return "int8_t" if most < 1 << 7 else "int16_t" if most < 1 << 15 else "int32_t"


class Writer:
    """Collects tables, kernels and calls; `files` gives the text."""

    def __init__(self, program: Program, name: str = "net") -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,30}", name):
            raise UsageError("export to C", f"the name {name!r}", "use letters, digits and _")
        if len(program.outputs) != 1:
            raise ExportError("export to C", f"{len(program.outputs)} outputs", "give the network one output")
        self.program, self.name = program, name
        self.tables: list[str] = []
        self.kernels: dict[tuple[str, ...], str] = {}
        self.bodies: list[str] = []
        self.calls: list[str] = []
        self.known: dict[str, str] = {}
        self.home = {v: v for v in program.values}
        for operation in program:
            if operation.kind in SHARED:
                self.home[operation.output] = self.home[operation.inputs[0]]
        self.offsets, self.arena = self._arena()
        for i, operation in enumerate(program):
            self._call(i, operation)

    def _arena(self) -> tuple[dict[str, int], int]:
        """Offsets of the values that are neither input nor output."""
        program = self.program
        ends = {self.home[program.input], self.home[program.outputs[0]]}
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for step, o in enumerate(program.operations):
            for name in (*o.inputs, o.output):
                first.setdefault(self.home[name], step)
                last[self.home[name]] = step
        buffers: list[Buffer] = []
        for name, begin in first.items():
            if name not in ends:
                size = -(-math.prod(program.values[name].shape) * program.values[name].bits // 8 // 4) * 4
                buffers.append(Buffer(values=(name,), size=size, first=begin, last=last[name]))
        placed = place(buffers)
        return {b.values[0]: b.offset for b in placed}, max((b.end for b in placed), default=0)

    def _place(self, name: str, *, output: bool = False) -> str:
        home, value = self.home[name], self.program.values[name]
        if home == self.home[self.program.outputs[0]]:
            return "out"
        if home == self.home[self.program.input]:
            return "in"
        kind = c_type(value)
        return f"({'' if output else 'const '}{kind} *)(arena + {self.offsets[home] // 4})"

    def _table(self, values: Ints, kind: str, role: str, key: str = "") -> str:
        """A constant array; the same key gives the same array."""
        if key in self.known:
            return self.known[key]
        name = f"{self.name}_{role}{len(self.tables)}"
        flat = [str(v) for v in np.asarray(values).reshape(-1).tolist()]
        lines = [", ".join(flat[i : i + PER_LINE]) for i in range(0, len(flat), PER_LINE)]
        self.tables.append(f"static const {kind} {name}[{len(flat)}] = {{\n  " + ",\n  ".join(lines) + "};\n")
        if key:
            self.known[key] = name
        return name

    def _rescale(self, r: Rescale) -> str:
        multiplier = self._table(r.multiplier, "int32_t", "m")
        shift = self._table(r.shift, "uint8_t", "s")
        name = f"{self.name}_r{len(self.tables)}"
        several = int(len(r.multiplier) > 1)
        offset = "0" if r.offset is None else self._table(r.offset, "int32_t", "o")
        self.tables.append(
            f"static const {self.name}_rescale_t {name} = "
            f"{{{multiplier}, {shift}, {offset}, {several}, {r.zero_point}, {r.low}, {r.high}}};\n"
        )
        return f"&{name}"

    def _window(self, o: Operation) -> str:
        x, y, a = self.program.values[o.inputs[0]], self.program.values[o.output], o.attributes
        kernel, stride = _two(a["kernel"]), _two(a["stride"])
        dilation, pads = _two(a.get("dilation", (1,) * len(a["kernel"]))), [p[0] for p in a["pads"]]
        top, left = (0, *pads)[-2:]
        rows, columns = (1, *x.shape[1:])[-2:]
        out_rows, out_columns = (1, *y.shape[1:])[-2:]
        fields = (
            x.shape[0], rows, columns, y.shape[0], out_rows, out_columns, *kernel, *stride, *dilation,
            top, left, a.get("groups", 1), x.zero_point,
        )  # fmt: skip
        return self._window_of(fields)

    def _kernel(self, kind: str, x: str, y: str, w: str = "int8_t", *, rescaled: bool = True) -> str:
        key = (kind, x, y, w, str(rescaled))
        if key not in self.kernels:
            short = "_".join(t.removesuffix("_t") for t in (x, y, w))
            self.kernels[key] = function = f"{self.name}_{kind}_{short}{'' if rescaled else '_sums'}"
            finish = f"{self.name}_rescale(sum, r, o)" if rescaled else "sum"
            text = KERNELS[kind]
            if kind == "sum_pool":
                finish = finish.replace("r, o", "r, 0")
            for mark, value in (("@F", function), ("@X", x), ("@Y", y), ("@W", w), ("@N", self.name)):
                text = text.replace("@FINISH", finish).replace(mark, value)
            if not rescaled:
                text = text.replace("{\n", "{\n  (void)r;\n", 1)
            self.bodies.append(text)
        return self.kernels[key]

    def _call(self, index: int, o: Operation) -> None:
        x, y = self.program.values[o.inputs[0]], self.program.values[o.output]
        source, target = self._place(o.inputs[0]), self._place(o.output, output=True)
        self.calls.append(f"  /* {index}: {o.kind} -> {_comment(o.output)} */")
        if o.kind in SHARED:
            if self.home[self.program.input] == self.home[self.program.outputs[0]]:
                raise ExportError("export to C", "an output that is the input", "give the network a layer")
        elif o.kind in LAYERS:
            self._layer(o, x, y, source, target)
        elif o.kind in ("sum_pool", "max_pool", "sum"):
            self._pool(o, x, y, source, target)
        elif o.kind in ("add", "mul"):
            self._pointwise(o, x, y, source, target)
        elif o.kind == "table" and o.table is not None:
            kind = "int8_t" if word(o.table) == "int8_t" else "int16_t"
            function = self._kernel("table", c_type(x), c_type(y), kind)
            numbers = f"{o.attributes['first']}, {math.prod(y.shape)}"
            self.calls.append(f"  {function}({source}, {target}, {self._table(o.table, kind, 't')}, {numbers});")
        elif o.kind == "concat":
            self._concat(o, y, target)
        else:
            self._copy(o, x, y, source, target)

    def _layer(self, o: Operation, x: Value, y: Value, source: str, target: str) -> None:
        w = self.program.tensors[o.weight or ""]
        weight = self._table(w, word(w), "w", key=f"w {o.weight}")
        bias = "0" if o.bias is None else self._table(self.program.tensors[o.bias], "int32_t", "b", key=f"b {o.bias}")
        rescale = self._rescale(o.rescale[0]) if o.rescale else "0"
        function = self._kernel(o.kind, c_type(x), c_type(y), word(w), rescaled=bool(o.rescale))
        last = f"{math.prod(x.shape[:-1])}, {x.shape[-1]}, {y.shape[-1]}, {x.zero_point}"
        if o.kind != "linear":
            last = self._window(o)
        if o.kind == "conv":
            last += f", {self._whole_bias(o, x, w)}"
        self.calls.append(f"  {function}({source}, {target}, {weight}, {bias}, {rescale}, {last});")

    def _whole_bias(self, o: Operation, x: Value, w: Ints) -> str:
        """For windows inside: bias - zero point x weights. "0" where sums of uncentred inputs might leave 32 bits."""
        rows = w.reshape(len(w), -1)
        bias = self.program.tensors[o.bias] if o.bias else np.zeros(len(w), np.int64)
        whole = bias - x.zero_point * rows.sum(1)
        reach = max(abs(x.low), abs(x.high)) * np.abs(rows).sum(1) + np.abs(whole)
        return self._table(whole, "int32_t", "z") if reach.max() <= LARGEST_SUM else "0"

    def _pool(self, o: Operation, x: Value, y: Value, source: str, target: str) -> None:
        if o.kind == "max_pool":
            function = self._kernel("max_pool", c_type(x), c_type(y))
            self.calls.append(f"  {function}({source}, {target}, {self._window(o)}, {x.low});")
            return
        window = self._window(o) if o.kind == "sum_pool" else self._whole(o, x)
        function = self._kernel("sum_pool", c_type(x), c_type(y))
        self.calls.append(f"  {function}({source}, {target}, {self._rescale(o.rescale[0])}, {window});")

    def _whole(self, o: Operation, x: Value) -> str:
        """Sums over the last dimensions are pools of whole planes; others are refused."""
        dims = sorted(o.attributes["dims"])
        if dims != list(range(dims[0], len(x.shape))):
            raise ExportError("export to C", f"a sum over dimensions {tuple(dims)}", "average over the last dimensions")
        planes, size = math.prod(x.shape[: dims[0]]), math.prod(x.shape[dims[0] :])
        return self._window_of((planes, 1, size, planes, 1, 1, 1, size, 1, 1, 1, 1, 0, 0, 1, x.zero_point))

    def _window_of(self, fields: tuple[int, ...]) -> str:
        name = f"{self.name}_p{len(self.tables)}"
        self.tables.append(f"static const {self.name}_window_t {name} = {{{', '.join(map(str, fields))}}};\n")
        return f"&{name}"

    def _pointwise(self, o: Operation, x: Value, y: Value, source: str, target: str) -> None:
        other = self.program.values[o.inputs[1]]
        if x.shape != y.shape or other.shape != y.shape:
            raise ExportError(f"export {o.output!r} to C", f"shapes {x.shape} and {other.shape}", "give both one shape")
        second = self._place(o.inputs[1])
        function = self._kernel(o.kind, c_type(x), c_type(y), c_type(other), rescaled=bool(o.rescale))
        rescale = self._rescale(o.rescale[0]) if o.rescale else "0"
        factors = "".join(f"{m}, " for m in o.attributes["multipliers"]) if o.kind == "add" else ""
        numbers = f"{factors}{x.zero_point}, {other.zero_point}, {math.prod(y.shape)}"
        self.calls.append(f"  {function}({source}, {second}, {target}, {rescale}, {numbers});")

    def _concat(self, o: Operation, y: Value, target: str) -> None:
        dim, at = o.attributes["dim"], 0
        blocks, pitch = math.prod(y.shape[:dim]), math.prod(y.shape[dim:])
        for name, rescale in zip(o.inputs, o.rescale, strict=True):
            part = self.program.values[name]
            size = math.prod(part.shape[dim:])
            function = self._kernel("join", c_type(part), c_type(y))
            numbers = f"{part.zero_point}, {blocks}, {size}, {pitch}"
            self.calls.append(
                f"  {function}({self._place(name)}, {target} + {at}, {self._rescale(rescale)}, {numbers});"
            )
            at += size

    def _copy(self, o: Operation, x: Value, y: Value, source: str, target: str) -> None:
        """Slices, pads, transpositions and upsampling are one walk through the input."""
        a, rank = o.attributes, len(x.shape)
        if rank > MOST_DIMENSIONS:
            raise ExportError(f"export {o.output!r} to C", f"{rank} dimensions", f"use at most {MOST_DIMENSIONS}")
        strides = [math.prod(x.shape[d + 1 :]) for d in range(rank)]
        start, step, divide = [0] * rank, [1] * rank, [1] * rank
        limit, size, code = list(x.shape), list(y.shape), 0
        if o.kind == "slice":
            start[a["dim"]], step[a["dim"]] = a["start"], a["step"]
            size = list(x.shape)
            size[a["dim"]] = len(range(a["start"], a["stop"], a["step"]))
        elif o.kind == "pad":
            start, code = [-p[0] for p in a["pads"]], a["code"]
        elif o.kind == "transpose":
            strides, limit = [strides[d] for d in a["order"]], [limit[d] for d in a["order"]]
        elif o.kind == "upsample":
            divide = [1, *a["factors"]]
        else:
            raise ExportError(f"export {o.output!r} to C", f"operation {o.kind!r}", "report this network")
        extra = MOST_DIMENSIONS - rank
        filled = ((size, 1), (start, 0), (step, 1), (limit, 1), (strides, 0), (divide, 1))
        rows = [[fill] * extra + row for row, fill in filled]
        names = [self._table(np.array(row), "int32_t", "d") for row in rows]
        function = self._kernel("copy", c_type(x), c_type(y))
        self.calls.append(f"  {function}({source}, {target}, {', '.join(names)}, {code});")

    def files(self, labels: Iterable[str] = ()) -> Mapping[str, str]:
        """{file name: text}."""
        n, program = self.name, self.program
        x, y = program.values[program.input], program.values[program.outputs[0]]
        upper = n.upper()
        scales = [repr(float(np.float32(s))) + "f" for s in y.scale]
        header = f"""/* Made by Lilliput. The code is yours: no licence of Lilliput applies to it. */
#ifndef {upper}_H
#define {upper}_H
#include <stdint.h>

typedef {c_type(x)} {n}_in_t;
typedef {c_type(y)} {n}_out_t;

#define {upper}_INPUTS {math.prod(x.shape)} /* {" x ".join(map(str, x.shape))} */
#define {upper}_OUTPUTS {math.prod(y.shape)} /* {" x ".join(map(str, y.shape))} */
#define {upper}_ARENA_BYTES {self.arena}

/* One sample. Integers only; the arena is static: not for two threads at once. */
void {n}_run(const {n}_in_t *in, {n}_out_t *out);

/* {n}_io.c, for those who have floats. */
void {n}_quantize_input(const float *x, {n}_in_t *in);
void {n}_dequantize_output(const {n}_out_t *out, float *y);
extern const char *const {n}_labels[];
extern const int {n}_label_count;
#endif
"""
        used = "\n".join(self.bodies)
        helpers = HELPERS.replace("@N", n)
        body = "\n".join(self.calls)
        arena = f"static int32_t arena[{max(1, self.arena // 4)}];\n" if self.arena else ""
        code = (
            f'/* Made by Lilliput. */\n#include "{n}.h"\n{helpers}\n{used}\n' + "".join(self.tables) + f"\n{arena}\n"
            f"void {n}_run(const {n}_in_t *in, {n}_out_t *out) {{\n{body}\n}}\n"
        )
        per = math.prod(y.shape[y.channel + 1 :]) if len(scales) > 1 else 1
        at = f"i / {per} % {len(scales)}" if len(scales) > 1 else "0"
        words = [_string(label) for label in labels]
        low, high = x.low, x.high
        io = f"""/* Made by Lilliput. */
#include "{n}.h"

static const float scales[{len(scales)}] = {{{", ".join(scales)}}};
const char *const {n}_labels[] = {{{"".join(w + ", " for w in words)}0}};
const int {n}_label_count = {len(words)};

void {n}_quantize_input(const float *x, {n}_in_t *in) {{
  for (int i = 0; i < {upper}_INPUTS; i++) {{
    const double v = (double)x[i] / {float(x.scale[0])!r} + 0.5;
    int64_t q = v > 1e9 ? 1000000000 : v < -1e9 ? -1000000000 : (int64_t)v;
    if ((double)q > v) q--;
    q += {x.zero_point};
    in[i] = ({n}_in_t)(q < {low} ? {low} : q > {high} ? {high} : q);
  }}
}}

void {n}_dequantize_output(const {n}_out_t *out, float *y) {{
  for (int i = 0; i < {upper}_OUTPUTS; i++)
    y[i] = (float)(((double)out[i] - {y.zero_point}) * (double)scales[{at}]);
}}
"""
        return {f"{n}.h": header, f"{n}.c": code, f"{n}_io.c": io}


def _two(values: Any) -> tuple[int, int]:
    rows, columns = (1, *values)[-2:]
    return rows, columns


def _comment(text: str) -> str:
    return re.sub(r"[^\w./ -]", "_", text)


def _string(text: str) -> str:
    return '"' + "".join(c if c.isascii() and c.isprintable() and c not in '"\\?' else "_" for c in text) + '"'
