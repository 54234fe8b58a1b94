"""Clusterings of longer lines, judged in exact arithmetic; and the proofs that let the program skip work."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from lilliput.ops import clustering
from lilliput.ops.clustering import NO_WEIGHTS, NOTHING, optimal_1d, optimal_1d_all


class Judge:
    """Squared errors of clusterings of sorted values as integers, in units of 1 / (`common` * `grid`^2)."""

    def __init__(self, ordered: np.ndarray) -> None:
        fractions = [Fraction(x) for x in ordered.tolist()]
        self.n = len(fractions)
        self.grid = max(x.denominator for x in fractions)
        self.common = math.lcm(*range(1, self.n + 1))
        integers = [int(x * self.grid) for x in fractions]
        self.sums = [sum(integers[:j]) for j in range(self.n + 1)]
        self.squares = [sum(x * x for x in integers[:j]) for j in range(self.n + 1)]
        self.parts = [0, *(self.common // w for w in range(1, self.n + 1))]

    def error_of_run(self, i: int, j: int) -> int:
        s = self.sums[j] - self.sums[i]
        return (self.squares[j] - self.squares[i]) * self.common - s * s * self.parts[j - i]

    def error(self, labels: np.ndarray) -> int:
        edges = [*np.flatnonzero(np.diff(labels, prepend=-1)).tolist(), self.n]
        return sum(self.error_of_run(i, j) for i, j in pairwise(edges))

    def least(self, max_k: int) -> list[int]:
        """The least errors of 1..max_k clusters, by halving the range that is searched."""
        before = [self.error_of_run(0, j) for j in range(self.n + 1)]
        found = [before[self.n]]
        for k in range(2, max_k + 1):
            after = list(before)
            jobs = [(k, self.n, k - 1, self.n - 1)]
            while jobs:
                first, last, low, high = jobs.pop()
                if first > last:
                    continue
                j = (first + last) // 2
                after[j], best = min(
                    (before[i] + self.error_of_run(i, j), i) for i in range(max(low, k - 1), min(high, j - 1) + 1)
                )
                jobs += [(first, j - 1, low, best), (j + 1, last, best, high)]
            before = after
            found.append(before[self.n])
        return found


def line(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    sides = rng.choice([-1.0, 1.0], size=n)
    return {
        "normal": lambda: rng.normal(size=n),
        "rounded": lambda: rng.normal(size=n).round(1),
        "offset": lambda: 100 + rng.normal(size=n),
        "tight modes": lambda: sides + 1e-6 * rng.normal(size=n),
        "tightest modes": lambda: sides + 1e-14 * rng.normal(size=n),
        "heavy tail": lambda: rng.standard_t(2, size=n),
        "denormal": lambda: 1e-310 * rng.normal(size=n),
        "huge": lambda: 1e30 * rng.normal(size=n),
        "all scales": lambda: rng.normal(size=n) * 10.0 ** rng.integers(-12, 3, size=n),
        "equal steps": lambda: np.arange(n) * 0.1,
        "integers": lambda: rng.permutation(n).astype(float),
        "float32": lambda: rng.normal(size=n).astype(np.float32).astype(float),
    }[kind]()


KINDS = [
    "normal", "rounded", "offset", "tight modes", "tightest modes", "heavy tail", "denormal", "huge", "all scales",
    "equal steps", "integers", "float32",
]  # fmt: skip
DECIMAL_TIES = {"rounded", "equal steps"}
"""Clusterings that would be equally good, were 0.1 a float, differ in the last digit; the leftmost of them is taken."""


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_better_in_exact_arithmetic(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    for n, max_k in ((23, 22), (60, 59), (150, 19), (240, 12)):
        ordered = np.sort(line(kind, n, rng))
        judge = Judge(ordered)
        found = optimal_1d_all(ordered, max_k)
        for clusters, least in zip(found, judge.least(len(found)), strict=True):
            error = judge.error(clusters.labels)
            assert error <= least + (least >> 44 if kind in DECIMAL_TIES else 0)


@pytest.mark.parametrize("exponent", range(2, 17, 2))
def test_what_float64_does_not_doubt_is_proven(exponent: int) -> None:
    from lilliput.ops.clustering_line_kernels import SOLVED, cluster_line

    rng = np.random.default_rng(exponent)
    for n, max_k in ((40, 39), (90, 30)):
        ordered = np.sort(rng.choice([-1.0, 1.0, 1.5], size=n) + 10.0**-exponent * rng.normal(size=n))
        least = Judge(ordered).least(max_k)
        for k in range(1, max_k + 1):
            status, _, labels, _ = cluster_line(ordered, ordered, NO_WEIGHTS, k, k, 2**20, NOTHING)
            if status == SOLVED:
                assert Judge(ordered).error(labels[0]) == least[k - 1]


def test_float64_knows_when_it_cannot_tell() -> None:
    from lilliput.ops.clustering_line_kernels import DOUBTFUL, cluster_line

    tight = np.sort(np.array([-1.0, 1.0] * 20) + 1e-9 * np.random.default_rng(0).normal(size=40))
    assert cluster_line(tight, tight, NO_WEIGHTS, 6, 6, 2**20, NOTHING)[0] == DOUBTFUL
    tie = np.arange(3.0)
    assert cluster_line(tie, tie, NO_WEIGHTS, 2, 2, 2**20, NOTHING)[0] == DOUBTFUL


@pytest.mark.parametrize("kind", [*KINDS, "cauchy", "three far values", "weighted"])
def test_a_first_look_at_bins_loses_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(len(kind))
    n = 4000
    values = {
        "cauchy": lambda: rng.standard_cauchy(size=n),
        "three far values": lambda: np.append(rng.normal(size=n - 3), [1e6, -1e5, 1e5]),
        "weighted": lambda: rng.normal(size=n),
    }.get(kind, lambda: line(kind, n, rng))()
    weights = rng.exponential(size=n) if kind == "weighted" else None
    quick = [optimal_1d(values, k, weights) for k in (2, 7, 24)], optimal_1d_all(values, 10, weights)
    monkeypatch.setattr(clustering, "LONG", 10**9)
    full = [optimal_1d(values, k, weights) for k in (2, 7, 24)], optimal_1d_all(values, 10, weights)
    for one, other in zip(quick[0] + quick[1], full[0] + full[1], strict=True):
        assert one.labels.tolist() == other.labels.tolist()
        assert one.centroids.tolist() == other.centroids.tolist()
        assert one.sse == other.sse
