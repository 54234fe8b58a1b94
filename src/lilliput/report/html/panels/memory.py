"""RAM over the operators: what the plan of one arena holds while each of them runs."""

from typing import Any

from lilliput.core.cost import format_quantity
from lilliput.report.html.axes import Axis, linear
from lilliput.report.html.charts import Plot
from lilliput.report.html.source import Source


def memory(source: Source) -> dict[str, Any] | None:
    data = source.details.get("memory")
    if not data or not data["steps"]:
        return None
    steps = data["steps"]
    every = max(1, len(steps) // 8)
    ticks = tuple((i + 0.5, str(i + 1)) for i in range(0, len(steps), every))
    x = Axis(label="operation, in the order in which they run", low=0, high=len(steps), ticks=ticks)
    y = linear("RAM in use, bytes", [data["ram"], *(s["bytes"] for s in steps)], "B", zero=True)
    plot = Plot("memory-chart", "RAM in use while each operation runs", x, y)
    for i, step in enumerate(steps):
        text = f"{i + 1}. {step['name']} ({step['op']}): {format_quantity(step['bytes'], 'B')}"
        plot.bar(i + 0.08, i + 0.92, step["bytes"], "ours" if step["name"] == data["peak"] else "float", text)
    plot.level(data["ram"], f"arena {format_quantity(data['ram'], 'B')}")
    rows = [(i + 1, s["name"], s["op"], format_quantity(s["bytes"], "B")) for i, s in enumerate(steps)]
    peak = next((f"{i + 1}, {s['name']}" for i, s in enumerate(steps) if s["name"] == data["peak"]), data["peak"])
    return {
        "chart": plot.svg(),
        "peak": peak,
        "ram": format_quantity(data["ram"], "B"),
        "rows": rows,
        "more": _more(source, data["ram"]),
    }


def _more(source: Source, ram: int) -> str:
    """What the comparison counts, where that is more than these buffers: generated C has scratch memory and a stack."""
    planned = source.columns[-1].measurements.get("planned RAM") if source.columns else None
    if planned is None or planned.value == ram:
        return ""
    return f"The comparison counts {format_quantity(planned.value, 'B')}: {planned.note}."
