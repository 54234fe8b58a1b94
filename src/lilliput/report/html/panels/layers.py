"""The table of layers: how each is stored, what it costs, how far its output moved, what left it alone and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from lilliput.core.cost import format_quantity
from lilliput.report.html.source import Source

HEADER = (
    ("layer", ""),
    ("kind", ""),
    ("weight", ""),
    ("bits", "n"),
    ("zeros", "n"),
    ("shared values", "n"),
    ("bytes before", "n"),
    ("bytes", "n"),
    ("MACs", "n"),
    ("SQNR, dB", "n"),
    ("left out by", ""),
)
"""Headings, and "n" where the column holds numbers."""


def layers(source: Source) -> dict[str, Any] | None:
    rows = source.details.get("layers")
    if not rows:
        return None
    left = _left_out(source.trail)
    return {"header": HEADER, "rows": [_row(row, left.get(row["layer"], [])) for row in rows]}


def _row(row: Mapping[str, Any], left: Sequence[str]) -> list[dict[str, Any]]:
    """Cells: what is shown, and the number that it is sorted by (None for text)."""
    bits, clusters = row.get("bits"), row.get("clusters")
    sqnr = None if row.get("sqnr") is None else f"{row['sqnr']:.1f}"
    return [
        _text(row["layer"] or "(the network)"),
        _text(row.get("kind", "")),
        {"text": _shape(row), "title": row.get("stored", "")},
        _number(_range(bits), bits[1] if bits else None),
        _number(None if row.get("sparsity") is None else f"{100 * row['sparsity']:.1f}%", row.get("sparsity")),
        _number(_range(clusters), clusters[1] if clusters else None),
        _quantity(row.get("bytes_before"), "B"),
        _quantity(row.get("bytes"), "B"),
        _quantity(row.get("macs"), ""),
        _number("exact" if row.get("exact") else sqnr, 1e9 if row.get("exact") else row.get("sqnr")),
        _text("; ".join(left)),
    ]


def _shape(row: Mapping[str, Any]) -> str:
    text = "\N{MULTIPLICATION SIGN}".join(map(str, row.get("shape", [])))
    return text if row.get("shared") is None else f"{text}, that of {row['shared'] or 'the network'}"


def _left_out(trail: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """For each layer the methods of steps that were kept and did not change it, with their reasons, each once."""
    found: dict[str, dict[str, None]] = {}
    for entry in trail:
        if entry["verdict"]["accepted"] and entry["effect"]:
            for method in entry["passes"]:
                for layer, reason in method.get("skipped", {}).items():
                    found.setdefault(layer, {})[f"{method['name']}: {reason}"] = None
    return {layer: list(texts) for layer, texts in found.items()}


def _text(text: str) -> dict[str, Any]:
    return {"text": text}


def _number(text: str | None, value: float | None) -> dict[str, Any]:
    return {"text": text or "", "value": "" if value is None else f"{value:.9g}"}


def _quantity(value: float | None, unit: str) -> dict[str, Any]:
    return _number(None if value is None else format_quantity(value, unit), value)


def _range(ends: Sequence[int] | None) -> str | None:
    if not ends:
        return None
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}\N{EN DASH}{ends[1]}"
