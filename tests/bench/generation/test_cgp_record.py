"""Solutions as text and measures: what is read back is what was there, and what is no solution is refused."""

import csv
import io
import json

import numpy as np
import pytest

from lilliput.bench.generation.record import (
    differences,
    measures,
    read_measures,
    read_text,
    solution_from,
    solution_paths,
    text_of,
    weights_of,
    write_solutions,
)
from lilliput.bench.generation.statistics import COLUMNS, Statistics, last_line
from lilliput.core.errors import ArtifactError
from lilliput.methods.weight_generation.codebook import clustered, exact, free
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import substitute_
from lilliput.ops.cartesian_text import read

PROBLEMS = {
    "some": ([3, -7, 20], [1, 1, 5, -7, 90, 14]),
    "none given": ([], [4, -4, 100]),
    "all given": ([1, 2, 3], [2, 3, 3]),
    "zero alone": ([], [0, 0]),
}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    given, wanted = PROBLEMS[request.param]
    return Problem.of_values(given, wanted)


@pytest.mark.parametrize("solver", [exact, free, lambda problem: clustered(problem, 2)])
def test_a_solution_is_read_from_its_text_as_it_was(problem, solver):
    solution = solver(problem)
    again = solution_from(text_of(solution), problem, "text")
    assert again.netlist == solution.netlist
    assert again.outputs.tolist() == solution.outputs.tolist()


def test_the_text_is_a_circuit_with_an_output_for_each_wanted_value(problem):
    circuit = read(text_of(exact(problem)), problem.bits)
    given = problem.given.tolist() or [0]
    assert circuit.run([given])[0].tolist() == problem.wanted.tolist()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "this is not the text of a circuit"),
        ("{1,1,1,1,2,1,1}", "this is not the text of a circuit"),
        ("{3,5,1,1,2,1,1}([3]0,9,1)(3,3,3,3,3)", "1 sources lie where their column cannot read"),
        ("{3,5,9,9,2,1,1}([3]0,1,1)(3,3,3,3,3)", "a circuit of 81 nodes and 5 outputs has other arrays"),
        ("{3,2,1,1,2,1,1}([3]0,1,1)(3,3)", "3 inputs and 2 outputs"),
        ("{2,5,1,1,2,1,1}([2]0,1,1)(2,2,2,2,2)", "2 inputs and 5 outputs"),
        ("{3,5,1,1,3,1,1}([3]0,1,1)(3,3,3,3,3)", "nodes with 3 sources are not supported"),
        ("{999999999,5,1,1,2,1,1}([3]0,1,1)(3,3,3,3,3)", "a grid has fewer than 2^27 pins"),
    ],
)
def test_text_that_is_no_solution_is_refused(text, found):
    problem = Problem.of_values(*PROBLEMS["some"])
    with pytest.raises(ArtifactError, match=r"^text: ") as error:
        solution_from(text, problem, "text")
    assert error.value.found.startswith(found)


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "large.txt").write_bytes(b"1" * ((1 << 24) + 1))
    for name, found in (("bytes.txt", "it is no text"), ("large.txt", "it is too large"), ("no.txt", "no such file")):
        with pytest.raises(ArtifactError) as error:
            read_text(tmp_path / name)
        assert error.value.found.startswith(found)
    for text in ("{", "[1]", "[" * 100_000):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(ArtifactError):
            read_measures(tmp_path / "m.json")


def test_measures_follow_from_the_values_that_are_made():
    problem = Problem.of_values(*PROBLEMS["some"])
    solution = clustered(problem, 2)
    found = measures(solution)
    near = dict(zip(problem.wanted.tolist(), solution.made.tolist(), strict=True))
    squares = [(near[value] - value) ** 2 for value in PROBLEMS["some"][1]]
    assert found["squared_error"] == found["error"] == sum(squares)
    assert found["rms"] == pytest.approx((sum(squares) / len(squares)) ** 0.5)
    assert sum(found["functions"].values()) == found["gates"] == len(solution.netlist.gates)
    assert found["stored_bits"] == sum(found["bits"].values())


def test_measures_survive_a_file_and_any_change_is_seen():
    found = measures(clustered(Problem.of_values(*PROBLEMS["some"]), 3))
    recorded = json.loads(json.dumps(found))
    assert differences(recorded, found) == []
    for key, value in recorded.items():
        changed = value * 1.0001 + 1 if isinstance(value, int | float) else None
        (line,) = differences({**recorded, key: changed}, found)
        assert line.startswith(f"{key} is ")
        assert differences({k: v for k, v in recorded.items() if k != key}, found)
    assert differences({**recorded, "error": True}, {**found, "error": 1.0})


def test_the_best_of_several_gives_weights_and_gates(opened, tmp_path):
    subject, (run,) = opened(solver={"kind": "exact"})
    net = subject.quantized(run)
    problem = subject.problem(run, net)
    three = [exact(problem), clustered(problem, 3), clustered(problem, 2)]
    write_solutions(tmp_path, three, net)
    best = write_solutions(tmp_path, three[1:], net)  # the third one of before must go
    assert best == measures(three[1])
    assert [p.name for p in solution_paths(tmp_path)] == ["01.txt", "02.txt"]
    assert sorted(p.name for p in (tmp_path / "solutions").iterdir()) == ["01.json", "01.txt", "02.json", "02.txt"]
    changed = net.copy()
    substitute_(changed, three[1])
    with np.load(tmp_path / "weights.npz") as weights:
        assert list(weights) == ["second.weight"]
        assert weights["second.weight"].tolist() == changed.encoding("second.weight").integers().tolist()
        assert len(np.unique(weights["second.weight"])) == 3
    rows = list(csv.DictReader(io.StringIO((tmp_path / "gates.csv").read_text())))
    assert {row["function"]: int(row["count"]) for row in rows} == best["functions"]
    assert sum(float(row["energy_pj"]) for row in rows) == pytest.approx(best["energy_pj"])
    assert weights_of(net, three[1]) == (tmp_path / "weights.npz").read_bytes()


ROW = {
    "error": 1.0,
    "quantized_energy": 2,
    "energy": 0.5,
    "area": 1.0,
    "quantized_delay": 3,
    "delay": 0.25,
    "depth": 1,
    "gate_count": 4,
    "chromosome": "{1,1,1,1,2,1,1}([1]0,0,1)(1)",
}


@pytest.fixture
def lines(tmp_path):
    """A file with lines of generations 0, 10 and 20, of run 5."""
    path = tmp_path / "statistics.csv"
    statistics = Statistics.at(path, 5, None)
    for generation in (0, 10, 20):
        found = {**ROW, "generation": generation, "error": 30.0 - generation}
        assert statistics.is_news(found)
        statistics.note(found)
        assert not statistics.is_news({**found, "generation": generation + 1, "depth": 7})
    return path


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_lines_have_the_published_columns(lines):
    rows = rows_of(lines)
    assert tuple(rows[0]) == COLUMNS
    assert [(row["run"], row["generation"], row["error"]) for row in rows] == [
        ("5", "0", "30.0"),
        ("5", "10", "20.0"),
        ("5", "20", "10.0"),
    ]
    assert rows[0]["chromosome"] == ROW["chromosome"]
    assert last_line(lines) == rows[-1]


@pytest.mark.parametrize("keep", range(8))
def test_a_torn_last_line_is_cut_off_wherever_it_ends(lines, keep):
    whole = lines.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    torn = whole[: len(whole) - len(last) + keep * (len(last) - 1) // 7]
    lines.write_bytes(torn)
    assert last_line(lines) == rows_of(lines)[1]
    statistics = Statistics.at(lines, 5, 20)
    assert lines.read_bytes() == whole[: -len(last)]
    assert not statistics.is_news({**ROW, "error": 20.0})


def test_lines_that_are_newer_than_the_state_are_cut_off(lines):
    before = lines.read_bytes().splitlines(keepends=True)
    Statistics.at(lines, 5, 19)
    assert lines.read_bytes() == b"".join(before[:3])
    Statistics.at(lines, 5, 19, 20)  # a line between rounds is that of a stop
    assert lines.read_bytes() == b"".join(before[:2])
    Statistics.at(lines, 5, None)
    assert lines.read_bytes() == before[0]


def test_lines_of_another_run_or_damaged_ones_are_refused(lines):
    whole = lines.read_text()
    faults = {
        "line 2 is of run 5, not 6": (whole, 6),
        "line 3 is damaged": (whole.replace("5,10,", "5,ten,"), 5),
        "line 4 is damaged": (whole.replace('"\n5,20,', '"\n5,"20,'), 5),
        "its columns are others": (whole.replace("generation", "step"), 5),
    }
    for found, (text, run) in faults.items():
        lines.write_text(text)
        with pytest.raises(ArtifactError) as error:
            Statistics.at(lines, run, 20)
        assert error.value.found == found
        assert lines.read_text() == text


def test_an_empty_or_half_begun_file_begins_anew(lines):
    head = lines.read_bytes().splitlines(keepends=True)[0]
    for data in (b"", head[:10], head):
        lines.write_bytes(data)
        Statistics.at(lines, 5, 20)
        assert lines.read_bytes() == head
    assert last_line(lines) is None
    assert last_line(lines.with_name("none.csv")) is None
