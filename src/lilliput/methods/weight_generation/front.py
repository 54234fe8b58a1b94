"""Error, energy, stored bits and delay against each other: what nothing beats, of all solvers."""

from collections.abc import Sequence
from dataclasses import replace

from lilliput.core.errors import UsageError
from lilliput.measure.energy import NO_WIRES, Wires
from lilliput.methods.weight_generation.archive import Point, unbeaten
from lilliput.methods.weight_generation.codebook import clustered, exact, free
from lilliput.methods.weight_generation.evolution import begin
from lilliput.methods.weight_generation.evolution_settings import EvolutionSettings
from lilliput.methods.weight_generation.exploration import explored
from lilliput.methods.weight_generation.problem import Problem

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Of values: up to a power of two each index takes as many bits."""


def constructed(problem: Problem, *, counts: Sequence[int] = COUNTS, wires: Wires = NO_WIRES) -> tuple[Point, ...]:
    """The solvers that draw nothing: exact, clusters and free values of each count below that of wanted ones."""
    few = [count for count in counts if count < len(problem.wanted)]
    found = [
        Point.of("exact", exact(problem), wires),
        Point.of("free", free(problem), wires),
        *(Point.of(f"{count} clusters", clustered(problem, count), wires) for count in few),
        *(Point.of(f"{count} free", free(problem, count), wires) for count in few),
    ]
    return unbeaten(found)


def front(
    problem: Problem,
    settings: EvolutionSettings | None = None,
    *,
    generations: int = 0,
    bursts: int = 0,
    thresholds: Sequence[float] = (),
    counts: Sequence[int] = COUNTS,
    wires: Wires = NO_WIRES,
    most: int | None = None,
    processes: int = 1,
) -> tuple[Point, ...]:
    """At most `most` points that nothing beats, in order of error, each with its solution and where it comes from.

    Of `constructed`; of evolutions with `settings`, so many generations for each of `thresholds` (without these for its
    own), on their way; and of so many `bursts` of `explored`. Equal arguments give equal points.
    """
    if settings is None and (generations > 0 or bursts > 0):
        found = f"{generations} generations and {bursts} bursts without settings"
        raise UsageError("a front", found, "give EvolutionSettings, or leave them out")
    points = list(constructed(problem, counts=counts, wires=wires))
    if settings is not None:
        for threshold in (thresholds or (settings.threshold,)) if generations else ():
            evolution = begin(problem, replace(settings, threshold=threshold))
            evolution = evolution.advanced(generations, processes=processes)
            name = f"evolution, threshold {threshold:g}"
            points += [Point.of(f"{name}, {p.name}", p.solution, wires) for p in evolution.archive]
            points += [Point.of(f"{name}, end", solution, wires) for solution in evolution.top]
        if bursts:
            points = list(explored(problem, settings, points, bursts=bursts, wires=wires, processes=processes))
    return unbeaten(points, most)
