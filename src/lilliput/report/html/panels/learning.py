"""How a network compressed itself: bytes, score, safety set, live channels, price and time, round after round."""

from collections.abc import Mapping, Sequence
from typing import Any

from lilliput.report.html.axes import Axis, linear, logarithmic
from lilliput.report.html.charts import Plot
from lilliput.report.html.source import Source

CURVES = (
    ("bytes", "bytes of the file", "B", {"bytes": "file"}),
    ("score", "score on validation", "", {"score": "score"}),
    ("live", "channels that are alive", "", {"live": "channels"}),
    ("gamma", "price of a bit (gamma)", "log", {"gamma": "price"}),
    ("safety", "safety set, share that is right", "", {"safety_accuracy": "all", "safety_worst": "worst class"}),
    ("loss", "loss on the safety set", "", {"safety_loss": "loss"}),
    ("time", "milliseconds for a step", "", {"milliseconds": "a step"}),
)
"""Name, axis, unit, and {what a round notes: how it is called} of each chart."""
COLOURS = ("ours", "int8")


def learning(source: Source) -> list[dict[str, Any]] | None:
    """A group of charts for each method that learned widths; one round makes no curve."""
    found: list[dict[str, Any]] = []
    for file, data in source.statistics.items():
        rounds = [dict(row) | {"milliseconds": 1000 * row["seconds_per_step"]} for row in data.get("rounds", [])]
        if len(rounds) > 1:
            events = [(event["steps"], event["why"]) for event in data.get("events", [])]
            charts = [
                _chart(f"learning-{len(found)}-{name}", label, unit, keys, rounds, events)
                for name, label, unit, keys in CURVES
            ]
            rows = [(event["steps"], event["why"], sum(event["returned"].values())) for event in data.get("events", [])]
            found.append({"file": file, "charts": [c for c in charts if c is not None], "events": rows})
    return found or None


def _chart(
    ident: str,
    label: str,
    unit: str,
    keys: Mapping[str, str],
    rounds: Sequence[Mapping[str, Any]],
    events: Sequence[tuple[int, str]],
) -> dict[str, Any] | None:
    keys = {key: name for key, name in keys.items() if all(row.get(key) is not None for row in rounds)}
    if not keys:
        return None
    values = [float(row[key]) for key in keys for row in rounds]
    y: Axis = logarithmic(label, values) if unit == "log" else linear(label, values, unit)
    plot = Plot(ident, f"{label}, after each round", linear("steps", [row["steps"] for row in rounds], zero=True), y)
    for css, (key, name) in zip(COLOURS, keys.items(), strict=False):
        points = [(float(row["steps"]), float(row[key])) for row in rounds]
        plot.line(points, css, f"{name}: " + ", ".join(f"{step:g}: {value:.4g}" for step, value in points))
    for step, why in events:
        plot.upright(step, "", css="limit")
        plot.dot(step, y.low, "third", why)
    legend = [(css, name) for css, name in zip(COLOURS, keys.values(), strict=False)] if len(keys) > 1 else []
    return {"title": label, "svg": plot.svg(), "legend": legend}
