"""What methods under an acceptance set have in common: which samples, in which tiers, how often."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lilliput.core.errors import RecipeError
from lilliput.core.method import Context, Pass, check_choice, check_range
from lilliput.data.select import SOURCES, AcceptanceSet, acceptance_set

TIERS = {"enable": True, "fast": 192, "medium": 1500}
MANY = 1_000_000_000


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

    def accepted(self, context: Context) -> AcceptanceSet:
        return acceptance_set(
            context.task, context.evaluator, source=self.acceptance_from, size=self.eval_max, filtered=self.filtered
        )

    def count_uses(self, context: Context, looks: int) -> None:
        for role in SOURCES[self.acceptance_from]:
            context.evaluator.count(role, looks)


def check_group(asked: str, given: Any, known: Mapping[str, Any]) -> None:
    """Is it a mapping of known names, with true or false where `known` has that?"""
    if not isinstance(given, Mapping):
        raise RecipeError(asked, f"{given!r}", f"give a group of settings like {dict(known)}")
    for key in given:
        check_choice(asked, key, tuple(known))
        if isinstance(known[key], bool):
            check_choice(f"{asked} {key}", given[key], (True, False))
