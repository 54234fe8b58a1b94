"""A small run that is worth interrupting: five steps, three trainings, ONNX files, in about a second."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import lilliput

MODEL = """
from lilliput.testing import tiny_model, tiny_task

def make():
    return tiny_model("batch_norm"), tiny_task(192)
"""
RECIPE = """
lilliput: 1
seed: 3
threads: 1
guard: {max_drop: 100pt}
passes:
  - fold_batchnorm
  - [{magnitude_pruning: {sparsity: 0.4}}, {fine_tune: {epochs: 4, batch_size: 16}}]
  - weight_clustering: {n_clusters: 6}
  - [{fine_tune: {epochs: 2, batch_size: 16}}, {fine_tune: {epochs: 4, batch_size: 32}}]
  - quantization
"""
VOLATILE = {"seconds", "latency", "latency ratio", "peak memory"}
"""What is measured, and so never twice the same."""


@pytest.fixture(scope="session")
def setting(tmp_path_factory):
    """The files that a run is made from."""
    folder = tmp_path_factory.mktemp("setting")
    (folder / "net.py").write_text(MODEL)
    (folder / "recipe.yaml").write_text(RECIPE)
    return SimpleNamespace(model=f"{folder / 'net.py'}:make", recipe=folder / "recipe.yaml")


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """nursery(arguments, log=..., signals=..., fault=...) -> what became of a `lilliput` process."""
    here = Path(__file__).parent
    root = tmp_path_factory.mktemp("nursery")
    source = f"{Path(lilliput.__file__).parents[1]}{os.pathsep}{here.parent}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": source}
    process = subprocess.Popen(
        [sys.executable, str(here / "nursery.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=root,
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    count = 0

    def call(arguments, **job):
        nonlocal count
        count += 1
        log = root / f"{count}.err"
        log.touch()
        job |= {"arguments": [str(a) for a in arguments], "log": str(log)}
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, "the nursery died"
        return SimpleNamespace(**json.loads(answer), err=log.read_text())

    with process:  # closes its pipes, also when a test fails
        yield call


@pytest.fixture(scope="session")
def compress(nursery, setting):
    """compress(runs, ...) starts a run in `runs`, or goes on with the one that is there."""

    def call(runs, **job):
        begun = sorted(p for p in runs.glob("0*") if p.is_dir())
        more = ["--resume", begun[-1]] if begun else ["--out", runs]
        return nursery(["compress", setting.model, "--recipe", setting.recipe, "--quiet", *more], **job)

    return call


@pytest.fixture(scope="session")
def undisturbed(compress, tmp_path_factory):
    """Two runs that nothing disturbed: what they left, and how long the faster one took."""
    places = [tmp_path_factory.mktemp("undisturbed") / "runs" for _ in range(2)]
    ends = [compress(runs) for runs in places]
    assert [(end.code, end.err) for end in ends] == [(0, "")] * 2
    files = [_left_by(runs) for runs in places]
    assert files[0] == files[1]
    return SimpleNamespace(files=files[0], seconds=min(end.seconds for end in ends))


@pytest.fixture(scope="session")
def left_by():
    return _left_by


def _left_by(runs):
    """{name: content} of the only run folder in `runs`; without what is measured."""
    (folder,) = [p for p in runs.iterdir() if p.is_dir() and not p.is_symlink()]
    assert (runs / "latest").resolve() == folder.resolve()
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name == "command.json":  # it names the folder
            files[path.name] = len(json.loads(path.read_text())["commands"])
        elif path.suffix in (".json", ".jsonl"):
            files[path.name] = [timeless(json.loads(line)) for line in lines_of(path)]
        elif path.stem != "table":
            files[path.name] = path.read_bytes()
        else:
            files[path.name] = len(path.read_text().splitlines())
    return files


def lines_of(path):
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def timeless(data):
    if isinstance(data, dict):
        return {k: timeless(v) for k, v in data.items() if k not in VOLATILE}
    if isinstance(data, list):
        return [timeless(v) for v in data if not (isinstance(v, dict) and v.get("name") in VOLATILE)]
    return data
