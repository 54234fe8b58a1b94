"""Results as text: tables that stay readable in a terminal, a log and a mail."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from lilliput.core.cost import Measurement, format_quantity

ROWS = (
    "difference",
    "file",
    "file bytes of functions",
    "ONNX file",
    "planned flash",
    "flash of functions",
    "planned RAM",
    "peak memory",
    "parameters",
    "parameters of functions",
    "stored parameters",
    "MACs",
    "multiplies",
    "additions",
    "values through functions",
    "values through learned functions",
    "latency",
    "latency ratio",
    "latency in C",
    "instructions",
)
FUNCTION_ROWS = tuple(name for name in ROWS if name.endswith("functions"))
"""Shown where functions of a network have parameters."""
SHARED_NOTES = ("planned flash", "planned RAM", "peak memory", "MACs", "latency", "latency in C", "instructions")
"""Rows whose note is the same for every network."""
LABELS = {
    "file": ".lil file",
    "ONNX file": "deployable (ONNX)",
    "multiplies": "multiplies, no zeros",
    "additions": "additions, no zeros",
}
OF_FIRST = {"difference": "difference to {}", "latency ratio": "latency / {}"}
"""Rows that compare with the first network."""


class Compared(Protocol):
    """One network of a comparison, as far as a table needs it."""

    @property
    def name(self) -> str: ...
    @property
    def measurements(self) -> Mapping[str, Measurement]: ...
    @property
    def notes(self) -> Sequence[str]: ...


def comparison(columns: Sequence[Compared], score: str) -> str:
    """One row for each quantity, one column for each network, the origin of the numbers, and below what they mean."""
    rows, notes = comparison_rows(columns, score)
    return "\n".join([render(rows), *(f"  {note}" for note in notes)])


def comparison_rows(columns: Sequence[Compared], score: str) -> tuple[list[list[str]], list[str]]:
    """The cells of the table, header first, and what the numbers mean."""
    header = ["", *(c.name for c in columns), "origin"]
    body: list[list[str]] = []
    notes: list[str] = []
    labels = {**LABELS, **{name: text.format(header[1]) for name, text in OF_FIRST.items()}}
    counted = [m for c in columns if (m := c.measurements.get("parameters of functions")) is not None]
    learned = any(m.value for m in counted)
    for name in (score, *(row for row in ROWS if learned or row not in FUNCTION_ROWS)):
        cells = [c.measurements.get(name) for c in columns]
        known = [m for m in cells if m is not None]
        if known:
            body.append([labels.get(name, name), *(format_cell(m) for m in cells), known[0].origin])
            if name in (score, *SHARED_NOTES) and known[-1].note:
                notes.append(f"{labels.get(name, name)}: {known[-1].note}")
    notes += [
        f"ONNX file of {c.name}: {c.measurements['ONNX file'].note}" for c in columns if "ONNX file" in c.measurements
    ]
    notes += [f"{c.name}: {note}" for c in columns for note in c.notes]
    return [header, *body], notes


def render(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, a rule under the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i in (0, len(widths) - 1) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def format_cell(m: Measurement | None) -> str:
    """A number with its unit and spread; a dash where there is none."""
    if m is None:
        return "-"
    if m.unit in ("%", "pt"):
        sign = "+" if m.unit == "pt" and m.value > 0 else ""
        text = f"{sign}{m.value:.2f}{m.unit}"
        return text if m.spread is None else f"{text} [{m.spread[0]:.2f}, {m.spread[1]:.2f}]"
    text = format_quantity(m.value, m.unit)
    if m.spread is None or m.unit == "x":
        return text
    if m.unit in ("ms", "us", "s"):
        number, unit = text.split(" ")
        scale = m.value / float(number) if float(number) else 1.0  # the spread in the unit that the value is shown in
        places = len(number.partition(".")[2])
        return f"{number} [{m.spread[0] / scale:.{places}f}, {m.spread[1] / scale:.{places}f}] {unit}"
    return f"{m.value:.4g} [{m.spread[0]:.4g}, {m.spread[1]:.4g}] {m.unit}".rstrip()
