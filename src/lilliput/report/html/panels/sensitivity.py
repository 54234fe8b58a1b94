"""Sensitivity curves of an analysis, a chart for each kind of change; kinds and levels are read as they come."""

from collections.abc import Mapping, Sequence
from typing import Any

from lilliput.report.curves import LEAST, NAMED, TITLES
from lilliput.report.html.axes import categories, logarithmic
from lilliput.report.html.charts import Plot
from lilliput.report.html.source import Source

COLOURS = ("ours", "int8", "third", "fourth")
Rows = dict[str, list[tuple[float, float]]]


def sensitivity(source: Source) -> dict[str, Any] | None:
    curves: dict[str, Rows] = {}
    for probe in source.analysis.get("probes", []):
        if probe["divergence"] is not None:
            row = curves.setdefault(probe["kind"], {}).setdefault(_name(probe), [])
            row.append((float(probe["level"]), max(float(probe["divergence"]), 0.0)))
    if not curves:
        return None
    limits = {p["kind"]: p.get("threshold") for p in source.analysis.get("proposals", [])}
    measure = source.analysis.get("measure", "divergence")
    charts = [_chart(i, kind, rows, measure, limits.get(kind)) for i, (kind, rows) in enumerate(curves.items())]
    left = source.analysis.get("left", {})
    return {
        "charts": charts,
        "measure": measure,
        "samples": source.analysis.get("samples"),
        "left": [f"{layer}: {reason}" for layer, reason in left.items()],
    }


def _name(probe: Mapping[str, Any]) -> str:
    """The layer; of layers that were changed together the first, and how many more."""
    more = len(probe.get("layers", ())) - 1
    return f"{probe['layer']} with {more} more" if more > 0 else probe["layer"] or "(the network)"


def _chart(number: int, kind: str, rows: Rows, measure: str, limit: float | None) -> dict[str, Any]:
    levels = _levels(rows)
    values = [max(d, LEAST) for row in rows.values() for _, d in row]
    title = TITLES.get(kind, kind)
    x, y = categories(title, [f"{level:g}" for level in levels]), logarithmic(f"{measure} of the outputs", values)
    plot = Plot(f"sensitivity-chart-{number}", f"{measure} of the outputs, by {title}, a line for each layer", x, y)
    named = _highest(rows)
    for name in sorted(rows, key=lambda name: name in named):
        points = [(float(levels.index(level)), d) for level, d in rows[name]]
        css = COLOURS[named.index(name)] if name in named else "rest"
        plot.line(points, css, f"{name}: " + ", ".join(f"{level:g}: {d:.2g}" for level, d in rows[name]))
    if limit is not None and limit > 0:
        plot.level(limit, "proposed")
    legend = [(COLOURS[i], name) for i, name in enumerate(named)]
    rest = len(rows) - len(named)
    more = [("rest", f"{rest} more")] if rest else []
    return {"title": title, "svg": plot.svg(), "legend": [*legend, *more]}


def _levels(rows: Mapping[str, Sequence[tuple[float, float]]]) -> list[float]:
    """All levels, in the order of the layer that has most of them: from weak to strong."""
    longest = max(rows.values(), key=len)
    found = dict.fromkeys(level for level, _ in longest)
    return list(found | dict.fromkeys(level for row in rows.values() for level, _ in row))


def _highest(rows: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    heights = {name: sum(max(d, LEAST) ** 0.25 for _, d in row) for name, row in rows.items()}
    return sorted(heights, key=lambda name: -heights[name])[:NAMED]
