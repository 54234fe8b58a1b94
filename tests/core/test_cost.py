import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.core.cost import CostTable, Measurement, format_quantity
from lilliput.core.errors import LilliputError, UsageError

FACTORS = {
    "": 1,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "B": 1,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "x": 1,
}


def read_back(text):
    number, _, unit = text.partition(" ")
    return float(number) * FACTORS[unit]


def count(value, name="macs", **rest):
    return Measurement(name, value, "", "counted", **rest)


@given(st.floats(-1e15, 1e15), st.sampled_from(["", "B", "ms", "us", "x"]), st.booleans())
def test_a_formatted_quantity_reads_back_within_half_a_percent(value, unit, binary):
    scale = FACTORS[unit] if unit in ("ms", "us") else 1
    assert math.isclose(read_back(format_quantity(value, unit, binary=binary)), value * scale, rel_tol=0.0051)


@given(st.floats(0.001, 1e14), st.floats(1, 2), st.sampled_from(["", "B", "ms"]), st.booleans())
def test_formatting_keeps_the_order(value, factor, unit, binary):
    smaller, larger = (read_back(format_quantity(v, unit, binary=binary)) for v in (value, value * factor))
    assert smaller <= larger * (1 + 1e-12)


@given(st.integers(0, 999))
def test_whole_numbers_below_a_thousand_are_exact(value):
    assert format_quantity(value, "B") == f"{value} B"
    assert format_quantity(value) == str(value)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12_345, "B", "12.3 kB"),
        (12_000, "B", "12.0 kB"),
        (1_230_000, "", "1.23 M"),
        (999_950, "", "1.00 M"),
        (999.7, "B", "1.00 kB"),
        (9_999, "", "10.0 k"),
        (40_551_040, "", "40.6 M"),
        (0, "B", "0 B"),
        (0, "ms", "0 s"),
        (0.0123, "ms", "12.3 us"),
        (0.9996, "ms", "1.00 ms"),
        (1234.0, "ms", "1.23 s"),
        (90_000, "ms", "90.0 s"),
        (0.46, "x", "0.460 x"),
        (-12_345, "B", "-12.3 kB"),
        (float("nan"), "ms", "nan ms"),
        (float("inf"), "", "inf"),
        (7_654, "", "7.65 k"),
        (3e16, "", "30000 T"),
        (1e-7, "x", "1.00e-07 x"),
    ],
)
def test_known_quantities(value, unit, text):
    assert format_quantity(value, unit) == text


def test_kib_where_asked():
    assert format_quantity(49_152, "B", binary=True) == "48.0 KiB"
    assert format_quantity(1_023, "B", binary=True) == "1023 B"
    assert format_quantity(1_023_999, "B", binary=True) == "1000 KiB"
    assert format_quantity(2**20 - 1, "B", binary=True) == "1.00 MiB"
    assert format_quantity(2_000, "", binary=True) == "2.00 k"


def test_a_measurement_prints_its_spread():
    assert str(Measurement("latency", 0.5, "ms", "measured", spread=(0.45, 1.2))) == "500 us [450 us .. 1.20 ms]"
    assert str(count(3)) == "3"


@pytest.mark.parametrize("wrong", [{"origin": "guessed"}, {"origin": "measured", "spread": (2.0, 1.0)}])
def test_a_measurement_refuses_unknown_origins_and_crossed_spreads(wrong):
    with pytest.raises(UsageError):
        Measurement("latency", 1.0, "ms", **wrong)


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 10**12), min_size=1))
def test_a_total_is_the_sum_of_the_rows(values):
    table = CostTable.of((layer, count(value)) for layer, value in values.items())
    assert table.total("macs").value == sum(values.values())
    assert [row["macs"] for row in table.to_rows()] == list(values.values())
    assert [row["layer"] for row in table.to_rows()] == list(values)


def test_add_gives_a_new_table_and_leaves_the_old_one():
    old = CostTable().add("conv1", count(5))
    new = old.add("conv1", count(2, "parameters")).add("relu", count(0))
    assert old.names() == ["macs"]
    assert new.names() == ["macs", "parameters"]
    assert new.to_rows() == [
        {"layer": "conv1", "macs": 5, "parameters": 2},
        {"layer": "relu", "macs": 0, "parameters": None},
    ]
    assert json.loads(json.dumps(new.to_rows())) == new.to_rows()
    assert pickle.loads(pickle.dumps(new)) == new


def test_a_total_keeps_every_note_once():
    table = CostTable().add("a", count(1, note="lstm is not counted")).add("b", count(1, note="lstm is not counted"))
    assert table.add("c", count(1, note="fft is not counted")).total("macs").note == (
        "lstm is not counted; fft is not counted"
    )


def test_what_is_not_in_the_table_is_a_clear_error():
    table = CostTable().add("conv1", count(5))
    with pytest.raises(LilliputError, match="did you mean 'conv1'"):
        table["conv"]
    with pytest.raises(LilliputError, match="did you mean 'macs'"):
        table.get("conv1", "mac")
    with pytest.raises(LilliputError, match="it has macs"):
        table.total("latency")
    with pytest.raises(LilliputError, match="it is empty"):
        CostTable().total("macs")


@pytest.mark.parametrize(
    ("layer", "other"),
    [
        ("fc", Measurement("macs", 1, "k", "counted")),
        ("fc", Measurement("macs", 1, "", "planned")),
        ("conv1", count(1)),
    ],
)
def test_a_column_has_one_unit_one_origin_and_one_entry_a_layer(layer, other):
    with pytest.raises(UsageError):
        CostTable().add("conv1", count(5)).add(layer, other)


def test_a_column_is_called_what_its_measurements_are_called():
    with pytest.raises(UsageError, match="one name"):
        CostTable({"conv1": {"multiplies": count(5)}})
