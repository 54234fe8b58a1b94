"""The front over error, energy, stored bits and delay: nothing on it is beaten, and all solvers are on it or beaten."""

from dataclasses import replace

import numpy as np
import pytest

from lilliput.core.errors import UsageError
from lilliput.measure.energy import Wires
from lilliput.methods.weight_generation.archive import Point, unbeaten
from lilliput.methods.weight_generation.codebook import clustered, exact, free
from lilliput.methods.weight_generation.evolution import EvolutionSettings, begin
from lilliput.methods.weight_generation.exploration import explored
from lilliput.methods.weight_generation.front import constructed, front
from lilliput.methods.weight_generation.problem import Problem

WANTED = np.rint(np.random.default_rng(0).normal(0, 9, 90)).clip(-32, 31).astype(int).tolist()
SOME = Problem.of_values([3, 20, -9], WANTED, bits=6)
COUNTS = (2, 4, 8, 300)
SETTINGS = EvolutionSettings(rows=40, columns=16, round_generations=100, islands=2)


def beats(p, q):
    return all(a <= b for a, b in zip(p, q, strict=True)) and p != q


def costs(points):
    return [point.costs for point in points]


def test_no_point_is_beaten_and_every_solver_is_on_the_front_or_beaten():
    found = costs(front(SOME, replace(SETTINGS, start="random"), generations=300, bursts=6, counts=COUNTS))
    for p in found:
        assert not any(beats(q, p) for q in found)
    few = COUNTS[:-1]
    every = [exact(SOME), free(SOME), *(clustered(SOME, k) for k in few), *(free(SOME, k) for k in few)]
    every += [p.solution for p in begin(SOME, replace(SETTINGS, start="random")).advanced(300).archive]
    for solution in every:
        own = Point.of("", solution).costs
        assert own in found or any(beats(q, own) for q in found)


def test_costs_are_those_of_the_solution():
    wires = Wires()
    for point in front(SOME, SETTINGS, bursts=4, counts=COUNTS, wires=wires):
        values = dict(zip(SOME.wanted.tolist(), point.solution.made.tolist(), strict=True))
        assert point.error == sum((values[w] - w) ** 2 for w in WANTED)
        cost = point.solution.cost(wires=wires)
        assert point.energy_pj == cost.circuit.energy_pj + cost.circuit.connections * 6 * wires.pj_per_bit_mm * wires.mm
        assert (point.stored_bits, point.delay_ns) == (cost.stored.total, cost.circuit.delay_ns)


def test_the_front_is_the_same_every_time_and_for_any_number_of_processes():
    one, again, two = (
        explored(SOME, SETTINGS, constructed(SOME, counts=COUNTS), bursts=5, processes=n) for n in (1, 1, 2)
    )
    assert costs(one) == costs(again) == costs(two)
    assert [p.name for p in one] == [p.name for p in two]
    one, two = (front(SOME, SETTINGS, generations=150, thresholds=(0.0, 3.0), counts=COUNTS) for _ in range(2))
    assert costs(one) == costs(two)


def test_bursts_move_the_front_forward():
    first = constructed(SOME, counts=COUNTS)
    later = explored(SOME, replace(SETTINGS, round_generations=1000), first, bursts=20)
    for p in costs(first):
        assert any(q == p or beats(q, p) for q in costs(later))
    assert any(point.name.startswith("burst") for point in later)


def test_at_most_so_many_and_the_ends_stay():
    every = front(SOME, counts=(1, 2, 3, 4, 6, 8, 12))
    some = front(SOME, counts=(1, 2, 3, 4, 6, 8, 12), most=6)
    assert len(some) == 6 < len(every)
    for numbers, all_numbers in zip(zip(*costs(some), strict=True), zip(*costs(every), strict=True), strict=True):
        assert min(numbers) == min(all_numbers)
    assert [p.error for p in every] == sorted(p.error for p in every)


def test_circuits_without_room_in_the_grid_are_passed_over():
    deep = constructed(SOME, counts=COUNTS)
    flat = replace(SETTINGS, columns=2, start="random")
    assert {p.name for p in explored(SOME, flat, deep, bursts=4)} >= {"exact"}


def test_equal_points_are_one_and_nothing_gives_nothing():
    point = Point.of("a", exact(SOME))
    assert unbeaten([point, replace(point, name="b")]) == (point,)
    assert unbeaten([]) == ()
    with pytest.raises(UsageError, match="give EvolutionSettings"):
        front(SOME, bursts=3)
