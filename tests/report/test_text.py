"""Tables: every quantity in its unit, aligned, nothing lost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.cost import Measurement
from lilliput.report.compare import Column
from lilliput.report.text import ROWS, comparison, render

words = st.text(st.characters(codec="ascii", exclude_categories=("C", "Z")), min_size=1, max_size=9)
tables = st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(words, min_size=n, max_size=n), min_size=1, max_size=5))


@given(tables)
def test_every_cell_is_there_once_and_columns_are_aligned(rows):
    lines = render(rows).splitlines()
    assert len(lines) == len(rows) + 1
    assert set(lines[1]) == {"-"}
    assert [line.split() for line in (lines[0], *lines[2:])] == [list(row) for row in rows]
    assert max(len(line) for line in lines) == len(lines[1])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for line, row in zip((lines[0], *lines[2:]), rows, strict=True):
        end = 0
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            end += width + 2 * (i > 0)
            left = i in (0, len(row) - 1)
            assert line[: end if not left else len(line)].rstrip().endswith(cell) or left
        assert line == line.rstrip()


def column(name, *measurements, notes=()):
    net = Artifact.of(nn.Linear(2, 2), InputSpec(shape=(2,)))
    made = Column(name=name, artifact=net, notes=list(notes))
    for m in measurements:
        made.add(m)
    return made


def row_of(table, label):
    return next(line for line in table.splitlines() if line.startswith(label))


CELLS = [
    (Measurement("accuracy", 98.333, "%", "measured", spread=(96.41, 99.23)), "98.33% [96.41, 99.23]"),
    (Measurement("difference", 0.5, "pt", "measured", spread=(-0.25, 1.25)), "+0.50pt [-0.25, 1.25]"),
    (Measurement("difference", -0.5, "pt", "measured"), "-0.50pt"),
    (Measurement("difference", 0.0, "pt", "measured"), "0.00pt"),
    (Measurement("difference", 0.0123, "std", "measured", spread=(0.01, 0.02)), "0.0123 [0.01, 0.02] std"),
    (Measurement("file", 6913, "B", "counted"), "6.91 kB"),
    (Measurement("file", 200, "B", "counted"), "200 B"),
    (Measurement("parameters", 17_562, "", "counted"), "17.6 k"),
    (Measurement("MACs", 228, "", "counted"), "228"),
    (Measurement("latency", 0.0238, "ms", "measured", spread=(0.0234, 0.025)), "23.8 [23.4, 25.0] us"),
    (Measurement("latency", 1.5, "ms", "measured", spread=(1.25, 1750.0)), "1.50 [1.25, 1750.00] ms"),
    (Measurement("latency ratio", 0.4567, "x", "measured", spread=(0.4, 0.5)), "0.457 x"),
]


@pytest.mark.parametrize(("measurement", "text"), CELLS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_numbers_are_written_in_their_units(measurement, text):
    table = comparison([column("ours", measurement)], "accuracy")
    assert text in table.splitlines()[2]
    assert table.splitlines()[2].endswith(measurement.origin)


def test_what_was_not_measured_is_a_dash_and_what_nobody_has_is_no_row():
    table = comparison(
        [
            column("float", Measurement("file", 100, "B", "counted")),
            column("ours", Measurement("latency", 1.0, "ms", "measured")),
        ],
        "accuracy",
    )
    assert row_of(table, ".lil file").split() == [".lil", "file", "100", "B", "-", "counted"]
    assert row_of(table, "latency").split() == ["latency", "-", "1.00", "ms", "measured"]
    assert len(table.splitlines()) == 4


def test_all_known_rows_appear_in_order_with_their_origin():
    rows = [Measurement(n, 5, "", "planned" if n.startswith("planned") else "counted") for n in reversed(ROWS)]
    table = comparison([column("ours", *rows)], "accuracy")
    assert [line.split()[-1] for line in table.splitlines()[2 : 2 + len(ROWS)]] == [m.origin for m in reversed(rows)]


def test_notes_stand_below_with_the_name_of_their_network():
    table = comparison(
        [
            column("float", Measurement("ONNX file", 10, "B", "counted", note="run on 5 samples")),
            column(
                "ours",
                Measurement("accuracy", 90.0, "%", "measured", note="test, 5 samples"),
                notes=["conv1 stays in float: because"],
            ),
        ],
        "accuracy",
    )
    assert table.splitlines()[-3:] == [
        "  accuracy: test, 5 samples",
        "  ONNX file of float: run on 5 samples",
        "  ours: conv1 stays in float: because",
    ]


def test_a_score_of_any_name_is_the_first_row():
    table = comparison([column("ours", Measurement("MAE", 1.25, "std", "measured", spread=(1.0, 1.5)))], "MAE")
    assert "1.25 [1, 1.5] std" in table.splitlines()[2]
    assert torch.is_grad_enabled()
