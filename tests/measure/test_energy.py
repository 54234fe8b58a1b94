"""Costs of gates, circuits and memory: sums by hand, tables from files, what cannot be a table."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core.errors import DataError, UsageError
from lilliput.measure.energy import (
    EYERISS,
    FREE,
    HOROWITZ_45NM,
    PUBLISHED,
    Wires,
    cell_areas,
    circuit_cost,
    gates_csv,
    levels,
    read_gates,
)
from lilliput.ops import cartesian_functions as f
from lilliput.ops.netlist import Gate, Netlist

CIRCUIT = Netlist(
    bits=8,
    inputs=1,
    gates=(Gate(f.ONE), Gate(f.LEFT_3, 0), Gate(f.ADD, 1, 2), Gate(f.MULTIPLY, 2, 3), Gate(f.XOR, 0, 2)),
    outputs=(3, 4, 4),
)


def test_cost_of_a_circuit_is_the_sum_of_its_active_gates():
    cost = circuit_cost(CIRCUIT, wires=Wires(pj_per_bit_mm=0.5, mm=0.25))
    assert cost.energy_pj == pytest.approx(1.95e-2 + 0.1515)
    assert cost.delay_ns == pytest.approx(0.73 + 0.73 * 16 / 29)  # shift and constant are wires
    assert cost.area == pytest.approx(cell_areas(8)[f.ADD] + cell_areas(8)[f.MULTIPLY])
    assert (cost.gates, cost.depth, cost.connections) == (4, 3, 5)
    assert cost.wire_pj == 5 * 8 * 0.5 * 0.25
    assert cost.by_function == {"1": 1, "a + b": 1, "a * b": 1, "a << 3": 1}


def test_slowest_and_free_functions_are_as_published():
    assert max(PUBLISHED.delay_ns) == PUBLISHED.delay_ns[f.MULTIPLY] == 0.73
    for field in (PUBLISHED.energy_pj, PUBLISHED.delay_ns, PUBLISHED.area):
        assert [function for function in range(f.COUNT) if field[function] == 0] == sorted(FREE)


@given(st.integers(2, 16))
def test_other_widths_scale_with_cells_and_back(bits):
    there = PUBLISHED.at(bits)
    assert there.energy_pj[f.AND] == pytest.approx(PUBLISHED.energy_pj[f.AND] * bits / 8)
    assert there.energy_pj[f.FLIP_SIGN] == PUBLISHED.energy_pj[f.FLIP_SIGN]
    assert there.area == pytest.approx(cell_areas(bits))
    assert there.delay_ns[f.ADD] == pytest.approx(PUBLISHED.delay_ns[f.ADD] * levels(bits)[f.ADD] / 16)
    assert dataclasses.replace(there.at(8), source="").energy_pj == pytest.approx(PUBLISHED.energy_pj)


def test_a_table_from_a_file_is_the_table_written(tmp_path):
    path = tmp_path / "gates.csv"
    path.write_text(gates_csv(PUBLISHED))
    table = read_gates(path)
    assert (table.energy_pj, table.delay_ns, table.area) == (PUBLISHED.energy_pj, PUBLISHED.delay_ns, PUBLISHED.area)


def test_wires_may_be_left_out(tmp_path):
    path = tmp_path / "gates.csv"
    lines = [f"{f.NAMES[k]}, 1, 2, 3" for k in range(f.COUNT) if k not in FREE]
    path.write_text("function, energy_pj, delay_ns, area\n" + "\n".join(lines))
    table = read_gates(path, bits=4)
    assert table.bits == 4
    assert table.energy_pj[f.LEFT_1] == 0
    assert (table.energy_pj[f.ADD], table.delay_ns[f.ADD], table.area[f.ADD]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("function,", "name,"), "the columns name, energy_pj"),
        (("a + b,", "a plus b,"), "line 3: no function 'a plus b'; did you mean 'a . b'"),
        (("a + b,0.0195", "a + b,cheap"), "energy_pj 'cheap'; give a finite number"),
        (("a + b,0.0195", "a + b,nan"), "energy_pj 'nan'; give a finite number"),
        (("a + b,0.0195", "a + b,-1"), "energy_pj '-1'; give a finite number"),
        (("a + b,", "a - b,"), "'a - b' again"),
    ],
)
def test_files_that_are_no_table_say_where(tmp_path, change, message):
    path = tmp_path / "gates.csv"
    path.write_text(gates_csv(PUBLISHED).replace(*change))
    with pytest.raises(DataError, match=message):
        read_gates(path)


def test_missing_files_and_lines_are_refused(tmp_path):
    with pytest.raises(DataError, match="it cannot be read"):
        read_gates(tmp_path / "none.csv")
    path = tmp_path / "gates.csv"
    path.write_text("function,energy_pj,delay_ns,area\na + b,1,1,1\n")
    with pytest.raises(DataError, match="no line for MAX - a, a - b"):
        read_gates(path)
    path.write_text("")
    with pytest.raises(DataError, match="the columns of nothing"):
        read_gates(path)
    with pytest.raises(UsageError, match="area is"):
        dataclasses.replace(PUBLISHED, area=(1.0,))


def test_memory_reads_in_published_ratios():
    assert EYERISS.read_pj(8, "dram") == pytest.approx(200 * 0.23)
    assert EYERISS.read_pj(8, "dram") / EYERISS.read_pj(8, "buffer") == pytest.approx(200 / 6)
    assert HOROWITZ_45NM.read_pj(32, "sram") == 5
    with pytest.raises(UsageError, match="memory level 'sram'"):
        EYERISS.read_pj(8, "sram")
