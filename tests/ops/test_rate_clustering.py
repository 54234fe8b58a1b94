"""Clustering by error and bits, judged against every partition into runs with at most one cluster at zero."""

from itertools import pairwise, product
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops.rate_clustering import rate_clusters

grid = st.integers(-12, 12).map(lambda i: i / 4)
near = st.floats(-2, 2, width=32)


def least_cost(row, weights, rate, table_bits, most_k):
    """Of all partitions of the sorted non-zero values into runs, each cluster at its mean or one of them at zero."""
    n = len(row)
    points = sorted((x, w) for x, w in zip(row, weights, strict=True) if x != 0)
    zeros = n - len(points)

    def code(entries):
        return entries * log2(n / entries) if entries else 0.0

    if not points:
        return 0.0
    best = np.inf
    for cuts in product([False, True], repeat=len(points) - 1):
        if any(cut and points[i][0] == points[i + 1][0] for i, cut in enumerate(cuts)):
            continue
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(points)]
        runs = [points[a:b] for a, b in pairwise(edges)]
        for gone in range(-1, len(runs)):
            if len(runs) - (gone >= 0) > most_k:
                continue
            cost = rate * code(zeros + (len(runs[gone]) if gone >= 0 else 0))
            for i, run in enumerate(runs):
                x, w = (np.array(v) for v in zip(*run, strict=True))
                center = 0.0 if i == gone else (x * w).sum() / w.sum()
                cost += ((x - center) ** 2 * w).sum() + (0.0 if i == gone else rate * (code(len(run)) + table_bits))
            best = min(best, cost)
    return best


def cost_of(row, weights, found, rate, table_bits):
    values = found.values[0]
    names, counts = np.unique(values, return_counts=True)
    bits = sum(c * log2(len(row) / c) + (table_bits if x != 0 else 0) for x, c in zip(names, counts, strict=True))
    return ((np.array(row) - values) ** 2 * weights).sum() + rate * bits, bits


@settings(max_examples=120, deadline=None)  # the first call compiles
@given(
    st.lists(st.one_of(grid, near), min_size=1, max_size=8),
    st.sampled_from([0.0, 1e-3, 0.02, 0.1, 1.0]),
    st.sampled_from([0.0, 2.0, 16.0]),
    st.integers(1, 8),
    st.integers(0, 99),
)
def test_no_partition_costs_less(row, rate, table_bits, most_k, seed):
    weights = np.random.default_rng(seed).uniform(0.1, 3.0, len(row))
    found = rate_clusters([row], rate, weights, table_bits=table_bits, most_k=most_k)
    cost, bits = cost_of(row, weights, found, rate, table_bits)
    least = least_cost(row, weights, rate, table_bits, most_k)
    assert cost <= least + 1e-9 * max(1.0, least)
    assert cost >= least - 1e-9 * max(1.0, least)
    assert found.bits[0] == pytest.approx(bits, abs=1e-6)
    values = found.values[0]
    assert (values[np.array(row) == 0] == 0).all()
    assert len(np.unique(values[values != 0])) <= most_k


def test_a_higher_rate_never_takes_more_bits():
    rows = np.random.default_rng(0).normal(size=(4, 300))
    bits = [rate_clusters(rows, rate).bits for rate in (1e-5, 1e-4, 1e-3, 1e-2, 0.1)]
    assert all((a >= b).all() for a, b in pairwise(bits))


def test_rate_zero_keeps_every_value_and_a_large_one_none():
    rows = np.random.default_rng(0).normal(size=(3, 40))
    assert np.allclose(rate_clusters(rows, 0.0).values, rows, atol=1e-12)
    assert not rate_clusters(rows, 100.0).values.any()


def test_joined_runs_cost_little_more():
    rows = np.random.default_rng(1).standard_t(3, size=(2, 3000))
    exact, joined = (rate_clusters(rows, 1e-3, most_runs=most) for most in (3000, 256))
    costs = [((rows - f.values) ** 2).sum() + 1e-3 * f.bits.sum() for f in (exact, joined)]
    assert costs[0] <= costs[1] <= 1.05 * costs[0]


def test_equal_values_share_a_cluster():
    row = [0.5] * 9 + [0.50001] * 3 + [0.2] * 5
    values = rate_clusters([row], 1e-9).values[0]
    assert all(len(np.unique(values[np.array(row) == x])) == 1 for x in set(row))


@pytest.mark.parametrize(
    ("rows", "rate", "settings"),
    [
        ([[np.nan]], 1.0, {}),
        ([1.0], 1.0, {}),
        ([[1.0]], -1.0, {}),
        ([[1.0]], np.inf, {}),
        ([[1.0]], 1.0, {"weights": [[-1.0]]}),
        ([[1.0]], 1.0, {"weights": [1.0, 2.0]}),
        ([[1.0]], 1.0, {"most_k": 0}),
        ([[1.0]], 1.0, {"table_bits": -1.0}),
        (np.empty((2, 0)), 1.0, {}),
    ],
)
def test_bad_input_is_refused(rows, rate, settings):
    with pytest.raises(ValueError, match="must"):
        rate_clusters(rows, rate, **settings)
