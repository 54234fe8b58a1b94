"""A tiny network with a grid, and one finished run of it for all tests of this folder."""

import json
from types import SimpleNamespace

import pytest

from lilliput.bench.grid import load
from lilliput.bench.run import plan, run_cells
from lilliput.bench.store import read_results

NET = """
from dataclasses import replace
from lilliput.testing import tiny_model, tiny_task

def make():
    task = tiny_task(48)
    return tiny_model("linear"), replace(task, test=task.validation)
"""
GRID = """
bench: 1
models: [{source: "tiny_net.py:make", name: tiny}]
seeds: [0, 1]
limits: {epochs: 2}
baseline: cluster
budgets:
  - {name: large, clusters: 8, sparsity: 0.2}
  - {name: small, clusters: 2, sparsity: 0.9}
methods:
  cluster: [weight_clustering: {n_clusters: $clusters}]
  prune: [[magnitude_pruning: {sparsity: $sparsity}, fine_tune: {epochs: $epochs, batch_size: 16}]]
  plain: [quantization]
  broken: [weight_clustering, weight_clustering: {n_clusters: 3}, broken_method:Broken]
published:
  - {model: tiny, method: prune, budget: small, score: 61.5, bytes: 321, source: "A & B (2020), table 1"}
  - {model: tiny, method: theirs, score: 70.25, source: "C_D | 2021"}
"""
BROKEN = """
from dataclasses import dataclass
from typing import ClassVar
import lilliput as ll

@dataclass(frozen=True, kw_only=True)
class Broken(ll.Pass):
    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "raises"

    def apply_(self, net, context):
        raise ZeroDivisionError("by design")
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with `grid.yaml`, the network and a method that raises; the method is on the path of every process."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "tiny_net.py").write_text(NET)
    (folder / "broken_method.py").write_text(BROKEN)
    (folder / "grid.yaml").write_text(GRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        yield folder


@pytest.fixture(scope="session")
def finished(place):
    """The grid, run by two processes: folder, plan, records by name, and a look-up by method, budget and seed."""
    folder = place / "out"
    run_cells(plan(load(place / "grid.yaml")), folder, jobs=2)
    planned, records = read_results(folder)
    found = {tuple(planned["cells"][n][k] for k in ("method", "budget", "seed")): r for n, r in records.items()}
    return SimpleNamespace(
        folder=folder, plan=planned, records=records, cell=found, copy=lambda: json.loads(json.dumps(records))
    )
