"""What a method noted beside the trail is a file of the run, can be read as text, and as a workbook."""

import json

import pytest

from lilliput.auto.compress import apply
from lilliput.methods.consolidation.sic import Sic
from lilliput.methods.consolidation.statistics import histogram
from lilliput.testing import tiny_model, tiny_task

openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
NAME = "statistics-00-0-sic.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sic"
    result = apply(tiny_model("linear"), tiny_task(), [Sic(mode="exact"), Sic(error_budget=0.1)], folder=folder)
    return folder.parent / "latest", result


def test_the_run_folder_holds_what_python_sees(run):
    folder, result = run
    assert list(result.statistics) == [NAME, "statistics-01-0-sic.json"]
    for name, data in result.statistics.items():
        assert json.loads((folder / name).read_text()) == json.loads(json.dumps(data))
    trail = [json.loads(line) for line in (folder / "trail.jsonl").read_text().splitlines()]
    assert [p["statistics"] for entry in trail for p in entry["passes"]] == list(result.statistics)
    assert "convergence" not in trail[0]["passes"][0]


def test_the_report_counts_neurons_by_their_values(run, call):
    folder, result = run
    text = call("report", folder, "--statistics").out
    data = result.statistics[NAME]
    for name, row in data["layers"].items():
        assert f"{name} " in text
        for k, count in row["k_histogram"].items():
            assert any(line.split()[:2] == [k, str(count)] for line in text.splitlines())
    assert f"{data['sic']['total_k_trials']:,} candidates" in text


def test_the_workbook_has_every_attempt(run, call, tmp_path):
    folder, result = run
    answer = call("report", folder, "--excel", tmp_path / "sic.xlsx")
    assert answer.code == 0
    book = openpyxl.load_workbook(tmp_path / "sic-statistics-00-0-sic.xlsx")
    data = result.statistics[NAME]
    assert book.sheetnames == ["global", "layers", "attempts"]
    rows = list(book["attempts"].values)[1:]
    assert rows == [(a["layer"], a["neuron"], a["clusters"], a["success"], a["reason"]) for a in data["convergence"]]
    assert [row[0] for row in list(book["layers"].values)[1:]] == list(data["layers"])


def test_a_run_without_statistics_says_so(finished, call):
    answer = call("report", finished, "--statistics")
    assert answer.code == 2
    assert "none of its methods keeps any" in answer.err


def test_a_histogram_has_few_lines_whatever_k_is():
    counts = {str(k): 1 + k % 3 for k in range(0, 700, 2)}
    lines = histogram(counts)
    assert len(lines) <= 25
    assert sum(int(line.split()[1]) for line in lines) == sum(counts.values())
    assert histogram({}) == []
    assert [line.split()[:2] for line in histogram({"3": 2, "1": 4})] == [["1", "4"], ["2", "0"], ["3", "2"]]
