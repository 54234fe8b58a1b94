"""Which weights a circuit makes of which, what errors cost, and the way back into the network."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lilliput.core.artifact import Artifact, InputSpec
from lilliput.core.errors import RecipeError, UsageError
from lilliput.core.grid import Grid
from lilliput.core.task import Task
from lilliput.methods.weight_generation.codebook import best_of, clustered, exact, free, nearest_index
from lilliput.methods.weight_generation.importance import fisher
from lilliput.methods.weight_generation.problem import Problem, problem_of
from lilliput.methods.weight_generation.selection import choose
from lilliput.methods.weight_generation.solution import substitute_


def network():
    """Convolution, depthwise convolution, linear layer; 8, 6 and 4 bits; a scale for each channel."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 3))
    net = Artifact.of(module, InputSpec(shape=(2, 8, 8)))
    for name, bits in (("0.weight", 8), ("2.weight", 6), ("4.weight", 4)):
        weight = net.parameter(name).detach()
        scale = weight.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
        many = torch.zeros(len(weight), dtype=torch.int64)
        net.encode_(
            name, net.encoding(name).with_grid(Grid(scale=scale, zero_point=many, bit_width=many + bits, axis=0))
        )
    return net


NET = network()


def grid_of(name):
    grid = NET.encoding(name).grid
    assert grid is not None
    return grid


def mask_of(selection, name="0.weight"):
    mask = torch.zeros(NET.parameter(name).shape, dtype=torch.bool).reshape(-1)
    for place in choose(NET, selection).places:
        if place.name == name:
            mask[place.positions] = True
    return mask.reshape(NET.parameter(name).shape)


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        ("0", np.s_[:]),
        ("0[1]", np.s_[1]),
        ("0[-1]", np.s_[-1]),
        ("0[:, 1]", np.s_[:, 1]),
        ("0[0, :, 1:4, ::2]", np.s_[0, :, 1:4, ::2]),
        ("0 core 3", np.s_[:, :, 1:4, 1:4]),
        ("0[2] core 1", np.s_[2, :, 2:3, 2:3]),
        (["0[0]", "0[0, 0]", "0[2]"], np.s_[::2]),
        ("*[0]", np.s_[0]),
    ],
)
def test_selections_choose_what_numpy_slices_choose(selection, chosen):
    expected = torch.zeros(4, 2, 5, 5, dtype=torch.bool)
    expected[chosen] = True
    assert torch.equal(mask_of(selection), expected)


def test_core_and_outer_are_the_whole_and_share_nothing():
    core, outer = mask_of("0[:, 1] core 3"), mask_of("0[:, 1] outer 3")
    assert not bool((core & outer).any())
    assert torch.equal(core | outer, mask_of("0[:, 1]"))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("conv", "no layer 'conv' with weights"),
        ("1", "no layer '1' with weights"),
        ("0[9]", "index 9 of 4; use 0 to 3"),
        ("0[0,0,0,0,0]", "5 slices of 4 dimensions"),
        ("0[a]", "the slice 'a'"),
        ("0[0,]", "the slice ''"),
        ("0[::-1]", "step -1"),
        ("0[3:3]", "none of 0.weight"),
        ("0 core 2", "no middle 2 of a kernel"),
        ("0 core 7", "no middle 7 of a kernel"),
        ("4 core 1", "no middle 1 of a kernel"),
        ("0 middle 3", "not a selection"),
        ("= 1, x", "not a list of integers"),
    ],
)
def test_what_is_no_selection_is_refused(selection, message):
    with pytest.raises(RecipeError, match=message):
        choose(NET, selection)


CASES = {
    "single filter": ("0[0, 0] core 3", "0[0, 0] outer 3"),
    "core to outer": ("0 core 3", "0 outer 3"),
    "outer to core": ("0 outer 3", "0 core 3"),
    "one input channel": ("0[:, 0]", "0[:, 1]"),
    "layer to layer": ("2", "0"),
    "linear and depthwise": ("0", ["2", "4"]),
    "nothing to everything": ([], "*"),
    "constants to everything": ("= 0, 1, -7", "*"),
    "a layer from itself": ("0", "given"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_exact_circuit_changes_nothing(case):
    problem = problem_of(NET, given=CASES[case][0], wanted=CASES[case][1])
    solution = exact(problem)
    assert solution.error == 0
    net = NET.copy()
    assert set(substitute_(net, solution).values()) == {0}
    for name in ("0.weight", "2.weight", "4.weight"):
        assert torch.equal(net.encoding(name).integers(), NET.encoding(name).integers())
        assert torch.equal(net.parameter(name), NET.parameter(name))
    chosen = choose(NET, CASES[case][0] if CASES[case][1] == "given" else CASES[case][1])
    assert problem.wanted_count == sum(len(place.positions) for place in chosen.places)


def test_a_layer_from_itself_stores_none_of_its_weights_but_the_values():
    problem = problem_of(NET, given="4")
    cost = exact(problem).cost()
    values = NET.encoding("4.weight").integers().unique()
    assert problem.given.tolist() == problem.wanted.tolist() == values.tolist()
    assert (cost.stored.given, cost.stored.own) == (0, 4 * len(values))
    assert (cost.circuit.gates, cost.stored.functions) == (0, 0)


def test_constants_that_no_stored_weight_has_are_stored_too():
    stored = NET.encoding("4.weight").integers().unique().tolist()
    problem = problem_of(NET, given=["4", f"= {stored[0]}, 31, -31"], wanted="2")
    assert (problem.given_count, problem.own_inputs) == (48, 2)
    assert len(problem.given) == len(stored) + 2


def test_the_network_gets_what_the_circuit_makes_and_nothing_else():
    problem = problem_of(NET, wanted=["0[:, 0]", "2"])
    solution = clustered(problem, 5)
    net = NET.copy()
    changed = substitute_(net, solution)
    made = dict(zip(problem.wanted.tolist(), solution.made.tolist(), strict=True))
    for name, mask in (("0.weight", mask_of("0[:, 0]")), ("2.weight", mask_of("2", "2.weight"))):
        before, after = NET.encoding(name).integers(), net.encoding(name).integers()
        low, high = grid_of(name).range()
        wanted = before.clone().apply_(lambda v: made.get(v, v)).clamp(int(low.min()), int(high.max()))
        assert torch.equal(after, torch.where(mask, wanted, before))
        assert changed[name] > 0
    net.check()


def test_pruned_weights_take_no_part_and_stay_zero():
    net = NET.copy()
    mask = torch.rand(net.parameter("0.weight").shape) > 0.5
    net.encode_("0.weight", net.encoding("0.weight").with_mask(mask))
    problem = problem_of(net, wanted="0")
    assert problem.wanted_count == int(mask.sum())
    substitute_(net, clustered(problem, 3))
    assert not bool(net.parameter("0.weight")[~mask].any())
    kept = net.encoding("0.weight").mask
    assert kept is not None
    assert torch.equal(kept, mask)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-32, 31), min_size=1, max_size=40), st.integers(1, 6))
def test_clusters_are_never_worse_than_any_evenly_spaced_values(wanted, k):
    problem = Problem.of_values([], wanted, bits=6)
    solution = clustered(problem, k)
    assert len(solution.netlist.outputs) <= k
    assert solution.error == sum(
        (m - w) ** 2 for m, w in zip(solution.made[np.searchsorted(problem.wanted, wanted)], wanted, strict=True)
    )
    spaced = np.unique(np.linspace(min(wanted), max(wanted), k).round().astype(np.int64))
    # centroids are rounded to integers: by at most a half, whose square each weight may pay
    assert solution.error <= problem.error(spaced[nearest_index(problem.wanted, spaced)]) + len(wanted) / 4
    if len(set(wanted)) <= k:
        assert solution.error == 0


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(-8, 7), min_size=1, max_size=12),
    st.sets(st.integers(-8, 7), min_size=1, max_size=7),
    st.integers(1, 5),
)
def test_the_best_few_values_are_those_of_all_combinations(wanted, values, k):
    problem, values = Problem.of_values([], wanted, bits=4), np.sort(np.array(list(values)))
    error = {
        few: sum(min((v - w) ** 2 for v in few) for w in wanted)
        for n in range(1, min(k, len(values)) + 1)
        for few in combinations(values.tolist(), n)
    }
    chosen = best_of(problem, values, k)
    assert error[tuple(chosen.tolist())] == min(error.values())


def test_importance_moves_clusters_to_where_errors_cost():
    values = [-20, 0, 20, 21]
    even = Problem.of_values([], values)
    heavy = Problem(**{**vars(even), "importance": np.array([1.0, 1.0, 1e6, 1e6])})
    assert clustered(even, 3).made.tolist() == [-20, 0, 21, 21]
    assert clustered(heavy, 3).made.tolist() == [-10, -10, 20, 21]


def test_free_values_take_no_energy_and_are_the_nearest():
    problem = problem_of(NET, wanted="*")
    solution = free(problem)
    assert solution.cost().circuit.energy_pj == 0
    known = [
        -128,
        -64,
        -32,
        -16,
        -8,
        -4,
        -2,
        -1,
        0,
        1,
        2,
        3,
        4,
        6,
        7,
        8,
        12,
        14,
        15,
        16,
        24,
        28,
        30,
        31,
        32,
        48,
        56,
        60,
    ]
    known += [62, 63, 64, 96, 112, 120, 124, 126, 127]
    expected = [min(known, key=lambda v, w=w: (abs(v - w), v)) for w in problem.wanted.tolist()]
    assert solution.made.tolist() == expected
    assert free(problem, most_pj=1e-6).error < solution.error


def test_fisher_is_the_mean_of_squared_slopes_and_counts_with_scales():
    torch.manual_seed(1)
    x, y = torch.randn(6, 2, 8, 8), torch.randint(3, (6,))
    task = Task.classification((x, y), (x, y))
    found = fisher(NET, task, ["4.weight"], samples=6)["4.weight"]
    features = nn.Sequential(*list(NET.module.children())[:4])(x).detach()
    slopes = torch.softmax(NET.module(x).detach(), 1) - nn.functional.one_hot(y, 3)
    expected = (slopes[:, :, None] * features[:, None, :]) ** 2
    assert torch.allclose(found, expected.double().mean(0), rtol=1e-4)
    problem = problem_of(NET, wanted="4", importance={"4.weight": found})
    zero = np.zeros(len(problem.wanted))
    assert problem.error(zero) == pytest.approx(float((found * NET.parameter("4.weight").detach().double() ** 2).sum()))


def test_bad_problems_are_refused():
    with pytest.raises(UsageError, match=r"weights of '0.weight' in both"):
        problem_of(NET, given="0[0]", wanted="0[:2]")
    with pytest.raises(UsageError, match="none; name at least one layer"):
        problem_of(NET, wanted="= 3")
    with pytest.raises(UsageError, match="constants: 0 to 300 in 8 bits"):
        problem_of(NET, given="= 0, 300", wanted="0")
    with pytest.raises(UsageError, match=r"importance of '0.weight': none"):
        problem_of(NET, wanted="0", importance={})
    plain = Artifact.of(nn.Linear(3, 2), InputSpec(shape=(3,)))
    with pytest.raises(UsageError, match="it has no grid; quantize the weights first"):
        problem_of(plain, wanted="*")
    with pytest.raises(UsageError, match="0 values; use at least 1"):
        clustered(problem_of(NET, wanted="0"), 0)


def test_weights_that_have_changed_since_are_refused():
    solution = exact(problem_of(NET, wanted="2"))
    net, encoding = NET.copy(), NET.encoding("2.weight")
    other = next(v for v in range(-31, 32) if v not in solution.problem.wanted)
    net.encode_("2.weight", encoding.with_grid(grid_of("2.weight"), torch.full_like(encoding.values, other)))
    with pytest.raises(UsageError, match="they are others than the problem's"):
        substitute_(net, solution)
