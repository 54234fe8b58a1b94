"""What each step bought: bytes and score before and after it, and why a step was refused."""

from collections.abc import Mapping
from typing import Any

from lilliput.core.cost import format_quantity
from lilliput.report.html.source import Source


def passes(source: Source) -> dict[str, Any] | None:
    if not source.trail:
        return None
    start = _start(source)
    rows: list[dict[str, Any]] = []
    size, score = start, None
    most = max([start or 0, *(entry["bytes"] for entry in source.trail)]) or 1
    for entry in source.trail:
        evidence = entry["verdict"].get("evidence", {})
        before = score if score is not None else evidence.get("original")
        rows.append(
            {
                "step": entry["step"],
                "name": entry["name"],
                "state": _state(entry),
                "reason": entry["verdict"]["reason"],
                "before": _bytes(size),
                "after": _bytes(entry["bytes"]),
                "share": 100 * entry["bytes"] / most,
                "score": _score(evidence, before, _unit(source)),
                "seconds": f"{entry['seconds']:.1f} s" if "seconds" in entry else "",
                "skipped": [s for p in entry["passes"] for s in _skipped(p)],
                "notes": [f"{p['name']}: {note}" for p in entry["passes"] for note in p.get("notes", [])],
                "settings": [f"{p['name']}: {_settings(p['settings'])}" for p in entry["passes"]],
            }
        )
        size = entry["bytes"]
        if entry["verdict"]["accepted"] and "score" in evidence:
            score = evidence["score"]
    judged = [e["verdict"]["evidence"] for e in source.trail if e["verdict"].get("evidence")]
    return {
        "rows": rows,
        "start": _bytes(start),
        "role": judged[0].get("role", "validation") if judged else "",
        "refused": sum(row["state"] == "refused" for row in rows),
    }


def _start(source: Source) -> int | None:
    """Bytes of the file before the first step; of runs that did not note it, with the graph (some bytes more)."""
    noted = source.details.get("start_bytes")
    files = [c.measurements["file"].value for c in source.columns if "file" in c.measurements]
    return noted if noted is not None else (int(files[0]) if files else None)


def _state(entry: Mapping[str, Any]) -> str:
    if not entry["verdict"]["accepted"]:
        return "refused"
    return "kept" if entry["effect"] else "no effect"


def _bytes(value: int | None) -> str:
    return "unknown" if value is None else format_quantity(value, "B")


def _unit(source: Source) -> str:
    for column in source.columns:
        if source.score in column.measurements:
            return column.measurements[source.score].unit
    return ""


def _score(evidence: Mapping[str, Any], before: float | None, unit: str) -> str:
    """Before and after; the agreement where a guard without labels judged; nothing without a guard."""
    if evidence.get("score") is not None:
        now = _number(evidence["score"], unit)
        return now if before is None else f"{_number(before, unit)} \N{RIGHTWARDS ARROW} {now}"
    if evidence.get("agreement") is not None:
        return f"{100 * evidence['agreement']:.2f}% agree"
    return ""


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}%" if unit == "%" else f"{value:.4g} {unit}".strip()


def _skipped(data: Mapping[str, Any]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for layer, reason in data.get("skipped", {}).items():
        reasons.setdefault(reason, []).append(layer or "the network")
    return [f"{data['name']} left out {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "defaults"
