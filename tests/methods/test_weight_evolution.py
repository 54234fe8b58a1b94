"""Evolution of circuits that make weights: what it gives, and that it depends on nothing but its start and length."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartesian_oracle import interpreted, judged
from lilliput.core.errors import DataError, UsageError
from lilliput.methods.weight_generation.archive import Point
from lilliput.methods.weight_generation.codebook import clustered, exact, for_values
from lilliput.methods.weight_generation.evolution import Evolution, EvolutionSettings, begin, unpacked
from lilliput.methods.weight_generation.grid import grid_of, laid_out, solution_of
from lilliput.methods.weight_generation.problem import Problem
from lilliput.methods.weight_generation.solution import Solution
from lilliput.methods.weight_generation.tidy import tidied
from lilliput.ops.cartesian import random_circuit
from lilliput.ops.cartesian_functions import COUNT, MULTIPLEXER
from lilliput.ops.cartesian_text import read
from lilliput.ops.netlist import Gate, Netlist

GENERATOR = np.random.default_rng(0)
SOME = Problem.of_values([3, 3, 70, -90], GENERATOR.integers(-128, 128, 40).tolist())
NONE = Problem.of_values([], [0, 5, 9, 9, 77, -3])
FLOATS = replace(SOME, importance=SOME.importance * 0.37 + 1e-3)
SMALL = EvolutionSettings(rows=40, columns=13, round_generations=100)
RANDOM = replace(SMALL, start="random")
PUBLISHED = replace(SMALL, mode="published", strength=0.05, seed=3)
MODES = [SMALL, RANDOM, PUBLISHED, replace(RANDOM, islands=3, patience=150, threshold=20.0)]


def order(solution):
    """As published, below the threshold."""
    cost = solution.cost().circuit
    return round(cost.energy_pj, 12), solution.error, round(cost.delay_ns, 9), cost.gates


def plain_error(problem, evolution):
    """By the oracle, from the published text."""
    circuit = read(str(evolution.statistics()["chromosome"]))
    made = interpreted(circuit, [problem.given.tolist() or [0]])[0]
    return sum(n * (a - b) ** 2 for a, b, n in zip(made, problem.wanted.tolist(), problem.counts.tolist(), strict=True))


@pytest.mark.parametrize("problem", [SOME, NONE, FLOATS])
@pytest.mark.parametrize("mode", MODES, ids=range(len(MODES)))
def test_one_stretch_many_and_through_bytes_are_the_same(problem, mode):
    through = begin(problem, mode).advanced(750)
    pieces = begin(problem, mode)
    for step in (1, 99, 0, 130, 270, 250):
        pieces = unpacked(problem, mode, pieces.advanced(step).packed())
    assert pieces.packed() == through.packed()
    assert pieces.statistics() == through.statistics()
    assert [point.costs for point in pieces.archive] == [point.costs for point in through.archive]


def test_three_processes_find_what_one_finds():
    mode = replace(RANDOM, islands=3)
    one, three = (begin(SOME, mode).advanced(250, processes=n) for n in (1, 3))
    assert one.packed() == three.packed()


@pytest.mark.parametrize("problem", [SOME, NONE])
@pytest.mark.parametrize("mode", MODES, ids=range(len(MODES)))
def test_statistics_are_those_of_the_chromosome(problem, mode):
    evolution = begin(problem, mode).advanced(300)
    found = evolution.statistics()
    circuit = read(str(found["chromosome"]))
    plain = judged(circuit, evolution.goal)
    assert found["error"] == plain_error(problem, evolution) == plain["error"]
    assert (found["quantized_energy"], found["quantized_delay"]) == (plain["energy"], plain["delay"])
    functions = circuit.nodes[circuit.active(), 2].tolist()
    gates = problem.gates
    assert found["energy"] == pytest.approx(sum(gates.energy_pj[f] for f in functions))
    assert found["area"] == pytest.approx(sum(gates.area[f] for f in functions))
    assert list(found) == [
        *("generation", "error", "quantized_energy", "energy", "area", "quantized_delay", "delay", "depth"),
        *("gate_count", "chromosome"),
    ]
    assert found["quantized_energy"] == pytest.approx(2.0**42 * float(found["energy"]), rel=1e-3)
    assert found["quantized_delay"] == pytest.approx(2.0**40 * float(found["delay"]), rel=1e-3)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(-128, 127), max_size=6),
    st.lists(st.integers(-128, 127), min_size=1, max_size=30),
    st.sampled_from([0.0, 4.0]),
    st.integers(0, 99),
)
def test_from_the_constructive_circuit_nothing_is_worse_than_it(given_values, wanted, threshold, seed):
    problem = Problem.of_values(given_values, wanted)
    mode = EvolutionSettings(rows=30, columns=20, seed=seed, threshold=threshold, round_generations=50)
    before = order(exact(problem))
    begun = begin(problem, mode)
    assert order(begun.best) <= before
    evolved = begun.advanced(200).best
    assert order(evolved) <= before
    assert evolved.error <= threshold**2 * problem.wanted_count


def test_constructive_circuits_are_laid_out_as_they_are():
    for problem in (SOME, NONE):
        solution = exact(problem)
        grid = grid_of(problem, SMALL, seed=1)
        circuit = laid_out(grid, solution)
        assert interpreted(circuit, grid.goal.inputs)[0] == problem.wanted.tolist()
        back = solution_of(problem, circuit)
        assert sorted(gate.function for gate in back.netlist.gates) == sorted(
            g.function for g in solution.netlist.gates
        )
        assert back.netlist.depth() == solution.netlist.depth()


def test_circuits_that_do_not_fit_are_refused():
    chain = Problem.of_values([1], [1, 3, 77, -50, 29])
    depth = exact(chain).netlist.depth()
    begin(chain, replace(SMALL, columns=depth + 1))
    with pytest.raises(UsageError, match=f"use {depth + 1} columns or more rows"):
        begin(chain, replace(SMALL, columns=depth))
    with pytest.raises(UsageError, match="use at least 5 rows"):
        begin(chain, replace(SMALL, rows=4))
    narrow = replace(SMALL, rows=5, columns=depth + 2)
    assert begin(chain, narrow).best.error == 0
    with pytest.raises(UsageError, match="use a smaller grid"):
        begin(chain, replace(SMALL, rows=1 << 20, columns=1 << 10))


def test_without_given_values_a_zero_is_a_gate_only_if_it_is_read():
    zero = Problem.of_values([], [0, 1])
    grid = grid_of(zero, SMALL, seed=0)
    nodes = grid.circuit.nodes.copy()
    port = len(nodes) - SMALL.rows + 1
    nodes[0], nodes[port, 0] = (0, 0, 22), 1
    reading = solution_of(zero, replace(grid.circuit, nodes=nodes))
    assert reading.netlist.inputs == 0
    assert [gate.function for gate in reading.netlist.gates] == [24, 22]
    assert reading.made.tolist() == [0, 1]
    assert reading.cost().stored.own == 0
    one = Problem.of_values([], [1])
    nodes[port - 1, 0] = 1
    alone = solution_of(one, replace(grid_of(one, SMALL, seed=0).circuit, nodes=nodes))
    assert [gate.function for gate in alone.netlist.gates] == [22]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-128, 127), max_size=4),
    st.lists(st.tuples(*[st.integers(0, COUNT - 1)] + [st.integers(0, 99)] * 2), min_size=1, max_size=25),
    st.lists(st.integers(0, 99), min_size=1, max_size=8),
)
def test_tidying_keeps_values_and_costs_nothing(given_values, drawn, outputs):
    given_values = sorted(set(given_values))
    gates = []
    for function, a, b in drawn:
        pins = len(given_values) + len(gates)
        constant = function in range(22, 27) or not pins
        chosen = 22 if not pins else 1 if function == MULTIPLEXER else function
        gates.append(Gate(chosen) if constant else Gate(chosen, a % pins, b % pins))
    net = Netlist(
        bits=8,
        inputs=len(given_values),
        gates=tuple(gates),
        outputs=tuple(sorted({pin % (len(given_values) + len(gates)) for pin in outputs})),
    )
    wanted = list(range(len(net.outputs)))
    problem = Problem.of_values(given_values, wanted)
    solution = Solution(problem=problem, netlist=net, outputs=np.array(wanted))
    tidy = tidied(solution)
    assert tidy.made.tolist() == solution.made.tolist()
    before, after = solution.cost().circuit, tidy.cost().circuit
    assert after.gates <= before.gates
    assert after.energy_pj <= before.energy_pj + 1e-15
    assert after.delay_ns <= before.delay_ns + 1e-12
    assert len(tidy.netlist.outputs) <= len(net.outputs)
    values = tidy.netlist.values(problem.given).tolist()
    assert len(values) == len(set(values))
    assert all(tidy.netlist.active())
    assert tidied(tidy).cost().circuit.gates == after.gates


def test_the_top_is_distinct_and_in_the_published_order():
    mode = replace(RANDOM, islands=2, round_generations=20, keep=6)
    evolution = begin(SOME, mode).advanced(1500)
    top = evolution.top
    assert len(top) == 6
    assert top[0].error == evolution.best.error == evolution.statistics()["error"]
    errors = [solution.error for solution in top]
    assert errors == sorted(errors)
    cheap = begin(SOME, replace(mode, threshold=40.0)).advanced(1500)
    assert max(solution.error for solution in cheap.top) <= 1600 * SOME.wanted_count
    assert order(cheap.best)[0] < order(evolution.best)[0]
    ranks = [order(solution) for solution in cheap.top]  # of what is tidied, not of the grid's circuits
    assert ranks == sorted(ranks)


def test_the_top_is_sorted_by_what_is_tidied(monkeypatch):
    evolution = begin(SOME, replace(RANDOM, islands=2, round_generations=20, keep=6, threshold=40.0)).advanced(1500)
    before, found = evolution.top, evolution._best()
    monkeypatch.setattr(Evolution, "_best", lambda self: found[::-1])  # whatever the order of the grid's circuits is
    assert [order(s) for s in evolution.top] == [order(s) for s in before]


def test_the_archive_is_unbeaten_and_bounded():
    evolution = begin(SOME, replace(RANDOM, round_generations=5)).advanced(2000)
    costs = [point.costs for point in evolution.archive]
    assert 5 < len(costs) <= 64
    for p in costs:
        assert not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in costs)
    for point in evolution.archive:
        assert Point.of(point.name, point.solution).costs == point.costs


def test_published_settings_are_the_published_ones():
    mode = EvolutionSettings(mode="published", threshold=5.0)
    search = mode.search(2400)
    assert (mode.starts, mode.rows, mode.columns, mode.looks_back) == ("random", 256, 31, 31)
    assert (search.mutation, search.strength, search.offspring, search.drift) == ("rate", 0.01, 4, False)
    assert search.threshold == 25 * 2400
    improved = EvolutionSettings().search(1)
    assert (improved.mutation, improved.drift, EvolutionSettings().starts) == ("single_active", True, "constructive")


def test_patience_ends_it_and_raises_the_threshold():
    evolution = begin(SOME, replace(RANDOM, patience=30, columns=3)).advanced(10**6)
    assert evolution.ready
    assert evolution.threshold > 0
    assert evolution.generation < 10**6
    assert evolution.advanced(10).packed() == evolution.packed()


def test_the_watcher_sees_the_end_of_each_round_and_may_stop_it():
    seen = []
    stopped = begin(SOME, RANDOM).advanced(1000, watch=lambda e: bool(seen.append(e.generation)) or e.generation == 300)
    assert seen == [100, 200, 300]
    assert stopped.packed() == begin(SOME, RANDOM).advanced(300).packed()


def test_grids_that_look_back_less_far():
    mode = replace(RANDOM, levels_back=2, columns=6)
    evolution = begin(SOME, mode).advanced(400)
    assert evolution.best.error < begin(SOME, mode).best.error
    assert plain_error(SOME, evolution) == evolution.statistics()["error"]


def test_widths_other_than_8_bits():
    for bits, low in ((4, -8), (12, -2048)):
        wanted = np.random.default_rng(1).integers(low, -low, 30).tolist()
        problem = Problem.of_values([1, 2], wanted, bits=bits)
        problem = replace(problem, importance=problem.importance * 0.1)
        evolution = begin(problem, replace(SMALL, columns=30)).advanced(100)
        assert evolution.best.made.tolist() == problem.wanted.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "best"}, "use published or improved"),
        ({"start": "zero"}, "use random or constructive"),
        ({"mutation": "some"}, "use rate or probability or single_active"),
        ({"columns": 1}, "a whole number from 2 on"),
        ({"rows": 2.5}, "a whole number from 1 on"),
        ({"patience": 0}, "a whole number from 1 on"),
        ({"islands": True}, "a whole number from 1 on"),
        ({"seed": -1}, "a whole number from 0 on"),
        ({"threshold": float("nan")}, "a finite number of at least 0"),
        ({"strength": 0.1}, "leave strength out"),
        ({"mutation": "rate", "strength": 1.0}, "between 0 and 1"),
        ({"levels_back": 2}, "leave levels_back out"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        EvolutionSettings(**change)


def test_a_negative_number_of_generations_is_refused():
    with pytest.raises(UsageError, match="at least 0 generations"):
        begin(SOME, SMALL).advanced(-1)


def test_bytes_of_something_else_are_refused():
    data = begin(SOME, RANDOM).advanced(100).packed()
    for problem, mode in ((NONE, RANDOM), (FLOATS, RANDOM), (SOME, replace(RANDOM, seed=1)), (SOME, SMALL)):
        with pytest.raises(DataError, match="another problem or to other settings"):
            unpacked(problem, mode, data)
    for wrong in (b"", b"PK\x03\x04", data[:-1], data[:80], data + b"\0"):
        with pytest.raises(DataError):
            unpacked(SOME, RANDOM, wrong)


def test_bytes_with_other_contents_are_refused_or_read():
    import zlib

    data = begin(SOME, replace(RANDOM, islands=1, rows=40, columns=3)).advanced(100).packed()
    mode = replace(RANDOM, islands=1, rows=40, columns=3)
    head, payload = data[:53], zlib.decompress(data[53:])
    refused = 0
    for at in np.random.default_rng(0).integers(0, len(payload), 150).tolist():
        changed = bytearray(payload)
        changed[at] ^= 1 << (at % 8)
        try:
            unpacked(SOME, mode, head + zlib.compress(bytes(changed))).advanced(5)
        except DataError:
            refused += 1
    assert refused > 20
    bomb = head + zlib.compress(payload + bytes(10**7))
    with pytest.raises(DataError, match="broken bytes"):
        unpacked(SOME, mode, bomb)


def test_random_circuits_are_solutions_too():
    grid = grid_of(SOME, SMALL, seed=5)
    circuit = random_circuit(grid.circuit.shape, np.random.default_rng(0))
    solution = solution_of(SOME, circuit)
    assert solution.made.tolist() == interpreted(circuit, grid.goal.inputs)[0]
    assert tidied(solution).made.tolist() == solution.made.tolist()


def test_few_values_can_be_laid_out_as_well():
    few = clustered(SOME, 4)
    grid = grid_of(SOME, SMALL, seed=2)
    back = tidied(solution_of(SOME, laid_out(grid, few)))
    assert back.error == for_values(SOME, np.unique(back.made)).error
