"""What a network costs: numbers with their unit and origin, by layer and in total."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from lilliput.core.errors import UsageError

Origin = Literal["counted", "planned", "measured"]
"""Counted exactly from the network; planned by a model of the device; measured on a machine."""

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


@dataclass(frozen=True)
class Measurement:
    """One number. `spread` is the 10th to 90th percentile of repeated measurements, in the same unit.

    Units: "" for counts, "B" for bytes, "ms" for times, "x" for ratios.
    """

    name: str
    value: float
    unit: str
    origin: Origin
    spread: tuple[float, float] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.origin not in get_args(Origin):
            raise UsageError(
                f"measurement {self.name!r}", f"origin {self.origin!r}", f"use one of {', '.join(get_args(Origin))}"
            )
        if self.spread is not None and not self.spread[0] <= self.spread[1]:
            raise UsageError(f"measurement {self.name!r}", f"spread {self.spread}", "give the lower end first")

    def __str__(self) -> str:
        text = format_quantity(self.value, self.unit)
        if self.spread is not None:
            low, high = (format_quantity(end, self.unit) for end in self.spread)
            text += f" [{low} .. {high}]"
        return text


def _no_rows() -> dict[str, dict[str, Measurement]]:
    return {}


@dataclass(frozen=True)
class CostTable:
    """Measurements by layer, in the network's order. A name has one unit and one origin in the whole table.

    Only what adds up over layers belongs here: `total` is the sum. Immutable: `add` gives a new table.
    """

    rows: Mapping[str, Mapping[str, Measurement]] = field(default_factory=_no_rows)

    def __post_init__(self) -> None:
        first: dict[str, Measurement] = {}
        for layer, row in self.rows.items():
            for name, m in row.items():
                known = first.setdefault(name, m)
                if m.name != name or (m.unit, m.origin) != (known.unit, known.origin):
                    found = f"{m.name!r} ({m.origin}, unit {m.unit!r}) in column {name!r}"
                    raise UsageError(
                        f"cost of {layer!r}",
                        f"{found} ({known.origin}, unit {known.unit!r})",
                        "give every column one name, one unit and one origin",
                    )

    @staticmethod
    def of(rows: Iterable[tuple[str, Measurement]]) -> "CostTable":
        """From (layer, measurement) pairs; a layer may come several times, a measurement of a layer once."""
        table: dict[str, dict[str, Measurement]] = {}
        for layer, m in rows:
            row = table.setdefault(layer, {})
            if m.name in row:
                raise UsageError(f"cost of {layer!r}", f"{m.name!r} twice", "add them up first, or give them two names")
            row[m.name] = m
        return CostTable(table)

    def add(self, layer: str, *measurements: Measurement) -> "CostTable":
        """This table with more measurements of a layer, new or known."""
        pairs = [(known, m) for known, row in self.rows.items() for m in row.values()]
        return CostTable.of([*pairs, *((layer, m) for m in measurements)])

    def names(self) -> list[str]:
        """The columns, in order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))

    def __getitem__(self, layer: str) -> Mapping[str, Measurement]:
        if layer not in self.rows:
            raise UsageError(f"cost of layer {layer!r}", "the table has no such layer", _nearest(layer, self.rows))
        return self.rows[layer]

    def get(self, layer: str, name: str) -> Measurement:
        row = self[layer]
        if name not in row:
            raise UsageError(f"{name!r} of layer {layer!r}", "the table has no such number", _nearest(name, row))
        return row[name]

    def total(self, name: str) -> Measurement:
        """The sum over the layers that have this number."""
        found = [row[name] for row in self.rows.values() if name in row]
        if not found:
            raise UsageError(f"total of {name!r}", "the table has no such number", _nearest(name, self.names()))
        notes = "; ".join(dict.fromkeys(m.note for m in found if m.note))
        return Measurement(name, sum(m.value for m in found), found[0].unit, found[0].origin, note=notes)

    def to_rows(self) -> list[dict[str, str | float | None]]:
        """Plain numbers for JSON or a data frame: one row for each layer, None where a layer has no such number."""
        names = self.names()
        return [
            {"layer": layer} | {name: row[name].value if name in row else None for name in names}
            for layer, row in self.rows.items()
        ]


def format_quantity(value: float, unit: str = "", *, binary: bool = False) -> str:
    """Three significant digits and a prefix: "12.3 kB", "1.23 M", "870 us", "0.460 x".

    Whole numbers that need no prefix are exact. kB is 1000 bytes; with `binary` bytes are given in KiB (1024). Units
    other than bytes, times and counts get no prefix.
    """
    if not math.isfinite(value):
        return f"{value} {unit}".rstrip()
    if unit in _SECONDS:
        return _time(value * _SECONDS[unit])
    if unit not in ("", "B"):
        return f"{_digits(value)} {unit}"
    if binary and unit == "B":
        base, names = 1024.0, ("B", "KiB", "MiB", "GiB", "TiB")
    else:
        base, names = 1000.0, tuple(prefix + unit for prefix in ("", "k", "M", "G", "T"))
    power = 0
    while abs(value) >= base - 0.5 and power < len(names) - 1:
        value, power = value / base, power + 1
    whole = power == 0 and float(value).is_integer()
    return f"{int(value) if whole else _digits(value)} {names[power]}".rstrip()


def _time(seconds: float) -> str:
    for unit, scale in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3)):
        if 0 < abs(seconds) < 999.5 * scale:
            return f"{_digits(seconds / scale)} {unit}"
    return f"{_digits(seconds)} s"


def _digits(value: float) -> str:
    """Three significant digits, and never fewer than the whole part has."""
    rounded = abs(float(f"{value:.2e}"))
    if rounded == 0:
        return "0"
    if rounded < 1e-3:
        return f"{value:.2e}"
    return f"{value:.{max(2 - math.floor(math.log10(rounded)), 0)}f}"


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"it has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "it is empty"
