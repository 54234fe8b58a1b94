"""What methods under an acceptance set have in common: which samples, in which tiers, how often."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, check_choice, check_range
from lilliput.core.task import Role, Task
from lilliput.data.select import SOURCES, AcceptanceSet, acceptance_set, subset
from lilliput.graph.trace import Graph
from lilliput.methods.consolidation.engine import Judge, Trunk, verified

TIERS = {"enable": True, "fast": 192, "medium": 1500}
MANY = 1_000_000_000
FIRST, BATCH = 16, 250
"""Samples at once: to see what the task's forward does, and later, when the values between layers stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class UnderAcceptance(Pass):
    """`acceptance_from`: train, validation or train+validation; `eval_max` samples of it, the first, or `filtered`.

    `tiered_asc`: {enable, fast, medium}: each candidate meets the `fast` samples that are nearest to being lost, then
    the rest of `medium`, and all samples when the layer is done. At most `max_passes` over all layers.
    """

    per_layer: ClassVar[tuple[str, ...]]
    """Settings that a layer can have for itself."""

    acceptance_from: str = "train"
    eval_max: int | None = None
    filtered: bool = False
    tiered_asc: Mapping[str, Any] = field(default_factory=lambda: dict(TIERS))
    max_passes: int = 1

    def __post_init__(self) -> None:
        check_choice(f"{self.name} acceptance_from", self.acceptance_from, tuple(SOURCES))
        if self.eval_max is not None:
            check_range(f"{self.name} eval_max", self.eval_max, 1, MANY)
        check_group(f"{self.name} tiered_asc", self.tiered_asc, TIERS)
        for key in ("fast", "medium"):
            check_range(f"{self.name} tiered_asc {key}", self.tiers[key], 1, MANY)
        check_range(f"{self.name} max_passes", self.max_passes, 1, 1000)
        super().__post_init__()
        for pattern, settings in self.overrides.items():
            for key in settings:
                if key not in ("include", "skip", "overrides", *self.per_layer):
                    asked = f"{self.name} override for {pattern!r}"
                    raise RecipeError(asked, f"{key} counts for all layers", "set it once")

    @property
    def tiers(self) -> dict[str, Any]:
        return {**TIERS, **self.tiered_asc}

    def seen_first(self, samples: int) -> tuple[int, int]:
        """(fast, medium) of an acceptance set of so many samples."""
        tiers = self.tiers
        return (tiers["fast"] if tiers["enable"] else samples), tiers["medium"]

    def accepted(self, graph: Graph, state: Mapping[str, Tensor], context: Context) -> tuple[AcceptanceSet, int]:
        """What the network of `state` gets right of what the original does, and how many samples it has lost.

        With the margins that it has now, and inputs as the network gets them.
        """
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            found = f"the network has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
            raise RecipeError(self.name, found, "let it have one of each, or leave this method out")
        missing = [role for role in SOURCES[self.acceptance_from] if not context.task.has(role)]
        if missing == ["train"]:
            raise RecipeError(
                f"{self.name} acceptance_from: {self.acceptance_from}",
                "the task has no training data",
                "set acceptance_from: validation, or give train= when you make the task",
            )
        found = acceptance_set(
            context.task, context.evaluator, source=self.acceptance_from, size=self.eval_max, filtered=self.filtered
        )
        found = as_called(found, context.task, context.evaluator.original, self.name)
        right, distance, _ = verified(Trunk(graph, found.inputs, BATCH), state, found, Judge(task=context.task))
        kept = subset(replace(found, margins=distance), torch.nonzero(right).reshape(-1))
        return kept, len(found) - len(kept)

    def none_left(self) -> str:
        return f"the network gets no sample of {self.acceptance_from} right that the original does"

    def count_uses(self, context: Context, looks: int) -> None:
        for role in SOURCES[self.acceptance_from]:
            context.evaluator.count(role, looks)


def lost_before(count: int) -> list[str]:
    return [f"{count:,} samples that the original gets right had been lost before"] if count else []


def check_group(asked: str, given: Any, known: Mapping[str, Any]) -> None:
    """Is it a mapping of known names, with true or false where `known` has that?"""
    if not isinstance(given, Mapping):
        raise RecipeError(asked, f"{given!r}", f"give a group of settings like {dict(known)}")
    for key in given:
        check_choice(asked, key, tuple(known))
        if isinstance(known[key], bool):
            check_choice(f"{asked} {key}", given[key], (True, False))


class _Witness(nn.Module):
    """Stands in for the network and notes what goes in and comes out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls: list[tuple[tuple[Any, ...], Any]] = []

    def forward(self, *inputs: Any, **named: Any) -> Any:
        outputs = self.module(*inputs, **named)
        self.calls.append(((*inputs, *named.values()), outputs))
        return outputs


def as_called(samples: AcceptanceSet, task: Task, model: nn.Module, asked: str) -> AcceptanceSet:
    """The same samples with the inputs that the task's forward gives the network.

    Candidates are computed from these without it, so it may not change the values of the outputs.
    """
    witness = _Witness(copy.deepcopy(model).cpu()).eval()
    found: list[Tensor] = []
    with torch.no_grad():
        for role in dict.fromkeys(role for role, _ in samples.where):
            data, numbers = task.data(cast(Role, role)), torch.tensor([i for r, i in samples.where if r == role])
            for part in (numbers[:FIRST], *numbers[FIRST:].split(BATCH)):
                x, y = data.batch(part)
                judged = task.forward(witness, (x, y))
                calls, witness.calls = witness.calls, []
                if len(calls) != 1 or not _same(judged, calls[0][1]):
                    raise RecipeError(
                        asked,
                        "the task's forward does not call the network once, or changes its outputs",
                        "let the model itself give what the task judges",
                    )
                ((given, *_), outputs) = calls[0]
                if given is x and judged is outputs:
                    return samples
                found.append(given)
    return replace(samples, inputs=torch.cat(found))


def _same(judged: Tensor, outputs: Any) -> bool:
    """Are these the values of the only tensor of the outputs?"""
    (only,) = [outputs] if isinstance(outputs, Tensor) else outputs.values() if isinstance(outputs, dict) else outputs
    return torch.equal(judged.reshape(-1), only.reshape(-1))
