"""Islands are the same for any number of processes; what migrates is better."""

from dataclasses import replace

import numpy as np
import pytest

from lilliput.ops.cartesian_islands import best, islands, migrated, order
from lilliput.ops.cartesian_multiplexed import multiplexed
from lilliput.ops.cartesian_search import Settings, advance, measured, start
from lilliput.ops.cartesian_state import unpacked

COSTS = np.arange(29, dtype=np.int64), np.arange(29, dtype=np.int64) % 4
TASK = multiplexed([3, 70, -90], range(-60, 61, 8), rows=16, columns=6, seed=2, costs=COSTS)
SETTINGS = Settings(offspring=2, patience=400)


def begun(count):
    return [start(TASK.goal, TASK.circuit, SETTINGS, seed, TASK.locked) for seed in range(count)]


def test_three_processes_find_what_one_finds():
    one, three = (
        islands(TASK.goal, SETTINGS, begun(4), rounds=5, generations=150, processes=processes) for processes in (1, 3)
    )
    assert [s.packed() for s in one] == [s.packed() for s in three]
    assert best(one).error < begun(1)[0].error


def test_islands_go_on_from_their_bytes():
    through = islands(TASK.goal, SETTINGS, begun(3), rounds=6, generations=80)
    half = islands(TASK.goal, SETTINGS, begun(3), rounds=3, generations=80)
    stored = [unpacked(state.packed()) for state in half]
    later = islands(TASK.goal, SETTINGS, stored, rounds=3, generations=80)
    assert [s.packed() for s in later] == [s.packed() for s in through]


def test_only_what_is_better_migrates_and_one_step_far():
    base = begun(1)[0]
    circuits = [replace(base.circuit, nodes=base.circuit.nodes.copy()) for _ in range(4)]
    states = [replace(base, circuit=c, error=e, stalled=9) for c, e in zip(circuits, (5, 7, 7, 3), strict=True)]
    after = migrated(states)
    assert [s.error for s in after] == [3, 5, 7, 3]
    assert [s.stalled for s in after] == [0, 0, 9, 9]
    assert after[0].circuit is circuits[3]
    assert after[2].circuit is circuits[2]
    assert best(states) is states[3]
    assert migrated([replace(states[0], stage=2), *states[1:]])[0].error == 5


def test_below_the_threshold_energy_comes_first():
    base = replace(begun(1)[0], threshold=10)
    dear, cheap = replace(base, error=0, energy=9), replace(base, error=8, energy=1)
    assert order(cheap, dear) < order(dear, cheap)
    wrong = replace(base, error=11, energy=0)
    assert order(dear, wrong) < order(wrong, dear)


def test_rounds_end_when_all_are_ready_or_the_watcher_says_so():
    seen = []
    islands(TASK.goal, SETTINGS, begun(2), rounds=9, generations=5, watch=lambda s: bool(seen.append(s)))
    assert len(seen) == 9
    islands(TASK.goal, SETTINGS, begun(2), rounds=9, generations=5, watch=lambda s: len(seen) < 99)
    found = islands(TASK.goal, replace(SETTINGS, patience=5), begun(2), rounds=10**6, generations=200)
    assert all(state.ready for state in found)


def test_a_multiplexed_circuit_gives_what_is_given_and_makes_the_rest():
    wanted = np.array([[4, 4, -7], [100, 9, 4]])
    task = multiplexed([9, 4, 4, 50], wanted, rows=8, columns=5, seed=0)
    assert task.given.tolist() == [4, 9, 50]
    assert task.values.tolist() == [-7, 4, 9, 100]
    assert task.goal.output_weights.tolist() == [1, 3, 1, 1]
    before = task.made(task.circuit, wanted)
    assert (before[wanted == 4] == 4).all()
    assert before[1, 1] == 9
    state = start(task.goal, task.circuit, Settings(), 3, task.locked)
    assert state.error == ((before - wanted) ** 2).sum() > 0
    state = advance(task.goal, Settings(), state, 30_000)
    assert state.error == ((task.made(state.circuit, wanted) - wanted) ** 2).sum() == 0
    last = state.circuit.nodes[-8:]
    assert (last[:, 2] == 28).all()
    assert last[1:3, 0].tolist() == [0, 1]
    assert state.circuit.outputs.tolist() == task.circuit.outputs.tolist()
    with pytest.raises(ValueError, match="not among those"):
        task.made(state.circuit, [5])


def test_errors_of_equal_values_weigh_together():
    wanted = np.array([10, 20, 10])
    whole = multiplexed([1], wanted, rows=4, columns=2, seed=0, weights=[2, 5, 1])
    assert whole.goal.output_weights.tolist() == [3, 5]
    broken = multiplexed([1], wanted, rows=4, columns=2, seed=0, weights=[0.25, 0.1, 1e-3]).goal.output_weights
    assert broken[0] / broken[1] == pytest.approx(2.51, rel=1e-9)
    made = whole.made(whole.circuit, wanted)
    error = measured(whole.goal, whole.circuit)["error"]
    assert error == ((made - wanted) ** 2 * np.array([2, 5, 1])).sum()


def test_more_values_than_rows_and_none_given_are_refused():
    with pytest.raises(ValueError, match="want 1 to 4"):
        multiplexed([1], range(5), rows=4, columns=2, seed=0)
    with pytest.raises(ValueError, match="0 given"):
        multiplexed([], range(3), rows=4, columns=2, seed=0)


def test_bytes_that_are_no_state_are_refused():
    data = begun(1)[0].packed()
    for wrong in (b"", b"PK\x03\x04", data[:-30], data[:200]):
        with pytest.raises(ValueError, match="not the state of a search"):
            unpacked(wrong)
