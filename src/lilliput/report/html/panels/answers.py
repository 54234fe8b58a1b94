"""The answers of a task of each kind, before and after: confusions, residuals, errors, IoU of classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lilliput.report.html.axes import Axis, categories, linear, logarithmic
from lilliput.report.html.charts import Plot, fitting
from lilliput.report.html.heat import heat
from lilliput.report.html.source import Source

SIDES = ("float", "ours")
"""Classes of the style sheet for before and after."""


def answers(source: Source) -> dict[str, Any] | None:
    data = source.details.get("answers")
    if not data or data["kind"] not in _MAKERS:
        return None
    return {
        "note": "",
        "kind": data["kind"],
        "role": data["role"],
        "names": data["names"],
        **_MAKERS[data["kind"]](data),
    }


def _classification(data: Mapping[str, Any]) -> dict[str, Any]:
    changes = [(c["label"], c["answer"], c["before"], c["after"], c["after"] - c["before"]) for c in data["changes"]]
    if "labels" not in data:
        return {"charts": [], "changes": changes}
    names, sides = data["labels"], (data["before"], data["after"])
    recall = _pairs("recall-chart", "share of right answers, %", names, *(_recall(side) for side in sides))
    charts = [{"title": "Right answers of each class", "svg": recall, "caption": "", "legend": _legend(data)}]
    if changes:
        charts.insert(0, _confusions(names, *sides))
    return {"charts": charts, "changes": changes}


def _confusions(
    names: Sequence[str], before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]
) -> dict[str, Any]:
    moved = [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(before, after, strict=True)]
    titles = [
        [f"label {names[r]}, answer {names[c]}: {before[r][c]} before, {after[r][c]} after" for c in range(len(names))]
        for r in range(len(names))
    ]
    title = "Change of the confusion matrix: rows are labels, columns answers"
    caption = "Rows are labels, columns are answers; numbers are samples after minus before. The diagonal is right."
    svg = heat("confusion-chart", title, moved, names, titles)
    return {"title": "Confusions: what changed", "svg": svg, "caption": caption, "legend": _CHANGE}


def _regression(data: Mapping[str, Any]) -> dict[str, Any]:
    unit = f", {data['unit']}" if data.get("unit") else ""
    points = data["points"]
    x = linear(f"target{unit}", [p[0] for p in points])
    y = linear(f"output minus target{unit}", [v for p in points for v in p[1:]], zero=True)
    plot = Plot("residual-chart", "Residuals over the target", x, y)
    plot.level(0, "", "zero")
    for target, before, after in points:
        plot.dot(target, before, "ghost float", f"target {target:.4g}, {data['names'][0]}: {before:+.4g}", 3)
        plot.dot(target, after, "ours", f"target {target:.4g}, {data['names'][1]}: {after:+.4g}", 2.4)
    title, label = "How often which residual", f"output minus target{unit}"
    bars = _histogram("residual-histogram", title, label, data, (0, 1), SIDES)
    return {
        "charts": [
            {"title": "Residuals", "svg": plot.svg(), "caption": "", "legend": _legend(data)},
            {"title": title, "svg": bars.svg(), "caption": "", "legend": _legend(data)},
        ],
    }


def _anomaly(data: Mapping[str, Any]) -> dict[str, Any]:
    charts: list[dict[str, Any]] = []
    for side, name in enumerate(data["names"]):
        pair = (2 * side, 2 * side + 1)
        title = f"Errors of {name}"
        plot = _histogram(f"error-histogram-{side}", title, "reconstruction error", data, pair, ("float", "int8"))
        plot.upright(data["thresholds"][side], "threshold")
        (false, normal), (found, anomalies) = (data["above"][i] for i in pair)
        caption = f"Above the threshold: {found} of {anomalies} anomalies, {false} of {normal} normal samples."
        legend = [("float", "normal"), ("int8", "anomaly")]
        charts.append({"title": title, "svg": plot.svg(), "caption": caption, "legend": legend})
    values = " and ".join(f"{limit:.4g}" for limit in data["thresholds"])
    note = f"Each network's threshold ({values}) is the error that 95% of these normal samples do not exceed."
    return {"charts": charts, "note": note}


def _segmentation(data: Mapping[str, Any]) -> dict[str, Any]:
    before, after = ([None if v is None else 100 * v for v in data[k]] for k in ("before", "after"))
    svg = _pairs("iou-chart", "IoU, %", data["labels"], before, after)
    rows = [
        (
            name,
            *("" if v is None else f"{v:.2f}%" for v in (a, b)),
            "" if a is None or b is None else f"{b - a:+.2f} pt",
        )
        for name, a, b in zip(data["labels"], before, after, strict=True)
    ]
    chart = {"title": "IoU of each class", "svg": svg, "caption": "", "legend": _legend(data)}
    return {"charts": [chart], "classes": rows}


def _pairs(ident: str, label: str, names: Sequence[str], *sides: Sequence[float | None]) -> str:
    """Two bars for each name."""
    x, y = categories("class", fitting(names)), linear(label, [100.0], zero=True)
    plot = Plot(ident, f"{label}, for each class", x, y)
    for side, values in enumerate(sides):
        for i, value in enumerate(values):
            if value is not None:
                left = i - 0.36 + 0.38 * side
                plot.bar(left, left + 0.34, value, SIDES[side], f"{names[i]}: {value:.2f}")
    return plot.svg()


def _recall(matrix: Sequence[Sequence[int]]) -> list[float | None]:
    return [100 * row[i] / sum(row) if sum(row) else None for i, row in enumerate(matrix)]


def _histogram(
    ident: str, title: str, label: str, data: Mapping[str, Any], pair: tuple[int, int], css: tuple[str, str]
) -> Plot:
    """Two groups of counts over the same bins, one above the other."""
    edges, groups = data["edges"], [data["counts"][i] for i in pair]
    x = _exact(logarithmic(label, edges) if data["log"] else linear(label, edges), edges)
    plot = Plot(ident, title, x, linear("samples", [n for g in groups for n in g], zero=True))
    for group, colour in zip(groups, css, strict=True):
        for i, count in enumerate(group):
            if count:
                text = f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {count} samples"
                plot.bar(edges[i], edges[i + 1], count, f"{colour} over", text)
    return plot


def _exact(axis: Axis, edges: Sequence[float]) -> Axis:
    """The axis from the first to the last edge."""
    ticks = tuple(t for t in axis.ticks if edges[0] <= t[0] <= edges[-1])
    return Axis(label=axis.label, low=edges[0], high=edges[-1], ticks=ticks or axis.ticks[:0], log=axis.log)


def _legend(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(zip(SIDES, data["names"], strict=True))


_CHANGE = [("more-key", "more often than before"), ("less-key", "less often")]
_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "classification": _classification,
    "regression": _regression,
    "anomaly": _anomaly,
    "segmentation": _segmentation,
}
