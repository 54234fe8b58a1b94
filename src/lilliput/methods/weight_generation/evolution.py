"""Circuits for a problem by evolution: Cartesian genetic programming, as published and improved.

An evolution is a value: `advanced` gives a later one, the same in one stretch or in many and for any number of
processes. Islands meet at the end of every round, as in `ops.cartesian_islands`; what is kept on the way is taken then.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from lilliput.core.errors import UsageError
from lilliput.measure.energy import circuit_cost
from lilliput.methods.weight_generation.archive import Point, unbeaten
from lilliput.methods.weight_generation.codebook import exact
from lilliput.methods.weight_generation.evolution_bytes import Content, Limits, head, pack, unpack
from lilliput.methods.weight_generation.evolution_settings import EvolutionSettings
from lilliput.methods.weight_generation.grid import grid_of, laid_out, solution_of
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import Solution
from lilliput.methods.weight_generation.tidy import tidied
from lilliput.ops.cartesian import Circuit
from lilliput.ops.cartesian_goal import Goal
from lilliput.ops.cartesian_islands import migrated, spawned
from lilliput.ops.cartesian_search import Settings, advance, measured, start
from lilliput.ops.cartesian_state import State
from lilliput.ops.cartesian_text import written

__all__ = ["Evolution", "EvolutionSettings", "begin", "unpacked"]

MOST_ARCHIVED = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A circuit of the grid and its measures, in the whole numbers of its goal."""

    circuit: Circuit
    error: int
    energy: int
    delay: int
    gates: int

    @staticmethod
    def of(state: State) -> "Found":
        return Found(
            circuit=state.circuit, error=state.error, energy=state.energy, delay=state.delay, gates=state.gates
        )

    @property
    def measures(self) -> tuple[int, int, int, int]:
        return self.error, self.energy, self.delay, self.gates

    def rank(self, threshold: int) -> tuple[int, ...]:
        """The published order: up to the threshold by energy, error, delay and gates; beyond it by error."""
        if self.error > threshold:
            return 1, self.error, self.energy, self.delay, self.gates
        return 0, self.energy, self.error, self.delay, self.gates


@dataclass(frozen=True, kw_only=True, eq=False)
class Evolution:
    """Where an evolution stands. `states`: islands; `generation`: of those that still go on; `kept`: see `top`.

    `archive`: what nothing beats in error, energy, stored bits and delay, of the start and the ends of all rounds.
    """

    problem: Problem
    settings: EvolutionSettings
    goal: Goal
    states: tuple[State, ...]
    generation: int = 0
    kept: tuple[Found, ...] = ()
    archive: tuple[Point, ...] = ()

    @property
    def ready(self) -> bool:
        """No island goes on: the patience of all is at an end."""
        return all(state.ready for state in self.states)

    @property
    def threshold(self) -> int:
        """The least error that an island is content with, in the goal's units: what was asked, until all gave up."""
        return min(state.threshold for state in self.states)

    @property
    def search(self) -> Settings:
        return self.settings.search(int(self.goal.output_weights.sum()))

    def advanced(
        self, generations: int, *, processes: int = 1, watch: "Callable[[Evolution], bool] | None" = None
    ) -> "Evolution":
        """So many generations later, or when all islands are ready, or when `watch`, called after each round, is True.

        With more than one process a script needs the usual `if __name__ == "__main__":`.
        """
        if min(generations, processes - 1) < 0:
            found = f"{generations} generations by {processes} processes"
            raise UsageError("an evolution", found, "use at least 0 generations and 1 process")
        last, now = self.generation + generations, self
        with ExitStack() as stack:
            several = min(processes, len(self.states))
            pool = stack.enter_context(spawned(several)) if several > 1 else None
            while now.generation < last and not now.ready:
                size = self.settings.round_generations
                end = (now.generation // size + 1) * size
                now = now._at(min(end, last), pool)
                if now.generation == end and not now.ready:
                    now = now._met()
                    if watch is not None and watch(now):
                        break
        return now

    def _at(self, generation: int, pool: Executor | None) -> "Evolution":
        """Each island by itself, within a round."""
        count, run = len(self.states), map if pool is None else pool.map
        steps = [generation - state.generation for state in self.states]
        states = tuple(run(advance, [self.goal] * count, [self.search] * count, self.states, steps))
        if all(state.ready for state in states):
            generation = max(state.generation for state in states)
        return replace(self, states=states, generation=generation)

    def _met(self) -> "Evolution":
        """The end of a round."""
        archive = _archived(self.problem, self.states, self.archive, f"generation {self.generation}")
        return replace(self, states=tuple(migrated(self.states)), kept=self._best(), archive=archive)

    def _best(self) -> tuple[Found, ...]:
        """Found at the ends of rounds or now, the best first. Of equal measures the first."""
        distinct = {found.measures: found for found in (*map(Found.of, reversed(self.states)), *reversed(self.kept))}
        return tuple(sorted(distinct.values(), key=lambda found: found.rank(self.threshold))[: self.settings.keep])

    @property
    def best(self) -> Solution:
        return self.top[0]

    @property
    def top(self) -> tuple[Solution, ...]:
        """At most `keep` solutions that differ in error, energy, delay or gates: tidied, and then the best first."""
        kept: list[tuple[bool, tuple[float, ...], Solution]] = []
        for found in self._best():
            solution = tidied(solution_of(self.problem, found.circuit))
            cost = circuit_cost(solution.netlist, self.problem.gates)
            beyond = found.error > self.threshold
            rank = (cost.energy_pj, solution.error, cost.delay_ns, float(cost.gates))
            kept.append((beyond, (solution.error, *rank) if beyond else rank, solution))
        return tuple(solution for *_, solution in sorted(kept, key=lambda entry: entry[:2]))

    def statistics(self) -> dict[str, float | int | str]:
        """Of the best one as it is in the grid, before it is tidied; in the published columns.

        Energies are in pJ, delays in ns, those that are quantized in the goal's units.
        """
        found = self._best()[0]
        solution = solution_of(self.problem, found.circuit)
        cost = circuit_cost(solution.netlist, self.problem.gates)
        return {
            "generation": self.generation,
            "error": solution.error,
            "quantized_energy": found.energy,
            "energy": cost.energy_pj,
            "area": cost.area,
            "quantized_delay": found.delay,
            "delay": cost.delay_ns,
            "depth": cost.depth,
            "gate_count": cost.gates,
            "chromosome": written(found.circuit),
        }

    def packed(self) -> bytes:
        """All of it but problem and settings. See `unpacked`."""
        content = Content(
            generation=self.generation,
            states=self.states,
            kept=tuple(found.circuit for found in self.kept),
            archive=tuple((point.name, point.solution) for point in self.archive),
        )
        return pack(head(self.problem, self.settings), content)


def begin(problem: Problem, settings: EvolutionSettings) -> Evolution:
    """Generation 0. Raises `UsageError` where the grid has no room for wanted values or the constructive circuit."""
    constructive = exact(problem) if settings.starts == "constructive" else None
    states: list[State] = []
    for island in range(settings.islands):
        drawn = np.random.SeedSequence((settings.seed, island)).generate_state(2, np.uint64)
        grid = grid_of(problem, settings, int(drawn[0]))
        circuit = grid.circuit if constructive is None else laid_out(grid, constructive)
        search = settings.search(int(grid.goal.output_weights.sum()))
        states.append(start(grid.goal, circuit, search, int(drawn[1]), grid.locked))
    archive = _archived(problem, states, (), "start")
    return Evolution(problem=problem, settings=settings, goal=grid.goal, states=tuple(states), archive=archive)


def unpacked(problem: Problem, settings: EvolutionSettings, data: bytes) -> Evolution:
    """What was packed. Raises `DataError` for bytes of another problem or of other settings."""
    fresh = begin(problem, settings)
    limits = Limits(kept=settings.keep, archived=MOST_ARCHIVED)
    content = unpack(head(problem, settings), data, problem, fresh.goal, fresh.states, limits)
    kept = tuple(Found(circuit=circuit, **measured(fresh.goal, circuit)) for circuit in content.kept)
    archive = tuple(Point.of(name, solution) for name, solution in content.archive)
    return replace(fresh, states=content.states, generation=content.generation, kept=kept, archive=archive)


def _archived(problem: Problem, states: Sequence[State], known: tuple[Point, ...], name: str) -> tuple[Point, ...]:
    fresh = [Point.of(name, tidied(solution_of(problem, state.circuit))) for state in states]
    return unbeaten((*known, *fresh), MOST_ARCHIVED)
