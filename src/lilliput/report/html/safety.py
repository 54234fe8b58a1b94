"""The page of a safety set: every sample with its class, what the network answers, and why it was chosen."""

from collections.abc import Mapping
from typing import Any

from lilliput.report.html.charts import sparkline
from lilliput.report.html.page import document


def safety_page(details: Mapping[str, Any]) -> str:
    """From what `report.safety.safety_details` gives."""
    methods = [(name, title, meaning, [_drawn(s) for s in own]) for name, title, meaning, own in details["methods"]]
    panel = {**details, "methods": methods, "count": sum(len(own) for *_, own in methods)}
    title, subtitle = f"Safety set of {details['name']}", "Samples that a training must not forget"
    return document("safety.html", title, subtitle, panel=panel)


def _drawn(sample: Mapping[str, Any]) -> dict[str, Any]:
    """With every field that the template asks for."""
    lines = sample.get("lines")
    drawn = "" if lines is None else sparkline(lines, f"input of {sample['role']} {sample['number']}")
    return {"picture": "", "numbers": "", **sample, "lines": drawn}
