"""The options of a search on the command line."""

import json
import sys

import pytest

OWN = """
from lilliput.testing import tiny_model, tiny_task

def make():
    return tiny_model("linear"), tiny_task(96)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "searched_net.py").write_text(OWN)
    return f"{tmp_path / 'searched_net.py'}:make"


def test_a_search_writes_its_trials_and_says_each(call, own, tmp_path):
    answer = call("compress", own, "--max-bytes", "290B", "--trials", "3", "--out", tmp_path / "runs")
    assert answer.code == 0
    folder = tmp_path / "runs" / "latest"
    assert ", trials.json, " in answer.out
    assert len([t for t in json.loads((folder / "trials.json").read_text()) if t["trial"] is not None]) == 3
    assert sum(" trial " in line and "best so far" in line for line in answer.err.splitlines()) == 3
    joined = call(
        "compress", own, "--max-bytes", "290B", "--trials", "4", "--join", folder, "--out", tmp_path / "runs", "--json"
    )
    assert joined.code == 0
    assert len([t for t in json.loads(joined.out)["trials"] if t["trial"] is not None]) == 4


def test_a_dry_run_says_the_plan_and_makes_nothing(call, own, tmp_path):
    answer = call("compress", own, "--max-drop", "1pt", "--time", "1min", "--dry-run", "--out", tmp_path / "runs", "-q")
    assert answer.code == 0
    assert answer.out.startswith("search for the least bytes within max_drop 1\n")
    assert "stages: " in answer.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--time", "soon"], "time 'soon'"),
        (["--max-latency", "quick"], "time 'quick'"),
        (["--recipe", "r.yaml", "--trials", "3"], "--recipe: --time, --trials or --join"),
        (["--join", "a", "--resume", "b"], "--join: --resume"),
        (["--dry-run", "--recipe", "r.yaml"], "--dry-run: --recipe"),
        (["--dry-run", "--resume", "nowhere"], "run folder nowhere: there is no run in it"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(call, own, tmp_path, more, text):
    answer = call("compress", own, *more, "--out", tmp_path / "runs")
    assert answer.code == 2
    assert text in answer.err
    assert not (tmp_path / "runs").exists()


def test_a_search_does_not_write_over_the_finished_run_of_a_recipe(call, finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    answer = call("compress", "digits-cnn", "--trials", "2", "--resume", finished, "-q")
    assert answer.code == 2
    assert answer.err == (f"error: search in {finished}: the finished run of a recipe; search in a folder of its own\n")
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_without_optuna_a_search_is_refused_before_anything_is_made(call, own, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    answer = call("compress", own, "--trials", "2", "--out", tmp_path / "runs")
    assert (answer.code, answer.err) == (
        2,
        "error: search: optuna is not installed; pip install 'lilliput[search]'\n",
    )
    assert not (tmp_path / "runs").exists()
