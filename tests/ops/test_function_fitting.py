"""What a replaced activation computed is what its successor starts with."""

import pytest
import torch
from torch.nn import functional as F

from lilliput.ops.function_fitting import fitted
from lilliput.ops.learned_function import grid_of, learned_function

FUNCTIONS = {"relu": torch.relu, "gelu": F.gelu, "silu": F.silu, "hardswish": F.hardswish}


@pytest.mark.parametrize("points", [9, 16, 17])
@pytest.mark.parametrize("kind", ["table", "cubic", "lerp_psa"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lines_are_nearer_to_the_function_than_those_through_its_points(name, kind, points):
    """For inputs of deviation 1 on a grid to 4; a ReLU is met exactly where a point is at 0."""
    function, limit = FUNCTIONS[name], torch.tensor([4.0])
    x = torch.randn((5000, 1), generator=torch.Generator().manual_seed(0))
    found = learned_function(x, fitted(function, kind, 4.0, points)[None], limit, kind, points) - function(x)
    through = learned_function(x, function(grid_of(limit, points)), limit, "table", points) - function(x)
    exact = name == "relu" and points % 2 == 1
    least = 1e-2 if kind == "lerp_psa" and exact else 1e-6
    assert found.square().mean().sqrt() < max(least, 0.75 * through.square().mean().sqrt())


def test_large_tables_take_the_values_of_the_function():
    grid = grid_of(torch.tensor([3.0]), 500)[0]
    assert torch.allclose(fitted(F.gelu, "table", 3.0, 500), F.gelu(grid), atol=1e-6)


@pytest.mark.parametrize("limit", [0.7, 4.0, 30.0])
def test_a_table_with_a_point_at_zero_is_a_relu_everywhere(limit):
    weight, x = fitted(torch.relu, "table", limit, 9)[None], torch.linspace(-3 * limit, 3 * limit, 501)[:, None]
    found = learned_function(x, weight, torch.tensor([limit]), "table", 9)
    assert torch.allclose(found, torch.relu(x), atol=1e-5 * limit)


@pytest.mark.parametrize(("name", "limit", "bound"), [
    ("relu", 4.0, 0.004), ("relu", 0.3, 0.004), ("gelu", 4.0, 1e-3), ("silu", 6.0, 1e-3), ("hardswish", 4.0, 0.01),
])  # fmt: skip
def test_psa_is_fitted_within_a_share_of_the_limit(name, limit, bound):
    weight, x = fitted(FUNCTIONS[name], "psa", limit, 33)[None], torch.linspace(-limit, limit, 501)[:, None]
    found = learned_function(x, weight, torch.tensor([limit]), "psa", 33)
    assert float((found - FUNCTIONS[name](x)).abs().max()) < bound * limit


def test_fitting_draws_no_random_numbers_and_gives_the_same_again():
    state = torch.get_rng_state()
    first = fitted(torch.tanh, "psa", 2.0, 33)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, fitted(torch.tanh, "psa", 2.0, 33))
