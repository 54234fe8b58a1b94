"""Size and score of every candidate of a search, with the networks of the comparison; the best of each size in a line."""

from typing import Any

from lilliput.core.cost import format_quantity
from lilliput.report.html.axes import linear
from lilliput.report.html.charts import Plot
from lilliput.report.html.source import Source

CLASSES = {"float": "float", "plain int8": "int8"}
LOG_FROM = 8
"""Sizes that differ by more than this factor are placed by their logarithm."""


def front(source: Source) -> dict[str, Any] | None:
    points = [p for p in source.details.get("points", []) if p.get("bytes") and p.get("score") is not None]
    if not points:
        return None
    score = source.score
    marks = [
        (c.name, c.measurements["file"].value, c.measurements[score].value)
        for c in source.columns
        if "file" in c.measurements and score in c.measurements
    ]
    unit = next((c.measurements[score].unit for c in source.columns if score in c.measurements), "")
    sizes = [float(p["bytes"]) for p in points] + [size for _, size, _ in marks]
    x = linear("bytes of the .lil file", sizes, "B", zero=max(sizes) / min(sizes) > LOG_FROM / 4)
    y = linear(f"{score}{f', {unit}' if unit else ''}", [p["score"] for p in points] + [v for _, _, v in marks], unit)
    plot = Plot("front-chart", f"{score} over the bytes of the file, for every candidate", x, y)
    higher = source.details.get("task", {}).get("higher_is_better", True)
    best = _best([(float(p["bytes"]), float(p["score"])) for p in points if p.get("feasible")], higher=higher)
    if len(best) > 1:
        plot.line(best, "ours", "the best score of each size", dots=False)
    for p in points:
        state = "within the budgets" if p.get("feasible") else "not within the budgets"
        text = f"{p.get('name', 'candidate')}: {format_quantity(p['bytes'], 'B')}, {p['score']:.4g}{unit}, {state}"
        plot.dot(p["bytes"], p["score"], "ours" if p.get("feasible") else "ghost rest", text)
    for name, size, value in marks:
        css = CLASSES.get(name)
        if css:
            plot.dot(size, value, css, f"{name}: {format_quantity(size, 'B')}, {value:.4g}{unit}", radius=5.5)
    legend = [("ours", "candidate within the budgets"), ("rest", "not within the budgets")]
    legend += [(css, name) for name, css in CLASSES.items() if any(name == m for m, _, _ in marks)]
    return {"chart": plot.svg(), "legend": legend, "count": len(points), "rows": [_row(p, unit) for p in points]}


def _best(points: list[tuple[float, float]], *, higher: bool) -> list[tuple[float, float]]:
    """Those that no smaller one is as good as."""
    found: list[tuple[float, float]] = []
    for size, score in sorted(points, key=lambda p: (p[0], -p[1] if higher else p[1])):
        if not found or (score > found[-1][1] if higher else score < found[-1][1]):
            found.append((size, score))
    return found


def _row(point: dict[str, Any], unit: str) -> tuple[str, str, str, str]:
    size = format_quantity(point["bytes"], "B")
    return str(point.get("name", "")), size, f"{point['score']:.4g}{unit}", "yes" if point.get("feasible") else "no"
