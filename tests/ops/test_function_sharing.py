"""Clusters of functions: exact where there are exact ones, the best for few rows, and no table is left over."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.function_sharing import near_points, share
from lilliput.ops.learned_function import piecewise_linear_torch


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cost(rows, weights, owner):
    """Of the best tables for these clusters."""
    total = 0.0
    for k in set(owner):
        at = [i for i, o in enumerate(owner) if o == k]
        w, v = weights[at], rows[at]
        mean = (w * v).sum(0) / w.sum(0)
        total += float((w * (v - mean) ** 2).sum())
    return total


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(1, 30), st.integers(1, 5), st.integers(0, 1000))
def test_counts_near_points_give_sums_of_lines(points, values, channels, seed):
    limit = torch.tensor([1.5], dtype=torch.float64)
    x = (
        4 * torch.rand(channels, values, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 2
    ) * 0.75
    table = drawn(seed, channels, points).double()
    near = near_points(x, 1.5, points)
    wanted = piecewise_linear_torch(x, table, limit, dim=0).sum(1)
    assert torch.allclose((near * table).sum(1), wanted, atol=1e-9)
    assert torch.allclose(near.sum(1), torch.full((channels,), float(values), dtype=torch.float64))


def test_what_lies_outside_is_near_the_ends():
    assert near_points(torch.tensor([[-9.0, 7.0, 8.0, 0.0]]), 2.0, 5).tolist() == [[1, 0, 1, 0, 2]]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_few_rows_get_the_best_of_all_clusters(seed, count):
    rows, weights = drawn(seed, 7, 3).double(), drawn(seed + 50, 7, 3).abs().double() + 0.1
    found = share(rows, weights, count, torch.Generator().manual_seed(0))
    best = min(
        cost(rows, weights, owner) for owner in itertools.product(range(count), repeat=7) if len(set(owner)) == count
    )
    assert cost(rows, weights, found.owner.tolist()) <= best * (1 + 1e-9)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_rows_of_so_many_kinds_are_found_exactly(count):
    kinds, owner = drawn(1, count, 17), torch.randint(count, (40,), generator=torch.Generator().manual_seed(2))
    owner[:count] = torch.arange(count)
    weights = torch.randint(0, 3, (40, 17), generator=torch.Generator().manual_seed(3)).double()
    found = share(kinds[owner], weights, count, torch.Generator().manual_seed(0))
    assert torch.allclose(found.tables[found.owner], kinds[owner].double(), atol=1e-12)
    assert torch.allclose(found.squared_errors(kinds[owner], weights), torch.zeros(40, dtype=torch.float64), atol=1e-20)


def test_points_that_count_more_decide():
    rows = torch.tensor([[0.0, 0.0], [0.0, 9.0], [1.0, 0.0], [1.0, 9.0]])
    first = share(rows, torch.tensor([[100.0, 0.0]]).expand(4, -1), 2, torch.Generator().manual_seed(0))
    assert first.owner[0] == first.owner[1] != first.owner[2] == first.owner[3]
    second = share(rows, torch.tensor([[0.0, 1.0]]).expand(4, -1), 2, torch.Generator().manual_seed(0))
    assert second.owner[0] == second.owner[2] != second.owner[1] == second.owner[3]


@pytest.mark.parametrize("count", [1, 4, 7, 10])
def test_equal_rows_are_dealt_out(count):
    found = share(torch.ones(10, 5), torch.ones(10, 5), count, torch.Generator().manual_seed(0))
    assert set(found.owner.tolist()) == set(range(count))
    assert torch.allclose(found.tables, torch.ones(count, 5, dtype=torch.float64))


def test_the_seed_decides():
    rows, weights = drawn(4, 30, 9), torch.ones(30, 9)
    a, b = (share(rows, weights, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.owner, b.owner)
    assert torch.equal(a.tables, b.tables)
