"""A search for the whole front: short evolutions from what nothing beats so far, each with its own limit of error.

Each burst draws a parent from the archive, the less crowded of two, and a limit: its error, or the larger one of
another point. A (1 + lambda) search with single active mutation then makes it cheaper within the limit, where a
function costs its energy, its stored bits or its delay, whichever is drawn. Limits in place of one sum of all costs:
Haimes, Lasdon and Wismer (1971), "On a bicriterion formulation of the problems of integrated system identification and
system optimization"; an archive that gives the parents: Knowles and Corne (2000), "Approximating the nondominated front
using the Pareto archived evolution strategy".
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from lilliput.core.errors import UsageError
from lilliput.measure.energy import NO_WIRES, Wires
from lilliput.methods.weight_generation.archive import Point, unbeaten
from lilliput.methods.weight_generation.evolution_settings import EvolutionSettings
from lilliput.methods.weight_generation.grid import MOST_COST, MOST_SUM, grid_of, laid_out, solution_of
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.tidy import tidied
from lilliput.ops.cartesian_functions import READS
from lilliput.ops.cartesian_goal import whole
from lilliput.ops.cartesian_islands import spawned
from lilliput.ops.cartesian_search import Settings, advance, start
from lilliput.ops.netlist import FUNCTION_BITS, width_of
from lilliput.ops.pareto import crowding

AIMS = ("energy", "bits", "delay")
MOST_POINTS = 128
ENDS = 1e9
"""Instead of infinity: how crowded a point at the end of a cost's range is not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Burst:
    """`limit` in the problem's units of error; `seed` of the grid's other genes and of mutations."""

    name: str
    parent: Point
    limit: float
    aim: str
    seed: int


def explored(
    problem: Problem,
    settings: EvolutionSettings,
    points: Sequence[Point],
    *,
    bursts: int,
    wires: Wires = NO_WIRES,
    processes: int = 1,
) -> tuple[Point, ...]:
    """Starts from `points`. Each burst takes `settings.round_generations`; `settings.islands` go side by side.

    Those side by side draw from the same archive: the result does not depend on the number of processes.
    """
    archive, done = unbeaten(points, MOST_POINTS), 0
    with ExitStack() as stack:
        several = min(processes, settings.islands)
        pool = stack.enter_context(spawned(several)) if several > 1 else None
        while done < bursts:
            numbers = range(done, min(done + settings.islands, bursts))
            drawn = [_drawn(archive, settings, number) for number in numbers]
            run, count = map if pool is None else pool.map, len(drawn)
            found = run(_burst, [problem] * count, [settings] * count, drawn, [wires] * count)
            archive = unbeaten([*archive, *(point for point in found if point is not None)], MOST_POINTS)
            done += count
    return archive


def _drawn(archive: tuple[Point, ...], settings: EvolutionSettings, number: int) -> Burst:
    generator = np.random.default_rng((settings.seed, number))
    room = np.minimum(crowding([point.costs for point in archive]), ENDS)
    one, other = generator.integers(len(archive), size=2).tolist()
    parent = archive[one if room[one] >= room[other] else other]
    limits = [point.error for point in archive if point.error > parent.error]
    at = int(generator.integers(2 * len(limits) + 1))  # as often as not its own error
    return Burst(
        name=f"burst {number + 1} from {parent.name.split(' from ')[0]}",
        parent=parent,
        limit=limits[at] if at < len(limits) else parent.error,
        aim=AIMS[int(generator.integers(len(AIMS)))],
        seed=int(generator.integers(1 << 62)),
    )


def _burst(problem: Problem, settings: EvolutionSettings, burst: Burst, wires: Wires) -> Point | None:
    """None if the parent has no place in the grid."""
    grid = grid_of(problem, settings, burst.seed)
    try:
        circuit = laid_out(grid, burst.parent.solution)
    except UsageError:
        return None
    pins = burst.parent.solution.netlist.pins
    prices = {
        "energy": [a + wires.pj(n, problem.bits) for a, n in zip(problem.gates.energy_pj, READS, strict=True)],
        "bits": [FUNCTION_BITS + n * width_of(pins) for n in READS],
        "delay": problem.gates.delay_ns,
    }
    most = min(MOST_COST, MOST_SUM // grid.circuit.shape.nodes)
    goal = replace(grid.goal, energy=whole(prices[burst.aim], most)[0])
    total, weight = float(problem.importance.sum()), int(goal.output_weights.sum())
    threshold = int(np.floor(burst.limit * weight / total)) if total else 0
    search = Settings(offspring=settings.offspring, threshold=threshold)
    state = start(goal, circuit, search, burst.seed, grid.locked)
    state = advance(goal, search, state, settings.round_generations)
    return Point.of(burst.name, tidied(solution_of(problem, state.circuit)), wires)
