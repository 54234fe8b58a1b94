"""What every candidate of a search shares: the network, the task, the budget, and what was found out at the start."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lilliput.auto.search.budget import Budget
from lilliput.auto.search.deadline import Deadline, OutOfTimeError, Quiet
from lilliput.auto.search.pace import Pace, epochs_in, kind_of
from lilliput.auto.search.record import FULL, LONG, SHORT, UNTRAINED, Candidate, key_of
from lilliput.auto.search.templates import STRENGTH, TEMPLATES, Setting, Template
from lilliput.core.artifact import Artifact
from lilliput.core.errors import ArtifactError, LilliputError
from lilliput.core.guard import FullForward
from lilliput.core.method import Context, Pass
from lilliput.core.target import Target
from lilliput.core.task import Data, Role, Task
from lilliput.graph.coupling import channel_groups, shapes_of
from lilliput.graph.trace import graph_of
from lilliput.methods.second_order.rate_distortion import usual_price
from lilliput.methods.tuning.fine_tune import FineTune
from lilliput.pipeline.cache import StepCache
from lilliput.pipeline.recipe import Recipe, Step
from lilliput.pipeline.run import Outcome, run

SHORTER = 4
"""Short trainings have this part of the epochs of full ones."""
STEPPED, FEW = 256, 64
"""Samples of train and validation on which a training is timed."""
C_VALUES = 15
"""And zero: 4 bits each in generated C."""


@dataclass(kw_only=True)
class Setup:
    model: nn.Module
    task: Task
    target: Target
    budget: Budget
    epochs: int
    seed: int = 0
    threads: int | None = None
    device: str | torch.device = "cpu"
    batch_size: int = 256
    progress: Deadline
    evaluator: FullForward
    folder: Path
    cache: StepCache
    templates: tuple[Template, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict[str, str])
    price: float = 1.0
    ram: float = 0.0
    """Planned for plain int8."""
    integer_activations: bool = True
    floats: dict[str, str] = field(default_factory=dict[str, str])
    """What integers cannot do in this network, and why."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Measured at the start: "sample" (one through the network), "step" (one in training), "price", "int8"."""
    overhead: float = 0.0
    """Bytes of a file beside its weights: recipe, graph, grids of activations."""
    pace: Pace = field(default_factory=Pace)
    latest: tuple[str, Outcome] | None = None
    """What was run last, by the key of its recipe."""
    original: Artifact = field(init=False)

    def __post_init__(self) -> None:
        self.original = Artifact.of(self.model, self.task.spec)

    @property
    def short_epochs(self) -> int:
        return max(1, self.epochs // SHORTER)

    def epochs_of(self, candidate: Candidate) -> int:
        longest = candidate.epochs if candidate.effort == LONG else self.epochs
        return {UNTRAINED: 0, SHORT: self.short_epochs}.get(candidate.effort, longest)

    def passes(self, candidate: Candidate) -> list[Pass]:
        limit = self.budget.limits.get("max_bytes")
        setting = Setting(
            values=candidate.values,
            epochs=self.epochs_of(candidate),
            price=self.price,
            integer_activations=self.integer_activations,
            shared_values=C_VALUES if self.target.preset.file == "flash" else 256,
            size=self.usual_size if limit is None else max(limit[1] - self.overhead, 1.0),
        )
        return named(candidate.template).passes(setting)

    @property
    def usual_size(self) -> float:
        """Two bits for each weight."""
        return 0.25 * sum(p.numel() for p in self.original.module.parameters())

    def recipe(self, candidate: Candidate) -> Recipe:
        """Without guards: a candidate is judged as a whole."""
        return self.recipe_of(tuple(Step(passes=(p,)) for p in self.passes(candidate)))

    def sized_recipe(self) -> Recipe:
        """Of a candidate that holds a size, if there are any: the recipe is in the file, too."""
        sized = [t.name for t in self.templates if t.sized]
        candidates = [Candidate(template=name, values=usual_values(name), effort=FULL) for name in sized]
        return self.recipe(candidates[0]) if candidates else self.recipe_of(())

    def recipe_of(self, steps: tuple[Step, ...]) -> Recipe:
        return Recipe(steps=steps, seed=self.seed, target=self.target, threads=self.threads)

    def run(self, recipe: Recipe, template: str = "") -> Outcome:
        """Raises `OutOfTimeError` where it would end too late. What passes take is noted in either case."""
        try:
            outcome = run(
                self.model,
                self.task,
                recipe,
                device=self.device,
                batch_size=self.batch_size,
                like=self.original,
                cache=self.cache,
                progress=Quiet(self.progress),
            )
        except OutOfTimeError as late:
            method = recipe.steps[self.cache.steps_of(recipe)].passes[0]
            self.pace.correct(template, kind_of(method), late.seconds / epochs_in(method))
            raise
        for step, entry in zip(recipe.steps, outcome.trail, strict=True):
            method = step.passes[0]
            self.pace.note(template, kind_of(method), entry["seconds"] / epochs_in(method))
        self.latest = key_of(recipe.to_data()), outcome
        return outcome

    def known(self) -> dict[str, Any]:
        """What the processes that join must take over, as plain data."""
        return {
            "templates": [t.name for t in self.templates],
            "dropped": self.dropped,
            "price": self.price,
            "ram": self.ram,
            "overhead": self.overhead,
            "floats": self.floats,
            "integer_activations": self.integer_activations,
            "epochs": self.epochs,
            "seconds": self.seconds,
        }

    def take_over_(self, known: Mapping[str, Any]) -> None:
        self.templates = tuple(named(name) for name in known["templates"])
        self.dropped, self.price, self.epochs = dict(known["dropped"]), known["price"], known["epochs"]
        self.ram, self.overhead, self.floats = known["ram"], known["overhead"], dict(known["floats"])
        self.integer_activations, self.seconds = known["integer_activations"], dict(known["seconds"])

    def look_(self) -> None:
        """The usual price of a bit, what a sample takes, and which templates fit the network."""
        graph_reason = channel_reason = training_reason = ""
        try:
            graph = graph_of(self.original)
            coupling = channel_groups(graph, shapes_of(self.original.module.state_dict()))
            if not any(g.made and not g.fixed for g in coupling.groups):
                channel_reason = "no channels of the network can go"
            context = Context.of(self.task, self.original.module, seed=self.seed, batch_size=self.batch_size)
            for _ in range(2):  # the second time nothing is loaded or compiled any more
                context.generator.manual_seed(self.seed)
                started = time.perf_counter()
                self.price = usual_price(self.original, context)
                self.seconds["price"] = time.perf_counter() - started
        except LilliputError as error:
            graph_reason = str(error)
        if self.task.train is None:
            training_reason = "there are no training data"
        else:
            try:
                self.seconds["step"] = self._training_step()
            except LilliputError as error:
                training_reason = str(error)
        reasons = (training_reason, graph_reason, channel_reason)
        self.templates = tuple(t for t in TEMPLATES if not self._why_not(t, *reasons))

    def _training_step(self) -> float:
        """Seconds that a sample takes in training, from a few steps; the second time nothing is loaded any more."""
        parts: dict[Role, int] = {"train": STEPPED, "validation": FEW}
        data = {role: spread(self.task.data(role), most) for role, most in parts.items()}
        task, count, seconds = replace(self.task, **data, test=None, groups=None), len(data["train"]), 0.0
        for _ in range(2):
            net = self.original.copy()
            context = Context.of(task, self.original.module, device=self.device, batch_size=self.batch_size)
            started = time.perf_counter()
            FineTune(epochs=1).apply_(net.to_(context.device), context)
            seconds = time.perf_counter() - started
        return seconds / count

    def _why_not(self, template: Template, training: str, graph: str, channels: str) -> str:
        reason = ""
        if template.trains and training:
            reason = training
        elif template.reads_graph and graph:
            reason = graph
        elif template.removes_channels and channels:
            reason = channels
        elif template.sized and self.target.preset.file == "flash":
            reason = "it holds the size of a file, not of flash"
        if reason:
            self.dropped[template.name] = reason
        return reason


def named(name: str) -> Template:
    for template in TEMPLATES:
        if template.name == name:
            return template
    raise ArtifactError(f"template {name!r}", "this version does not have it", "start a new search")


def usual_values(name: str) -> dict[str, float]:
    template = named(name)
    return {STRENGTH: template.start} | {k.name: k.usual for k in template.knobs}


def spread(data: Data, most: int) -> Data:
    """At most so many of the samples, from all over them: sorted ones have more than one class, too."""
    return data.subset(torch.linspace(0, len(data) - 1, min(len(data), most)).long())
