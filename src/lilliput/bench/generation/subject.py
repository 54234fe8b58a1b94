"""The network of an experiment, its task, and the problem of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lilliput.auto.load import load_artifact
from lilliput.bench.generation.experiment import Experiment, Run
from lilliput.core.artifact import Artifact
from lilliput.core.encoding import Encoding
from lilliput.core.errors import UsageError
from lilliput.core.grid import Grid
from lilliput.core.task import Task
from lilliput.graph.layers import output_axis
from lilliput.measure.energy import PUBLISHED, GateTable, read_gates
from lilliput.methods.weight_generation.importance import fisher
from lilliput.methods.weight_generation.problem import Problem, problem_of
from lilliput.methods.weight_generation.selection import choose
from lilliput.zoo.registry import open_model

USUAL_BITS = 8


@dataclass(kw_only=True)
class Subject:
    """`net` is the network as it came. Problems are kept: runs share them."""

    experiment: Experiment
    net: Artifact
    task: Task
    gates: GateTable
    _slopes: dict[tuple[str, ...], dict[str, torch.Tensor]] = field(default_factory=dict)

    def quantized(self, run: Run) -> Artifact:
        """A copy whose weights of the run are integers: those that have no grid are rounded to one."""
        net = self.net.copy()
        for name in self._names(run.sides.given, run.sides.wanted):
            encoding = net.encoding(name)
            if encoding.grid is None:
                if encoding.sharing is not None:
                    do = "put quantization into the recipe of the network"
                    raise UsageError(f"integers of {name!r}", "its values are shared, and no integers", do)
                net.encode_(name, self._rounded(net, name, run.bits or USUAL_BITS))
            elif run.bits is not None and encoding.grid.common()[2] != run.bits:
                found = f"it has a grid of {encoding.grid.common()[2]} bits"
                raise UsageError(f"{name!r} in {run.bits} bits", found, "leave bits out of the experiment")
        return net

    def problem(self, run: Run, net: Artifact | None = None) -> Problem:
        """What the run makes; `net`: what `quantized` gave for it."""
        net = self.quantized(run) if net is None else net
        importance = None
        if run.importance == "fisher":
            given, wanted = run.sides.given, run.sides.wanted
            names = tuple(self._names(given if wanted == "given" else (), () if wanted == "given" else wanted))
            key = (str(run.bits), *names)
            if key not in self._slopes:
                self._slopes[key] = fisher(net, self.task, names)
            importance = self._slopes[key]
        sides = run.sides
        return problem_of(net, given=sides.given, wanted=sides.wanted, importance=importance, gates=self.gates)

    def _names(self, given: str | Sequence[str], wanted: str | Sequence[str]) -> list[str]:
        """Parameters that these expressions choose from."""
        sides = [given] if wanted == "given" else [given, wanted]
        return list(dict.fromkeys(place.name for side in sides for place in choose(self.net, side).places))

    def _rounded(self, net: Artifact, name: str, bits: int) -> Encoding:
        """On one symmetric grid, or one for each output channel."""
        encoding = net.encoding(name)
        values = encoding.decode()
        axis = output_axis(net.module.get_submodule(name.rpartition(".")[0]))
        if self.experiment.scales == "layer" or axis is None:
            fresh = Encoding.on_one_grid(values, bits)
            grid = fresh.grid
            if grid is None:
                raise UsageError(f"integers of {name!r}", "all of its weights are 0", "choose other layers")
        else:
            largest = values.abs().amax([d for d in range(values.dim()) if d != axis])
            scale = (largest / (2 ** (bits - 1) - 1)).clamp(min=1e-30)
            whole = torch.zeros(len(scale), dtype=torch.int64)
            grid = Grid(scale=scale, zero_point=whole, bit_width=whole + bits, narrow=True, axis=axis)
        return encoding.with_grid(grid)


def open_subject(experiment: Experiment, data_root: str | Path | None = None) -> Subject:
    """Torch's generator is seeded first: a model of the user's own comes out the same in every process."""
    torch.manual_seed(0)
    gates = PUBLISHED if experiment.gates is None else read_gates(experiment.gates)
    if not experiment.model.endswith(".lil"):
        source, weights, data = experiment.model, experiment.weights, experiment.data
        model, task = open_model(source, weights=weights, data=data, data_root=data_root)
        return Subject(experiment=experiment, net=Artifact.of(model, task.spec), task=task, gates=gates)
    into, task = open_model(str(experiment.into), data=experiment.data, data_root=data_root, trained=False)
    return Subject(experiment=experiment, net=load_artifact(experiment.model, into), task=task, gates=gates)
