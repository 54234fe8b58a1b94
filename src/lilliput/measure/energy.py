"""What gates, wires and reads of memory cost: tables that can be replaced by your own.

`PUBLISHED` holds the gate energies of published weight generators (cnn-cgp-compressor). Their table was never
published: these are totals by function, read off the published plots and divided by counts, to about 5%. Of the delays
only the slowest is known, 0.73 ns; areas and multiplexers are not known. What stands for them is *assumed*:

- delay: 0.73 ns for a product, for the rest in proportion to the gates on the longest way (`levels`);
- area: gate equivalents (1 is a NAND of two inputs) of ripple-carry adders, array multipliers and single cells;
- a multiplexer of two numbers: two ANDs, an OR and an inverter for each bit.

For other widths than a table's own, functions cost in proportion to their cells. Figures of memory and wires are of
other chips than those of gates: compare orders of magnitude.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lilliput.core.errors import DataError, UsageError
from lilliput.core.method import nearest
from lilliput.ops import cartesian_functions as f
from lilliput.ops.netlist import Netlist, longest, sources

COLUMNS = ("energy_pj", "delay_ns", "area")
FREE = (*f.CONSTANTS, *f.SHIFTS, *f.LEFT_SHIFTS, f.IDENTITY)
"""Wires alone."""
INVERTER, NAND, AND, XOR, MULTIPLEXER = 0.67, 1.0, 1.33, 2.33, 2.33
HALF_ADDER, FULL_ADDER = XOR + AND, 2 * XOR + 3 * NAND
SLOWEST_NS = 0.73
BYTE = 8


@dataclass(frozen=True, kw_only=True)
class GateTable:
    """Each field: one number for each function, by its number in `cartesian_functions`, on numbers of `bits` bits.

    `uncertainty` is the relative one of the energies, as far as it is known.
    """

    bits: int
    energy_pj: tuple[float, ...]
    delay_ns: tuple[float, ...]
    area: tuple[float, ...]
    source: str
    uncertainty: float = 0.0

    def __post_init__(self) -> None:
        for name in COLUMNS:
            values = getattr(self, name)
            if len(values) != f.COUNT or not all(0 <= v < float("inf") for v in values):
                do = f"give {f.COUNT} finite numbers of at least 0"
                raise UsageError("a table of gates", f"{name} is {values!r}", do)

    def at(self, bits: int) -> "GateTable":
        """For numbers of another width, in proportion to the cells of each function."""
        if bits == self.bits:
            return self
        cells, steps = _ratios(cell_areas(bits), cell_areas(self.bits)), _ratios(levels(bits), levels(self.bits))
        return GateTable(
            bits=bits,
            energy_pj=_times(self.energy_pj, cells),
            delay_ns=_times(self.delay_ns, steps),
            area=_times(self.area, cells),
            source=f"{self.source}; scaled from {self.bits} to {bits} bits",
            uncertainty=self.uncertainty,
        )


def cell_areas(bits: int) -> tuple[float, ...]:
    """Gate equivalents of each function, as its plainest circuit; a product keeps only the lower half."""
    return _by_function(
        {
            f.FLIP_LOWER: (bits - 1) * INVERTER,
            f.ADD: bits * FULL_ADDER,
            f.SUBTRACT: bits * (FULL_ADDER + INVERTER),
            f.MULTIPLY: bits * (bits + 1) / 2 * AND + bits * (bits - 1) / 2 * FULL_ADDER,
            f.NEGATE: bits * (HALF_ADDER + INVERTER),
            f.FLIP_SIGN: INVERTER,
            f.AND: bits * AND,
            f.OR: bits * AND,
            f.XOR: bits * XOR,
            f.NOT: bits * INVERTER,
            f.INCREMENT: bits * HALF_ADDER,
            f.DECREMENT: bits * HALF_ADDER,
            f.MULTIPLEXER: bits * MULTIPLEXER,
        }
    )


def levels(bits: int) -> tuple[float, ...]:
    """Gates on the longest way through each function: two for each bit of a carry in a sum."""
    return _by_function(
        {
            f.FLIP_LOWER: 1,
            f.ADD: 2 * bits,
            f.SUBTRACT: 2 * bits + 1,
            f.MULTIPLY: 4 * bits - 3,
            f.NEGATE: bits + 1,
            f.FLIP_SIGN: 1,
            f.AND: 1,
            f.OR: 1,
            f.XOR: 2,
            f.NOT: 1,
            f.INCREMENT: bits,
            f.DECREMENT: bits,
            f.MULTIPLEXER: 2,
        }
    )


def _by_function(known: Mapping[int, float]) -> tuple[float, ...]:
    return tuple(float(known.get(function, 0.0)) for function in range(f.COUNT))


def _times(values: Sequence[float], by: Sequence[float]) -> tuple[float, ...]:
    return tuple(a * b for a, b in zip(values, by, strict=True))


def _ratios(wanted: Sequence[float], known: Sequence[float]) -> tuple[float, ...]:
    return tuple(a / b if b else 1.0 for a, b in zip(wanted, known, strict=True))


PUBLISHED = GateTable(
    bits=BYTE,
    energy_pj=_by_function(
        {
            f.FLIP_LOWER: 4e-6,
            f.ADD: 1.95e-2,
            f.SUBTRACT: 2.5e-2,
            f.MULTIPLY: 0.1515,
            f.NEGATE: 3.3e-3,
            f.FLIP_SIGN: 6e-7,
            f.AND: 9e-5,
            f.OR: 1.17e-4,
            f.XOR: 4.35e-4,
            f.NOT: 4.8e-6,
            f.INCREMENT: 2.3e-3,
            f.DECREMENT: 3.1e-3,
            f.MULTIPLEXER: 2 * 9e-5 + 1.17e-4 + 6e-7,
        }
    ),
    delay_ns=tuple(SLOWEST_NS * step / levels(BYTE)[f.MULTIPLY] for step in levels(BYTE)),
    area=cell_areas(BYTE),
    source="energies recovered from the plots of cnn-cgp-compressor; delays and areas assumed",
    uncertainty=0.05,
)


def read_gates(path: str | Path, *, bits: int = BYTE) -> GateTable:
    """A table from a CSV file: `function,energy_pj,delay_ns,area`, with the functions' names ("a + b").

    Functions that are wires alone (shifts, constants, identity) may be left out: they cost 0 then.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        do = f"check the path ({error.__class__.__name__})"
        raise DataError(f"gates of {path}", "it cannot be read", do) from error
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    wanted = ("function", *COLUMNS)
    header = [name.strip() for name in rows.fieldnames or ()]
    if header != list(wanted):
        raise DataError(f"gates of {path}", f"the columns {', '.join(header) or 'of nothing'}", ",".join(wanted))
    rows.fieldnames = header
    found: dict[int, tuple[float, ...]] = {}
    for row in rows:
        where = f"gates of {path}, line {rows.line_num}"
        function = _function(row["function"] or "", where)
        if function in found:
            raise DataError(where, f"{f.NAMES[function]!r} again", "give each function once")
        found[function] = tuple(_number(row[name], name, where) for name in COLUMNS)
    missing = [f.NAMES[function] for function in range(f.COUNT) if function not in found and function not in FREE]
    if missing:
        raise DataError(f"gates of {path}", f"no line for {', '.join(missing)}", "give all but wires a line")
    none = (0.0,) * len(COLUMNS)
    energy, delay, area = zip(*(found.get(function, none) for function in range(f.COUNT)), strict=True)
    return GateTable(bits=bits, energy_pj=energy, delay_ns=delay, area=area, source=str(path))


def gates_csv(table: GateTable) -> str:
    """The text that `read_gates` reads: a start for a table of your own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("function", *COLUMNS))
    for row in zip(f.NAMES, table.energy_pj, table.delay_ns, table.area, strict=True):
        writer.writerow(row)
    return out.getvalue()


def _function(text: str, where: str) -> int:
    name = text.strip()
    if name in f.NAMES:
        return f.NAMES.index(name)
    raise DataError(where, f"no function {name!r}", nearest(name, set(f.NAMES)))


def _number(text: str | None, column: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise DataError(where, f"{column} {text!r}", "give a finite number of at least 0")
    return value


@dataclass(frozen=True, kw_only=True)
class Memory:
    """pJ to read one bit, by level."""

    pj_per_bit: Mapping[str, float]
    source: str

    def read_pj(self, bits: float, level: str) -> float:
        if level not in self.pj_per_bit:
            raise UsageError(f"memory level {level!r}", "the table has none of this name", ", ".join(self.pj_per_bit))
        return bits * self.pj_per_bit[level]


MAC_PJ = 0.2 + 0.03
"""A multiply and an add of 8 bits in 45 nm (Horowitz, ISSCC 2014)."""
EYERISS = Memory(
    pj_per_bit={
        level: ratio * MAC_PJ / BYTE for level, ratio in {"register": 1, "array": 2, "buffer": 6, "dram": 200}.items()
    },
    source="ratios to one multiply-accumulate (Chen et al., Eyeriss, ISCA 2016), here of 8 bits in 45 nm, 0.23 pJ",
)
HOROWITZ_45NM = Memory(
    pj_per_bit={"register": 1 / 32, "sram": 5 / 32, "dram": 640 / 32},
    source="32-bit reads in 45 nm: register file 1 pJ, SRAM 5 pJ, DRAM 640 pJ (Horowitz, ISSCC 2014; Han et al., 2015)",
)


@dataclass(frozen=True, kw_only=True)
class Wires:
    """*Assumed*: each connection is so long, for each bit of the number. The published model has none."""

    pj_per_bit_mm: float = 0.1
    mm: float = 0.02

    def pj(self, connections: float, bits: int) -> float:
        return connections * bits * self.pj_per_bit_mm * self.mm


NO_WIRES = Wires(mm=0.0)


@dataclass(frozen=True, kw_only=True)
class CircuitCost:
    """Of one evaluation. `energy_pj` is that of gates alone; `connections` are sources that gates read."""

    energy_pj: float
    wire_pj: float
    delay_ns: float
    area: float
    gates: int
    depth: int
    connections: int
    by_function: Mapping[str, int]


def circuit_cost(net: Netlist, table: GateTable = PUBLISHED, wires: Wires = NO_WIRES) -> CircuitCost:
    """Every gate that an output depends on switches once; the delay is that of the longest way, without wires."""
    table, net = table.at(net.bits), net.pruned()
    counts = [0] * f.COUNT
    for gate in net.gates:
        counts[gate.function] += 1
    connections = sum(len(sources(gate)) for gate in net.gates)
    return CircuitCost(
        energy_pj=sum(_times(counts, table.energy_pj)),
        wire_pj=wires.pj(connections, net.bits),
        delay_ns=longest(net, table.delay_ns),
        area=sum(_times(counts, table.area)),
        gates=len(net.gates),
        depth=net.depth(),
        connections=connections,
        by_function={name: count for name, count in zip(f.NAMES, counts, strict=True) if count},
    )
