"""Curves of an analysis as a picture: a panel for each kind of change, a line for each layer or group of channels."""

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lilliput.core.errors import MissingExtraError, UsageError
from lilliput.core.files import write_atomically

TITLES = {
    "bits": "bits of a weight",
    "sparsity": "share of weights that are zero",
    "channels": "share of channels removed",
    "clusters": "shared values",
}
NAMED = 4
"""Rows of each panel that have a colour and a name: those whose curves are highest; the others are grey."""
COLOURS = ("#1b4f9c", "#c2410c", "#0f766e", "#7c3aed")
FORMATS = (".png", ".svg", ".pdf")
LEAST = 1e-9


def draw_curves(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: Path,
    *,
    measure: str,
    thresholds: Mapping[str, float] | None = None,
    dashed: Collection[str] = (),
) -> None:
    """`curves[kind][row]` are (level, divergence) from weak to strong. Needs matplotlib; .png, .svg or .pdf.

    `dashed` names rows that are of another sort than the others.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            f"draw {path}", "matplotlib is not installed", "pip install 'lilliput[report]'"
        ) from error
    check_picture(path)
    figure = Figure(figsize=(4.6 * len(curves), 4.2), layout="constrained")
    axes: Any = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for panel, (kind, rows) in zip(axes, curves.items(), strict=True):
        _panel(panel, kind, rows, dashed)
        if thresholds and thresholds.get(kind, -1.0) > 0:
            panel.axhline(thresholds[kind], color="#444", linewidth=0.8, linestyle=(0, (4, 3)))
            panel.annotate(
                "proposed", (0, thresholds[kind]), xytext=(4, 3), textcoords="offset points", fontsize=8, color="#444"
            )
    axes[0].set_ylabel(f"{measure} of the outputs")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=150)
    write_atomically(path, buffer.getvalue())


def check_picture(path: Path) -> None:
    """Raises `UsageError` for a file that cannot be drawn: to be known before the work."""
    if path.suffix not in FORMATS:
        raise UsageError(f"draw {path}", f"the ending {path.suffix!r}", f"use one of {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"draw {path}", f"there is no folder {path.parent}", "make it first")


def _panel(panel: Any, kind: str, rows: Mapping[str, Sequence[tuple[float, float]]], dashed: Collection[str]) -> None:
    heights = {name: sum(max(d, LEAST) ** 0.25 for _, d in row) for name, row in rows.items()}
    named = sorted(heights, key=lambda name: -heights[name])[:NAMED]
    levels = [level for level, _ in next(iter(rows.values()))]
    ends: list[tuple[float, str, str]] = []
    for name in sorted(rows, key=lambda name: name in named):
        colour = COLOURS[named.index(name)] if name in named else "#c4c4c4"
        shown = [max(d, LEAST) for _, d in rows[name]]
        style, width = "--" if name in dashed else "-", 1.8 if name in named else 1.0
        panel.plot(range(len(levels)), shown, style, color=colour, linewidth=width, marker="o", ms=3)
        if name in named:
            ends.append((shown[-1], name, colour))
    panel.set_yscale("log")
    for i, (_, name, colour) in enumerate(sorted(ends, reverse=True)):
        panel.annotate(
            name, (0.03, 0.97 - 0.06 * i), xycoords="axes fraction", fontsize=8, color=colour, va="top", weight="bold"
        )
    panel.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    panel.set_xlabel(TITLES.get(kind, kind))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#eee", linewidth=0.8)
    panel.set_axisbelow(True)
