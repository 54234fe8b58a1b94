"""A tiny network and an experiment that a few rounds finish."""

import sys

import pytest
import yaml

from lilliput.bench.generation.experiment import load
from lilliput.bench.generation.subject import open_subject

NET = """
from dataclasses import replace
from lilliput.testing import tiny_model, tiny_task

def make():
    task = tiny_task(48)
    return tiny_model("residual"), replace(task, test=task.validation)
"""
EXPERIMENT = {
    "model": "tiny_cgp.py:make",
    "bits": 5,
    "problems": {"bypass": {"given": ["first"], "wanted": ["second"]}},
    "solver": {
        "kind": "evolution",
        "rows": 32,
        "columns": 6,
        "start": "random",
        "round_generations": 50,
        "threshold": 1,
    },
    "generations": 400,
    "keep": 3,
}


@pytest.fixture
def place(tmp_path):
    """A folder with the network in it."""
    (tmp_path / "tiny_cgp.py").write_text(NET)
    yield tmp_path
    sys.modules.pop("tiny_cgp", None)


@pytest.fixture
def write(place):
    """write(key=value, ...) writes `exp.yaml` with these keys changed, None leaving one out; gives its path."""

    def written(**changed):
        data = {key: value for key, value in {**EXPERIMENT, **changed}.items() if value is not None}
        (place / "exp.yaml").write_text(yaml.safe_dump(data))
        return place / "exp.yaml"

    return written


@pytest.fixture
def opened(write):
    """opened(key=value, ...) gives the subject of that experiment and its runs."""

    def subject(**changed):
        experiment = load(write(**changed))
        return open_subject(experiment), experiment.grid()

    return subject
