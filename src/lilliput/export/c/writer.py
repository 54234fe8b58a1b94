"""An integer program as C99: `net.h`, `net.c` (no float, no library, no allocation) and `net_io.c` (floats in and out).

The arena is packed by liveness (`measure.memory.place`); input and output have a place in it, or are
the caller's. All names begin with a prefix, so that several networks link into one firmware.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lilliput.core.errors import ExportError, UsageError
from lilliput.core.program import LARGEST_SUM, Ints, Operation, Program, Value
from lilliput.export.c import grouped
from lilliput.export.c import products as product_kernels
from lilliput.export.c.emulate import filled
from lilliput.export.c.grouped import MEMBER, Grouped
from lilliput.export.c.interface import Interface, c_type
from lilliput.export.c.interface import files as interface_files
from lilliput.export.c.kernels import HELPERS, KERNELS, NO_OFFSET, OFFSET_OF
from lilliput.export.c.products import (
    CONV,
    EXPAND,
    GATHER,
    LINEAR,
    WORD,
    Rows,
    pack,
    products,
    scratch_bytes,
    with_form,
)
from lilliput.export.c.tables import FUNCTION, MOST_DIMENSIONS, Tables
from lilliput.export.c.text import NOTE
from lilliput.measure.memory import Buffer, place

LAYERS = ("conv", "conv_transposed", "linear", "grouped_sum")
SHARED = ("reshape",)
MOST_SHARED = 1 << 8
"""Rows of tables that a byte can name."""


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
        self.tables = Tables(name, program)
        self.bodies: dict[str, str] = {}
        self.keys: dict[str, str] = {}  # what each kernel is, whatever its types: see `kernel_sizes`
        self.calls: list[str] = []
        self.home = {v: v for v in program.values}
        for operation in program:
            if operation.kind in SHARED:
                self.home[operation.output] = self.home[operation.inputs[0]]
        self.rows = {i: rows for i, o in enumerate(program) if (rows := self._packed(o)) is not None}
        self.offsets, self.arena = self._arena()
        for i, operation in enumerate(program):
            self._call(i, operation)

    def _packed(self, o: Operation) -> Rows | Grouped | None:
        """The rows of a layer for the kernels that read patches; None for other operations and for depthwise layers."""
        if o.kind not in ("conv", "linear", "grouped_sum") or o.weight is None:
            return None
        x, weight = self.program.values[o.inputs[0]], self.program.tensors[o.weight]
        rows, least, most = weight.reshape(len(weight), -1), x.low - x.zero_point, x.high - x.zero_point
        if o.kind == "grouped_sum":
            return grouped.pack(rows, _pixels(o, self.program.values[o.output]), least, most)
        groups = o.attributes["groups"] if o.kind == "conv" else 1
        return None if o.kind == "conv" and groups == len(weight) else pack(rows, groups, least, most)

    def _scratch(self, o: Operation, rows: Rows | Grouped) -> int:
        """Bytes of the patches of a layer."""
        pixels = _pixels(o, self.program.values[o.output])
        length = math.prod(self.program.tensors[o.weight or ""].shape[1:])
        size = grouped.scratch_bytes if isinstance(rows, Grouped) else scratch_bytes
        return size(rows.form, length, pixels)

    def _arena(self) -> tuple[dict[str, int], int]:
        """Offsets of all values and patches. Input and output have their place too, for callers without their own."""
        program = self.program
        first: dict[str, int] = {self.home[program.input]: 0}
        last: dict[str, int] = {}
        for step, o in enumerate(program.operations):
            for name in (*o.inputs, o.output):
                first.setdefault(self.home[name], step)
                last[self.home[name]] = step
        last[self.home[program.outputs[0]]] = len(program.operations)
        buffers: list[Buffer] = []
        for name, begin in first.items():
            size = _words(math.prod(program.values[name].shape) * program.values[name].bits // 8)
            buffers.append(Buffer(values=(name,), size=size, first=begin, last=last.get(name, begin)))
        for step, rows in self.rows.items():
            size = _words(self._scratch(program.operations[step], rows))
            buffers.append(Buffer(values=(_patch(step),), size=size, first=step, last=step))
        placed = place(buffers)
        return {b.values[0]: b.offset for b in placed}, max((b.end for b in placed), default=0)

    def _home(self, name: str) -> int:
        """Where a value begins in the arena, in words."""
        return self.offsets[self.home[name]] // 4

    def _place(self, name: str, *, output: bool = False) -> str:
        home, value = self.home[name], self.program.values[name]
        if home == self.home[self.program.outputs[0]]:
            return "out"
        if home == self.home[self.program.input]:
            return "in"
        kind = c_type(value)
        return f"({'' if output else 'const '}{kind} *)(arena + {self._home(name)})"

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
        return self.tables.window(fields)

    def _kernel(self, kind: str, x: str, y: str, w: str = "int8_t", *, rescaled: bool = True) -> str:
        """The name of the kernel of an operation for these types."""
        short = "_".join(t.removesuffix("_t") for t in (kind, x, y, w))
        function = f"{self.name}_{short}{'' if rescaled else '_sums'}"
        channel = "0" if kind == "sum_pool" else "o"
        text = KERNELS[kind].replace("@FINISH", f"{self.name}_rescale(sum, r, {channel})" if rescaled else "sum")
        if not rescaled:
            text = text.replace("{\n", "{\n  (void)r;\n", 1)
        self._body(function, text, {"@X": x, "@Y": y, "@W": w}, kind if rescaled else f"{kind} sums")
        return function

    def _call(self, index: int, o: Operation) -> None:
        x, y = self.program.values[o.inputs[0]], self.program.values[o.output]
        source, target = self._place(o.inputs[0]), self._place(o.output, output=True)
        self.calls.append(f"  /* {index}: {o.kind} -> {_comment(o.output)} */")
        if o.kind in SHARED:
            if self.home[self.program.input] == self.home[self.program.outputs[0]]:
                raise ExportError("export to C", "an output that is the input", "give the network a layer")
        elif o.kind in LAYERS:
            self._layer(index, o, x, y, source, target)
        elif o.kind in ("sum_pool", "max_pool", "sum", "max"):
            self._pool(o, x, y, source, target)
        elif o.kind in ("add", "mul"):
            self._pointwise(o, x, y, source, target)
        elif o.kind in ("table", "interpolate") and o.table is not None:
            self._function(o, o.table, x, y, source, target)
        elif o.kind == "rescale":
            function = self._kernel("join", c_type(x), c_type(y))
            numbers = f"{x.zero_point}, 1, {math.prod(y.shape)}, 0"
            self.calls.append(f"  {function}({source}, {target}, {self.tables.rescale(o.rescale[0])}, {numbers});")
        elif o.kind == "argmax":
            by, dim = o.attributes.get("multipliers"), o.attributes["dim"]
            factors = "0" if by is None else self.tables.array(np.array(by), "int32_t", "m")
            sizes = f"{math.prod(x.shape[:dim])}, {x.shape[dim]}, {math.prod(x.shape[dim + 1 :])}"
            self.calls.append(
                f"  {self._kernel('argmax', c_type(x), c_type(y))}({source}, {target}, {factors}, {sizes});"
            )
        elif o.kind == "concat":
            self._concat(o, y, target)
        else:
            self._copy(o, x, y, source, target)

    def _layer(self, index: int, o: Operation, x: Value, y: Value, source: str, target: str) -> None:
        rows = self.rows.get(index)
        if rows is None:
            self._direct(o, x, y, source, target)
            return
        bias = self.tables.bias(None if o.bias is None else self.program.tensors[o.bias])
        rescale = self.tables.rescale(o.rescale[0]) if o.rescale else "0"
        tables = [self.tables.array(rows.data, WORD[rows.form], "w", aligned=True)] if isinstance(rows, Rows) else []
        if isinstance(rows, Grouped):
            tables = [self.tables.array(rows.weights, rows.word, "w")]
            tables.append(self.tables.array(rows.members, MEMBER[rows.form], "g"))
        kind, word = ("conv" if _is_conv(o) else "linear"), rows.word if isinstance(rows, Grouped) else ""
        types = c_type(x), c_type(y)
        function = self._products(kind, *types, rows.form, _pixels(o, y), rescaled=bool(o.rescale), word=word)
        last = f"{math.prod(x.shape[:-1])}, {x.shape[-1]}, {y.shape[-1]}, {x.zero_point}"
        if _is_conv(o):
            last = self._window(o)
        patch = f"({'uint32_t' if rows.form == 'paired' else 'int16_t'} *)(arena + {self.offsets[_patch(index)] // 4})"
        book = ""
        if isinstance(rows, Rows) and rows.book is not None:
            book = ", " + self.tables.array(rows.book, "int16_t", "c")
        self.calls.append(
            f"  {function}({source}, {target}, {', '.join(tables)}, {bias}, {rescale}, {last}, {patch}{book});"
        )

    def _products(self, kind: str, x: str, y: str, form: str, pixels: int, *, rescaled: bool, word: str = "") -> str:
        """The name of the kernel of a layer, which calls one that gathers its inputs and one that multiplies.

        `word` is the type of weights where the form does not say it.
        """
        few = min(pixels, 2)
        named = form if word in ("", "int8_t") else f"{form}_{word.removesuffix('_t')}"
        short = (kind, x.removesuffix("_t"), y.removesuffix("_t"), named, *([] if few > 1 else ["one"]))
        end = "" if rescaled else "_sums"
        function = f"{self.name}_{'_'.join(short)}{end}"
        gather = f"{self.name}_{'gather' if kind == 'conv' else 'expand'}_{short[1]}"
        multiply = f"{self.name}_products_{'_'.join(short[2:])}{end}"
        form_of = " ".join((form, *([] if few > 1 else ["one"]), *([] if rescaled else ["sums"])))
        self._body(gather, GATHER if kind == "conv" else EXPAND, {"@X": x}, "gather" if kind == "conv" else "expand")
        finish = f"{self.name}_rescale(\\1, r, \\2)" if rescaled else "\\1"
        is_grouped = form in MEMBER
        text = grouped.sums(form, few) if is_grouped else products(form, few)
        text = re.sub(r"@FINISH\((\w+), r, (\w+)\)", finish, text)
        marks = {"@Y": y, "@W": word, "@O": MEMBER[form]} if is_grouped else {"@Y": y}
        self._body(
            multiply, text if rescaled else text.replace("{\n", "{\n  (void)r;\n", 1), marks, f"products {form_of}"
        )
        text = grouped.layer(kind, form) if is_grouped else with_form(CONV if kind == "conv" else LINEAR, form)
        marks |= {"@G": gather, "@P": multiply, "@X": x}
        if form == "paired":
            marks["@K"] = f"{self.name}_pair"
            self._body(marks["@K"], grouped.PAIR, {}, "pair")
        self._body(function, text, marks, f"{kind} {form_of}")
        return function

    def _body(self, function: str, text: str, marks: Mapping[str, str], key: str) -> None:
        """Adds a kernel, once."""
        self.keys[function] = key
        marks = {"@F": function, **marks, "@U": self.name.upper(), "@N": self.name}
        self.bodies.setdefault(function, filled(text, marks))

    def _direct(self, o: Operation, x: Value, y: Value, source: str, target: str) -> None:
        """Without patches: transposed and depthwise layers, and numbers that do not fit into 16 bits."""
        w = self.program.tensors[o.weight or ""]
        weight = self.tables.array(w, word(w), "w")
        bias = "0" if o.bias is None else self.tables.array(self.program.tensors[o.bias], "int32_t", "b")
        rescale = self.tables.rescale(o.rescale[0]) if o.rescale else "0"
        plain = "direct_conv" if _is_conv(o) else "direct_linear"
        kind = o.kind if o.kind == "conv_transposed" else plain
        function = self._kernel(kind, c_type(x), c_type(y), word(w), rescaled=bool(o.rescale))
        last = f"{math.prod(x.shape[:-1])}, {x.shape[-1]}, {y.shape[-1]}, {x.zero_point}"
        if _is_conv(o):
            last = self._window(o)
        if kind == "direct_conv":
            last += f", {self._whole_bias(o, x, w)}"
        self.calls.append(f"  {function}({source}, {target}, {weight}, {bias}, {rescale}, {last});")

    def _whole_bias(self, o: Operation, x: Value, w: Ints) -> str:
        """For windows inside: bias - zero point x weights. "0" where sums of uncentred inputs might leave 32 bits."""
        rows = w.reshape(len(w), -1)
        bias = self.program.tensors[o.bias] if o.bias else np.zeros(len(w), np.int64)
        whole = bias - x.zero_point * rows.sum(1)
        reach = max(abs(x.low), abs(x.high)) * np.abs(rows).sum(1) + np.abs(whole)
        return self.tables.array(whole, "int32_t", "z") if reach.max() <= LARGEST_SUM else "0"

    def _function(self, o: Operation, entries: Ints, x: Value, y: Value, source: str, target: str) -> None:
        """A table or points: one for all, one for each channel, or rows of which channels say theirs in a byte."""
        kind, channel, owner = _code_word(entries), o.attributes.get("channel"), o.attributes.get("owner")
        if owner is not None and len(entries) > MOST_SHARED:
            entries, owner = entries[np.array(owner)], None
        values = [o.attributes["first"]]
        if channel is None:
            outer, rest = (1, 1), math.prod(y.shape)
        else:
            outer, rest = (math.prod(y.shape[:channel]), y.shape[channel]), math.prod(y.shape[channel + 1 :])
        if o.kind == "interpolate":
            values += [o.attributes["shift"], entries.shape[-1], *outer]
        elif channel is not None:
            values += [entries.shape[-1], *outer]
        name = "table_per_channel" if o.kind == "table" and channel is not None else o.kind
        tables = [self.tables.array(entries, kind, FUNCTION)]
        if owner is not None:
            name = f"{o.kind}_shared"
            tables.append(self.tables.array(np.array(owner), "uint8_t", FUNCTION))
        function = self._kernel(name, c_type(x), c_type(y), kind)
        numbers = ", ".join(map(str, (*tables, *values, rest)))
        self.calls.append(f"  {function}({source}, {target}, {numbers});")

    def _pool(self, o: Operation, x: Value, y: Value, source: str, target: str) -> None:
        window = self._window(o) if o.kind in ("sum_pool", "max_pool") else self._whole(o, x)
        if o.kind in ("max_pool", "max"):
            function = self._kernel("max_pool", c_type(x), c_type(y))
            self.calls.append(f"  {function}({source}, {target}, {window}, {x.low});")
            return
        function = self._kernel("sum_pool", c_type(x), c_type(y))
        self.calls.append(f"  {function}({source}, {target}, {self.tables.rescale(o.rescale[0])}, {window});")

    def _whole(self, o: Operation, x: Value) -> str:
        """A sum or maximum over neighbouring dimensions is a pool of columns; over others it is refused."""
        dims = sorted(o.attributes["dims"])
        if dims != list(range(dims[0], dims[-1] + 1)):
            found = f"a {o.kind} over dimensions {tuple(dims)}"
            raise ExportError(f"export {o.output!r} to C", found, "reduce neighbouring dimensions at once")
        planes, size, columns = (
            math.prod(x.shape[a:b]) for a, b in ((0, dims[0]), (dims[0], dims[-1] + 1), (dims[-1] + 1, None))
        )
        return self.tables.window(
            (planes, size, columns, planes, 1, columns, size, 1, 1, 1, 1, 1, 0, 0, 1, x.zero_point)
        )

    def _pointwise(self, o: Operation, x: Value, y: Value, source: str, target: str) -> None:
        other = self.program.values[o.inputs[1]]
        if x.shape != y.shape or other.shape != y.shape:
            raise ExportError(f"export {o.output!r} to C", f"shapes {x.shape} and {other.shape}", "give both one shape")
        second = self._place(o.inputs[1])
        function = self._kernel(o.kind, c_type(x), c_type(y), c_type(other), rescaled=bool(o.rescale))
        if o.kind == "add":
            (r,) = o.rescale
            rescale = f"{r.shift[0]}, {r.zero_point}, {r.low}, {r.high}"
        else:
            rescale = self.tables.rescale(o.rescale[0]) if o.rescale else "0"
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
                f"  {function}({self._place(name)}, {target} + {at}, {self.tables.rescale(rescale)}, {numbers});"
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
        size, start, step, limit, strides, divide = rows
        walk = self.tables.walk(strides, (size, start, step, limit, divide))
        function = self._kernel("copy", c_type(x), c_type(y))
        self.calls.append(f"  {function}({source}, {target}, {walk}, {code});")

    def files(self, interface: Interface | None = None) -> Mapping[str, str]:
        """{file name: text}."""
        n, upper = self.name, self.name.upper()
        used = "\n".join(self.bodies.values())
        channel = OFFSET_OF if self.tables.offsets else NO_OFFSET
        helpers = product_kernels.HELPERS + self.tables.types + HELPERS.replace("@OFFSET", channel)
        helpers = filled(helpers, {"@U": upper, "@N": n})
        body = "\n".join(self.calls)
        arena = f"static int32_t arena[{max(1, self.arena // 4)}];\n"
        for role, name in (("in", "input"), ("out", "output")):
            home = self._home(self.program.input if role == "in" else self.program.outputs[0])
            arena += f"{n}_{role}_t *{n}_{name}(void) {{ return ({n}_{role}_t *)(arena + {home}); }}\n"
        code = (
            f'/* {NOTE} */\n#include "{n}.h"\n{helpers}\n{used}\n' + "".join(self.tables.texts) + f"\n{arena}\n"
            f"void {n}_run(const {n}_in_t *in, {n}_out_t *out) {{\n{body}\n}}\n"
        )
        texts = interface_files(self.program, n, self.arena, interface or Interface())
        return {f"{n}.h": texts[f"{n}.h"], f"{n}.c": code, f"{n}_io.c": texts[f"{n}_io.c"]}


def _code_word(codes: Ints) -> str:
    """The smallest type for codes."""
    low, high = int(codes.min()), int(codes.max())
    bits = next(
        b for b in (8, 16, 32) if (low >= -(1 << (b - 1)) and high < 1 << (b - 1)) or (low >= 0 and high < 1 << b)
    )
    return f"{'int' if low < 0 else 'uint'}{bits}_t"


def _pixels(o: Operation, y: Value) -> int:
    """For how many places of the input a layer computes all its channels."""
    return math.prod(y.shape[1:]) if _is_conv(o) else math.prod(y.shape[:-1])


def _is_conv(o: Operation) -> bool:
    return "kernel" in o.attributes


def _patch(step: int) -> str:
    """The name of a layer's patches in the arena; no value has a space in front."""
    return f" patch {step}"


def _words(size: int) -> int:
    return -(-size // 4) * 4


def _two(values: Any) -> tuple[int, int]:
    rows, columns = (1, *values)[-2:]
    return rows, columns


def _comment(text: str) -> str:
    return re.sub(r"[^\w./ -]", "_", text)
