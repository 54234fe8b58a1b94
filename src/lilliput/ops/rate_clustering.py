"""Clustering on a line by what it costs to store: squared error + rate x bits, least over all partitions into runs.

Entropy-constrained scalar quantization (Chou, Lookabaugh and Gray, 1989), which is usually solved by iteration to a
local optimum. An ideal code spends log2(n / members) bits on each member of a cluster, so with n known the bits of a
cluster depend on that cluster alone: a dynamic program over the sorted values finds the optimum, and how many clusters
it takes. One cluster may be at zero; it needs no entry in the table, and entries that are zero already belong to it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LEAST = 1e-12
"""Of the largest weight: what entries count whose weight is zero."""
MOST_RUNS = 1024
"""Longer rows are first joined to so many runs of neighbours."""


class RateClusters(NamedTuple):
    """`values` [rows, n]: each entry at its centroid; `bits` [rows]: of an ideal code, and of the tables."""

    values: Floats
    bits: Floats


def rate_clusters(
    rows: ArrayLike,
    rate: float,
    weights: ArrayLike | None = None,
    *,
    table_bits: float = 16.0,
    most_k: int | None = None,
    most_runs: int = MOST_RUNS,
) -> RateClusters:
    """For each of `rows` [rows, n] the clusters with the least sum of weight x squared error + `rate` x bits.

    `weights` [rows, n] or [n] say how much the error of an entry counts. An entry costs log2(n / entries of its
    cluster) bits, a cluster that is not zero `table_bits` more; `most_k` such clusters at most. Zeros stay zero,
    equal values together.
    The optimum is over clusters that are runs of the sorted values; it is exact up to rounding for rows of at most
    `most_runs` distinct values.

    >>> rate_clusters([[0.1, 0.1, 1.0, 1.1, 1.0, 1.1]], 0.01).values.round(2).tolist()
    [[0.0, 0.0, 1.05, 1.05, 1.05, 1.05]]
    """
    from lilliput.ops import rate_clustering_kernels

    given = np.ascontiguousarray(rows, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] == 0:
        raise ValueError(f"rows must be a matrix with columns, not of shape {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError("rows must be finite: found NaN or infinity")
    if not (np.isfinite(rate) and rate >= 0 and np.isfinite(table_bits) and table_bits >= 0):
        raise ValueError(f"rate and table_bits must be finite and not negative, not {rate} and {table_bits}")
    most = given.shape[1] if most_k is None else min(most_k, given.shape[1])
    if most < 1 or most_runs < 1:
        raise ValueError(f"most_k and most_runs must be at least 1, not {most_k} and {most_runs}")
    found: Any = rate_clustering_kernels.rate_rows(
        given, _counts(given, weights), float(rate), float(table_bits), most, most_runs
    )
    return RateClusters(*found)


def _counts(rows: Floats, weights: ArrayLike | None) -> Floats:
    counts = np.ones(rows.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if counts.shape not in (rows.shape, rows.shape[1:]):
        raise ValueError(f"weights must have the shape of rows {rows.shape}, or of one, not {counts.shape}")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("weights must be finite and not negative")
    largest = float(counts.max(initial=0.0))
    return np.ascontiguousarray(np.broadcast_to(np.maximum(counts, LEAST * (largest or 1.0)), rows.shape))
