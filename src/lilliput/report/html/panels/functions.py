"""Learned functions: before the run, after it, and in integers, above what they read; how much each has changed."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lilliput.report.html.axes import Axis, linear
from lilliput.report.html.charts import SMALL, Plot
from lilliput.report.html.source import Source

HEADER = ("place", "functions", "kind", "points", "limit", "inputs beyond", "changed: median", "most")
NUMBERS = (1, 3, 4, 5, 6, 7)
STEPS = 32
"""Tables of fewer entries, without lines between them, are drawn as steps."""
SHARE = 0.9
"""Of the height, for the bin that was read most."""
LEGEND = {
    "before": ("float", "before the run"),
    "after": ("ours", "after it"),
    "table": ("int8", "the integers that run"),
    "inputs": ("rest", "how often inputs lie there"),
}


def functions(source: Source) -> dict[str, Any] | None:
    places = source.details.get("functions")
    if not places:
        return None
    shown = [f for place in places for f in place["shown"]]
    known = {key for key in LEGEND if key in ("after", "inputs") or any(f[key] is not None for f in shown)}
    return {
        "header": HEADER,
        "numbers": NUMBERS,
        "rows": [_row(place) for place in places],
        "legend": [entry for key, entry in LEGEND.items() if key in known],
        "hidden": any(not place["shown"] for place in places),
        "places": [_place(i, place) for i, place in enumerate(places) if place["shown"]],
    }


def _row(place: Mapping[str, Any]) -> tuple[str, ...]:
    changed = sorted(place["changed"] or [])
    ends = (_share(changed[len(changed) // 2]), _share(changed[-1])) if changed else ("not comparable", "")
    return (
        place["name"],
        str(place["functions"]),
        place["kind"],
        str(place["points"]),
        f"\N{PLUS-MINUS SIGN}{place['limit']:.3g}",
        f"{100 * place['beyond']:.2f}%",
        *ends,
    )


def _place(number: int, place: Mapping[str, Any]) -> dict[str, Any]:
    charts = [_curve(f"function-{number}-{i}", place, f) for i, f in enumerate(place["shown"])]
    if len(place["changed"] or ()) > len(place["shown"]):
        charts.append(_changes(f"function-{number}-changes", place))
    return {"name": place["name"], "charts": charts}


def _curve(ident: str, place: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, str]:
    limit, after, before, table = place["limit"], shown["after"], shown["before"], shown["table"]
    x = Axis(label="input", low=-limit, high=limit, ticks=tuple((v, f"{v:.3g}") for v in (-limit, 0.0, limit)))
    y = linear("output", [*after, *(before or ()), *(table["outputs"] if table else ())], count=3)
    name = f"{place['name']}, function {shown['function']}"
    plot = Plot(ident, name, x, y, frame=SMALL)
    _draw_inputs(plot, x, y, shown["inputs"])
    if table is not None:
        points = list(zip(table["inputs"], table["outputs"], strict=True))
        stepped = not table["lines"] and len(points) < STEPS
        plot.line(_steps(points) if stepped else points, "int8 band", f"{name}: {LEGEND['table'][1]}", dots=False)
    if before is not None:
        plot.line(_spread(before, x), "float dashed", f"{name}: {LEGEND['before'][1]}", dots=False)
    plot.line(_spread(after, x), "ours", f"{name}: {LEGEND['after'][1]}", dots=False)
    index = shown["function"]
    change = "" if place["changed"] is None else f": by {_share(place['changed'][index])}"
    return {"svg": plot.svg(), "caption": f"function {index}{change}"}


def _draw_inputs(plot: Plot, x: Axis, y: Axis, counts: Sequence[int]) -> None:
    most, width = max(counts), (x.high - x.low) / len(counts)
    for i, count in enumerate(counts):
        if count:
            left, top = x.low + i * width, y.low + SHARE * (y.high - y.low) * count / most
            plot.bar(left, left + 0.94 * width, top, "rest back", f"{left:.3g} to {left + width:.3g}: {count} inputs")


def _changes(ident: str, place: Mapping[str, Any]) -> dict[str, str]:
    """All functions, those that changed most first."""
    values = sorted((100 * v for v in place["changed"]), reverse=True)
    ticks = tuple((float(v), str(v)) for v in (1, len(values)))
    x = Axis(label="function", low=0.5, high=len(values) + 0.5, ticks=ticks)
    plot = Plot(
        ident,
        f"{place['name']}: change of each function",
        x,
        linear("changed by, %", values, zero=True, count=3),
        frame=SMALL,
    )
    for i, value in enumerate(values):
        plot.bar(i + 0.5, i + 1.5, value, "ours", f"{value:.3g}%")
    return {"svg": plot.svg(), "caption": f"all {len(values)}, by change"}


def _spread(values: Sequence[float], x: Axis) -> list[tuple[float, float]]:
    step = (x.high - x.low) / (len(values) - 1)
    return [(x.low + i * step, value) for i, value in enumerate(values)]


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each output from middle to middle between the inputs."""
    middles = [(a + b) / 2 for (a, _), (b, _) in pairwise(points)]
    ends = [points[0][0], *middles, points[-1][0]]
    return [(end, output) for i, (_, output) in enumerate(points) for end in ends[i : i + 2]]


def _share(value: float) -> str:
    return f"{100 * value:.3g}%" if value < 10 else f"{100 * value:,.0f}%"
