"""Runs: stopped and continued ones end as uninterrupted ones, whatever a folder holds."""

import os
import shutil

import pytest
import yaml

from in_process import InThisProcess
from lilliput.bench.crew import Crew
from lilliput.bench.generation import one
from lilliput.bench.generation import run as running
from lilliput.bench.generation.experiment import load
from lilliput.bench.generation.folder import begin
from lilliput.bench.generation.folder import opened as reopened
from lilliput.bench.generation.one import work
from lilliput.bench.generation.run import go, plan
from lilliput.bench.generation.worker import Worker
from lilliput.bench.store import Store
from lilliput.core.errors import ArtifactError, LilliputError, UsageError
from lilliput.core.files import locked
from lilliput.core.progress import Progress


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(running, "_started", lambda: InThisProcess(Worker()))


def contents(folder):
    """Every file by its path, without timestamps and locks."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            data = path.read_bytes()
            if path.name == "statistics.csv":
                rows = data.decode().splitlines()
                data = [",".join(part for i, part in enumerate(row.split(",")) if i != 2) for row in rows]
            found[str(path.relative_to(folder))] = data
    return found


def solved(record):
    return {key: value for key, value in record.items() if not key.endswith("seconds")}


def test_a_run_that_is_stopped_anywhere_ends_as_if_it_had_not_been(opened, tmp_path, monkeypatch):
    subject, (run,) = opened()
    whole = work(subject, run, tmp_path / "whole", generations=400)
    wanted = contents(tmp_path / "whole")
    assert len(wanted["statistics.csv"]) > 3  # something was found on the way
    for stops in ([120], [50, 51, 399], [0, 250]):
        folder = tmp_path / "-".join(map(str, stops))
        for generations in stops:
            work(subject, run, folder, generations=max(generations, 1))
        assert solved(work(subject, run, folder, generations=400)) == solved(whole)
        assert contents(folder) == wanted, stops
    monkeypatch.setattr(one, "CHECKPOINT_SECONDS", -1.0)  # a checkpoint at each round changes nothing
    work(subject, run, tmp_path / "often", generations=400)
    assert contents(tmp_path / "often") == wanted


def test_a_run_that_is_killed_between_checkpoint_and_line_ends_the_same(opened, tmp_path, monkeypatch):
    subject, (run,) = opened()
    work(subject, run, tmp_path / "whole", generations=400)

    class KilledError(BaseException):
        pass

    def killed(evolution):
        if evolution.generation == 300:
            raise KilledError
        return False

    folder = tmp_path / "killed"
    work(subject, run, folder, generations=100)
    with pytest.raises(KilledError):
        work(subject, run, folder, generations=400, stop=killed)  # lines up to 300, state of 100
    (folder / ".state.bin.0123abcd.part").write_bytes(b"half")
    with (folder / "statistics.csv").open("a") as file:
        file.write("0,350,2026-0")
    work(subject, run, folder, generations=400)
    assert contents(folder) == contents(tmp_path / "whole")


def test_islands_in_processes_make_the_same(opened, tmp_path):
    solver = {"kind": "evolution", "rows": 32, "columns": 6, "islands": 2, "round_generations": 50, "start": "random"}
    subject, (run,) = opened(solver=solver, generations=100)
    work(subject, run, tmp_path / "one", generations=100)
    work(subject, run, tmp_path / "two", generations=100, processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("kind", ["exact", "clustered", "free"])
def test_direct_solvers_are_ready_at_once_and_twice_the_same(opened, tmp_path, kind):
    subject, (run,) = opened(solver={"kind": kind})
    for name in ("one", "two"):
        record = work(subject, run, tmp_path / name, generations=400)
        assert record["ready"]
        assert record["generation"] == 0
    work(subject, run, tmp_path / "two", generations=400)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_folder_of_another_run_is_refused(opened, tmp_path):
    subject, (run,) = opened()
    work(subject, run, tmp_path / "run", generations=50)
    other, (changed,) = opened(bits=6)
    with pytest.raises(ArtifactError, match="it is of another problem or of other settings"):
        work(other, changed, tmp_path / "run", generations=100)


def test_a_state_that_is_cut_or_of_another_run_is_refused(opened, tmp_path):
    subject, (run,) = opened()
    work(subject, run, tmp_path / "run", generations=50)
    path = tmp_path / "run" / "state.bin"
    data = path.read_bytes()
    for broken in (b"", data[:30], data[:-1], data[:200] + b"x" + data[201:], data + b"x"):
        path.write_bytes(broken)
        with pytest.raises(ArtifactError) as error:
            work(subject, run, tmp_path / "run", generations=100)
        assert error.value.do == "remove it, then continue: the run begins anew"
    path.unlink()
    work(subject, run, tmp_path / "run", generations=100)  # anew
    work(subject, run, tmp_path / "fresh", generations=100)
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")


def test_one_process_writes_a_run(opened, tmp_path):
    subject, (run,) = opened()
    with (
        locked(tmp_path / "run" / ".lock", "test"),
        pytest.raises(UsageError, match=f"process {os.getpid()} on .* is at it"),
    ):
        work(subject, run, tmp_path / "run", generations=50)


def test_the_grid_is_run_once_and_goes_on_where_more_is_asked(write, tmp_path, here):
    solver = [
        {"kind": "evolution", "rows": 32, "columns": 6, "start": "random", "round_generations": 50, "seed": [0, 1]},
        {"kind": "clustered"},
    ]
    experiment = load(write(solver=solver, generations=100))
    folder, progress = tmp_path / "out", Said()
    begin(experiment, folder)
    records = go(plan(experiment, folder), jobs=2, progress=progress)
    assert [r["generation"] for r in records.values()] == [100, 100, 0]
    assert sum(line.startswith("[") for line in progress.lines) == 3
    before = contents(folder)
    assert go(plan(experiment, folder), progress=progress) == records
    assert progress.lines[-1] == "3 of 3 runs are done already"
    assert contents(folder) == before
    more = go(plan(experiment, folder, generations=200), progress=progress)
    assert [r["generation"] for r in more.values()] == [200, 200, 0]
    other = tmp_path / "other"
    begin(experiment, other)
    go(plan(experiment, other, generations=200))
    assert contents(folder / "runs") == contents(other / "runs")
    again, place, number = reopened(folder / "runs" / next(iter(records)))
    assert (again, place, number) == (experiment, folder, 0)


def test_one_run_alone_can_be_chosen(write, tmp_path, here):
    experiment = load(write(solver={"kind": "clustered", "n_values": [2, 3, 4]}))
    begin(experiment, tmp_path / "out")
    for number in (2, 0):
        go(plan(experiment, tmp_path / "out", only=number))
    assert sorted(p.name[:4] for p in (tmp_path / "out" / "runs").iterdir()) == ["0000", "0002"]
    for number in (-1, 3):
        with pytest.raises(UsageError, match=r"the experiment has 3 runs; use 0 to 2"):
            plan(experiment, tmp_path / "out", only=number)
    store = Store(tmp_path / "out")
    name = experiment.grid()[1].name
    assert store.claim(name)
    with pytest.raises(UsageError, match="another process is at it; wait until it has ended"):
        go(plan(experiment, tmp_path / "out", only=1))
    progress = Said()
    assert len(go(plan(experiment, tmp_path / "out"), progress=progress)) == 2
    assert progress.lines[-1] == "1 of 3 runs are left to other processes, which have claimed them"


def test_a_failed_run_is_a_record_and_is_tried_again(write, tmp_path, here):
    experiment = load(write(solver={"kind": "evolution", "rows": 32, "columns": 6, "round_generations": 50}))
    folder = tmp_path / "out"
    begin(experiment, folder)
    planned = plan(experiment, folder, generations=50)
    (name,) = planned.runs
    go(planned)
    state = folder / "runs" / name / "state.bin"
    whole = state.read_bytes()
    state.write_bytes(b"broken")
    record = go(plan(experiment, folder, generations=100))[name]
    assert "the state of an evolution" not in record
    assert record["error"].startswith(f"continue from {state}: ")
    state.write_bytes(whole)
    assert go(plan(experiment, folder, generations=100))[name]["generation"] == 100


def test_an_interrupt_leaves_no_claim_and_the_folder_goes_on(write, tmp_path, here, monkeypatch):
    experiment = load(write(solver={"kind": "clustered", "n_values": [2, 3]}))
    folder = tmp_path / "out"
    begin(experiment, folder)
    kept = Crew._finish
    calls = []

    def interrupted(self, name):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return kept(self, name)

    monkeypatch.setattr(Crew, "_finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(plan(experiment, folder))
    assert list((folder / "claims").iterdir()) == []
    assert len(list((folder / "cells").iterdir())) == 1
    assert len(go(plan(experiment, folder))) == 2


def test_claims_are_released_though_the_interrupt_comes_again_while_processes_end(write, tmp_path, monkeypatch):
    class Slow(InThisProcess):
        def answer(self):
            raise KeyboardInterrupt

        def end(self):
            super().end()
            raise KeyboardInterrupt

    monkeypatch.setattr(running, "_started", lambda: Slow(Worker()))
    experiment = load(write(solver={"kind": "clustered"}))
    begin(experiment, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        go(plan(experiment, tmp_path / "out"))
    assert list((tmp_path / "out" / "claims").iterdir()) == []


def test_what_cannot_work_is_found_before_a_folder_is_made(write, tmp_path):
    faults = {
        "a grid of 4 rows": {"solver": {"kind": "evolution", "rows": 4}},
        "weights 'nothing'": {"problems": {"a": {"wanted": ["nothing"]}}},
        "gates of ": {"gates": "none.csv"},
        "weights to generate": {"problems": {"a": {"wanted": []}}},
        "given and wanted weights": {"problems": {"a": {"given": ["first"], "wanted": ["first"]}}},
    }
    for asked, changed in faults.items():
        experiment = load(write(**changed))
        with pytest.raises(LilliputError) as error:
            plan(experiment, tmp_path / "out")
        assert error.value.asked.startswith(asked)
    assert not (tmp_path / "out").exists()


def test_a_folder_belongs_to_one_experiment(write, tmp_path):
    experiment, folder = load(write()), tmp_path / "out"
    begin(experiment, folder)
    begin(experiment, folder)
    with pytest.raises(UsageError) as error:
        begin(load(write(generations=900)), folder)
    assert error.value.found == "its experiment is another (generations: 400, now 900)"
    assert error.value.do == f"lilliput cgp continue {folder} --generations 900"
    with pytest.raises(UsageError, match=r"bits: 5, now 6.*; choose another folder"):
        begin(load(write(bits=6)), folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"other files \(thesis.tex\); choose an empty folder"):
        begin(experiment, tmp_path / "mine")
    faults = {"mine": "there is no experiment in it", "none": "no such folder", "exp.yaml": "it is a file"}
    for place, found in faults.items():
        with pytest.raises(UsageError, match=found):
            reopened(tmp_path / place)
    (folder / "experiment.yaml").write_text("cut")
    for use in (lambda: reopened(folder), lambda: begin(experiment, folder)):
        with pytest.raises(ArtifactError, match=r"its experiment.yaml is damaged \(experiment: 'cut'\)"):
            use()


def test_the_experiment_of_one_run_makes_that_run(write, tmp_path, here):
    experiment = load(write(solver={"kind": "clustered", "n_values": [2, 3]}))
    begin(experiment, tmp_path / "out")
    go(plan(experiment, tmp_path / "out"))
    name = experiment.grid()[1].name
    copied = shutil.copy(tmp_path / "out" / "runs" / name / "experiment.yaml", tmp_path / "alone.yaml")
    alone = load(copied)
    assert yaml.safe_load(copied.read_text())["solver"] == {"kind": "clustered", "n_values": 3}
    begin(alone, tmp_path / "alone")
    go(plan(alone, tmp_path / "alone"))
    texts = [p.read_text() for f in ("out", "alone") for p in (tmp_path / f).glob("runs/*/solutions/01.txt")]
    assert texts.count(texts[-1]) == 2
