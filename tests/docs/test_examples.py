"""The examples run as they stand, and what is stored in the notebook is what running it gives."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

import lilliput
from lilliput.cli.main import run
from lilliput.core import container
from lilliput.graph.integer import IntegerNet
from lilliput.graph.interpreter import decode, quantize_input
from lilliput.graph.interpreter import run as run_program
from lilliput.graph.lower import lower
from lilliput.pipeline.folder import RunFolder
from lilliput.zoo.registry import open_model

EXAMPLES = Path(__file__).parents[2] / "examples"
LARGEST_NOTEBOOK = 200_000
RECIPE = """
threads: 1
passes: [fold_batchnorm, [magnitude_pruning: {sparsity: 0.5}, fine_tune: {epochs: 1}], quantization]
"""


def outputs(notebook, kind):
    """For each code cell, its outputs of one kind."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[o for o in cell.outputs if o.output_type == kind] for cell in cells]


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """The example in a folder of its own; torch's generator, which it seeds, as before afterwards."""
    shutil.copy(EXAMPLES / "own_model.py", tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield "own_model.py:make"


def test_the_notebook_runs_and_its_stored_outputs_are_of_the_same_kinds(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(lilliput.__file__).parents[1]), prepend=os.pathsep)
    stored = nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)
    again = nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)
    NotebookClient(again, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    for kind in ("stream", "display_data", "execute_result", "error"):
        assert [len(o) > 0 for o in outputs(stored, kind)] == [len(o) > 0 for o in outputs(again, kind)]
    assert not any(outputs(again, "error"))
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_is_stored_executed_and_small_and_names_no_machine():
    path = EXAMPLES / "digits.ipynb"
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert path.stat().st_size < LARGEST_NOTEBOOK
    assert str(Path.home()) not in path.read_text(encoding="utf-8")


def test_a_model_of_ones_own_goes_through_the_command_line(own_model, capsys):
    assert run(["check", own_model]) == 0
    assert run(["compress", own_model, "--recipe", "recipe.yaml", "--max-bytes", "20kB", "--quiet"]) == 0
    table = capsys.readouterr().out
    assert "plain int8" in table
    folder = RunFolder.open("runs/latest").path
    assert container.read(folder / "net.lil").size < container.read(folder / "step-00.lil").size
    assert run(["inspect", "runs/latest/net.lil"]) == 0
    assert run(["diff", "runs/latest/net.lil", "--against", own_model]) == 0
    assert run(["evaluate", "runs/latest/ours.onnx", "--into", own_model, "--quiet"]) == 0


def test_a_missed_budget_is_exit_code_1_and_the_files_are_there(own_model):
    recipe = ["--recipe", "recipe.yaml", "--quiet"]
    assert run(["compress", own_model, *recipe, "--max-bytes", "100B"]) == 1
    assert Path("runs/latest/net.lil").is_file()


def test_the_recipe_of_learned_functions_ends_in_integers_on_a_narrower_network(tmp_path):
    recipe = (EXAMPLES / "learned_functions.yaml").read_text(encoding="utf-8")
    for many in ("block_epochs: 10, epochs: 60", "epochs: 15"):
        assert many in recipe
        recipe = recipe.replace(many, "block_epochs: 1, epochs: 1" if "block" in many else "epochs: 1")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    model, task = open_model("digits-resmlp", trained=False, fresh=True)
    few = replace(task, train=task.data("train").subset(torch.arange(128)))
    result = lilliput.apply(model.eval(), few, recipe=tmp_path / "recipe.yaml")
    net = result.artifact
    program = lower(net)
    tables = [(o.kind, o.table.shape) for o in program if o.table is not None]
    assert tables == [("interpolate", (4, 17))] * 2
    x = task.data("test").batch(torch.arange(32))[0]
    with torch.no_grad():
        found = IntegerNet(net)(x)
    (codes,) = run_program(program, quantize_input(program, x.numpy()))
    assert np.array_equal(decode(program.values[program.outputs[0]], codes), found.numpy())
