"""Learned functions against numpy.interp, the published formula of PSA, and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.learned_function import (
    KINDS,
    bends,
    grid_of,
    learned_function,
    piecewise_linear,
    piecewise_linear_torch,
    points_of,
    psa,
    second_variation,
    table_of,
    weight_size,
    without_small_bends,
)

LAYOUTS = {"mlp": ((7, 6), 1), "tokens": ((3, 5, 6), 2), "small planes": ((4, 6, 3, 3), 1), "planes": ((2, 6, 9, 9), 1)}


def numbers(seed, *shape, spread=3.0):
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def oracle(x, table, limit):
    """One channel in float64: interpolated inside, beyond the ends on the lines of the ends."""
    x, table = x.double().numpy(), table.double().numpy()
    grid = np.linspace(-limit, limit, len(table))
    step = grid[1] - grid[0]
    inside = np.interp(x, grid, table)
    below = table[0] + (x - grid[0]) * (table[1] - table[0]) / step
    above = table[-1] + (x - grid[-1]) * (table[-1] - table[-2]) / step
    return np.where(x < -limit, below, np.where(x > limit, above, inside))


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    rows=st.sampled_from([1, 2, 3, 6]),
    points=st.integers(2, 40),
    limit=st.floats(0.1, 20),
    function=st.sampled_from([piecewise_linear, piecewise_linear_torch]),
    seed=st.integers(0, 99),
)
def test_values_lie_on_lines_between_the_points(layout, rows, points, limit, function, seed):
    shape, dim = LAYOUTS[layout]
    x, table = numbers(seed, *shape, spread=limit), numbers(seed + 1, rows, points)
    y = function(x, table, torch.tensor([limit]), dim)
    for channel in range(6):
        wanted = oracle(x.select(dim, channel), table[channel // (6 // rows)], limit)
        np.testing.assert_allclose(y.select(dim, channel), wanted, atol=1e-4 * max(1, np.abs(wanted).max()))


def test_each_function_may_have_its_own_limit():
    x, table, limit = numbers(0, 50, 3), numbers(1, 3, 9), torch.tensor([1.0, 2.0, 5.0])
    for function in (piecewise_linear, piecewise_linear_torch):
        y = function(x, table, limit)
        for channel in range(3):
            wanted = oracle(x[:, channel], table[channel], float(limit[channel]))
            np.testing.assert_allclose(y[:, channel], wanted, rtol=1e-4, atol=1e-4)


def gradients(function, x, table, g, dim):
    x, table = x.clone().requires_grad_(), table.clone().requires_grad_()
    y = function(x, table, torch.tensor([2.5], dtype=x.dtype), dim)
    return y, torch.autograd.grad(y, (x, table), g)


@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_the_kernel_are_those_of_torch(layout, rows):
    shape, dim = LAYOUTS[layout]
    x, table, g = numbers(0, *shape), numbers(1, rows, 17), numbers(2, *shape)
    y, found = gradients(piecewise_linear, x, table, g, dim)
    wanted_y, wanted = gradients(piecewise_linear_torch, x.double(), table.double(), g.double(), dim)
    assert torch.allclose(y.double(), wanted_y, atol=1e-4)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_inputs_that_do_not_lie_in_order_are_read_in_order():
    x, table = numbers(0, 3, 9, 8, 4).permute(0, 3, 1, 2), numbers(1, 4, 9)
    assert torch.equal(
        piecewise_linear(x, table, torch.ones(1)), piecewise_linear(x.contiguous(), table, torch.ones(1))
    )


def test_a_table_s_gradient_adds_up_precisely():
    """Float32 sums of so many ones would stop at 2^24."""
    x, table = torch.full((1 << 12, 3, 3000), 0.25), torch.zeros(1, 3, requires_grad=True)
    piecewise_linear(x, table, torch.ones(1)).sum().backward()
    assert table.grad is not None
    assert table.grad[0].tolist() == [0, 0.75 * x.numel(), 0.25 * x.numel()]


def test_of_no_values_nothing_follows():
    x, table = torch.zeros(0, 3, requires_grad=True), torch.ones(1, 4, requires_grad=True)
    y = piecewise_linear(x, table, torch.ones(1))
    y.sum().backward()
    assert y.shape == (0, 3)
    assert table.grad is not None
    assert not table.grad.any()


def test_nan_stays_nan_and_its_neighbours_stay_what_they_are():
    x = torch.tensor([[float("nan"), 0.5], [1e30, -1e30]])
    table = torch.tensor([[0.0, 0.0, 1.0]])
    for function in (piecewise_linear, piecewise_linear_torch):
        y = function(x, table, torch.ones(1))
        assert y[0].isnan().tolist() == [True, False]
        assert y[0, 1] == 0.5
        assert y[1].tolist() == [pytest.approx(1e30), 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_first_and_second_order_are_those_of_finite_differences(kind):
    x = numbers(0, 4, 4).double().requires_grad_()
    weight = numbers(1, 2, weight_size(kind, 6, 3), spread=0.7).double().requires_grad_()
    limit = torch.tensor([3.0], dtype=torch.float64)

    def function(x, weight):
        return learned_function(x, weight, limit, kind, 6)

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


def test_gradients_of_gradients_work_where_the_kernel_runs():
    x, table = numbers(0, 5, 2).requires_grad_(), numbers(1, 2, 9).requires_grad_()
    limit = torch.tensor([2.0])

    def penalty(function):
        (slope,) = torch.autograd.grad(function(x, table, limit).sum(), x, create_graph=True)
        return torch.autograd.grad((slope**2).sum(), table)[0]

    assert torch.allclose(penalty(piecewise_linear), penalty(piecewise_linear_torch), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(terms=st.integers(1, 9), seed=st.integers(0, 99))
def test_psa_is_the_published_formula_at_limit_4(terms, seed):
    x, weight = numbers(seed, 40).double(), numbers(seed + 1, 1, 3 * terms + 2, spread=1).double()
    v, w, b = weight[0, : 3 * terms].reshape(3, terms).numpy()
    scale, offset = weight[0, -2:].tolist()
    for value, found in zip(x.tolist(), psa(x[None], weight, torch.tensor([4.0], dtype=torch.float64))[0], strict=True):
        score = np.exp(-((value - b) ** 2) / (w**2 + 1))
        assert float(found) == pytest.approx(
            scale * value * (score / score.sum() * v).sum() + offset, rel=1e-9, abs=1e-9
        )


def test_psa_of_another_limit_is_the_same_function_in_other_units():
    x, weight = numbers(0, 1, 30).double(), numbers(1, 1, 14).double()
    four, ten = (torch.tensor([limit], dtype=torch.float64) for limit in (4.0, 10.0))
    assert torch.allclose(psa(2.5 * x, weight, ten), 2.5 * psa(x, weight, four))


def test_the_cubic_spline_is_scipy_s():
    interpolate = pytest.importorskip("scipy.interpolate")
    points, limit = 9, 2.0
    weight = numbers(0, 1, points + 2).double()
    step = 2 * limit / (points - 1)
    knots = -limit + step * np.arange(-3, points + 3)
    grid = np.linspace(-limit, limit, points)
    wanted = interpolate.BSpline(knots, weight[0].numpy(), 3)(grid)
    table = table_of(weight, torch.tensor([limit], dtype=torch.float64), "cubic", points)
    np.testing.assert_allclose(table[0], wanted, atol=1e-12)


def test_lerp_psa_meets_psa_at_the_points():
    weight, limit = numbers(0, 3, 26), torch.tensor([5.0])
    grid = grid_of(limit, 17)[0][:, None].expand(17, 3)
    found = learned_function(grid, weight, limit, "lerp_psa", 17)
    assert torch.allclose(found, learned_function(grid, weight, limit, "psa", 17), atol=1e-4)


def test_bends_of_a_relu_are_its_kink():
    limit = torch.tensor([2.0])
    table = torch.relu(grid_of(limit, 9))
    assert bends(table, limit)[0].tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert float(second_variation(3 * table, limit)) == 3


@settings(max_examples=30, deadline=None)
@given(points=st.integers(3, 30), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_straightened_functions_have_no_small_bends_and_keep_the_large_ones(points, seed, share):
    limit, table = torch.tensor([3.0], dtype=torch.float64), numbers(seed, 2, points).double()
    before = bends(table, limit)
    threshold = share * float(before.abs().max())
    after = bends(without_small_bends(table, limit, threshold), limit)
    assert torch.allclose(after, torch.where(before.abs() > threshold, before, 0.0), atol=1e-9)


def test_without_any_bend_the_best_line_is_left():
    limit, table = torch.tensor([3.0], dtype=torch.float64), numbers(0, 1, 12).double()
    grid = grid_of(limit, 12)[0].numpy()
    wanted = np.polyval(np.polyfit(grid, table[0].numpy(), 1), grid)
    np.testing.assert_allclose(without_small_bends(table, limit, 1e9)[0], wanted, atol=1e-9)


@pytest.mark.parametrize(("kind", "size", "points"), [("table", 1, 9), ("cubic", 3, 9), ("psa", 27, 9), ("odd", 9, 9)])
def test_sizes_that_make_no_function_are_refused(kind, size, points):
    with pytest.raises(ValueError, match=f"{size} numbers for a function of kind '{kind}'"):
        points_of(kind, 3, size, points)


def test_what_would_take_the_memory_to_evaluate_is_refused():
    assert points_of("lerp_psa", 1 << 9, 26, 4096) == 4096
    with pytest.raises(ValueError, match="65536 functions of kind 'lerp_psa' with 4096 points"):
        points_of("lerp_psa", 1 << 16, 26, 4096)
    with pytest.raises(ValueError, match="with 5000 points"):
        points_of("lerp_psa", 1, 26, 5000)


def test_half_precision_is_float32_in_between():
    """What autocast gives: the kernel's values, rounded once."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 5, 11, generator=generator).bfloat16()
    table, limit = torch.randn(5, 9, generator=generator).requires_grad_(), torch.tensor([3.0])
    y = piecewise_linear(x, table, limit)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, piecewise_linear(x.float(), table, limit).bfloat16())
    y.float().sum().backward()
    assert table.grad is not None
    assert table.grad.dtype == torch.float32
