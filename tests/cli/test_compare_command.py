"""lilliput compare: files in one table."""

import json

import torch
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.learned_activation import LearnedActivation
from lilliput.graph import stored
from lilliput.zoo.registry import open_model


def test_two_files_stand_in_one_table_with_their_scores(call, finished, tmp_path):
    model, task = open_model("digits-cnn")
    original = tmp_path / "original.lil"
    stored.save(Artifact.of(model, task.spec), original)
    net = finished / "net.lil"
    answer = call("compare", original, net, "--data", "digits", "--no-latency", "--json", "-q")
    assert answer.code == 0
    rows = {row["quantity"]: row for row in json.loads(answer.out)}
    assert rows["file"]["net"] == net.stat().st_size
    assert rows["file"]["original"] == original.stat().st_size
    report = {row["name"]: row for row in json.loads((finished / "result.json").read_text())["columns"]}
    for name, column in (("original", "float"), ("net", "ours")):
        scores = {m["name"]: m["value"] for m in report[column]["measurements"]}
        assert rows["accuracy"][name] == scores["accuracy"]
    text = call("compare", original, net, "--no-latency", "-q")
    assert text.code == 0
    assert text.out.splitlines()[0].split() == ["original", "net", "origin"]
    assert "accuracy" not in text.out


def test_inspect_says_what_learned_functions_take(call, tmp_path):
    act = LearnedActivation(6, kind="table", points=9)
    model = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 6), act, LearnedActivation(6, kind="psa"))
    torch.nn.init.normal_(act.weight)
    path = tmp_path / "it.lil"
    stored.save(Artifact.of(model.eval(), InputSpec(shape=(4,))), path)
    found = json.loads(call("inspect", path, "--json").out)
    own = sum(t["bytes"] for t in found["tensors"] if t["name"].split(".")[0] in "14")
    wanted = {"places": 3, "functions": 12, "numbers": 6 * 9 + 6 * 26, "bytes": own}
    assert found["functions"] == wanted
    assert f"12 learned functions at 3 places: 210 numbers in {own} bytes" in call("inspect", path).out


def test_one_file_is_not_a_comparison(call, finished):
    answer = call("compare", finished / "net.lil")
    assert answer.code == 2
    assert "give two or more" in answer.err


def test_what_is_no_file_is_one_line(call, finished, tmp_path):
    answer = call("compare", finished / "net.lil", tmp_path / "none.lil", "-q")
    assert answer.code == 2
    assert "none.lil" in answer.err
    assert len(answer.err.splitlines()) == 1
