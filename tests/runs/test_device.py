"""`device=` means that device: tried on one that is fake, but takes no tensor of another (`device_scenarios.py`)."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lilliput

SCRIPT = Path(__file__).with_name("device_scenarios.py")


@pytest.fixture(scope="session")
def answers():
    """{scenario: traceback, or nothing}. In another process: a device cannot be taken back."""
    source = f"{Path(lilliput.__file__).parents[1]}{os.pathsep}{SCRIPT.parents[1]}"
    done = subprocess.run(
        [sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def functions():
    """The functions of the script without arguments whose names say a truth."""
    tree = ast.parse(SCRIPT.read_text())
    return [f.name for f in tree.body if isinstance(f, ast.FunctionDef) and not f.args.args and f.name != "main"]


@pytest.mark.parametrize("name", functions())
def test_device(answers, name):
    assert answers[name] == ""


def test_recipes_give_the_same_bytes_on_every_device(answers):
    runs = {name: answer for name, answer in answers.items() if " on " in name}
    assert len(runs) == 10
    assert not {name: answer for name, answer in runs.items() if answer}
