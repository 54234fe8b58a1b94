"""Optimal brain surgery against plain least squares."""

import numpy as np
import pytest
import torch

from lilliput.ops.elimination import eliminated, least_squares


def case(seed: int, n: int, f: int):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * f, f)) + rng.normal(size=(3 * f, 1))
    return rng.normal(size=(n, f)), x.T @ x / len(x)


def fitted(row, products, left):
    """The entries `left`, so that the outputs stay as near as can be to those of the whole row."""
    found = np.zeros_like(row)
    found[left] = np.linalg.solve(products[np.ix_(left, left)], products[left] @ row)
    return found


def error(change, products) -> float:
    return float(change @ products @ change) / 2


@pytest.mark.parametrize("f", [1, 2, 7, 16, 17, 40])
def test_each_elimination_is_the_one_that_least_squares_finds_cheapest(f: int) -> None:
    weights, products = case(f, 3, f)
    found = eliminated(weights, products, np.zeros(weights.shape, np.bool_), f)
    for row, order, costs in zip(weights, found.order, found.costs, strict=True):
        left, before = list(range(f)), 0.0
        for entry, cost in zip(order, costs, strict=True):
            tried = {j: error(row - fitted(row, products, [k for k in left if k != j]), products) for j in left}
            assert entry == min(tried, key=lambda j: tried[j])
            assert cost == pytest.approx(tried[int(entry)] - before, rel=1e-6, abs=1e-9)
            left.remove(int(entry))
            before = tried[int(entry)]


def test_what_is_gone_goes_first() -> None:
    weights, products = case(1, 4, 12)
    gone = np.random.default_rng(0).random(weights.shape) < 0.4
    found = eliminated(weights, products, gone, 12)
    for row, order in zip(gone, found.order, strict=True):
        assert row[order[: row.sum()]].all()
        assert sorted(order) == list(range(12))


def test_least_squares_is_that_of_lstsq_on_the_kept_inputs() -> None:
    rng = np.random.default_rng(2)
    x, weights = rng.normal(size=(50, 9)), rng.normal(size=(6, 9))
    keep = rng.random(weights.shape) < 0.6
    keep[0] = False
    wanted = x @ weights.T
    found = least_squares(torch.from_numpy(wanted.T @ x), torch.from_numpy(x.T @ x), torch.from_numpy(keep)).numpy()
    for row, mask, y in zip(found, keep, wanted.T, strict=True):
        expected = np.zeros(9)
        if mask.any():
            expected[mask] = np.linalg.lstsq(x[:, mask], y, rcond=None)[0]
        np.testing.assert_allclose(row, expected, rtol=1e-7, atol=1e-9)
