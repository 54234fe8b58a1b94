"""The search against a replay in plain Python, and the laws that it keeps."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartesian_oracle import judged
from cartesian_replay import Random, evolved
from lilliput.ops import cartesian_functions as cf
from lilliput.ops.cartesian import Circuit, Shape, random_circuit
from lilliput.ops.cartesian_goal import Goal, whole
from lilliput.ops.cartesian_random_kernels import fill_below_, fill_skipped_, fill_words_, seed_
from lilliput.ops.cartesian_search import Settings, advance, measured, start
from lilliput.ops.cartesian_state import unpacked

SHAPES = (
    Shape(inputs=2, outputs=5, rows=4, columns=5, levels_back=5),
    Shape(inputs=4, outputs=9, rows=6, columns=7, levels_back=2, bits=5),
    Shape(inputs=1, outputs=3, rows=1, columns=30, levels_back=31, bits=16),
    Shape(inputs=3, outputs=70, rows=9, columns=12, levels_back=13),
)


def goal_of(shape, seed, rows=1, **more):
    generator = np.random.default_rng(seed)
    low, high = cf.limits(shape.bits)
    return Goal(
        inputs=generator.integers(low, high + 1, size=(rows, shape.inputs)),
        targets=generator.integers(low, high + 1, size=(rows, shape.outputs)),
        bits=shape.bits,
        energy=generator.integers(0, 9, size=cf.COUNT),
        delay=generator.integers(0, 4, size=cf.COUNT),
        **more,
    )


def genes(circuit):
    return np.concatenate([circuit.nodes.reshape(-1), circuit.outputs]).tolist()


def facts(state):
    numbers = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in ("circuit", "locked", "random")}
    return numbers | {"random": state.random.tolist()}, genes(state.circuit)


def measures(state):
    return {key: getattr(state, key) for key in ("error", "energy", "delay", "gates")}


def test_random_words_are_those_of_the_published_generators():
    state, words = np.array([1, 2, 3, 4], dtype=np.uint64), np.zeros(5, dtype=np.uint64)
    fill_words_(state, words)
    assert words.tolist() == [11520, 0, 1509978240, 1215971899390074240, 1216172134540287360]
    seed_(state, np.uint64(1234567))
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert state.tolist() == first
    fill_words_(state, words)
    replay = Random(first)
    assert words.tolist() == [replay.word() for _ in words]


@pytest.mark.parametrize("bound", [1, 2, 3, 28, 1000, (1 << 31) + 1, (1 << 32) - 1])
def test_numbers_below_a_bound_are_uniform_and_those_of_the_replay(bound):
    state, drawn = np.zeros(4, dtype=np.uint64), np.zeros(20_000, dtype=np.int64)
    seed_(state, np.uint64(bound))
    replay = Random(state)
    fill_below_(state, bound, drawn)
    assert drawn[:2000].tolist() == [replay.below(bound) for _ in range(2000)]
    bins = bound if bound < 30 else 20
    counts = np.bincount(drawn * bins // bound, minlength=bins)
    assert drawn.min() >= 0
    assert drawn.max() < bound
    expected = len(drawn) / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 70  # at most 27 degrees of freedom: once in 80,000


def test_a_gene_and_its_new_value_are_independent():
    """The published engine drew them from one linear congruential sequence: always of opposite parity."""
    state, drawn = np.zeros(4, dtype=np.uint64), np.zeros(40_000, dtype=np.int64)
    seed_(state, np.uint64(3))
    fill_below_(state, 28, drawn)
    pairs = np.bincount(28 * drawn[::2] + drawn[1::2], minlength=784)
    assert ((pairs - 20_000 / 784) ** 2 / (20_000 / 784)).sum() < 783 + 6 * np.sqrt(2 * 783)


def test_skips_are_geometric():
    state, drawn = np.zeros(4, dtype=np.uint64), np.zeros(100_000, dtype=np.int64)
    seed_(state, np.uint64(5))
    fill_skipped_(state, 1 / np.log1p(-0.2), drawn)
    for k in range(8):
        assert abs((drawn == k).mean() - 0.2 * 0.8**k) < 0.005


def every_function(rows_of_pairs, bits):
    """One node for each function of two inputs, and a goal that wants what numpy computes."""
    a, b = rows_of_pairs
    shape = Shape(inputs=2, outputs=cf.COUNT, rows=cf.COUNT, columns=1, levels_back=1, bits=bits)
    nodes = np.array([[0, 1, f] for f in range(cf.COUNT)], dtype=np.int32)
    circuit = Circuit(shape=shape, nodes=nodes, outputs=np.arange(2, 2 + cf.COUNT, dtype=np.int32))
    wanted = [cf.evaluate(f, a, b, bits, np.arange(len(a))) for f in range(cf.COUNT)]
    return circuit, Goal(inputs=np.stack([a, b], 1), targets=np.stack(wanted, 1), bits=bits)


def test_compiled_functions_are_exact_for_every_pair_of_8_bits():
    a, b = np.divmod(np.arange(65536), 256) - np.array([[128], [128]])
    for order in (slice(None), slice(None, None, -1)):  # so that each pair meets both rows of a multiplexer
        circuit, goal = every_function((a[order], b[order]), 8)
        assert measured(goal, circuit)["error"] == 0
    shifted = replace(goal, targets=cf.wrap(goal.targets + 1, 8))
    assert measured(shifted, circuit)["error"] >= cf.COUNT * 65536


@pytest.mark.parametrize("bits", range(2, 17))
def test_compiled_functions_are_exact_at_every_width(bits):
    generator = np.random.default_rng(bits)
    low, high = cf.limits(bits)
    pairs = np.concatenate([generator.integers(low, high + 1, (2, 500)), [[low, low, high, high], [low, high] * 2]], 1)
    circuit, goal = every_function(pairs, bits)
    assert measured(goal, circuit)["error"] == 0


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    rows=st.integers(1, 4),
    error=st.sampled_from(["squared", "absolute"]),
    weighted=st.sampled_from(["not", "by output", "by row"]),
    seed=st.integers(0, 999),
)
def test_measures_are_those_of_a_plain_interpreter(shape, rows, error, weighted, seed):
    sizes = {"not": None, "by output": shape.outputs, "by row": (rows, shape.outputs)}
    weights = None if weighted == "not" else np.random.default_rng(seed).integers(0, 100, size=sizes[weighted])
    goal = goal_of(shape, seed, rows, error=error, weights=weights)
    circuit = random_circuit(shape, np.random.default_rng(seed))
    circuit.nodes[:: 1 + seed % 5, 2] = cf.MULTIPLEXER
    assert measured(goal, circuit) == judged(circuit, goal)


MODES = [
    Settings(),
    Settings(offspring=1, threshold=10**9),
    Settings(offspring=3, threshold=10**9, drift=False),
    Settings(offspring=2, patience=4),
    Settings(mutation="rate", strength=0.15),
    Settings(mutation="rate", strength=0.15, threshold=10**9, drift=False),
    Settings(mutation="rate", strength=0.3, offspring=1, threshold=20_000),
    Settings(mutation="probability", strength=0.05, patience=6, stages=1),
    Settings(mutation="probability", strength=0.2, offspring=2, threshold=10**9),
    Settings(mutation="probability", strength=0.02, offspring=5, threshold=10**9, patience=3),
]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("which", range(len(SHAPES) - 1))
def test_searches_go_exactly_as_their_replay(mode, which):
    shape = SHAPES[which]
    goal = goal_of(shape, which, rows=1 + which)
    generator = np.random.default_rng(which)
    locked = generator.random((shape.nodes, 3)) < 0.2, generator.random(shape.outputs) < 0.5
    state = start(goal, random_circuit(shape, generator), mode, seed=7, locked=locked)
    assert facts(advance(goal, mode, state, 40)) == evolved(goal, mode, state, 40)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_measures_after_thousands_of_mutations_are_those_from_scratch(mode):
    mode = replace(mode, patience=None)
    for shape in SHAPES:
        goal = goal_of(shape, 3, rows=2)
        state = start(goal, random_circuit(shape, np.random.default_rng(1)), mode, seed=1)
        for generations in (1, 2, 300, 1500):
            state = advance(goal, mode, state, generations)
            assert measures(state) == judged(state.circuit, goal)


@settings(max_examples=30, deadline=None)
@given(mode=st.sampled_from(MODES), cuts=st.lists(st.integers(0, 60), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_search_in_pieces_is_the_search_in_one_piece(mode, cuts, seed):
    shape = SHAPES[seed % len(SHAPES)]
    goal = goal_of(shape, seed)
    whole_way = pieces = start(goal, random_circuit(shape, np.random.default_rng(seed)), mode, seed)
    for cut in cuts:
        pieces = unpacked(advance(goal, mode, pieces, cut).packed())
    assert facts(pieces) == facts(advance(goal, mode, whole_way, sum(cuts)))


def test_no_generation_is_worse_than_the_one_before():
    shape = SHAPES[0]
    goal = goal_of(shape, 2)
    mode = Settings(threshold=6000, offspring=2)
    state = start(goal, random_circuit(shape, np.random.default_rng(0)), mode, seed=0)
    stages = set()
    for _ in range(3000):
        later = advance(goal, mode, state, 1)
        if state.stage == 0:
            assert later.error <= state.error
        else:
            order = [(s.energy, s.error, s.delay, s.gates) for s in (later, state)]
            assert order[0] <= order[1]
            assert later.error <= mode.threshold
        stages.add(state.stage)
        state = later
    assert stages == {0, 1}


def test_equal_circuits_follow_each_other_only_with_drift():
    """Nothing can be better here, in the second stage: no error, no cost, one gate that is needed."""
    shape = Shape(inputs=2, outputs=1, rows=3, columns=3, levels_back=3)
    circuit = random_circuit(shape, np.random.default_rng(4))
    nodes = circuit.nodes.copy()
    nodes[-1] = 0, 1, cf.ADD
    circuit = replace(circuit, nodes=nodes, outputs=np.array([shape.inputs + 8], dtype=np.int32))
    goal = Goal(inputs=np.array([[5, 6]]), targets=np.array([[11]]))
    for drift in (False, True):
        mode = Settings(mutation="rate", strength=0.2, drift=drift)
        state = advance(goal, mode, start(goal, circuit, mode, seed=1), 200)
        assert (state.stage, state.error, state.gates, state.stalled) == (1, 0, 1, 200)
        assert (genes(state.circuit) == genes(circuit)) is not drift


def test_goals_that_do_not_fit_a_circuit_are_refused():
    circuit, goal = random_circuit(SHAPES[0], np.random.default_rng(0)), goal_of(SHAPES[0], 0)
    dear = np.full(cf.COUNT, (1 << 62) // SHAPES[0].nodes, dtype=np.int64)
    assert measured(replace(goal, energy=dear), circuit)["energy"] > 0
    with pytest.raises(ValueError, match="could overflow"):
        measured(replace(goal, energy=dear + 1), circuit)
    with pytest.raises(ValueError, match="other bits, inputs or outputs"):
        measured(goal_of(SHAPES[1], 0), circuit)
    everything = np.ones((SHAPES[0].nodes, 3), dtype=bool), np.ones(SHAPES[0].outputs, dtype=bool)
    with pytest.raises(ValueError, match="leave some of them free"):
        start(goal, circuit, Settings(), 0, everything)


def test_locked_genes_stay():
    shape = SHAPES[1]
    generator = np.random.default_rng(3)
    locked = generator.random((shape.nodes, 3)) < 0.5, generator.random(shape.outputs) < 0.5
    circuit = random_circuit(shape, generator)
    goal, mode = goal_of(shape, 1), Settings(mutation="rate", strength=0.3)
    state = advance(goal, mode, start(goal, circuit, mode, 0, locked), 500)
    assert (state.circuit.nodes == circuit.nodes)[locked[0]].all()
    assert (state.circuit.outputs == circuit.outputs)[locked[1]].all()
    assert (state.circuit.nodes != circuit.nodes)[~locked[0]].mean() > 0.3


def test_a_search_without_active_genes_comes_to_an_end():
    shape = Shape(inputs=1, outputs=1, rows=1, columns=3, levels_back=4)
    nodes = np.zeros((3, 3), dtype=np.int32)
    circuit = Circuit(shape=shape, nodes=nodes, outputs=np.zeros(1, dtype=np.int32))
    locked = np.zeros((3, 3), dtype=bool), np.ones(1, dtype=bool)
    goal = Goal(inputs=np.array([[1]]), targets=np.array([[2]]))
    state = advance(goal, Settings(), start(goal, circuit, Settings(), 0, locked), 5)
    assert (state.error, state.tried, state.neutral) == (1, 20, 20)


def test_simple_goals_are_reached():
    """a + b, a - b, 2 a and a b, in two rows of data."""
    shape = Shape(inputs=2, outputs=4, rows=5, columns=5, levels_back=5)
    goal = Goal(inputs=np.array([[3, -5], [40, 7]]), targets=np.array([[-2, 8, 6, -15], [47, 33, 80, 24]]))
    state = start(goal, random_circuit(shape, np.random.default_rng(0)), Settings(stages=1), 1)
    reached = advance(goal, Settings(stages=1), state, 50_000)
    assert reached.ready
    assert reached.circuit.run(goal.inputs).tolist() == goal.targets.tolist()


def test_whole_numbers_keep_ratios_within_half_a_step():
    values = np.array([0.0, 1.5e-6, 0.1515, 1 / 3])
    scaled, scale = whole(values, 1 << 40)
    assert (1 << 39) < scaled.max() <= 1 << 40
    assert np.abs(scaled / scale - values).max() <= 0.5 / scale
    assert whole([0, 0], 10)[0].tolist() == [0, 0]
    with pytest.raises(ValueError, match="finite numbers from 0 on"):
        whole([-1.0], 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": np.array([[128]])}, "inputs must be rows of numbers of 8 bits"),
        ({"targets": np.array([[1], [2]])}, "1 rows of inputs, but 2 of targets"),
        ({"weights": np.array([1, 2])}, "one for each output"),
        ({"weights": np.array([1 << 60])}, "could overflow"),
        ({"error": "cubed"}, "squared or absolute"),
        ({"energy": np.zeros(3, dtype=np.int64)}, "energy must be 29 whole numbers"),
        ({"delay": np.zeros(cf.COUNT)}, "delay must be 29 whole numbers"),
        ({"bits": 1}, "2 to 16 bits"),
    ],
)
def test_goals_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Goal(**{"inputs": np.array([[1]]), "targets": np.array([[1]]), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mutation": "some"}, "mutations are rate, probability, single_active, not some"),
        ({"strength": 0.0}, "strength is in"),
        ({"offspring": 0}, "offspring 1 at least"),
        ({"threshold": -1}, "threshold 0 at least"),
        ({"stages": 3}, "stages 1 or 2"),
        ({"patience": 0}, "patience is at least 1, not 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)
