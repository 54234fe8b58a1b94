"""The search: ask, weigh, tell, until the trials or the time are used up. What was best is always on the disk."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from lilliput.auto.search.clock import Clock, predicted, reserve, usual
from lilliput.auto.search.deadline import OutOfTimeError
from lilliput.auto.search.journal import WINDOW, Journal
from lilliput.auto.search.measure import Judge
from lilliput.auto.search.proposals import NEXT, Left, around, effort_of, longer, propose
from lilliput.auto.search.record import FULL, Candidate, Record, best, feasible, key_of, order
from lilliput.auto.search.setup import Setup
from lilliput.auto.search.stages import weighed
from lilliput.auto.search.templates import STRENGTH
from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.core.errors import LilliputError
from lilliput.core.target import Target
from lilliput.graph import stored
from lilliput.graph.integer import IntegerNet, runnable
from lilliput.graph.lower import lower
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.quantization.post_training import Quantization
from lilliput.pipeline.recipe import Recipe, Step, from_data
from lilliput.pipeline.run import Outcome

PLAIN, FLOAT = "plain int8", "float"
GIVEN_UP = 5
GRID_BYTES = 12
"""Of the grid of an activation in a file, about."""
NEEDED = 5
"""So many of the best keep what they begin with in the cache."""
IDLE = 12
"""Times in a row that nothing new was found: then it ends, whatever time is left."""


@dataclass(kw_only=True)
class Search:
    setup: Setup
    trials: int | None
    clock: Clock
    base: list[Record] = field(default_factory=list[Record])
    on_best: Callable[[Outcome, Record], None] | None = None

    def __post_init__(self) -> None:
        self.judge = Judge(self.setup)
        self.journal: Journal | None = None
        self.written: Record | None = None
        self.kept: Outcome | None = None
        self.idle = 0

    def base_(self) -> None:
        """The two networks that need no search: plain int8, and the float one for when nothing else can be made."""
        setup = self.setup
        for name, passes in ((PLAIN, (FoldBatchNorm(), Quantization())), (FLOAT, ())):
            started = time.perf_counter()
            recipe = setup.recipe_of(tuple(Step(passes=(p,)) for p in passes))
            measured, refused = None, ""
            try:
                artifact = setup.run(recipe).artifact
                measured = self.judge.measure(artifact)
                setup.floats |= in_float(artifact, setup.target)
                if name == PLAIN:
                    setup.overhead = beside_weights(artifact, setup.sized_recipe())
            except LilliputError as error:
                refused = str(error)
                if name == PLAIN:
                    setup.integer_activations = False
            record = Record(
                number=None,
                name=name,
                recipe=recipe.to_data(),
                measured=measured,
                rung=1,
                refused=refused,
                seconds=round(time.perf_counter() - started, 3),
            )
            self.base.append(record)
        setup.seconds["int8"] = setup.pace.of("", "quantization") or 0.0
        plain = self.base[0].measured
        setup.ram = 0.0 if plain is None else plain.ram

    def run(self, folder: Path) -> None:
        setup = self.setup
        self.journal = journal = Journal(folder, setup.budget, setup.seed)
        with journal.working():
            self._better_(journal.records())
            while self.idle < IDLE:
                again = journal.retake_()
                if again:
                    setup.progress.say(f"{again} trials of a process that has ended are taken up again")
                records = journal.records()
                if self._over(records) or not self._one_(journal, records):
                    break

    @property
    def made_before(self) -> list[Record]:
        """What needs no search: plain int8, and the default recipe if it was run."""
        return [r for r in self.base if r.name != FLOAT]

    def records(self) -> list[Record]:
        return [] if self.journal is None else self.journal.records()

    def winner(self) -> Record:
        """The best that keeps the limits, or what misses them least; the float network if there is nothing else."""
        found = best(self.setup.budget, [*self.records(), *self.made_before])
        return found if found is not None else self.base[1]

    def made(self, record: Record) -> Outcome:
        """The network again: often it is still there; else what its recipe begins with is in the cache."""
        setup, key = self.setup, key_of(record.recipe)
        if self.kept is not None and self.written is not None and key == key_of(self.written.recipe):
            return self.kept
        known = setup.latest is not None and setup.latest[0] == key
        outcome = setup.latest[1] if known and setup.latest is not None else setup.run(from_data(dict(record.recipe)))
        outcome.context.evaluator = setup.evaluator
        outcome.context.progress = setup.progress
        return outcome

    def _over(self, records: Sequence[Record]) -> bool:
        return self.trials is not None and len(records) >= self.trials

    @property
    def usable(self) -> float | None:
        """Seconds until the comparison must begin."""
        left = self.clock.left
        return None if left is None else left - reserve(self.setup, self.clock.seconds or 0.0)

    def _left(self, records: Sequence[Record]) -> Left:
        setup, usable = self.setup, self.usable
        longest = max((predicted(setup, usual(t.name, FULL)) for t in setup.templates if t.trains), default=0.0)
        given = self.clock.seconds or 0.0
        return Left(
            trials=None if self.trials is None else self.trials - len(records),
            seconds=usable,
            predicted=lambda candidate: predicted(setup, candidate),
            ending=usable is not None and usable < 3 * longest,
            polishing=usable is not None and (usable < 0.5 * (given - reserve(setup, given)) or self.idle > IDLE // 2),
        )

    def _one_(self, journal: Journal, records: Sequence[Record]) -> bool:
        """Try one candidate; False if none fits the time that is left."""
        setup, left = self.setup, self._left(records)
        efforts = {t.name: effort_of(setup, t) for t in setup.templates}
        if not any(left.fits(usual(name, effort)) for name, effort in efforts.items()):
            return False
        chosen = None if journal.waiting() else propose(setup, records, journal.under_way(), left)
        sampled = chosen is None and not journal.waiting()
        if chosen is not None:
            journal.queue(chosen)
        trial, candidate = journal.ask(setup.templates, around(setup, records), efforts)
        useless = candidate.template in given_up(records) and candidate.of is None
        if useless or not left.fits(candidate, share=NEXT if sampled else 1.0):
            journal.drop(trial)
            return candidate.of is not None or self._another_(journal, records, left)
        self._weigh_(journal, trial, candidate, records)
        return True

    def _another_(self, journal: Journal, records: Sequence[Record], left: Left) -> bool:
        """In place of what takes too long or leads to nothing: near the best, or the quickest template that fits."""
        setup = self.setup
        dice = Random(f"{setup.seed}/{len(records)}")  # noqa: S311 - no secret
        efforts = {t.name: effort_of(setup, t) for t in setup.templates}
        gone = given_up(records)
        usuals = {t.name: usual(t.name, efforts[t.name]) for t in setup.templates}
        fitting = [t for t in setup.templates if left.fits(usuals[t.name], share=NEXT) and t.name not in gone]
        if not fitting:
            return self._last_(journal, records, left, efforts)
        leader = best(setup.budget, records)
        near = [t for t in fitting if leader is not None and t.name == leader.name]
        quickest = min(fitting, key=lambda t: predicted(setup, usuals[t.name]))
        chosen = near[0] if near else quickest
        middle = around(setup, records)[chosen.name]
        values = {STRENGTH: round(min(max(middle + dice.uniform(-WINDOW, WINDOW), 0.0), 1.0), 4)}
        values |= {k.name: dice.uniform(k.low, k.high) for k in chosen.knobs}
        journal.queue(Candidate(template=chosen.name, values=values, effort=efforts[chosen.name]))
        trial, candidate = journal.ask(setup.templates, {}, efforts)
        self._weigh_(journal, trial, candidate, records)
        return True

    def _last_(self, journal: Journal, records: Sequence[Record], left: Left, efforts: Mapping[str, str]) -> bool:
        """Where nothing new fits: a longer training may, which is not tried twice in a row else."""
        candidate = longer(self.setup, records, journal.under_way(), left)
        if candidate is None:
            return False
        journal.queue(candidate)
        trial, candidate = journal.ask(self.setup.templates, {}, efforts)
        self._weigh_(journal, trial, candidate, records)
        return True

    def _weigh_(self, journal: Journal, trial: object, candidate: Candidate, records: Sequence[Record]) -> None:
        setup = self.setup
        number = int(getattr(trial, "number"))  # noqa: B009 - an Optuna trial, whose type is not imported here
        key = key_of(setup.recipe(candidate).to_data())
        known = next((r for r in records if r.recipe and key_of(r.recipe) == key), None)
        leader = best(setup.budget, [*records, *self.made_before])
        if known is not None:
            source = known.number if known.same_as is None else known.same_as
            record = replace(
                known, number=number, values=dict(candidate.values), of=candidate.of, same_as=source, seconds=0.0
            )
        else:
            use = leader if leader is not None and feasible(setup.budget, leader) else None
            try:
                with setup.progress.by(self.usable):
                    record = weighed(setup, self.judge, candidate, number, use)
            except OutOfTimeError as late:
                journal.drop(trial)
                self.idle += 1
                setup.progress.say(f"trial {number} {candidate.template}: left, as {late}")
                return
        self.idle = self.idle + 1 if record.same_as is not None else 0
        journal.tell(trial, record)
        self._better_([*records, record])
        self._say(record)

    def _better_(self, records: Sequence[Record]) -> None:
        """Write the best network whenever there is a better one: nothing that comes later can lose it."""
        found = best(self.setup.budget, [*records, *self.made_before])
        if found is None or self.on_best is None:
            return
        if self.written is None or order(self.setup.budget, found) < order(self.setup.budget, self.written):
            outcome = self.made(found)
            self.on_best(outcome, found)
            self.written, self.kept = found, outcome
        leaders = sorted((r for r in records if r.measured is not None), key=lambda r: order(self.setup.budget, r))
        self.setup.cache.needed = [from_data(dict(r.recipe)) for r in leaders[:NEEDED]]

    def _say(self, record: Record) -> None:
        setup, left = self.setup, self.clock.left
        ahead = "" if left is None else f"; {max(left, 0):,.0f} s left"
        top = "nothing yet" if self.written is None else self.text(self.written)
        if record.same_as is not None:
            what = f"as trial {record.same_as}"
        elif record.refused:
            what = f"refused: {record.refused}"
        else:
            what = self.text(record)
        effort = "" if record.effort == "untrained" else f" ({record.effort} training)"
        setup.progress.say(f"trial {record.number} {record.name}{effort}: {what}; best so far {top}{ahead}")

    def text(self, record: Record) -> str:
        measured, budget = record.measured, self.setup.budget
        if measured is None:
            return "not measured"
        parts = [f"{measured.bytes:,.0f} bytes"]
        if self.setup.target.preset.file == "flash":
            parts += [f"flash {measured.flash:,.0f}", f"RAM {measured.ram:,.0f}"]
        if measured.ratio is not None:
            parts.append(f"latency x {measured.ratio:.2f}")
        parts.append(self.setup.task.score.format(measured.score))
        missed = budget.missed(measured)
        return ", ".join(parts) + (f" (misses {', '.join(missed)})" if missed else "")


def given_up(records: Sequence[Record]) -> set[str]:
    """Templates of which everything was refused, often enough."""
    names = {r.name for r in records}
    tries = {name: [bool(r.refused) for r in records if r.name == name] for name in names}
    return {name for name, refused in tries.items() if len(refused) >= GIVEN_UP and all(refused)}


def beside_weights(artifact: Artifact, recipe: Recipe) -> float:
    """Bytes of the file that are no weights, if it was made by this recipe: the recipe, graph, grids of activations."""
    whole = artifact.copy()
    whole.recipe = [{"recipe": recipe.to_data()}]
    told = len(stored.dumps(whole)) - len(container.dumps(whole, strip=True))
    return float(told + GRID_BYTES * len(artifact.activations))


def in_float(artifact: Artifact, target: Target) -> dict[str, str]:
    """What of a quantized network does not run in integers, and why; for a microcontroller, why there is no C."""
    network = runnable(artifact)
    if not isinstance(network, IntegerNet):
        return {}
    found = {f"{name} stays in float": reason for name, reason in network.floats.items()}
    if target.preset.file == "flash":
        try:
            lower(artifact)
        except LilliputError as error:
            found["there is no C, so flash and RAM are rough"] = error.found
    return found
