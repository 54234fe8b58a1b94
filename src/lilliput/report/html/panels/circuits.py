"""Circuits that make weights: each drawn, or counted where it is large, beside what it stores and reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from lilliput.export.netlist_svg import svg
from lilliput.ops.netlist import Gate, Netlist
from lilliput.report.html.axes import Axis, linear
from lilliput.report.html.charts import Plot
from lilliput.report.html.source import Source

HEADER = ("layers", "weights", "values", "inputs", "gates", "depth")
COSTS = ("layers", "", "with the circuit", "plain", "values in a table")
NUMBERS = (1, 2, 3, 4, 5)
MOST_LAYERS = 4
"""Named in a cell; the others are counted."""


def circuits(source: Source) -> dict[str, Any] | None:
    found = source.details.get("circuits")
    if not found:
        return None
    accounts = _accounts(source)
    matched = [(circuit, _account(circuit, accounts)) for circuit in found]
    return {
        "header": HEADER,
        "numbers": NUMBERS,
        "rows": [_row(circuit) for circuit in found],
        "costs": COSTS,
        "cost_numbers": (2, 3, 4),
        "cost_rows": [row for circuit, account in matched if account for row in _cost_rows(circuit, account)],
        "memory": next((account["memory"] for _, account in matched if account), None),
        "circuits": [_shown(i, circuit, account) for i, (circuit, account) in enumerate(matched)],
    }


def _accounts(source: Source) -> list[Mapping[str, Any]]:
    """Of all passes that were kept, the last one first."""
    kept = [
        part["statistics"]
        for entry in source.trail
        if entry.get("verdict", {}).get("accepted", True)
        for part in entry.get("passes", [])
        if "statistics" in part
    ]
    return [row for file in kept[::-1] for row in source.statistics.get(file, {}).get("circuits", [])]


def _account(circuit: Mapping[str, Any], accounts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of the pass that made it: for the same layers."""
    return next((row for row in accounts if set(row["layers"]) == set(circuit["layers"])), None)


def _row(circuit: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (circuit["weights"], len(circuit["values"]), circuit["given"], circuit["made"], circuit["depth"])
    return (_names(circuit["layers"]), *(f"{number:,}" for number in numbers))


def _cost_rows(circuit: Mapping[str, Any], account: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Bytes before coding, as the pass has counted them; energies are modelled."""
    name = _names(circuit["layers"])
    stored = (account["stored_bits"], account["plain_bits"], account["table_bits"])
    read = (account["energy_pj"], account["plain_energy_pj"], account["table_energy_pj"])
    gates = f"{account['gate_energy_pj']:.3g} pJ, {account['delay_ns']:.3g} ns"
    return [
        (name, "stored, bytes before coding", *(f"{-(-bits // 8):,}" for bits in stored)),
        ("", f"energy to get all weights once, read from {account['memory']}", *(_energy(pj) for pj in read)),
        ("", "of it gates, and their delay", gates, "", ""),
    ]


def _shown(number: int, circuit: Mapping[str, Any], account: Mapping[str, Any] | None) -> dict[str, Any]:
    name = _names(circuit["layers"])
    found: dict[str, Any] = {
        "name": name,
        "warnings": [] if account is None else account["warnings"],
        "picture": None,
        "functions": None,
        "depths": None,
    }
    if circuit["gates"] is None:
        found["functions"] = [(function, f"{count:,}") for function, count in circuit["functions"]]
        found["depths"] = _depths(number, name, circuit["depths"])
        return found
    gates = tuple(Gate(*numbers) for numbers in circuit["gates"])
    net = Netlist(bits=circuit["bits"], inputs=len(circuit["inputs"]), gates=gates, outputs=tuple(circuit["outputs"]))
    found["picture"] = svg(
        net,
        circuit["inputs"],
        ident=f"circuit-{number}",
        title=f"the circuit of {name}",
        weights=dict(circuit["values"]),
        alone=False,
    )
    return found


def _depths(number: int, name: str, counts: Sequence[int]) -> str:
    last = len(counts)
    ticks = tuple((float(v), str(v)) for v in sorted({1, (1 + last) // 2, last}))
    x = Axis(label="depth", low=0.5, high=last + 0.5, ticks=ticks)
    plot = Plot(f"circuit-{number}", f"gates of {name} by depth", x, linear("gates", list(counts), zero=True, count=4))
    for depth, count in enumerate(counts, start=1):
        plot.bar(depth - 0.5, depth + 0.46, count, "ours", f"depth {depth}: {count:,} gates")
    return plot.svg()


def _names(layers: Sequence[str]) -> str:
    more = len(layers) - MOST_LAYERS
    return ", ".join(layers[:MOST_LAYERS]) + (f" and {more} more" if more > 0 else "")


def _energy(pj: float) -> str:
    for unit, size in (("uJ", 1e6), ("nJ", 1e3), ("pJ", 1.0)):
        if pj >= size:
            return f"{pj / size:.3g} {unit}"
    return f"{pj:.3g} pJ"
