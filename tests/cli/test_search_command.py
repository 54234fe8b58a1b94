"""The options of a search on the command line."""

import json

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
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(call, own, tmp_path, more, text):
    answer = call("compress", own, *more, "--out", tmp_path / "runs")
    assert answer.code == 2
    assert text in answer.err
    assert not (tmp_path / "runs").exists()
