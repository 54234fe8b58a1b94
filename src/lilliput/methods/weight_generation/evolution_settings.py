"""How circuits that make weights are evolved."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lilliput.core.errors import UsageError
from lilliput.ops.cartesian_search import MUTATIONS, Settings

Mode = Literal["published", "improved"]
Start = Literal["random", "constructive"]
Mutation = Literal["rate", "probability", "single_active"]
PUBLISHED_RATE = 0.01
MOST_SEED = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class EvolutionSettings:
    """`published`: up to 1% of the genes change, random start, and equals replace parents in the error stage only.

    `improved`: genes change until one has that is active, equals always replace parents, and the constructive circuit
    is the start. `start`, `mutation` and `strength` replace what the mode says. `threshold` is an RMS error per
    weight: errors count up to threshold^2 x weights, then energy does. `islands` pass on their best every
    `round_generations`, and what `keep` and the front see is taken then.
    """

    mode: Mode = "improved"
    start: Start | None = None
    rows: int = 256
    columns: int = 31
    levels_back: int | None = None
    mutation: str | None = None
    strength: float | None = None
    offspring: int = 4
    threshold: float = 0.0
    patience: int | None = None
    islands: int = 1
    round_generations: int = 10_000
    seed: int = 0
    keep: int = 10

    def __post_init__(self) -> None:
        known = {"mode": get_args(Mode), "start": (None, *get_args(Start)), "mutation": (None, *MUTATIONS)}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                do = "use " + " or ".join(c for c in choices if c)
                raise UsageError(f"{name} of an evolution", repr(getattr(self, name)), do)
        least = {"rows": 1, "columns": 2, "levels_back": 1, "offspring": 1, "patience": 1, "islands": 1}
        for name, low in {**least, "round_generations": 1, "keep": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is None and name in ("levels_back", "patience"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= MOST_SEED:
                raise UsageError(f"{name} of an evolution", repr(value), f"give a whole number from {low} on")
        if not (_is_real(self.threshold) and self.threshold >= 0):
            raise UsageError("threshold of an evolution", repr(self.threshold), "give a finite number of at least 0")
        if self.strength is not None:
            if self.mutates == "single_active":
                do = "leave strength out, or choose mutation rate or probability"
                raise UsageError("strength of an evolution", f"mutation {self.mutates!r} takes none", do)
            if not (_is_real(self.strength) and 0 < self.strength < 1):
                raise UsageError("strength of an evolution", repr(self.strength), "give a number between 0 and 1")
        if self.starts == "constructive" and self.looks_back < self.columns:
            found = f"levels_back {self.looks_back} of {self.columns} columns"
            raise UsageError("a constructive start", found, "leave levels_back out, or use start='random'")

    @property
    def starts(self) -> Start:
        return self.start or ("random" if self.mode == "published" else "constructive")

    @property
    def mutates(self) -> Mutation:
        by_mode: Mutation = "rate" if self.mode == "published" else "single_active"
        return by_mode if self.mutation is None else self.mutation  # pyright: ignore[reportReturnType]

    @property
    def looks_back(self) -> int:
        return self.columns if self.levels_back is None else self.levels_back

    def search(self, weight: int) -> Settings:
        """For a goal whose errors have this weight together."""
        return Settings(
            mutation=self.mutates,
            strength=PUBLISHED_RATE if self.strength is None else self.strength,
            offspring=self.offspring,
            threshold=int(self.threshold**2 * weight),
            patience=self.patience,
            drift=self.mode == "improved",
        )


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
