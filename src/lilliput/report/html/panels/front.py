"""Size and score of every candidate of a search, beside the float network and plain int8."""

from typing import Any

from lilliput.core.cost import format_quantity
from lilliput.report.html.axes import linear
from lilliput.report.html.charts import Plot
from lilliput.report.html.source import Source

CLASSES = {"float": "float", "plain int8": "int8"}
FAR = 3.0
"""A network of the comparison that is larger than this times the largest candidate is left out."""


def front(source: Source) -> dict[str, Any] | None:
    points = [p for p in source.details.get("points", []) if p.get("bytes") and p.get("score") is not None]
    if not points:
        return None
    score = source.score
    marks = [
        (c.name, c.measurements["file"].value, c.measurements[score].value)
        for c in source.columns
        if c.name in CLASSES and "file" in c.measurements and score in c.measurements
    ]
    marks = [mark for mark in marks if mark[1] <= FAR * max(p["bytes"] for p in points)]
    unit = next((c.measurements[score].unit for c in source.columns if score in c.measurements), "")
    sizes = [float(p["bytes"]) for p in points] + [size for _, size, _ in marks]
    x = linear("bytes of the .lil file", sizes, "B", zero=True)
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
        plot.dot(size, value, CLASSES[name], f"{name}: {format_quantity(size, 'B')}, {value:.4g}{unit}", radius=5.5)
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
