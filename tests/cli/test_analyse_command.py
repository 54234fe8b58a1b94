"""`lilliput analyse` says what it will do, draws, writes JSON, and a recipe that runs."""

import json
import shutil

import pytest

from lilliput.pipeline.recipe import load
from page_parser import Page

OTHER = """
from lilliput.testing import tiny_model, tiny_task

def make():
    return tiny_model("linear"), tiny_task(48)
"""


def test_the_command_draws_and_writes_json(call, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    dry = call("analyse", "digits-cnn", "--dry-run")
    assert "predicted" in dry.out
    assert "2 groups of channels" in dry.out
    answer = call(
        "analyse", "digits-cnn", "--kinds", "bits,channels", "--samples", "32", "--picture", tmp_path / "c.png",
        "--json", "-q",
    )  # fmt: skip
    data = json.loads(answer.out)
    assert {p["kind"] for p in data["probes"]} == {"bits", "channels"}
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert call("analyse", "digits-cnn", "--picture", tmp_path / "c.jpg").code == 2
    assert call("analyse", "digits-cnn", "--picture", tmp_path / "no" / "c.png").code == 2


def test_the_recipe_for_a_number_of_bytes_can_be_run(call, tmp_path):
    path = tmp_path / "small.yaml"
    answer = call(
        "analyse", "digits-cnn", "--kinds", "bits,clusters", "--samples", "64", "--max-bytes", "6kB", "--max-drop",
        "3pt", "--recipe", path, "-q",
    )  # fmt: skip
    assert "of 6,000 coded bytes of weights" in answer.out
    assert "accepted" in answer.out
    (step,) = load(path).steps
    assert {p.name for p in step.passes} <= {"quantization", "weight_clustering"}
    assert call("check", "digits-cnn", "--recipe", path).code == 0
    ran = call("apply", path, "digits-cnn", "--out", tmp_path / "runs", "--json", "-q")
    assert ran.code == 0
    (trail,) = json.loads(ran.out)["trail"]
    assert trail["verdict"]["accepted"]


def test_a_recipe_that_cannot_be_written_is_refused_before_the_work(call, tmp_path):
    several = call("analyse", "digits-cnn", "--recipe", tmp_path / "r.yaml")
    assert several.code == 2
    assert "give one of them in kinds, or max_bytes" in several.err
    nowhere = call("analyse", "digits-cnn", "--kinds", "bits", "--recipe", tmp_path / "no" / "r.yaml")
    assert nowhere.code == 2
    assert "there is no folder" in nowhere.err


def test_an_analysis_that_is_kept_in_a_run_is_on_its_page(call, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = call("report", "--html", run)
    assert "<h2>Sensitivity" not in (run / "report.html").read_text()
    asked = ("analyse", "digits-cnn", "--kinds", "bits", "--samples", "16", "--run", run, "-q")
    answer = call(*asked, "--json")
    assert (before.code, answer.code) == (0, 0)
    assert json.loads((run / "analysis.json").read_text()) == json.loads(answer.out)
    call("report", "--html", run)
    assert "Sensitivity" in [h.text for h in Page((run / "report.html").read_text()).all("h2")]


def test_a_run_that_an_analysis_cannot_belong_to_is_refused_before_the_work(call, finished, tmp_path):
    nowhere = call("analyse", "digits-cnn", "--run", tmp_path)
    assert (nowhere.code, nowhere.err) == (
        2,
        f"error: run folder {tmp_path}: there is no run in it; give a folder that an earlier run has made\n",
    )
    (tmp_path / "other_net.py").write_text(OTHER)
    other = call("analyse", f"{tmp_path / 'other_net.py'}:make", "--run", finished, "-q")
    assert other.err == f"error: analyse --run {finished}: a run of another network; give the model of that run\n"
    assert not (finished / "analysis.json").exists()


def test_two_guards_are_refused(call):
    answer = call("analyse", "digits-cnn", "--max-drop", "1pt", "--agreement", "99%", "-q")
    assert answer.err == "error: analyse: max_drop and agreement; give one of them: each is a guard\n"
