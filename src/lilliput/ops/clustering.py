"""Optimal weighted k-means on a line: the least squared error that at most k values can give.

A dynamic program over the sorted distinct values (Wang and Song, 2011, "Ckmeans.1d.dp"), here for all k up to the
largest in one run, at most O(n log n) for each k. `clustering_kernels` says how it is made fast, and how its float64
arithmetic proves which boundaries are right; `clustering_bins_kernels` why it need not look at all points;
`clustering_ties_kernels` what decides where float64 sums cannot. The first call compiles for some seconds, or loads
what was compiled before.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
AnyFloats = Floats | NDArray[np.float32]

NOTHING: Ints = np.empty(0, dtype=np.int64)
NO_WEIGHTS: Floats = np.empty(0)
WIDEST_SPREAD = 1e150
LONG = 1500
"""More values than this are worth a first look at few of them."""
MOST_CELLS = 2**28
"""Of 8 bytes: the tables of one line take up to 2 GiB."""


class Clusters(NamedTuple):
    """`centroids` [k] ascending and distinct; `labels` [n] into them; `sse` = sum of weight * squared error."""

    centroids: Floats
    labels: Ints
    sse: float


def optimal_1d(values: ArrayLike, k: int, weights: ArrayLike | None = None, *, bins: int | None = None) -> Clusters:
    """The clustering of `values` [n] into at most `k` clusters with the least weighted squared error.

    Equal values share a cluster; with `k` at or above the number of distinct values, the centroids are exactly these.
    Of equally good boundaries the leftmost is taken, "equal" meaning to 14 digits. Weights are finite and positive.

    The result is optimal in exact arithmetic, up to 14 digits of its own error, for any number of values. With `bins`
    and more distinct values than that, a boundary cannot fall inside one of about so many groups of neighbours.

    >>> optimal_1d([0.0, 9.0, 1.0, 9.0], 2).centroids.tolist()
    [0.5, 9.0]
    """
    return _cluster(values, k, k, weights, bins)[0]


def optimal_1d_all(
    values: ArrayLike, max_k: int, weights: ArrayLike | None = None, *, bins: int | None = None
) -> list[Clusters]:
    """`optimal_1d` for k = 1, 2, ... up to `max_k` or the number of distinct values, from one dynamic program.

    The labels take 8 n bytes for each k, in one block.
    """
    return _cluster(values, 1, max_k, weights, bins)


def _cluster(
    values: ArrayLike, first_k: int, last_k: int, weights: ArrayLike | None, bins: int | None
) -> list[Clusters]:
    flat = as_floats(values)
    if flat.ndim != 1 or flat.size == 0:
        raise ValueError(f"values must be a non-empty vector, not of shape {flat.shape}")
    if weights is None:
        ordered, mass = ascending(flat), NO_WEIGHTS
    else:
        mass = np.asarray(weights, dtype=np.float64)
        if mass.shape != flat.shape:
            raise ValueError(f"weights must have the shape of values {flat.shape}, not {mass.shape}")
        if not (mass.min() > 0 and mass.max() <= np.finfo(np.float64).max / mass.size):  # NaN is neither
            raise ValueError("weights must be finite and positive, their sum too")
        order = np.argsort(flat, kind="stable")
        ordered, mass = flat[order].astype(np.float64), mass[order]
    check_ends(ordered.item(0), ordered.item(-1))
    check_count(last_k)
    known = NOTHING
    if bins is not None:
        if bins < 1:
            raise ValueError(f"the number of bins must be at least 1, not {bins}")
        if bins < len(ordered):
            edges, means, masses = solver().bin_means(ordered, mass, bins)
            if last_k < len(means):
                known = edges[settle(means, masses, first_k, last_k)]
    return solve(np.asarray(flat, dtype=np.float64), ordered, mass, first_k, last_k, known)


def solve(
    values: Floats, ordered: Floats, mass: Floats, first_k: int, last_k: int, known: Ints = NOTHING
) -> list[Clusters]:
    """The clusterings with first_k..last_k clusters of checked values, from these in ascending order with weights.

    `known`: where the clusters start among the distinct values, for one k after the other, if that is known.
    """
    compiled = solver()
    if len(known) == 0 and len(ordered) > LONG:
        known = settle(ordered, mass, first_k, last_k)
    status, centroids, labels, errors = compiled.cluster_line(values, ordered, mass, first_k, last_k, MOST_CELLS, known)
    if status:  # in doubt, or too large
        known = settle(ordered, mass, first_k, last_k)
        _, centroids, labels, errors = compiled.cluster_line(values, ordered, mass, first_k, last_k, MOST_CELLS, known)
    if len(errors) == 1:
        return [Clusters(centroids, labels[0], errors.item())]
    return [
        Clusters(centroids[k * (k - 1) // 2 : k * (k + 1) // 2], own, error)
        for k, (own, error) in enumerate(zip(labels, errors.tolist(), strict=True), start=1)
    ]


def settle(ordered: Floats, mass: Floats, first_k: int, last_k: int) -> Ints:
    """Where the clusters start among the distinct values, for one k after the other."""
    compiled = solver()
    status, starts = compiled.settle_line(ordered, mass, first_k, last_k, MOST_CELLS)
    if status == compiled.TOO_LARGE:
        raise ValueError(
            f"{last_k} clusters of {len(ordered)} points need tables above 2 GiB: use fewer clusters, or bins"
        )
    return starts


@cache
def solver() -> Any:
    from lilliput.ops import clustering_line_kernels

    return clustering_line_kernels


def as_floats(values: ArrayLike) -> AnyFloats:
    """Long float32 as they are, for they sort faster; all else as float64."""
    given = np.asarray(values)
    if given.dtype == np.float64 or (given.dtype == np.float32 and given.size > LONG):
        return given
    return given.astype(np.float64)


def ascending(values: AnyFloats) -> Floats:
    if values.dtype == np.float32:
        from lilliput.ops import radix_kernels

        return radix_kernels.ascending(np.ascontiguousarray(values).view(np.uint32))
    ordered = np.array(values, dtype=np.float64)
    ordered.sort()
    return ordered


def check_count(k: int) -> None:
    if k < 1:
        raise ValueError(f"the number of clusters must be at least 1, not {k}")


def check_ends(least: float, most: float) -> None:
    """Of values in ascending order; NaN sorts to the end."""
    if not -np.inf < least <= most < np.inf:
        raise ValueError("values must be finite: found NaN or infinity")
    if most / 2 - least / 2 > WIDEST_SPREAD / 2:
        raise ValueError(f"values must spread less than {WIDEST_SPREAD:g}: found {least:g} to {most:g}")
