"""What is recorded is measured again: changes of files are seen, and scores are those of networks changed by hand."""

import csv
import io
import json

import numpy as np
import pytest
import torch

from lilliput.bench.generation.evaluate import evaluate
from lilliput.bench.generation.experiment import load
from lilliput.bench.generation.folder import begin
from lilliput.bench.generation.metrics import metrics
from lilliput.bench.generation.one import work
from lilliput.bench.generation.record import read_text, solution_from
from lilliput.bench.generation.subject import open_subject
from lilliput.core.errors import ArtifactError, UsageError
from lilliput.graph.integer import runnable


@pytest.fixture
def finished(write, tmp_path):
    """The folder of an experiment of two runs."""
    experiment = load(write(solver={"kind": "clustered", "n_values": [2, 5]}))
    folder = tmp_path / "out"
    begin(experiment, folder)
    subject = open_subject(experiment)
    for run in experiment.grid():
        work(subject, run, folder / "runs" / run.name, generations=1)
    return folder


def runs_of(folder):
    return sorted((folder / "runs").iterdir())


def test_what_is_recorded_is_what_is_measured(finished):
    rows = evaluate(finished)
    assert [(row["run"], row["solution"], row["recorded"], row["differences"]) for row in rows] == [
        (0, "01", True, []),
        (1, "01", True, []),
    ]
    assert rows[0]["values"] == 2
    assert rows[1]["values"] == 5
    first = runs_of(finished)[0]
    assert evaluate(first) == evaluate(first / "solutions" / "01.txt") == rows[:1]


def test_a_changed_record_is_seen(finished):
    path = runs_of(finished)[1] / "solutions" / "01.json"
    data = json.loads(path.read_text())
    data["energy_pj"] += 1e-6
    path.write_text(json.dumps(data))
    same, changed = evaluate(finished)
    assert same["differences"] == []
    assert changed["differences"] == [f"energy_pj is {changed['energy_pj']!r}, recorded {data['energy_pj']!r}"]


def test_a_damaged_file_is_named_and_the_rest_is_measured(finished):
    before = evaluate(finished)
    first, second = (run / "solutions" / "01.txt" for run in runs_of(finished))
    whole = first.read_text()
    first.write_text(whole[: len(whole) // 2])
    broken, fine = evaluate(finished)
    assert (broken["run"], broken["solution"]) == (0, "01")
    assert "error" not in broken
    assert str(first) in broken["differences"][0]
    assert fine == before[1]
    with pytest.raises(ArtifactError):  # by itself it is an error
        evaluate(first)
    first.write_text(whole)
    second.with_suffix(".json").write_text("{")
    assert [bool(row["differences"]) for row in evaluate(finished)] == [False, True]


def test_changed_weights_are_seen(finished):
    path = runs_of(finished)[0] / "weights.npz"
    with np.load(path) as found:
        arrays = dict(found)
    np.savez(path, **arrays)  # other bytes, the same weights
    assert evaluate(finished)[0]["differences"] == []
    arrays["second.weight"].reshape(-1)[3] += 1
    faults = [lambda: np.savez_compressed(path, **arrays), lambda: path.write_bytes(b"PK"), path.unlink]
    for spoil in faults:
        spoil()
        assert evaluate(finished)[0]["differences"] == ["weights.npz has other weights"]


def test_another_circuit_is_measured_as_what_it_is(finished):
    first, second = (folder / "solutions" / "01.txt" for folder in runs_of(finished))
    first.write_text(second.read_text())
    changed, whole = evaluate(finished)
    assert changed["error"] == whole["error"]
    assert any(line.startswith("squared_error is ") for line in changed["differences"])
    loose = finished.parent / "loose.txt"
    loose.write_text(second.read_text())
    (row,) = evaluate(loose, of=runs_of(finished)[0])
    assert not row["recorded"]
    assert row["error"] == whole["error"]


def test_what_cannot_be_evaluated_is_refused(finished, write, tmp_path):
    loose = tmp_path / "loose.txt"
    loose.write_text("{1,1,1,1,2,1,1}([1]0,0,1)(1)")
    with pytest.raises(UsageError, match="it is in no folder of a run; name one whose problem it is for: --of"):
        evaluate(loose)
    with pytest.raises(ArtifactError, match=r"1 inputs and 1 outputs; give a circuit for this problem: \d+ inputs"):
        evaluate(loose, of=runs_of(finished)[0])
    damaged = runs_of(finished)[0] / "solutions" / "01.txt"
    damaged.write_text("nothing")
    with pytest.raises(ArtifactError, match="this is not the text of a circuit"):
        evaluate(damaged)
    empty = tmp_path / "empty"
    begin(load(write()), empty)
    with pytest.raises(UsageError, match=f"there are none yet; go on: lilliput cgp continue {empty}"):
        evaluate(empty)


def test_scores_are_those_of_a_network_whose_weights_are_changed_by_hand(finished):
    rows = metrics(finished, "validation")
    assert [(row["run"], row["title"]) for row in rows] == [
        ("", "the network as it came"),
        ("", "bypass in 5 bits, without circuits"),
        (0, "bypass, n_values 2"),
        (1, "bypass, n_values 5"),
    ]
    experiment = load(finished / "experiment.yaml")
    subject = open_subject(experiment)
    x, y = next(iter(subject.task.data("validation").batches(48)))
    run = experiment.grid()[0]
    net = subject.quantized(run)
    problem = subject.problem(run, net)
    path = runs_of(finished)[0] / "solutions" / "01.txt"
    solution = solution_from(read_text(path), problem, "text")
    made = dict(zip(problem.wanted.tolist(), solution.made.tolist(), strict=True))
    changed = subject.net.copy()
    integers = net.encoding("second.weight").integers()
    scale = subject.net.parameter("second.weight").detach().abs().max() / 15
    with torch.no_grad():
        values = torch.tensor([made[int(q)] for q in integers.reshape(-1)]).reshape(integers.shape)
        changed.parameter("second.weight").copy_(values * scale)
        first = subject.net.parameter("first.weight")
        step = first.abs().max() / 15  # what is given is stored as integers, too
        changed.parameter("first.weight").copy_((first / step).round() * step)
    outputs = runnable(changed)(x).detach()
    assert rows[2]["accuracy"] == pytest.approx(100 * float((outputs.argmax(1) == y).float().mean()))
    assert rows[2]["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, y)), rel=1e-5)
    plain = runnable(subject.net)(x).detach()
    assert rows[0]["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(plain, y)), rel=1e-5)
    assert rows[1]["stored_bits"] == rows[2]["plain_bits"]
    written = list(csv.DictReader(io.StringIO((finished / "metrics-validation.csv").read_text())))
    assert [float(row["accuracy"]) for row in written] == [row["accuracy"] for row in rows]
    assert written[2]["verdict"] == rows[2]["verdict"]


def test_the_test_role_is_read_only_where_it_is_asked_for(finished, monkeypatch):
    seen = []
    kept = type(open_subject(load(finished / "experiment.yaml")).task).data
    monkeypatch.setattr("lilliput.core.task.Task.data", lambda task, role: seen.append(role) or kept(task, role))
    metrics(finished, "validation", top=1)
    assert "test" not in seen
    metrics(runs_of(finished)[0], "test")
    assert "test" in seen
    assert (runs_of(finished)[0] / "metrics-test.csv").is_file()
