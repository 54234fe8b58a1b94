"""What a result writes beside its table: `table.csv`, a data frame, `report.json`."""

import builtins
import csv
import json
import math

import pytest

from lilliput.core.errors import MissingExtraError


def test_the_csv_holds_every_measurement_exactly(result):
    with (result.folder / "table.csv").open(newline="") as file:
        rows = {row["quantity"]: row for row in csv.DictReader(file)}
    assert set(rows) == {name for c in result.columns for name in c.measurements}
    for column in result.columns:
        for name, row in rows.items():
            found = column.measurements.get(name)
            if found is None:
                assert row[column.name] == ""
                continue
            assert float(row[column.name]) == found.value
            assert (row["unit"], row["origin"]) == (found.unit, found.origin)
            ends = [row[f"{column.name} {end}"] for end in ("low", "high")]
            assert ends == (["", ""] if found.spread is None else [str(v) for v in found.spread])


def test_the_frame_is_the_csv(result):
    pandas = pytest.importorskip("pandas")
    frame = result.to_frame()
    read = pandas.read_csv(result.folder / "table.csv").set_index("quantity")
    assert list(frame.columns) == list(read.columns)
    assert list(frame.index) == list(read.index)
    for column in result.columns:
        for name in frame.index:
            ours, theirs = frame.loc[name, column.name], read.loc[name, column.name]
            assert ours == theirs or (math.isnan(ours) and math.isnan(theirs))
    assert frame.loc["file", "ours"] == (result.folder / "net.lil").stat().st_size


def test_without_pandas_the_extra_is_named(result, monkeypatch):
    found = builtins.__import__

    def without(name, *rest):
        if name == "pandas":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'lilliput\[report\]'"):
        result.to_frame()


def test_what_a_page_needs_is_small_and_plain(result):
    path = result.folder / "report.json"
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert path.stat().st_size < 100_000
    expected = {"task", "layers", "memory", "functions", "circuits", "samples", "answers", "data", "budgets", "points"}
    assert expected == set(data)


def test_collecting_it_looks_at_no_role_again(result):
    assert result.uses["test"] == 2  # plain int8 and ours
