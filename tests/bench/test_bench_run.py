"""Running cells: what is kept of each, failures, resuming after a kill, several runs in one folder."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from in_process import InThisProcess
from lilliput.auto.compress import compress
from lilliput.bench import run as running
from lilliput.bench.cell import Limits, measure, open_subject
from lilliput.bench.grid import load
from lilliput.bench.run import plan, predicted, run_cells
from lilliput.bench.worker import Worker
from lilliput.core.errors import RecipeError, UsageError
from lilliput.core.progress import Progress


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(running, "Process", lambda: InThisProcess(Worker()))


@pytest.fixture
def subject(place):
    return open_subject(load(place / "grid.yaml").sources()["tiny"], "test", None)


def recipe(place, method, budget="", seed=0):
    cells = load(place / "grid.yaml").cells()
    return next(c.recipe for c in cells if (c.method, c.budget, c.seed) == (method, budget, seed))


def test_every_cell_has_a_record_and_a_failed_one_its_error(finished):
    assert len(finished.records) == len(finished.plan["cells"]) == 1 + 2 * (2 + 2 + 1 + 1)
    failed = {key for key, record in finished.cell.items() if "error" in record}
    assert failed == {("broken", "", 0), ("broken", "", 1)}
    assert finished.cell["broken", "", 0]["error"] == "ZeroDivisionError: by design"


def test_cells_count_their_training_steps(finished):
    steps = {key[:2]: record["steps"] for key, record in finished.cell.items() if "steps" in record}
    assert steps["prune", "small"] == 2 * 3  # two epochs of 48 samples in batches of 16
    assert steps["cluster", "small"] == steps["plain", ""] == steps["float", ""] == 0


def test_the_same_seed_gives_the_same_bytes_in_another_process(finished, place, subject):
    for seed in (0, 1):
        record = measure(subject, recipe(place, "prune", "small", seed), Limits(), "test")
        known = finished.cell["prune", "small", seed]
        assert {k: record[k] for k in ("file", "bytes", "rows", "score", "steps")} == {
            k: known[k] for k in ("file", "bytes", "rows", "score", "steps")
        }
    assert finished.cell["prune", "small", 0]["file"] != finished.cell["prune", "small", 1]["file"]


def test_methods_do_not_see_the_test_data(finished, place, subject):
    assert all("test" not in record["looks"] for record in finished.records.values() if "looks" in record)
    guarded = {"passes": [{"quantization": {}, "guard": {"max_drop": "50pt"}}]}
    record = measure(subject, guarded, Limits(), "test")
    assert record["looks"] == {"validation": 1}
    assert record["scored"]["role"] == "test"


def test_a_refused_step_is_noted(place, subject):
    guarded = {"passes": [{"magnitude_pruning": {"sparsity": 0.99}, "guard": {"agreement": "100%"}}]}
    assert measure(subject, guarded, Limits(), "test")["refused"] == ["magnitude_pruning"]


def test_too_many_steps_end_a_cell(place, subject):
    with pytest.raises(UsageError, match="more than 5 training steps"):
        measure(subject, recipe(place, "prune", "small"), Limits(steps=5), "test")
    assert measure(subject, recipe(place, "prune", "small"), Limits(steps=6), "test")["steps"] == 6


def test_cells_out_of_time_or_killed_are_rows_and_the_rest_goes_on(place, tmp_path):
    (place / "slow_method.py").write_text(
        (place / "broken_method.py")
        .read_text()
        .replace("Broken", "Slow")
        .replace('raise ZeroDivisionError("by design")', "\n        while True: pass")
    )
    (place / "dying_method.py").write_text(
        (place / "broken_method.py")
        .read_text()
        .replace("Broken", "Dying")
        .replace(
            'raise ZeroDivisionError("by design")',
            "import os; print('last words', flush=True); os.kill(os.getpid(), 9)",
        )
    )
    grid = load(place / "grid.yaml")
    methods = {"dying": ["dying_method:Dying"], "slow": ["slow_method:Slow"]}
    grid = replace(grid, methods=methods, seeds=[0], limits=Limits(seconds=1.0), baseline="float", published=[])
    records = run_cells(plan(grid), tmp_path)
    errors = {name.split("-")[1]: record.get("error", "") for name, record in records.items()}
    assert errors["slow"] == "cell: out of CPU time; do less, or raise limits: {seconds: ...}"
    assert errors["dying"] == "cell: its process has died (SIGKILL); last words"
    assert errors["float"] == ""


def test_a_finished_grid_runs_nothing(finished, place, monkeypatch):
    planned = plan(load(place / "grid.yaml"))
    started = []
    monkeypatch.setattr(running, "Process", lambda: started.append(1))
    said = Said()
    assert run_cells(planned, finished.folder, progress=said) == finished.records
    assert not started
    assert said.lines == ["13 of 13 cells are done already"]


def test_retry_runs_what_failed(finished, place, here):
    said = Said()
    assert run_cells(plan(load(place / "grid.yaml")), finished.folder, retry=True, progress=said) == finished.records
    assert sum("FAILED: ZeroDivisionError" in line for line in said.lines) == 2
    assert len([line for line in said.lines if line.startswith("[")]) == 2


def test_another_grid_keeps_the_cells_that_it_shares(finished, place, tmp_path):
    grid = load(place / "grid.yaml")
    names = set(plan(grid).cells)
    assert set(plan(replace(grid, baseline="plain", seeds=[0])).cells) < names
    assert set(plan(replace(grid, limits=Limits(epochs=2, steps=10))).cells).isdisjoint(names)


def test_a_killed_run_goes_on_to_the_same_bytes(finished, place, tmp_path, here):
    command = [sys.executable, "-m", "lilliput", "bench", str(place / "grid.yaml"), "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("cells/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(tmp_path.glob("cells/*.json")))
    assert 3 <= kept < 13
    said = Said()
    records = run_cells(plan(load(place / "grid.yaml")), tmp_path, progress=said)
    assert f"{kept} of 13 cells are done already" in said.lines
    assert {n: r.get("file") for n, r in records.items()} == {n: r.get("file") for n, r in finished.records.items()}
    assert not list(tmp_path.glob("claims/*"))


def test_two_runs_in_one_folder_share_the_cells(place, tmp_path, here):
    planned = plan(load(place / "grid.yaml"))
    said = [Said(), Said()]
    threads = [threading.Thread(target=run_cells, args=(planned, tmp_path), kwargs={"progress": s}) for s in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run = [[line.partition("] ")[2].partition(":")[0] for line in s.lines if line.startswith("[")] for s in said]
    assert sorted(run[0] + run[1]) == sorted(cell.title for cell in planned.cells.values())
    assert run[0]
    assert run[1]


def test_an_interrupted_run_keeps_what_is_done_and_claims_nothing(place, tmp_path, here):
    class Interrupts(Progress):
        def say(self, text):
            if text.startswith("[2/"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(plan(load(place / "grid.yaml")), tmp_path, progress=Interrupts())
    assert len(list(tmp_path.glob("cells/*"))) == 2
    assert not list(tmp_path.glob("claims/*"))


def test_a_model_that_is_another_each_time_is_said(place, tmp_path, here):
    grid = load(place / "grid.yaml")
    planned = plan(replace(grid, methods={"plain": ["quantization"]}, baseline="float", seeds=[0]))
    for job in planned.jobs.values():
        job["identity"] = {**job["identity"], "weights": "0" * 16}
    records = run_cells(planned, tmp_path)
    assert all("are others each time it is made" in record["error"] for record in records.values())


def test_patterns_that_match_no_layer_are_found_before_anything_runs(place):
    grid = replace(load(place / "grid.yaml"), methods={"a": [{"quantization": {"skip": ["nowhere"]}}]})
    with pytest.raises(RecipeError, match="nowhere"):
        plan(grid)


def test_the_time_left_is_that_of_the_same_method_else_the_average(place):
    cells = plan(load(place / "grid.yaml")).cells
    by = {(c.method, c.budget, c.seed): name for name, c in cells.items()}
    done = {by["prune", "large", 0]: {"seconds": 9.0}, by["prune", "small", 0]: {"seconds": 3.0}}
    done[by["plain", "", 0]] = {"seconds": 2.0}
    assert predicted([by["prune", "small", 1]], cells, done) == 6.0
    assert predicted([by["cluster", "small", 1], by["plain", "", 1]], cells, done) == 4.0 + 2.0
    assert predicted([by["plain", "", 1]], cells, {by["broken", "", 0]: {"error": "x"}}) == 0.0


def test_raw_bytes_are_those_before_coding(finished):
    floats, shared = finished.cell["float", "", 0]["raw_bytes"], finished.cell["cluster", "small", 0]["raw_bytes"]
    weights, others = 16 * 12 + 12 * 3, 12 + 3
    assert 4 * (weights + others) < floats < 4 * (weights + others) + 150
    assert floats - shared == pytest.approx(4 * weights - weights / 8, abs=60)  # a bit each, two tables of two floats


def test_a_search_is_a_method_whose_cell_is_what_compress_finds(place, subject, here):
    pytest.importorskip("optuna", reason="optuna is not installed")
    path = place / "searched.yaml"
    grid = """
    models: [{source: "tiny_net.py:make", name: tiny}]
    methods: {searched: {search: {max_bytes: $bytes, trials: 3}}}
    budgets: [{name: small, bytes: 290}]
    limits: {epochs: 4}
    """
    path.write_text(grid)
    records = run_cells(plan(load(path)), place / "searched")
    (record,) = (r for name, r in records.items() if "searched" in name)
    assert "error" not in record
    assert "test" not in record["looks"]
    net, task = subject.model, subject.task
    found = compress(net, task.without("test"), max_bytes=290, trials=3, seed=0)
    assert record["bytes"] == found.save(place / "searched.lil") <= 290
    again = run_cells(plan(load(path)), place / "searched")  # resumed: nothing runs
    assert again == records
