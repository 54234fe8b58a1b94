"""The multiple-choice knapsack against every choice there is."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.knapsack import choose

OPTION = st.tuples(st.integers(0, 40), st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 7.0]))
GROUPS = st.lists(st.lists(OPTION, min_size=1, max_size=5), min_size=1, max_size=5)


def every_choice(groups, budget):
    """The least loss of all choices that fit, by trying all."""
    fitting = [c for c in itertools.product(*groups) if sum(cost for cost, _ in c) <= budget]
    return min(sum(loss for _, loss in c) for c in fitting)


@settings(deadline=None, max_examples=300)
@given(GROUPS, st.integers(0, 120))
def test_no_choice_that_fits_is_better(groups, slack):
    budget = sum(min(cost for cost, _ in group) for group in groups) + slack
    costs, losses = [[c for c, _ in g] for g in groups], [[v for _, v in g] for g in groups]
    picked = choose(costs, losses, budget)
    assert sum(c[i] for c, i in zip(costs, picked, strict=True)) <= budget
    assert sum(v[i] for v, i in zip(losses, picked, strict=True)) == pytest.approx(every_choice(groups, budget))


def test_a_hundred_groups_of_seven_match_integer_programming():
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    rng = np.random.default_rng(3)
    cost = np.sort(rng.integers(100, 40_000, (100, 7)), axis=1)
    loss = np.sort(rng.random((100, 7)) ** 4, axis=1)[:, ::-1] / np.arange(1, 8)
    budget = int(cost[:, 3].sum())
    picked = choose(cost.tolist(), loss.tolist(), budget)
    one_each = np.kron(np.eye(100), np.ones(7))
    constraints = [LinearConstraint(cost.reshape(1, -1), ub=budget), LinearConstraint(one_each, 1, 1)]
    best = milp(loss.reshape(-1), integrality=np.ones(700), bounds=Bounds(0, 1), constraints=constraints)
    assert sum(cost[i, p] for i, p in enumerate(picked)) <= budget
    assert sum(loss[i, p] for i, p in enumerate(picked)) <= best.fun * (1 + 1e-4) + 1e-9


def test_a_gap_that_the_relaxation_cannot_see_is_closed():
    """Going by slope takes the first group's step and then has no room for the second's, which gains more."""
    assert choose([[0, 6], [0, 10]], [[9.0, 0.0], [13.0, 0.0]], 10) == [0, 1]


def test_of_equal_losses_the_cheapest_is_taken():
    assert choose([[5, 3, 4]], [[1.0, 1.0, 1.0]], 9) == [1]


def test_a_budget_below_the_cheapest_is_refused():
    with pytest.raises(ValueError, match="more than 4"):
        choose([[2, 9], [3, 9]], [[1.0, 0.0], [1.0, 0.0]], 4)


@pytest.mark.parametrize(
    ("costs", "losses"), [([[]], [[]]), ([[-1]], [[0.0]]), ([[1, 2]], [[0.0]]), ([[1]], [[float("nan")]])]
)
def test_malformed_groups_are_refused(costs, losses):
    with pytest.raises(ValueError, match=r"options|finite"):
        choose(costs, losses, 10)


def test_no_groups_need_nothing():
    assert choose([], [], 0) == []
