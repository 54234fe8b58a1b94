"""`lilliput cgp`, as it is called: results, exit codes, errors, and a run that is interrupted."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from in_process import InThisProcess
from lilliput.bench.generation import run as running
from lilliput.bench.generation.experiment import load
from lilliput.bench.generation.one import work
from lilliput.bench.generation.subject import open_subject
from lilliput.bench.generation.worker import Worker

NET = """
from lilliput.testing import tiny_model, tiny_task

def make():
    return tiny_model("residual"), tiny_task(48)
"""
EXPERIMENT = {
    "model": "cgp_net.py:make",
    "bits": 5,
    "problems": {"bypass": {"given": ["first"], "wanted": ["second"]}},
    "solver": {"kind": "clustered", "n_values": [2, 4]},
}
EVOLUTION = {"kind": "evolution", "rows": 32, "columns": 6, "start": "random", "round_generations": 200, "threshold": 1}


@pytest.fixture
def write(tmp_path):
    """Writes an experiment beside its network; gives its path."""
    (tmp_path / "cgp_net.py").write_text(NET)

    def written(**changed):
        path = tmp_path / "exp.yaml"
        path.write_text(yaml.safe_dump({**EXPERIMENT, **changed}))
        return path

    yield written
    sys.modules.pop("cgp_net", None)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(running, "_started", lambda: InThisProcess(Worker()))


def test_an_experiment_from_train_to_metrics(call, write, tmp_path, here):
    folder = tmp_path / "out"
    answer = call("cgp", "train", write(), "-o", folder)
    assert answer.code == 0, answer.err
    assert "[2/2] 1 bypass, n_values 4: RMS error " in answer.err
    assert [line.split("  ")[0] for line in answer.out.splitlines()[2:]] == [
        "0 bypass, n_values 2",
        "1 bypass, n_values 4",
    ]
    assert call("cgp", "continue", folder).out == answer.out
    records = json.loads(call("cgp", "train", write(), "-o", folder, "--json").out)
    assert [record["gates"] > 0 for record in records.values()] == [True, True]
    evaluated = call("cgp", "evaluate", folder)
    assert evaluated.code == 0
    assert evaluated.out.count("equal") == 2
    measured = call("cgp", "metrics", folder, "-q")
    assert measured.code == 0
    assert measured.out.splitlines()[-1].startswith("on validation, energies in pJ; written to ")
    (path,) = folder.glob("runs/0001*/solutions/01.json")
    path.write_text(path.read_text().replace('"rms": ', '"rms": 1'))
    changed = call("cgp", "evaluate", folder)
    assert changed.code == 4
    assert "DIFFERS" in changed.out
    assert changed.err == "error: 1 of 2 solutions are not what is recorded of them\n"


def test_a_job_script_says_how_to_hand_it_in(call, write, tmp_path):
    answer = call("cgp", "job", write(), "--system", "slurm", "-o", tmp_path / "job.sh", "--walltime", "1:00:00")
    assert answer == (0, f"{tmp_path / 'job.sh'} is written: sbatch {tmp_path / 'job.sh'}\n", "")
    assert "#SBATCH --array=0-1\n" in (tmp_path / "job.sh").read_text()


def test_errors_are_one_line_that_says_what_to_do(call, write, tmp_path):
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    path, out = write(), tmp_path / "out"
    faults = [
        (["train", tmp_path / "none.yaml"], f"experiment {tmp_path / 'none.yaml'}: it cannot be read; check the path"),
        (["train", path, "-o", out, "--only", "7"], "run 7: the experiment has 2 runs; use 0 to 1"),
        (["continue", nothing], f"experiment folder {nothing}: there is no experiment in it; begin one: lilliput cgp"),
        (["evaluate", tmp_path / "none"], f"experiment folder {tmp_path / 'none'}: no such folder; begin one"),
        (["evaluate", tmp_path / "none.txt"], f"evaluate {tmp_path / 'none.txt'}: it is in no folder of a run"),
        (["metrics", nothing], f"experiment folder {nothing}: there is no experiment in it"),
        (["metrics", nothing, "--role", "tset"], "--role tset: not a role; use one of train, validation, test"),
        (["job", path, "--system", "lsf", "-o", out], "--system lsf: not known; use pbs or slurm"),
        (["job", path, "--system", "pbs", "-o", out, "--email", "x y"], "--email x y: it is no email for a job"),
    ]
    for arguments, message in faults:
        answer = call("cgp", *arguments)
        assert answer.code == 2
        assert answer.err.splitlines()[-1].startswith(f"error: {message}"), answer.err
        assert answer.out == ""
    assert not out.exists()


def test_a_run_that_fails_is_exit_code_2(call, write, tmp_path, here):
    folder = tmp_path / "out"
    path = write(solver=EVOLUTION, generations=200)
    assert call("cgp", "train", path, "-o", folder, "-q").code == 0
    (state,) = folder.glob("runs/*/state.bin")
    state.write_bytes(state.read_bytes()[:-3])
    answer = call("cgp", "continue", folder, "--generations", "400", "-q")
    assert answer.code == 2
    assert "failed" in answer.out
    assert answer.err.startswith(f"error: 1 of 1 runs have failed; the first: continue from {state}: broken bytes;")


def test_an_interrupted_run_goes_on_to_the_same_solutions(call, write, tmp_path, here):
    path, folder = write(solver=EVOLUTION, generations=10**12), tmp_path / "out"
    command = [sys.executable, "-m", "lilliput", "cgp", "train", path, "-o", folder]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("runs/*/statistics.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert error.splitlines()[-1] == f"error: interrupted; what was found is kept: lilliput cgp continue {folder}"
    assert list((folder / "claims").iterdir()) == []
    (run,) = folder.glob("runs/*")
    answer = call("cgp", "continue", run, "--generations", "400", "-q", "--json")
    (record,) = json.loads(answer.out).values()
    other = load(write(solver=EVOLUTION))
    work(open_subject(other), other.grid()[0], tmp_path / "whole", generations=record["generation"])
    for name in ("solutions/01.txt", "solutions/01.json", "weights.npz", "gates.csv", "state.bin"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_example_is_an_experiment():
    assert len(load(Path(__file__).parents[2] / "examples" / "cgp_digits.yaml").grid()) > 1
