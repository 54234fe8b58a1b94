"""Compensated, rate-weighted rounding against plain numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.rate_rounding import Bits, Shape, inverse_factor, rounded

LEVEL_SHARES = (0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.5, 3.5)


def case(seed: int, n: int, f: int):
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(4 * f, f)) + 0.7 * rng.normal(size=(4 * f, 1)), 0)
    y = rng.normal(size=(4 * n, n)) + 0.5 * rng.normal(size=(4 * n, 1))
    return rng.laplace(size=(n, f)), x.T @ x / len(x) + 0.01 * np.eye(f), y.T @ y / len(y), 0.3 + rng.random(n)


def loss(weights, q, products, outputs, steps) -> float:
    error = weights - q * steps[:, None]
    return float(np.trace(outputs @ error @ products @ error.T))


class Sizes:
    """What is known around an entry, kept as the docstring of the kernel says, without any of its code."""

    def __init__(self, shape: Shape, f: int, typical: float) -> None:
        self.shape, self.typical = shape, typical
        self.slice = typical
        self.line, self.spot = np.full(f // shape.plane, typical), np.full(shape.plane, typical)

    def row_(self) -> None:
        self.slice = 0.5 * (self.slice + self.typical)

    def level(self, q, o: int, j: int) -> int:
        near = [abs(q[o, j - 1])] if j else []
        if self.shape.row and j >= self.shape.row:
            near.append(abs(q[o, j - self.shape.row]))
        if j >= self.shape.plane:
            near.append(abs(q[o, j - self.shape.plane]))
        if o:
            near.append(abs(q[o - 1, j]))
        i, w = divmod(j, self.shape.plane)
        size = 0.2 * (np.mean(near) if near else self.slice) + 0.3 * self.slice + 0.3 * self.line[i]
        return sum(size + 0.2 * self.spot[w] > share * self.typical for share in LEVEL_SHARES)

    def learn_(self, q, o: int, j: int) -> None:
        i, w = divmod(j, self.shape.plane)
        size = abs(q[o, j])
        self.slice += (size - self.slice) / 32
        self.line[i] += (size - self.line[i]) / 16
        self.spot[w] += (size - self.spot[w]) / 64


def cheapest(real: float, weight: float, price: float, bits, most: int) -> int:
    nearest = int(np.floor(np.clip(real, -most, most) + 0.5))
    choices = [0, *(c for c in (nearest - 1, nearest, nearest + 1) if 0 < abs(c) <= most)]
    return min(choices, key=lambda c: weight * (c - real) ** 2 + price * bits[abs(c)])


def naive(weights, products, outputs, steps, price, shape, most, rounds, descents):
    """Each entry from the Schur complement of what comes after it; each descent from the whole gradient."""
    n, f = weights.shape
    q = np.clip(np.floor(weights / steps[:, None] + 0.5), -most, most).astype(np.int64)
    for _ in range(rounds):
        bits, aim = Bits.of(q, shape), weights.copy()
        sizes = Sizes(shape, f, bits.typical)
        for o in range(n):
            sizes.row_()
            below = outputs[o + 1 :, o + 1 :]
            push = np.linalg.solve(below, outputs[o + 1 :, o]) if o + 1 < n else np.zeros(0)
            importance = outputs[o, o] - outputs[o, o + 1 :] @ push
            start = aim[o].copy()
            for j in range(f):
                later = products[j + 1 :, j + 1 :]
                pull = np.linalg.solve(later, products[j + 1 :, j]) if j + 1 < f else np.zeros(0)
                left = products[j, j] - products[j, j + 1 :] @ pull
                level = sizes.level(q, o, j)
                scale = 0.5 * importance * left * steps[o] ** 2
                q[o, j] = cheapest(aim[o, j] / steps[o], scale, price, bits.table[level], most)
                aim[o, j + 1 :] += (aim[o, j] - q[o, j] * steps[o]) * pull
                sizes.learn_(q, o, j)
            aim[o + 1 :] += push[:, None] * (start - q[o] * steps[o])
    for _ in range(descents):
        bits = Bits.of(q, shape)
        sizes = Sizes(shape, f, bits.typical)
        for o in range(n):
            sizes.row_()
            for j in range(f):
                slope = (outputs @ (q * steps[:, None] - weights) @ products)[o, j]
                curve = outputs[o, o] * products[j, j]
                real = q[o, j] - slope / (curve * steps[o])
                level = sizes.level(q, o, j)
                q[o, j] = cheapest(real, 0.5 * curve * steps[o] ** 2, price, bits.table[level], most)
                sizes.learn_(q, o, j)
    return q


@pytest.mark.parametrize("shape", [(5, 12), (4, 3, 4), (4, 2, 3, 3)], ids=["linear", "conv1d", "conv2d"])
@pytest.mark.parametrize("price", [0.0, 0.02, 0.3])
def test_rounding_is_that_of_a_naive_loop(shape: tuple[int, ...], price: float) -> None:
    weights, products, outputs, steps = case(len(shape), shape[0], int(np.prod(shape[1:])))
    own = Shape.of(shape)
    found = rounded(weights, products, outputs, steps, price, own, most=7, rounds=2, descents=1)
    expected = naive(weights, products, outputs, steps, price, own, 7, 2 if price else 1, 1)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 6), f=st.integers(1, 20))
def test_compensated_rounding_loses_no_more_than_nearest_on_the_whole(seed: int, n: int, f: int) -> None:
    """Descent never adds to the error; from the nearest integers it ends at or below theirs."""
    weights, products, outputs, steps = case(seed, n, f)
    nearest = np.floor(weights / steps[:, None] + 0.5)
    own = Shape(plane=1, row=0)
    alone = rounded(weights, products, outputs, steps, 0.0, own, descents=0)
    further = rounded(weights, products, outputs, steps, 0.0, own, descents=3)
    from_nearest = rounded(weights, products, outputs, steps, 0.0, own, rounds=0, descents=3)
    assert loss(weights, further, products, outputs, steps) <= loss(weights, alone, products, outputs, steps) + 1e-9
    limit = loss(weights, nearest, products, outputs, steps)
    assert loss(weights, from_nearest, products, outputs, steps) <= limit + 1e-9


def test_compensation_pays_where_inputs_go_together() -> None:
    gain = []
    for seed in range(20):
        weights, products, outputs, steps = case(seed, 4, 16)
        nearest = np.floor(weights / steps[:, None] + 0.5)
        found = rounded(weights, products, outputs, steps, 0.0, Shape(plane=1, row=0))
        gain.append(loss(weights, found, products, outputs, steps) / loss(weights, nearest, products, outputs, steps))
    assert np.mean(gain) < 0.8


def test_masked_entries_stay_zero_and_the_range_is_kept() -> None:
    weights, products, outputs, steps = case(3, 5, 18)
    keep = np.random.default_rng(0).random(weights.shape) < 0.5
    found = rounded(10 * weights, products, outputs, steps, 0.1, Shape.of((5, 2, 3, 3)), keep=keep, most=3)
    assert not found[~keep].any()
    assert np.abs(found).max() == 3


def test_a_higher_price_takes_fewer_bits_and_more_error() -> None:
    weights, products, outputs, steps = case(5, 8, 36)
    own = Shape.of((8, 4, 3, 3))
    found = [rounded(weights, products, outputs, steps, price, own) for price in (0.001, 0.1, 1.0)]
    zeros = [int((q == 0).sum()) for q in found]
    losses = [loss(weights, q, products, outputs, steps) for q in found]
    assert zeros == sorted(zeros)
    assert zeros[0] < zeros[-1]
    assert losses == sorted(losses)


def test_inverse_factor_is_upper_and_gives_the_inverse() -> None:
    _, products, _, _ = case(1, 2, 9)
    factor = inverse_factor(products)
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(products), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(factor, np.triu(factor))


def test_sizes_above_the_table_count_as_its_last():
    q = np.array([[0, 1, -127, 128, -3000, 2]], np.int64)
    shape = Shape.of(q.shape)
    found = Bits.of(q, shape).of_each(q, shape)
    assert np.isfinite(found).all()
