"""Solvers of an experiment by name, with their settings."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lilliput.core.errors import RecipeError
from lilliput.core.method import nearest
from lilliput.methods.weight_generation.codebook import clustered, exact, free
from lilliput.methods.weight_generation.evolution import EvolutionSettings
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import Solution


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Every wanted value."""

    def solve(self, problem: Problem) -> Solution:
        return exact(problem)


@dataclass(frozen=True, kw_only=True)
class Clustered:
    """At most `n_values` clusters of the wanted values."""

    n_values: int = 16

    def __post_init__(self) -> None:
        _check_count(self.n_values)

    def solve(self, problem: Problem) -> Solution:
        return clustered(problem, self.n_values)


@dataclass(frozen=True, kw_only=True)
class Free:
    """Values that cost no energy, or at most `most_pj` each; with `n_values` the best so many of them."""

    n_values: int | None = None
    most_pj: float = 0.0

    def __post_init__(self) -> None:
        if self.n_values is not None:
            _check_count(self.n_values)
        if not 0 <= self.most_pj < float("inf"):
            raise RecipeError("solver most_pj", f"{self.most_pj}", "give a finite number of at least 0")

    def solve(self, problem: Problem) -> Solution:
        return free(problem, self.n_values, most_pj=self.most_pj)


Direct = Exact | Clustered | Free
Solver = Direct | EvolutionSettings
EVOLUTION = "evolution"
KINDS: dict[str, type[Solver]] = {EVOLUTION: EvolutionSettings, "exact": Exact, "clustered": Clustered, "free": Free}
KEPT_ELSEWHERE = "keep"


def kind_of(data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of the solver, and its settings as they are written; their names are checked."""
    given = dict(data)
    kind = given.pop("kind", None)
    if kind not in KINDS:
        do = nearest(str(kind), set(KINDS)) if kind is not None else f"name one: {', '.join(KINDS)}"
        raise RecipeError("experiment solver", "no kind" if kind is None else f"the kind {kind!r}", do)
    if KEPT_ELSEWHERE in given:
        raise RecipeError("experiment solver", f"{KEPT_ELSEWHERE} among its settings", "write it beside solver")
    known = {f.name for f in fields(KINDS[kind])} - {KEPT_ELSEWHERE}
    for name in given:
        if name not in known:
            do = nearest(str(name), known) if known else "it has no settings"
            raise RecipeError(f"solver {kind}", f"unknown setting {name!r}", do)
    return str(kind), given


def _check_count(n_values: int) -> None:
    if n_values < 1:
        raise RecipeError("solver n_values", f"{n_values}", "give a whole number from 1 up")
