"""One finished run for all tests of the command line, and a way to call a command."""

from typing import NamedTuple

import pytest

from lilliput.cli.main import run

RECIPE = """
lilliput: 1
seed: 2
threads: 1
guard: {max_drop: 5pt}
passes:
  - fold_batchnorm
  - weight_clustering: {n_clusters: 16}
  - quantization
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys):
    """call("zoo", "--json") -> (exit code, standard output, standard error)."""

    def made(*arguments):
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        return Answer(code, *capsys.readouterr())

    return made


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "short.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, recipe):
    """The run folder of `compress digits-cnn` with a short recipe."""
    runs = tmp_path_factory.mktemp("cli") / "runs"
    assert run(["compress", "digits-cnn", "--recipe", str(recipe), "--out", str(runs), "--quiet"]) == 0
    return runs / "0001-digits-cnn"
