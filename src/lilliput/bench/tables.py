"""The tables as text, Markdown, LaTeX and CSV, from the same rows. Published figures have columns of their own."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lilliput.bench.store import RESULTS
from lilliput.bench.summary import QUANTITIES, Row, Section, summarize, to_data
from lilliput.core.files import write_atomically
from lilliput.pipeline.folder import json_text
from lilliput.report.text import render

TEX = {
    **{c: f"\\{c}" for c in "_%&#${}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"\textbar{}",
}
COLUMNS = (
    *("model", "method", "budget", "seeds"),
    *(f"{quantity}_{part}" for quantity in QUANTITIES for part in ("mean", "sd")),
    *("cpu_seconds", "difference", "low", "high", "front", "hypervolume", "errors"),
    *("published_score", "published_bytes", "published_source"),
)
"""Of the CSV."""
WORDS = ("method", "budget", "source")
"""Columns that are aligned to the left."""


def write_all(folder: Path, plan: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> str:
    """`table.md`, `table.tex`, `table.csv` and `results.json` into the folder; gives the text for a terminal.

    `results.json` holds the plan, every record and the summary: the tables can be made again from it alone.
    """
    sections = summarize(plan, records)
    known = {name: records[name] for name in plan["order"] if name in records}
    data = {"plan": plan, "records": known, "summary": to_data(sections)}
    for name, text in (
        ("table.md", markdown(sections, plan)),
        ("table.tex", latex(sections, plan)),
        ("table.csv", comma_separated(sections)),
        (RESULTS, json_text(data, indent=1)),
    ):
        write_atomically(folder / name, text.encode())
    return terminal(sections, plan)


def terminal(sections: Sequence[Section], plan: Mapping[str, Any]) -> str:
    parts = [
        "\n".join([s.model, render(cells(s, plan["baseline"])), *(f"  {note}" for note in notes(s, plan))])
        for s in sections
    ]
    return "\n\n".join(parts)


def markdown(sections: Sequence[Section], plan: Mapping[str, Any]) -> str:
    lines: list[str] = []
    for section in sections:
        header, *body = [[c.replace("|", "\\|") for c in row] for row in cells(section, plan["baseline"])]
        rule = ["---" if name in WORDS else "---:" for name in header]
        lines += [f"**{section.model}**", ""] if len(sections) > 1 else []
        lines += ["| " + " | ".join(row) + " |" for row in (header, rule, *body)]
        lines += ["", *(f"- {note}" for note in notes(section, plan)), ""]
    return "\n".join(lines)


def latex(sections: Sequence[Section], plan: Mapping[str, Any]) -> str:
    r"""A plain tabular for each model, for \input in a document; what the numbers mean is in comments above it."""
    lines = [r"% wider than a page of text: \resizebox{\textwidth}{!}{\input{table.tex}}, with the package graphicx"]
    for section in sections:
        header, *body = [[_escaped(cell) for cell in row] for row in cells(section, plan["baseline"])]
        columns = "".join("l" if name in WORDS else "r" for name in header)
        lines += [f"% {section.model}", *(f"% {note}" for note in notes(section, plan))]
        lines += [f"\\begin{{tabular}}{{{columns}}}", "\\hline", " & ".join(header) + r" \\", "\\hline"]
        lines += [" & ".join(row) + r" \\" for row in body]
        lines += ["\\hline", "\\end{tabular}", ""]
    return "\n".join(lines)


def _escaped(cell: str) -> str:
    text = "".join(TEX.get(c, c) for c in cell)
    return "--" if text == "-" else re.sub(r"(?<!\S)(\[?)-(?=[\d.])", r"\1$-$", text)


def comma_separated(sections: Sequence[Section]) -> str:
    """One line for each row, numbers unrounded, means and deviations in columns of their own."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for section in sections:
        for row in section.rows:
            values = [v for q in QUANTITIES for v in row.values.get(q, (None, None))]
            volume = section.volumes.get(row.method, (None, None))[0]
            measured = [
                row.seeds,
                *values,
                row.cpu,
                row.difference,
                *(row.interval or (None, None)),
                int(row.on_front),
                volume,
            ]
            for given in row.published or [{}]:
                published = [given.get(name) for name in ("score", "bytes", "source")]
                writer.writerow([row.model, row.method, row.budget, *measured, "; ".join(row.errors), *published])
    return buffer.getvalue()


def cells(section: Section, baseline: str) -> list[list[str]]:
    """Header and rows, as shown."""
    name, unit = section.scored.get("name", "score"), section.scored.get("unit", "")
    published = any(row.published for row in section.rows)
    header = ["method", "budget", "seeds", f"{name} {unit}".strip(), f"minus {baseline} [95%]"]
    header += ["bytes", "uncoded", "CPU s", "steps", "front"]
    header += [f"published {unit}".strip(), "published bytes", "source"] if published else []
    rows = [header]
    for row in section.rows:
        measured = _measured(row, unit)
        for i, given in enumerate(row.published or [{}]):
            shown = measured if i == 0 else [""] * len(measured)
            more = [_number(given.get("score"), unit), _number(given.get("bytes"), "B"), given.get("source") or "-"]
            rows.append([row.method, row.budget or "-", *shown, *(more if published else [])])
    return rows


def _measured(row: Row, unit: str) -> list[str]:
    if not row.values:
        return ["failed" if row.errors else "0", *["-"] * 7]
    change = "-"
    if row.difference is not None:
        change = f"{row.difference:+.{_places(unit)}f}"
        if row.interval is not None:
            change += " [{:+.{p}f}, {:+.{p}f}]".format(*row.interval, p=_places(unit))
    shown = [_spread(row.values["score"], unit), change]
    shown += [_spread(row.values[q], "B") for q in ("bytes", "raw_bytes")]
    shown += [f"{row.cpu:.1f}", f"{row.values['steps'][0]:,.0f}", "yes" if row.on_front else ""]
    return [str(row.seeds), *shown]


def notes(section: Section, plan: Mapping[str, Any]) -> list[str]:
    """What the table does not say by itself."""
    scored, unit = section.scored, section.scored.get("unit", "")
    found: list[str] = []
    if scored:
        words = "more is better" if scored["higher_is_better"] else "less is better"
        where = f"{scored['samples']:,} samples of {scored['role']}, read once by each cell"
        found.append(
            f"{scored['name']} on {where}; {words}; mean ± standard deviation over seeds, least CPU time of them"
        )
    limits = ", ".join(f"{value:,g} {name}" for name, value in plan["limits"].items() if value is not None)
    found.append(f"limits of each cell: {limits or 'none'}")
    if section.reference is not None:
        most, score = section.reference
        volumes = "; ".join(f"{m} {_spread(v, unit)}" for m, v in section.volumes.items())
        found.append(
            f"hypervolume over its bytes, from {most:,.0f} bytes and {_number(score, unit)} {unit}".rstrip()
            + f" (the mean gain over that score at all sizes below those bytes): {volumes or '-'}"
        )
    for row in section.rows:
        name = f"{row.method} {row.budget}".strip()
        found += [f"{name} failed: {error}" for error in row.errors]
        found += [f"{name}: its guard refused {step}" for step in row.refused]
    if section.pending:
        found.append(f"{section.pending} cells are not done yet")
    if any(row.published for row in section.rows):
        found.append("published figures are their sources' own: other data, training and measurement")
    return found


def _spread(value: tuple[float, float | None], unit: str) -> str:
    mean, deviation = value
    return _number(mean, unit) + ("" if deviation is None else f" ± {_number(deviation, unit)}")


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if unit == "B" else f"{value:.{_places(unit)}f}"


def _places(unit: str) -> int:
    return 2 if unit == "%" else 4
