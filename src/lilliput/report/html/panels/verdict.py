"""The first panel: do the budgets hold, and what came out?"""

from collections.abc import Mapping
from typing import Any

from lilliput.core.cost import format_quantity
from lilliput.report.html.source import Shown, Source
from lilliput.report.text import format_cell

LABELS = {
    "max_drop": "largest drop of the score, on validation",
    "max_bytes": ".lil file",
    "max_flash": "planned flash",
    "max_ram": "planned RAM",
}


def verdict(source: Source) -> dict[str, Any]:
    known = source.details.get("budgets")
    budgets = [_budget(b) for b in (source.result.get("violations", []) if known is None else known)]
    missed = sum(not b["met"] for b in budgets)
    mismatches = [f"{c['name']}: {c['mismatch']}" for c in source.result.get("columns", []) if c.get("mismatch")]
    return {
        "state": _state(source, known, budgets, missed),
        "headline": _headline(source, known, len(budgets), missed),
        "budgets": budgets,
        "facts": _facts(source),
        "mismatches": mismatches,
        "doubts": source.result.get("doubts", []),
    }


def _state(source: Source, known: Any, budgets: list[dict[str, Any]], missed: int) -> str:
    if not source.finished or (known is None and not budgets) or known == []:
        return "none"
    return "missed" if missed else "met"


def _headline(source: Source, known: Any, count: int, missed: int) -> str:
    if not source.finished:
        return "The run is not finished"
    if known is None and not missed:
        return "No budget is missed (this run did not note which were given)"
    if not count:
        return "No budget was given"
    if missed:
        return f"{missed} of {count} budgets missed" if known is not None else f"{missed} missed budgets"
    return "The budget is met" if count == 1 else f"All {count} budgets are met"


def _budget(data: Mapping[str, Any]) -> dict[str, Any]:
    unit = data.get("unit", "B" if data["budget"] != "max_drop" else "")
    limit, found = (_amount(data[key], unit) for key in ("limit", "found"))
    if limit == found and unit == "B":  # rounding hides the difference
        limit, found = (f"{data[key]:,.0f} B" for key in ("limit", "found"))
    return {
        "name": LABELS.get(data["budget"], data["budget"]),
        "option": data["budget"],
        "limit": limit,
        "found": found,
        "met": data.get("met", False),
    }


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "unknown"
    if unit == "B":
        return format_quantity(value, "B")
    return f"{value:.2f} pt" if unit == "pt" else f"{value:.4g} {unit}".strip()


def _facts(source: Source) -> list[dict[str, str]]:
    columns = source.columns
    if not columns:
        return []
    first, last = columns[0], columns[-1]
    facts: list[dict[str, str]] = []
    if "file" in last.measurements:
        facts.append(
            {"label": ".lil file", "value": format_cell(last.measurements["file"]), "note": _times(columns[:-1], last)}
        )
    if source.score in last.measurements:
        before = first.measurements.get(source.score)
        facts.append(
            {
                "label": f"{source.score}, 95% interval",
                "value": format_cell(last.measurements[source.score]),
                "note": "" if before is None else f"{first.name}: {format_cell(before)}",
            }
        )
    if "difference" in last.measurements:
        difference = last.measurements["difference"]
        facts.append(
            {"label": f"difference to {first.name}", "value": format_cell(difference), "note": difference.note}
        )
    if "latency ratio" in last.measurements:
        ratio = last.measurements["latency ratio"]
        facts.append(
            {"label": f"latency / {first.name}", "value": format_cell(ratio), "note": "one sample, one thread"}
        )
    return facts


def _times(others: list[Shown], last: Shown) -> str:
    size = last.measurements["file"].value
    known = [(c.name, c.measurements["file"].value / size) for c in others if "file" in c.measurements and size]
    return "; ".join(f"{factor:.1f} times smaller than {name}" for name, factor in known)
