"""lilliput compare: files in one table."""

import json

from lilliput.zoo.registry import open_model


def test_two_files_stand_in_one_table_with_their_scores(call, finished, tmp_path):
    from lilliput.core.artifact import Artifact
    from lilliput.graph import stored

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


def test_one_file_is_not_a_comparison(call, finished):
    answer = call("compare", finished / "net.lil")
    assert answer.code == 2
    assert "give two or more" in answer.err


def test_what_is_no_file_is_one_line(call, finished, tmp_path):
    answer = call("compare", finished / "net.lil", tmp_path / "none.lil", "-q")
    assert answer.code == 2
    assert "none.lil" in answer.err
    assert len(answer.err.splitlines()) == 1
