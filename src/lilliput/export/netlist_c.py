"""A circuit of integers as one C function, and the check that it computes the same."""

import itertools
import re
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lilliput.core.errors import UnsupportedError, UsageError, VerificationError
from lilliput.export.c.tools import call, found
from lilliput.ops import cartesian_functions as f
from lilliput.ops.netlist import Gate, Netlist, sources

Ints = npt.NDArray[np.int64]
MOST_BITS = 20
"""Of all inputs together: up to so many, all combinations are tried."""
DEADLINE_S = 120.0
FLAGS = ("-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all")
EXPRESSIONS = {
    f.FLIP_LOWER: "wrap(HIGH - U({a}))",
    f.ADD: "wrap(U({a}) + U({b}))",
    f.SUBTRACT: "wrap(U({a}) - U({b}))",
    f.MULTIPLY: "wrap(U({a}) * U({b}))",
    f.NEGATE: "wrap(0u - U({a}))",
    f.FLIP_SIGN: "wrap(U({a}) + SIGN)",
    f.AND: "({a} & {b})",
    f.OR: "({a} | {b})",
    f.XOR: "({a} ^ {b})",
    f.NOT: "(~{a})",
    f.INCREMENT: "wrap(U({a}) + 1u)",
    f.DECREMENT: "wrap(U({a}) - 1u)",
    f.ONE: "1",
    f.MINUS_ONE: "-1",
    f.ZERO: "0",
    f.MIN: "(-(int32_t)SIGN)",
    f.MAX: "(int32_t)HIGH",
    f.MULTIPLEXER: "(row & 1 ? {b} : {a})",
    f.IDENTITY: "{a}",
}
"""Sums and products in unsigned numbers, which wrap; what is out of range there is no undefined behaviour."""
EXPRESSIONS |= {function: f"shifted({{a}}, {n})" for function, n in f.SHIFTS.items()}
EXPRESSIONS |= {function: f"wrap(U({{a}}) << {n})" for function, n in f.LEFT_SHIFTS.items()}
HELPERS = {
    "wrap": "static int32_t wrap(uint32_t value) { return (int32_t)((value & (SIGN + HIGH)) ^ SIGN) - (int32_t)SIGN; }",
    "shifted": "static int32_t shifted(int32_t value, int by) { return value < 0 ? ~(~value >> by) : value >> by; }",
}


def c_function(net: Netlist, *, name: str = "generate") -> str:
    """C99: `void name(const T *in, T *out)` with T int8_t up to 8 bits, else int16_t; `int row` last for multiplexers.

    `in` holds the circuit's inputs, `out` its outputs, in order. Gates that no output needs are left out.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        raise UsageError(f"a C function {name!r}", "not a plain name", "use lower-case letters, digits and _")
    net = net.pruned()
    lines = [f"    const int32_t v{pin} = in[{pin}];" for pin in range(net.inputs)]
    for k, gate in enumerate(net.gates, start=net.inputs):
        lines.append(f"    const int32_t v{k} = {_expression(gate)}; /* {f.NAMES[gate.function]} */")
    number = number_type(net)
    lines += [f"    out[{i}] = ({number})v{pin};" for i, pin in enumerate(net.outputs)]
    read = {pin for gate in net.gates for pin in sources(gate)} | set(net.outputs)
    lines += [f"    (void)v{pin};" for pin in range(net.inputs) if pin not in read]
    lines += ["    (void)in;"] * (net.inputs == 0) + ["    (void)out;"] * (not net.outputs)
    body = "\n".join(lines)
    row = ", int row" if has_rows(net) else ""
    helpers = [text for helper, text in HELPERS.items() if f"{helper}(" in body]
    return "\n".join(
        [
            f"/* {len(net.gates)} gates: {len(net.outputs)} integers of {net.bits} bits from {net.inputs}. */",
            "#include <stdint.h>",
            "",
            f"#define SIGN {1 << (net.bits - 1)}u",
            f"#define HIGH {(1 << (net.bits - 1)) - 1}u",
            "#define U(value) ((uint32_t)(value))",
            *helpers,
            "",
            f"void {name}(const {number} *in, {number} *out{row});",
            f"void {name}(const {number} *in, {number} *out{row})",
            "{",
            body,
            "}",
            "",
        ]
    )


def number_type(net: Netlist) -> str:
    return "int8_t" if net.bits <= 8 else "int16_t"


def has_rows(net: Netlist) -> bool:
    return any(gate.function == f.MULTIPLEXER for gate in net.gates)


def _expression(gate: Gate) -> str:
    a, b = (f"v{pin}" for pin in (gate.a, gate.b))
    return EXPRESSIONS[gate.function].format(a=a, b=b)


def all_inputs(net: Netlist) -> Ints:
    """[2^(inputs * bits), inputs]: every combination."""
    if net.inputs * net.bits > MOST_BITS:
        found_bits = f"{net.inputs} inputs of {net.bits} bits"
        raise UsageError("every input of a circuit", found_bits, "give the rows to try")
    low, high = f.limits(net.bits)
    rows = list(itertools.product(range(low, high + 1), repeat=net.inputs))
    return np.asarray(rows, dtype=np.int64).reshape(len(rows), net.inputs)


def verify_c(
    net: Netlist,
    rows: npt.ArrayLike | None = None,
    *,
    source: str | None = None,
    name: str = "generate",
    include: Path | None = None,
) -> int:
    """How many rows of inputs the compiled function was run on, with the answers of the circuit, bit by bit.

    `rows` [n, inputs]; without them all combinations. `source`: another text than `c_function(net)` gives, with the
    function `name`, and `include` the folder of its headers. Raises `VerificationError` at the first difference,
    `UnsupportedError` without a C compiler.
    """
    net = net.pruned()
    given = all_inputs(net) if rows is None else np.asarray(rows, dtype=np.int64).reshape(-1, net.inputs)
    compiler = found("cc", "gcc", "clang")
    if compiler is None:
        raise UnsupportedError("verify a circuit's C", "no C compiler", "install gcc or clang")
    wanted = net.evaluate(given) if len(given) else np.zeros((0, len(net.outputs)), dtype=np.int64)
    number = np.dtype(np.int8 if net.bits <= 8 else np.int16)
    headers = [] if include is None else [f"-I{include.resolve()}"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "test.c").write_text(
            (source or c_function(net, name=name)) + _main(net, len(given), name), encoding="utf-8"
        )
        given.astype(number).tofile(folder / "in.bin")
        built = call([compiler, *FLAGS, *headers, "test.c", "-o", "test"], folder, deadline=DEADLINE_S)
        if built.code != 0:
            raise VerificationError("compile a circuit's C", built.first_lines, "report this as a bug")
        ran = call([folder / "test"], folder, deadline=DEADLINE_S)
        if ran.code != 0:
            raise VerificationError("run a circuit's C", ran.first_lines, "report this as a bug")
        made = np.fromfile(folder / "out.bin", number).astype(np.int64).reshape(wanted.shape)
    different = np.argwhere(made != wanted)
    if len(different):
        row, output = (int(i) for i in different[0])
        values = f"{made[row, output]} instead of {wanted[row, output]} for {given[row].tolist()}"
        raise VerificationError("verify a circuit's C", f"output {output} is {values}", "report this as a bug")
    return len(given)


def _main(net: Netlist, rows: int, name: str) -> str:
    number, row = number_type(net), ", (int)(r & 1)" if has_rows(net) else ""
    inputs, outputs = net.inputs, len(net.outputs)
    return f"""
#include <stdio.h>

int main(void)
{{
    static {number} in[{max(inputs, 1)}], out[{max(outputs, 1)}];
    FILE *from = fopen("in.bin", "rb"), *to = fopen("out.bin", "wb");
    if (!from || !to) return 1;
    for (long r = 0; r < {rows}L; r++) {{
        if (fread(in, sizeof *in, {inputs}, from) != {inputs}) return 2;
        {name}(in, out{row});
        if (fwrite(out, sizeof *out, {outputs}, to) != {outputs}) return 3;
    }}
    return fclose(from) || fclose(to);
}}
"""
