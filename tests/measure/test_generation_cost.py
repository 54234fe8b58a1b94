"""Bits and energy of weights that a circuit makes, by hand; and it is said whenever plain storage is better."""

import pytest

from lilliput.core.errors import UsageError
from lilliput.measure.energy import EYERISS, PUBLISHED, Wires
from lilliput.measure.generation_cost import generation_cost, stored_bits
from lilliput.ops import cartesian_functions as f
from lilliput.ops.netlist import Gate, Netlist

FOUR = Netlist(bits=8, inputs=2, gates=(Gate(f.FLIP_SIGN, 0), Gate(f.AND, 1, 2), Gate(f.ZERO)), outputs=(0, 2, 3, 4))


def test_stored_bits_are_counted_one_by_one():
    bits = stored_bits(FOUR, given=100, wanted=1000)
    assert bits.given == 800
    assert bits.addresses == 2 * 7
    assert bits.indices == 2000
    assert bits.functions == 3 * 5
    assert bits.wiring == 1 + 2 * 2 + (1 + 5)  # a mark, then a bit for each pin
    assert bits.functions + bits.wiring + bits.counts == 8 * len(FOUR.pack())
    assert bits.total == 800 + 14 + 2000 + 8 * len(FOUR.pack())


def test_inputs_that_are_no_weights_are_stored_themselves():
    bits = stored_bits(FOUR, given=0, wanted=1)
    assert (bits.addresses, bits.own) == (0, 16)
    bits = stored_bits(FOUR, given=100, wanted=1, own_inputs=1)
    assert (bits.addresses, bits.own) == (7, 8)


def test_energy_of_indices_multiplexers_and_reads():
    wires = Wires(pj_per_bit_mm=1.0, mm=0.5)
    cost = generation_cost(FOUR, given=100, wanted=1000, level="buffer", wires=wires)
    bit, two = EYERISS.pj_per_bit["buffer"], PUBLISHED.energy_pj[f.MULTIPLEXER]
    assert cost.selection_pj == pytest.approx(2000 * bit + 3000 * two + 1000 * 8 * 0.5)
    gates = 6e-7 + 9e-5
    assert cost.energy_pj == pytest.approx(gates + 3 * 8 * 0.5 + cost.selection_pj + 800 * bit)
    assert cost.plain_energy_pj == pytest.approx(1100 * 8 * bit)
    wired = generation_cost(FOUR, given=100, wanted=1000, level="buffer", wires=wires, selection="wired")
    assert wired.selection_pj == 1000 * 8 * 0.5
    assert wired.stored == cost.stored


SHIFTS = Netlist(
    bits=16,
    inputs=1,
    gates=tuple(Gate(f.FLIP_SIGN if k % 2 else f.RIGHT_1, k) for k in range(19)),
    outputs=tuple(range(1, 20)),
)


def test_nothing_to_warn_of_where_the_circuit_wins():
    cost = generation_cost(SHIFTS, given=100, wanted=1000, others={"4-bit clusters": 16e4})
    assert cost.table_bits == 1600 + 5000 + 19 * 16
    assert cost.warnings() == ()
    assert cost.verdict == "smaller and cheaper than what it was compared with"


def test_every_loss_is_said():
    known = {"4-bit clusters": 16.0, "coded": 1e6}
    cost = generation_cost(FOUR, given=1, wanted=3, others=known, level="register", wires=Wires(mm=1.0))
    plain, table, clusters, dearer, dearer_than_table = cost.warnings()
    assert plain.startswith("larger: ")
    assert plain.endswith("32 by plain storage")
    assert table.endswith(f"{8 + 6 + 32} by a table of the same values")
    assert clusters.endswith("16 by 4-bit clusters")
    assert dearer.startswith("dearer: ")
    assert dearer.endswith("with plain weights read from register")
    assert dearer_than_table.endswith("with a table of the same values read from register")


def test_a_table_is_read_once_with_the_same_indices():
    cost = generation_cost(FOUR, given=100, wanted=1000, level="buffer")
    bit = EYERISS.pj_per_bit["buffer"]
    assert cost.table_bits == 800 + 2000 + 4 * 8
    assert cost.table_energy_pj == pytest.approx(cost.selection_pj + (800 + 32) * bit)


def test_bad_settings_are_refused():
    with pytest.raises(UsageError, match="use indexed or wired"):
        generation_cost(FOUR, given=1, wanted=1, selection="magic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="-1 of them"):
        generation_cost(FOUR, given=1, wanted=-1)
