"""The record on MNIST: its recipe runs, and the file that is kept is what its row says."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lilliput as ll
from lilliput.core.task import Task
from lilliput.graph import stored
from lilliput.zoo import tasks

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def record():
    path = BENCHMARKS / "mnist_record.py"
    if not path.is_file():
        pytest.skip("the source archive has no benchmarks")
    spec = importlib.util.spec_from_file_location("mnist_record", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mnist_record"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mnist_record"]


@pytest.fixture(scope="module")
def mnist(published_data) -> Task:
    if not (published_data / "MNIST" / "raw").is_dir():
        pytest.skip("LILLIPUT_TEST_DATA has no MNIST/raw")
    return tasks.image_classification("mnist")(data_root=published_data)


TAUGHT = {"teacher": (6, 6, 8), "teaching": 1, "moved": 0.5, "steps": {"convs.0": 3.0}, "distillation": 0.9, "tries": 2}


@pytest.mark.parametrize("more", [{}, TAUGHT], ids=["alone", "taught"])
def test_the_recipe_runs_on_a_few_batches_and_its_file_gives_what_was_trained(record, mnist, more):
    few = {role: mnist.data(role).subset(torch.arange(512)) for role in ("train", "validation", "test")}
    task = replace(mnist, augment=record.moved, **few)
    row = record.Row(widths=(4, 4, 6), pooled=(1,), max_bytes=700, epochs=2, tuning=2, **more)
    net, _ = record.made(row, task, 0, "float32")
    data = stored.dumps(net, names=False)
    assert len(data) <= 700
    found, again = record.measure(row, task, 0, "float32")
    assert again == data
    assert found["lil_bytes"] == len(data)
    x = few["test"].batch(torch.arange(64))[0]
    with torch.no_grad():
        assert found["accuracy"] == record.right(net.module, task, "test")
        assert net.module(x).shape == (64, 10)


def test_the_kept_file_is_the_smallest_of_99_percent_and_runs_as_its_row_says(record, mnist, tmp_path):
    kept = json.loads((BENCHMARKS / "results" / "mnist_record.json").read_text())
    row, path = kept["rows"][kept["file"]], BENCHMARKS / "results" / "mnist_record.lil"
    assert path.stat().st_size == row["lil_bytes"]
    assert row["lil_bytes"] == min(r["lil_bytes"] for r in kept["rows"].values() if r["accuracy"] >= 99.0)
    assert record.right(ll.load(path), mnist, "test") == pytest.approx(row["accuracy"], abs=0.02)
