"""Two layers by one circuit with multiplexers, against a plain interpreter and plain sums."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cartesian_oracle import functions, interpreted, judged, wrapped
from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.encoding import Encoding
from lilliput.core.errors import UsageError
from lilliput.measure.energy import EYERISS, PUBLISHED, Wires
from lilliput.methods.weight_generation.codebook import exact
from lilliput.methods.weight_generation.evolution_settings import EvolutionSettings
from lilliput.methods.weight_generation.rows import begun, evolved, problem_of_rows, rows_of_values, solution_of_rows

GIVEN = [[3, 3, 70, -90, 12], [-4, 100]]
WANTED = [[5, 70, 70, -66, 1, 9], [-4, 33, 8]]
SMALL = rows_of_values(GIVEN, WANTED)
SETTINGS = EvolutionSettings(rows=12, columns=10, round_generations=50)
RANDOM = replace(SETTINGS, start="random")


def network(bits=(8, 8)):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 5), nn.ReLU(), nn.Conv2d(2, 3, 5))
    net = Artifact.of(module, InputSpec(shape=(1, 12, 12)))
    for name, width in zip(("0.weight", "2.weight"), bits, strict=True):
        net.encode_(name, Encoding.on_one_grid(net.parameter(name).detach(), width))
    return net


def plain(solution):
    """[rows][outputs] of the netlist, by the oracle's functions."""
    net, made = solution.netlist, functions(solution.netlist.bits)
    found = []
    for row, inputs in enumerate(solution.problem.given.tolist()):
        values = list(inputs)
        for function, a, b in net.gates:
            values.append(wrapped(made[function](values[a], values[b], row), net.bits))
        found.append([values[net.outputs[output]] for output in solution.outputs.tolist()])
    return found


def plain_error(made):
    """Of all weights, duplicates included."""
    error = 0
    for values, wanted in zip(made, WANTED, strict=True):
        index = {value: i for i, value in enumerate(sorted(set(wanted)))}
        error += sum((values[index[w]] - w) ** 2 for w in wanted)
    return error


@pytest.mark.parametrize("settings", [SETTINGS, RANDOM, replace(RANDOM, mode="published", strength=0.1, islands=2)])
@pytest.mark.parametrize("generations", [0, 120, 700])
def test_values_and_errors_are_those_of_a_plain_interpreter(settings, generations):
    solution = evolved(SMALL, settings, generations)
    assert solution.made.tolist() == plain(solution)
    assert solution.error == plain_error(plain(solution))


def test_the_goal_counts_each_weight_once():
    goal, states = begun(SMALL, RANDOM)
    circuit = states[0].circuit
    assert goal.inputs.tolist() == [[-90, 3, 12, 70], [-4, 100, 100, 100]]
    assert goal.targets.tolist() == [[-66, 1, 5, 9, 70], [-4, 8, 33, 33, 33]]
    assert SMALL.counts.tolist() == [[1, 1, 1, 1, 2], [1, 1, 1, 0, 0]]
    assert states[0].error == plain_error(interpreted(circuit, goal.inputs)) == judged(circuit, goal)["error"]
    assert solution_of_rows(SMALL, circuit).error == states[0].error


def test_from_one_circuit_for_each_layer_there_is_no_error_and_it_gets_cheaper():
    before, after = evolved(SMALL, SETTINGS, 0), evolved(SMALL, SETTINGS, 1000)
    assert before.error == after.error == 0
    assert 0 < after.multiplexers <= before.multiplexers <= 5
    assert after.cost().circuit.energy_pj <= before.cost().circuit.energy_pj
    assert evolved(SMALL, RANDOM, 3000).error < evolved(SMALL, RANDOM, 0).error


def test_the_result_is_the_same_for_any_number_of_processes():
    settings = replace(RANDOM, islands=2)
    one, two = (evolved(SMALL, settings, 120, processes=n) for n in (1, 2))
    assert (one.netlist, one.outputs.tolist()) == (two.netlist, two.outputs.tolist())


def test_costs_are_plain_sums():
    solution = evolved(SMALL, SETTINGS, 300)
    net, wires = solution.netlist, Wires()
    cost = solution.cost(wires=wires, level="buffer")
    functions_used = [gate.function for gate in net.gates]
    assert solution.multiplexers == functions_used.count(27) > 0
    gates = sum(PUBLISHED.energy_pj[f] for f in functions_used)
    assert cost.circuit.energy_pj == pytest.approx(gates)
    sources = sum(2 if f in (1, 2, 3, 8, 9, 10, 27) else 0 if 22 <= f <= 26 else 1 for f in functions_used)
    wire = sources * 8 * 0.1 * 0.02
    index_bits = (len(net.outputs) - 1).bit_length()
    weights, given = 9, 7
    choosing = weights * (len(net.outputs) - 1) * PUBLISHED.energy_pj[27] + weights * 8 * 0.1 * 0.02
    read = (weights * index_bits + given * 8) * EYERISS.pj_per_bit["buffer"]
    assert cost.energy_pj == pytest.approx(2 * (gates + wire) + choosing + read)
    assert cost.stored.given == 8 * given
    assert cost.stored.addresses == 4 * 3 + 2 * 1
    assert cost.stored.indices == weights * index_bits
    assert cost.plain_bits == 8 * (given + weights)
    assert cost.others["one shared bank"] == exact(SMALL.shared).cost().stored.total
    assert SMALL.shared.given.tolist() == [-90, -4, 3, 12, 70, 100]


def test_rows_of_a_network_are_its_layers():
    net = network()
    rows = problem_of_rows(net, given=["0 core 3", "2 core 3"], wanted=["0 outer 3", "2 outer 3"])
    for layer, name in zip(rows.layers, ("0.weight", "2.weight"), strict=True):
        integers = net.encoding(name).integers()
        core = integers[:, :, 1:4, 1:4].reshape(-1).tolist()
        everything = integers.reshape(-1).tolist()
        assert layer.given.tolist() == sorted(set(core))
        assert layer.given_count + layer.wanted_count == len(everything)
        assert int((layer.wanted * layer.counts).sum()) == sum(everything) - sum(core)
    assert rows.shared.wanted_count == 2 * 16 + 6 * 16
    solution = evolved(rows, EvolutionSettings(rows=80, columns=14), 0)
    assert solution.error == 0
    assert any("one shared bank" in warning for warning in solution.cost().warnings())


def test_layers_of_different_widths_share_the_wider_one():
    rows = problem_of_rows(network((8, 5)), given=["0 core 3", "2 core 3"], wanted=["0 outer 3", "2 outer 3"])
    assert evolved(rows, EvolutionSettings(rows=80, columns=14), 0).error == 0


def test_what_is_no_pair_of_layers_is_refused():
    net = network()
    with pytest.raises(UsageError, match="give 2 selections each"):
        problem_of_rows(net, given=["0 core 3"], wanted=["0 outer 3"])
    with pytest.raises(UsageError, match="in both"):
        problem_of_rows(net, given=["0 core 3", "0 outer 3"], wanted=["2", "2"])
    with pytest.raises(UsageError, match="given and wanted weights"):
        problem_of_rows(net, given=["0", "2 core 3"], wanted=["2 outer 3", "0"])
    with pytest.raises(UsageError, match="gives no weight"):
        rows_of_values([[], [1]], [[1], [2]])
    with pytest.raises(UsageError, match="gives no weight, or constants"):
        problem_of_rows(net, given=["= 1, 2", "2 core 3"], wanted=["0", "2 outer 3"])
    with pytest.raises(UsageError, match="3 layers"):
        rows_of_values([[1]] * 3, [[1]] * 3)
    with pytest.raises(UsageError, match="use at least 5 rows"):
        evolved(SMALL, replace(SETTINGS, rows=4), 1)


def test_values_of_both_layers_share_places():
    rows = rows_of_values([[1, 5, 2], [2, 7]], [[3, 4, 9, 9], [9, 2, 2, 2]])
    assert rows.given.tolist() == [[2, 1, 5], [2, 7, 7]]
    assert rows.wanted.tolist() == [[9, 3, 4], [9, 2, 2]]
    assert rows.counts.tolist() == [[2, 1, 1], [1, 3, 0]]
    solution = evolved(rows, SETTINGS, 0)
    assert solution.made.tolist() == rows.wanted.tolist() == plain(solution)


def test_equal_values_in_both_layers_need_no_multiplexer():
    rows = rows_of_values([[1, 2], [1, 2]], [[3, 9], [3, 9]])
    solution = evolved(rows, SETTINGS, 0)
    assert (solution.error, solution.multiplexers) == (0.0, 0)
    assert np.array_equal(solution.made[0], solution.made[1])
