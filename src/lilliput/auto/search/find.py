"""The best network for a budget: prepares a search, runs it, and makes what it found."""

import time as clocks
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lilliput.auto.search.budget import Budget, Limits
from lilliput.auto.search.clock import Clock
from lilliput.auto.search.deadline import Deadline
from lilliput.auto.search.engine import Search
from lilliput.auto.search.measure import Judge
from lilliput.auto.search.plan import plan_text
from lilliput.auto.search.record import Record, described
from lilliput.auto.search.setup import Setup
from lilliput.core.errors import ArtifactError, UsageError
from lilliput.core.guard import FullForward
from lilliput.core.progress import SILENT, Progress
from lilliput.core.target import Target, parse_seconds
from lilliput.core.task import Task
from lilliput.graph import stored
from lilliput.pipeline.cache import StepCache, identity_of
from lilliput.pipeline.folder import RunFolder
from lilliput.pipeline.run import Outcome, weights_hash

PLACE, STATE, TRIALS = "search", "search.json", "trials.json"
DEFAULT_TRIALS = 20
"""Where neither time nor trials are given."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for."""

    limits: Limits
    time: str | float | None = None
    trials: int | None = None
    epochs: int = 10
    seed: int = 0
    threads: int | None = None
    join: bool = False

    def __post_init__(self) -> None:
        if self.trials is not None and (isinstance(self.trials, bool) or self.trials < 1):
            raise UsageError(f"trials {self.trials!r}", "not a whole number from 1 up", "give for example trials=30")

    @property
    def seconds(self) -> float | None:
        return None if self.time is None else parse_seconds(self.time)

    @property
    def most(self) -> int | None:
        return DEFAULT_TRIALS if self.trials is None and self.time is None else self.trials


@dataclass(kw_only=True)
class Found:
    """`trials`: every candidate, as `Result.trials` has it."""

    outcome: Outcome
    name: str
    trials: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def is_search(folder: RunFolder | None) -> bool:
    return folder is not None and (folder.path / PLACE / STATE).is_file()


@dataclass(kw_only=True)
class Finder:
    """One search from its preparation to its network."""

    model: nn.Module
    task: Task
    target: Target
    wish: Wish
    folder: RunFolder | None = None
    default: Outcome | None = None
    progress: Progress = SILENT
    device: str | torch.device = "cpu"
    batch_size: int = 256

    def find(self) -> Found:
        with self._place() as place:
            search = self._prepared(place)
            setup = search.setup
            for line in plan_text(search).splitlines():
                self.progress.say(line)
            search.on_best = self._keep
            try:
                search.run(place)
            except KeyboardInterrupt:
                self.progress.say("interrupted: what was best so far is measured")
            winner = search.winner()
            outcome = search.made(winner)
            records = search.records()
            self.progress.say(f"best: {winner.name}: {search.text(winner)}; {len(records)} trials")
            trials = [described(setup.budget, r) for r in [*search.base, *records]]
            return Found(outcome=outcome, name=winner.name, trials=trials)

    def plan(self) -> str:
        """What would be done, without doing it."""
        with TemporaryDirectory() as place:
            return plan_text(self._prepared(Path(place)))

    def _keep(self, outcome: Outcome, _record: Record) -> None:
        if self.folder is not None and not self.wish.join:
            self.folder.write("net.lil", stored.dumps(outcome.artifact))
            self.folder.write("recipe.yaml", outcome.recipe.to_yaml())

    @contextmanager
    def _place(self) -> Iterator[Path]:
        if self.folder is not None:
            yield self.folder.path / PLACE
        else:
            with TemporaryDirectory() as place:
                yield Path(place)

    def _prepared(self, place: Path) -> Search:
        clock = Clock(self.wish.seconds)
        wish, task = self.wish, self.task
        identity = {
            **identity_of(self.model, task, weights_hash(self.model)),
            "target": [self.target.name, self.target.flash, self.target.ram, self.target.reduce_range],
            "budget": [str(wish.limits.max_drop), str(wish.limits.max_bytes), str(wish.limits.latency)],
            "seed": wish.seed,
            "batch_size": self.batch_size,
        }
        before = self._before(place, identity)
        setup = self.setup(place, identity)
        search = Search(setup=setup, trials=wish.most, clock=clock)
        if before is not None:
            setup.take_over_(before["known"])
            search.base = [Record.from_data(r) for r in before["base"]]
            return search
        setup.look_()
        search.base_()
        if self.default is not None:
            search.base.append(self._default(search, self.default))
        state = {"identity": identity, "known": setup.known(), "base": [r.to_data() for r in search.base]}
        RunFolder(place).write_json(STATE, state)
        return search

    def _before(self, place: Path, identity: Mapping[str, Any]) -> Any:
        """What an earlier or a running search in this place has found out at its start."""
        if not (place / STATE).is_file():
            if self.wish.join:
                raise UsageError(f"join {place.parent}", "there is no search in it", "start one there first")
            if self.folder is not None and not (self.folder.path / "run.json").exists():
                self.folder.write_json("run.json", {"search": identity})
            return None
        before = RunFolder(place).read_json(STATE)
        for key, value in identity.items():
            if before["identity"].get(key) != value:
                raise ArtifactError(
                    f"go on with the search in {place.parent}",
                    f"{key} not as it was ({before['identity'].get(key)}, now {value})",
                    "give the same model, data, target, budget and seed, or start a new run",
                )
        return before

    def setup(self, place: Path, identity: Mapping[str, Any] | None) -> Setup:
        wish, task = self.wish, self.task
        progress = Deadline(self.progress)
        evaluator = FullForward(task, self.model, batch_size=self.batch_size, device=self.device, progress=progress)
        started = clocks.perf_counter()
        reference = evaluator.reference("validation")
        sample = (clocks.perf_counter() - started) / len(reference.rows)
        budget = Budget.of(self.target, task.score, task.score.value(reference.rows), wish.limits)
        kept = {key: (identity or {}).get(key) for key in ("model", "weights", "data", "batch_size")}
        return Setup(
            model=self.model,
            task=task,
            target=self.target,
            budget=budget,
            epochs=wish.epochs,
            seed=wish.seed,
            threads=wish.threads,
            device=self.device,
            batch_size=self.batch_size,
            progress=progress,
            evaluator=evaluator,
            folder=place,
            cache=StepCache(place / "steps", kept),
            seconds={"sample": sample},
        )

    def _default(self, search: Search, outcome: Outcome) -> Record:
        return Record(
            number=None,
            name="default",
            recipe=outcome.recipe.to_data(),
            measured=search.judge.measure(outcome.artifact),
            rung=3,
            seconds=sum(entry["seconds"] for entry in outcome.trail),
        )


def misses(outcome: Outcome, finder: Finder) -> bool:
    """Whether the outcome of a recipe misses what the finder is to find. The test role is not read for it."""
    with TemporaryDirectory() as place:
        setup = finder.setup(Path(place), None)
        return bool(setup.budget.missed(Judge(setup).measure(outcome.artifact)))
