"""The first part of self-compression: rounds in which bits are learned, and after which channels go or return."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lilliput.core.artifact import Artifact
from lilliput.core.method import Context
from lilliput.data.safety import safety_set
from lilliput.methods.self_compression.integers import file_bytes
from lilliput.methods.self_compression.price import PriceForScore
from lilliput.methods.self_compression.safety import Safety, forgotten
from lilliput.methods.self_compression.settings import Settings
from lilliput.methods.self_compression.size_term import PriceOfBits, counts_of, entries
from lilliput.methods.self_compression.vanishing import coupling_of, remove_dead_
from lilliput.training.fit import FitResult
from lilliput.training.learned_bits import LearnedBits, Widths, after, memory_after
from lilliput.training.optimizer import Memory, sliced

CALM = 0.5
"""What the price is multiplied with where the safety set is lost."""


@dataclass(kw_only=True)
class Rounds:
    """Rounds of `steps` steps each, of the weights in `axes` (with the dimension of their channels).

    `train` is `fit` of the network. `rows` and `events` tell what happened: a row for each round, an event for each
    return of channels. `kept`, where a score is held: the last network that has kept it, or the first of all, its
    widths, and what the price was multiplied with.
    """

    settings: Settings
    net: Artifact
    context: Context
    axes: Mapping[str, int]
    steps: int
    cost: PriceOfBits
    train: Callable[..., FitResult]
    kept: tuple[Artifact, dict[str, Widths], float] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def run(self, widths: Mapping[str, Widths]) -> dict[str, Widths]:
        """What the widths are in the end."""
        widths, good, memory = dict(widths), dict(widths), {}
        safety, mended = self._safety(), False
        self._keep_(widths)
        for k in range(self.settings.rounds):
            widths, result = self._learn_(k, widths, memory)
            row, memory = self._row(k, widths, result), result.memory
            broken = "" if safety is None else self._look(safety, row)
            back: dict[str, list[int]] = {}
            if safety is not None and broken and not mended:
                widths, back = safety.repaired(self.net, widths, good, self.context.generator)
            mended = bool(back)
            if mended:
                memory = forgotten(memory, widths, back)
                self._returned_(k, broken, back)
            lost = isinstance(self.cost.price, PriceForScore) and not self.cost.price.bound.keeps(row["score"])
            if not mended and not lost:
                row["removed"], widths, memory = self._removed_(widths, memory)
                good = widths
                self._keep_(widths)
            self.cost.price.judge_(row["steps"], row["score"])
            self.rows.append(row)
            self._say(row)
        return widths

    def _keep_(self, widths: dict[str, Widths]) -> None:
        if isinstance(self.cost.price, PriceForScore):
            self.kept = (self.net.copy(), widths, self.cost.price.factor)

    def _learn_(self, k: int, widths: Mapping[str, Widths], memory: Memory) -> tuple[dict[str, Widths], FitResult]:
        """Train for a round; exponents are as they will be stored in the second half of the rounds."""
        kind = self.settings.exponents
        net, made = self.net, list[LearnedBits]()

        def attach(net: Artifact, **more: Any) -> LearnedBits:
            now = kind if k >= self.settings.rounds // 2 else "real"
            made.append(LearnedBits(net, widths=widths, exponents=now, **more))
            return made[0]

        _, coupling = coupling_of(net)
        counted = counts_of(LearnedBits(net.copy(), widths=widths, exponents=self.settings.counted))
        other = file_bytes(net, widths, self.settings.counted) - sum(c.bits for c in counted.values()) / 8
        self.cost.begin_(k * self.steps, entries(net, coupling, self.axes), other)
        in_steps = [name for name, w in widths.items() if w.unit is not None]
        settings = self.settings.learning(net, k, self.steps, in_steps)
        result = self.train(settings, f"round{k + 1}", rate=self.cost, attach=attach, memory=memory)
        return made[0].learned(), result

    def _removed_(
        self, widths: Mapping[str, Widths], memory: Memory
    ) -> tuple[dict[str, int], dict[str, Widths], Memory]:
        """How many channels each group has lost, and what is left of the widths and of the optimizer's memory."""
        done = len(self.net.edits)
        _, removed = remove_dead_(self.net, self.context.task.data("calibration"), self.settings.selects)
        edits = self.net.edits[done:]
        return removed, after(widths, edits), memory_after(sliced(memory, edits), widths, edits)

    # the safety set

    def _safety(self) -> Safety | None:
        settings, context = self.settings, self.context
        if not settings.safety:
            return None
        original = context.evaluator.original
        chosen = safety_set(
            context.task,
            original,
            size=settings.safety,
            source="train",
            methods=settings.safety_methods,
            seed=int(torch.randint(2**31, (), generator=context.generator)),
        )
        return Safety(
            context.task,
            chosen.data(context.task),
            original,
            rule=settings.safety_rule,
            tolerance=settings.tolerance,
            share=settings.restore,
        )

    def _look(self, safety: Safety, row: dict[str, Any]) -> str:
        """Why the set is lost, or ""."""
        check = safety.look(self.net)
        row |= {
            "safety_accuracy": check.accuracy,
            "safety_worst": check.worst,
            "safety_worst_class": check.worst_class,
            "safety_loss": check.loss,
        }
        return safety.broken(check)

    def _returned_(self, k: int, why: str, back: Mapping[str, list[int]]) -> None:
        if self.settings.max_bytes is None:
            self.cost.price.calm_(CALM, (k + 2) * self.steps)
        returned = {name: len(numbers) for name, numbers in back.items()}
        self.events.append({"steps": (k + 1) * self.steps, "why": why, "returned": returned})
        self.context.progress.say(f"safety: {why}; {sum(returned.values())} channels return")

    # what is told

    def _row(self, k: int, widths: Mapping[str, Widths], result: FitResult) -> dict[str, Any]:
        live: dict[str, int] = {}
        for name, w in widths.items():
            rows = self.net.parameter(name).detach().movedim(w.axis, 0).flatten(1)
            live[name] = int(rows.any(1).sum())
        last = result.history[-1]
        return {
            "steps": (k + 1) * self.steps,
            "bytes": file_bytes(self.net, widths, self.settings.counted),
            "score": last["validation_score"],
            "loss": last["train_loss"],
            "gamma": self.cost.price.now,
            "live": sum(live.values()),
            "channels": live,
            "mean_bits": float(torch.cat([w.bits[w.owner].detach() for w in widths.values()]).mean()),
            "removed": dict[str, int](),
            "seconds_per_step": last["seconds"] / self.steps,
        }

    def _say(self, row: Mapping[str, Any]) -> None:
        score = self.context.task.score
        self.context.progress.say(
            f"round {len(self.rows)}/{self.settings.rounds}: {row['bytes']:,.0f} bytes, {row['live']} channels, "
            f"{score.name} {score.format(row['score'])}"
        )
