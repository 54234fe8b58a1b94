"""Exact 1-D clustering, judged in rational arithmetic against every partition into runs of sorted values."""

import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops import clustering
from lilliput.ops.clustering import Clusters, optimal_1d, optimal_1d_all

grid = st.integers(-40, 40).map(lambda i: i / 8)
single = st.floats(-1000, 1000, width=32)
two_tight_modes = st.tuples(st.sampled_from([-1.0, 1.0]), st.floats(-1e-6, 1e-6)).map(sum)
lines = st.one_of(*(st.lists(kind, min_size=1, max_size=9) for kind in (grid, single, two_tight_modes)))


def error_of_run(run: list[tuple[Fraction, Fraction]]) -> Fraction:
    weight = sum((w for _, w in run), Fraction(0))
    mean = sum((x * w for x, w in run), Fraction(0)) / weight
    return sum(((x - mean) ** 2 * w for x, w in run), Fraction(0))


def least_errors(values: Sequence[float], weights: Sequence[float]) -> list[Fraction]:
    """[k] = the exact least error of at most k clusters of runs; entry 0 is unused."""
    run = sorted((Fraction(x), Fraction(w)) for x, w in zip(values, weights, strict=True))
    n = len(run)
    error = {(a, b): error_of_run(run[a:b]) for a in range(n) for b in range(a + 1, n + 1)}
    least = [error[0, n]] * (n + 1)
    for cuts in product([False, True], repeat=n - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), n]
        total = sum((error[edge] for edge in pairwise(edges)), Fraction(0))
        for k in range(len(edges) - 1, n + 1):
            least[k] = min(least[k], total)
    return least


def exact_error(values: Sequence[float], weights: Sequence[float], labels: np.ndarray) -> Fraction:
    points = [(Fraction(x), Fraction(w)) for x, w in zip(values, weights, strict=True)]
    runs = [[p for p, label in zip(points, labels, strict=True) if label == c] for c in range(labels.max() + 1)]
    return sum((error_of_run(run) for run in runs), Fraction(0))


def assert_well_formed(values: np.ndarray, found: Clusters) -> None:
    k = len(found.centroids)
    assert found.centroids.dtype == np.float64
    assert found.labels.dtype == np.int64
    assert (np.diff(found.centroids) > 0).all()
    assert set(found.labels.tolist()) == set(range(k))
    assert (np.diff(found.labels[np.argsort(values, kind="stable")]) >= 0).all()
    for c in range(k):
        members = values[found.labels == c]
        assert members.min() <= found.centroids[c] <= members.max()


@given(lines, st.data())
@settings(max_examples=300, deadline=None)
def test_no_partition_has_a_smaller_error(values: list[float], data: st.DataObject) -> None:
    weighted = data.draw(st.booleans())
    n = len(values)
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=n, max_size=n)) if weighted else [1] * n
    least = least_errors(values, weights)
    for k, found in enumerate(optimal_1d_all(values, n, weights if weighted else None), start=1):
        assert_well_formed(np.array(values), found)
        assert len(found.centroids) == k
        error = exact_error(values, weights, found.labels)
        assert error <= least[k] * (1 + Fraction(1, 10**12))
        rounding_of_centroids = sum(weights) * (max(map(abs, values)) * 2.0**-52) ** 2
        assert found.sse == pytest.approx(float(error), rel=1e-9, abs=rounding_of_centroids)


@given(lines)
@settings(max_examples=100, deadline=None)
def test_enough_clusters_lose_nothing(values: list[float]) -> None:
    for k in (len(values), len(values) + 1, 10**6):
        found = optimal_1d(values, k)
        assert found.sse == 0.0
        assert found.centroids[found.labels].tolist() == values
        assert found.centroids.tolist() == sorted(set(values))


@given(lines, st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_one_table_gives_the_same_as_one_k_at_a_time(values: list[float], k: int) -> None:
    every = optimal_1d_all(values, k)
    assert len(every) == min(k, len(set(values)))
    one = optimal_1d(values, k)
    assert one.sse == every[-1].sse
    assert one.labels.tolist() == every[-1].labels.tolist()


@given(lines, st.data())
@settings(max_examples=100, deadline=None)
def test_the_order_of_values_does_not_matter(values: list[float], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(values))))
    for one, other in zip(optimal_1d_all(values, 9), optimal_1d_all([values[i] for i in order], 9), strict=True):
        assert one.centroids.tolist() == other.centroids.tolist()
        assert one.labels[list(order)].tolist() == other.labels.tolist()


@given(lines, st.integers(-400, 400))
@settings(max_examples=100, deadline=None)
def test_scaling_by_a_power_of_two_changes_nothing_but_the_scale(values: list[float], exponent: int) -> None:
    scaled = np.ldexp(np.array(values), exponent)
    for one, other in zip(optimal_1d_all(values, 9), optimal_1d_all(scaled, 9), strict=True):
        assert other.centroids.tolist() == np.ldexp(one.centroids, exponent).tolist()
        assert one.labels.tolist() == other.labels.tolist()


@given(st.lists(single, min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_more_clusters_never_have_a_larger_error(values: list[float]) -> None:
    errors = [found.sse for found in optimal_1d_all(values, len(values))]
    assert errors[-1] == 0.0
    for more, fewer in pairwise(errors):
        assert fewer <= more * (1 + 1e-12)


@given(st.lists(st.tuples(grid, st.integers(1, 5)), min_size=1, max_size=8), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_weight_is_a_number_of_copies(pairs: list[tuple[float, int]], k: int) -> None:
    values, weights = zip(*pairs, strict=True)
    weighted = optimal_1d(values, k, weights)
    copies = optimal_1d(np.repeat(values, weights), k)
    assert weighted.centroids.tolist() == copies.centroids.tolist()
    assert np.repeat(weighted.labels, weights).tolist() == copies.labels.tolist()


def slow_least_errors(values: np.ndarray, max_k: int) -> list[float]:
    """The O(k n^2) program with errors accumulated point by point, without any of the shortcuts."""
    x = np.sort(values)
    n = len(x)
    error = np.full((n + 1, n + 1), np.inf)
    for a in range(n):
        offset = x[a:] - x[a]
        mean = np.cumsum(offset) / np.arange(1, n - a + 1)
        step = np.arange(n - a) / np.arange(1, n - a + 1)
        step[1:] *= (offset[1:] - mean[:-1]) ** 2
        error[a, a + 1 :] = np.cumsum(step)
    least = error[0]
    totals = [least[n]]
    for _ in range(max_k - 1):
        least = np.min(least[:, None] + error, axis=0)
        totals.append(least[n])
    return totals


@pytest.mark.parametrize("kind", ["normal", "rounded", "offset", "two tight modes", "heavy tail", "lattice"])
def test_matches_the_slow_program_on_longer_lines(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    for n in (17, 64, 127, 240):
        values = {
            "normal": rng.normal(size=n),
            "rounded": rng.normal(size=n).round(1),
            "offset": 100 + rng.normal(size=n),
            "two tight modes": rng.choice([-1.0, 1.0], size=n) + 1e-6 * rng.normal(size=n),
            "heavy tail": rng.standard_t(1, size=n) ** 3,
            "lattice": rng.permutation(n).astype(float),
        }[kind]
        slow = slow_least_errors(values, 20)
        for k, found in enumerate(optimal_1d_all(values, 20), start=1):
            assert_well_formed(values, found)
            assert found.sse <= slow[k - 1] * (1 + 1e-9) + 1e-28 * n * np.abs(values).max() ** 2


def test_ties_take_the_leftmost_boundary() -> None:
    assert optimal_1d([0.0, 1.0, 2.0], 2).labels.tolist() == [0, 1, 1]


def test_two_tight_modes_far_apart_are_cut_inside() -> None:
    low = [-1e6, -1e6 + 2**-20]
    high = [1e6, 1e6 + 2**-20, 1e6 + 2**-10]
    assert optimal_1d(high + low, 3).labels.tolist() == [1, 1, 2, 0, 0]


def test_a_constant_row_is_one_cluster() -> None:
    found = optimal_1d(np.full(7, 0.1, dtype=np.float32), 4)
    assert found.centroids.tolist() == [float(np.float32(0.1))]
    assert found.labels.tolist() == [0] * 7
    assert found.sse == 0.0


def test_both_zeros_are_one_value() -> None:
    assert optimal_1d([0.0, -0.0, 1.0], 2).labels.tolist() == [0, 0, 1]


def test_weights_may_differ_by_more_than_float64_has_digits() -> None:
    found = optimal_1d([0.0, 1.0, 2.0, 3.5, 4.0], 3, [1e-100, 1e100, 1e-100, 1.0, 1.0])
    assert found.labels.tolist() == [0, 0, 0, 1, 2]
    assert optimal_1d([0.0, 1.0, 2.0, 3.0], 2, [1e-320, 1e-320, 3e-320, 1e-320]).labels.tolist() == [0, 0, 1, 1]


def test_bins_cost_next_to_nothing() -> None:
    rng = np.random.default_rng(3)
    for values in (rng.normal(size=70_000), rng.standard_cauchy(size=70_000)):
        for short, exact in zip(optimal_1d_all(values, 8, bins=16_384), optimal_1d_all(values, 8), strict=True):
            assert_well_formed(values, short)
            assert exact.sse * (1 - 1e-12) <= short.sse <= exact.sse * (1 + 1e-5)


def test_bins_that_are_too_few_or_too_many_are_not_used() -> None:
    values = np.random.default_rng(4).normal(size=40)
    for bins in (1, 39, 40, 1000):
        assert optimal_1d(values, 30, bins=bins).sse <= slow_least_errors(values, 30)[-1] * (1 + 1e-9)
        assert optimal_1d(values, 40, bins=bins).sse == 0.0


def partition_error(values: np.ndarray, labels: np.ndarray) -> float:
    return sum(float(np.sum((run - run.mean()) ** 2)) for run in (values[labels == c] for c in np.unique(labels)))


@pytest.mark.parametrize("k", [2, 5, 16])
def test_never_above_jenkspy(k: int) -> None:
    jenkspy = pytest.importorskip("jenkspy", reason="the peer jenkspy is not installed: nothing to compare with")
    rng = np.random.default_rng(5)
    for values in (rng.normal(size=200), rng.choice([-1.0, 1.0], size=100) + 1e-6 * rng.normal(size=100)):
        breaks = jenkspy.jenks_breaks(values.tolist(), n_classes=k)
        theirs = partition_error(values, np.searchsorted(breaks[1:-1], values))
        assert optimal_1d(values, k).sse <= theirs * (1 + 1e-9)


@pytest.mark.parametrize("k", [2, 5, 16])
def test_never_above_kmeans1d(k: int) -> None:
    kmeans1d = pytest.importorskip("kmeans1d", reason="the peer kmeans1d is not installed: nothing to compare with")
    values = np.random.default_rng(6).laplace(size=300)
    theirs = partition_error(values, np.array(kmeans1d.cluster(values.tolist(), k).clusters))
    assert optimal_1d(values, k).sse <= theirs * (1 + 1e-9)


@pytest.mark.parametrize(
    ("values", "k", "weights", "message"),
    [
        ([], 1, None, "non-empty vector"),
        ([[1.0, 2.0]], 1, None, "non-empty vector"),
        ([1.0, float("nan")], 1, None, "finite"),
        ([1.0, float("inf")], 1, None, "finite"),
        ([-1e200, 1e200], 1, None, "spread"),
        ([-1.7e308, 1.7e308], 1, None, "spread"),
        ([1.0], 0, None, "at least 1"),
        ([1.0, 2.0], 1, [1.0], "shape"),
        ([1.0, 2.0], 1, [1.0, 0.0], "positive"),
        ([1.0, 2.0], 1, [1.0, float("nan")], "positive"),
        ([1.0, 2.0], 1, [1e308, 1e308], "sum"),
    ],
)
def test_bad_input_is_refused(values: list[float], k: int, weights: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimal_1d(values, k, weights)
    with pytest.raises(ValueError, match=message):
        optimal_1d_all(values, k, weights)


def test_a_table_that_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "MOST_CELLS", 100)
    with pytest.raises(ValueError, match="fewer clusters, or bins"):
        optimal_1d(np.arange(50.0), 5)
    assert len(optimal_1d(np.arange(50.0), 5, bins=12).centroids) == 5
    two_modes = np.append(np.arange(50.0), 1e18 + 1e3 * np.arange(50.0))
    monkeypatch.setattr(clustering, "MOST_CELLS", 1000)
    assert len(optimal_1d(np.random.default_rng(0).normal(size=100), 4).centroids) == 4
    with pytest.raises(ValueError, match="fewer clusters, or bins"):
        optimal_1d(two_modes, 4)


def test_less_than_one_bin_is_refused() -> None:
    with pytest.raises(ValueError, match="bins"):
        optimal_1d([1.0, 2.0], 1, bins=0)


def test_numba_waits_for_the_first_call() -> None:
    code = "import sys, lilliput.ops.clustering, lilliput.ops.clustering_rows; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
